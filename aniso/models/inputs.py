"""Which tokens of a batch count: the attention mask and the token ids of a model's call."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from aniso.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn

Groups = Literal["token_ids", "sentence", "position"]

_DECODER = "decoder_"
_AUDIO = ("input_values", "input_features")


class TokenFilter:
    """Reads a call's arguments and says which tokens of a layer count, and what they are.

    The layers of an encoder-decoder's decoder follow decoder_attention_mask and decoder_input_ids,
    all others attention_mask and input_ids. `torch.compile` takes all of it into its graph, but for
    masks of audio samples.

    Args:
        model: The model that is called.
        exclude_token_ids: Ids of tokens to leave out.
    """

    def __init__(self, model: nn.Module, exclude_token_ids: Iterable[int] = ()) -> None:
        self._names = _positional(model)
        ids = sorted(set(exclude_token_ids))
        self._ids = torch.tensor(ids, device=device_of(model)) if ids else None
        self._decoder = _decoder_path(model)
        self._frames = getattr(model, "_get_feat_extract_output_lengths", None)
        self._calls: dict[str, _Call] = {}
        self._sentence = self._next_sentence = 0

    @property
    def excludes(self) -> bool:
        """Whether tokens are left out by id."""
        return self._ids is not None

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Takes in the arguments of a call; to be called before the model runs.

        Raises:
            InputError: a mask that is not [batch, token], or tokens to leave out without ids.
        """
        call = {**dict(zip(self._names, args, strict=False)), **kwargs}
        sides = ("",) if self._decoder is None else ("", _DECODER)
        self._calls = {side: self._read_side(call, side) for side in sides}

    def number_sentences(self) -> None:
        """Gives the sentences of the call the next numbers; after `read`, where groups need it."""
        self._sentence = self._next_sentence
        self._next_sentence += self._calls[""].sentences

    def forget(self) -> None:
        """Lets go of the call's tensors."""
        self._calls = {}

    def _read_side(self, call: dict[str, Any], side: str) -> _Call:
        ids = call.get(f"{side}input_ids")
        first = next((x for x in call.values() if isinstance(x, torch.Tensor) and x.ndim), None)
        audio = any(name in call for name in _AUDIO) and not side
        excluded = None
        if self._ids is not None and not audio:
            if not isinstance(ids, torch.Tensor):
                raise InputError(
                    f"tokens are to be left out by id, but the model was called without {side}"
                    "input_ids; pass them, or do not exclude tokens"
                )
            excluded = torch.isin(ids, self._ids.to(ids.device))
        return _Call(
            keep=_mask_of(call.get(f"{side}attention_mask")),
            excluded=excluded,
            ids=ids if isinstance(ids, torch.Tensor) else None,
            positions=call.get("position_ids") if not side else None,
            width=_width(call, side),
            sentences=0 if first is None else len(first),
            frames=self._frames if audio else None,
        )

    def mask(self, hidden: Tensor, name: str) -> Tensor | None:
        """Which of a layer's hidden states are no padding; None when none is.

        Args:
            hidden: [batch, token, d] or, without padding, [tokens, d].
            name: The layer's.

        Returns:
            Bool, [batch, token] or [tokens].

        Raises:
            InputError: the hidden states do not belong to the mask of the call.
        """
        call = self._call_of(name)
        return None if call is None or call.keep is None else _fitted(call.keep, hidden, call, name)

    def excluded(self, hidden: Tensor, name: str) -> Tensor | None:
        """Which of a layer's hidden states are of tokens left out by id; as `mask`."""
        call = self._call_of(name)
        if call is None or call.excluded is None:
            return None
        return _fitted(call.excluded, hidden, call, name)

    def groups(self, kind: Groups, hidden: Tensor, name: str) -> Tensor:
        """The group of each of a layer's hidden states: its token id, sentence or position.

        Sentences are numbered through all calls; positions count from the first token that is no
        padding.

        Returns:
            Int64, [batch, token] or [tokens].

        Raises:
            InputError: token ids that the call does not have, or hidden states without sequences.
        """
        call = self._call_of(name)
        shape = hidden.shape[:2] if hidden.ndim == 3 else self.batch_shape(name)
        if call is None or shape is None:
            raise InputError(
                f"layer {name} gives {list(hidden.shape)} without a mask, so its tokens have no "
                f"{kind}; leave this layer out with layers=…"
            )
        if kind == "token_ids":
            if call.ids is None:
                raise InputError(
                    "tokens are to be grouped by id, but the model was called without input_ids; "
                    "pass them, or group by sentence or position"
                )
            return _fitted(call.ids, hidden, call, name)
        if kind == "sentence":
            found = torch.arange(self._sentence, self._sentence + shape[0])[:, None].expand(shape)
        else:
            found = call.positions_of(shape)
        return found.to(hidden.device).reshape(hidden.shape[:-1])

    def batch_shape(self, name: str) -> torch.Size | None:
        """[batch, token] of the mask that a layer's tokens follow; None without one."""
        call = self._call_of(name)
        return None if call is None or call.keep is None else call.keep.shape

    def _call_of(self, name: str) -> _Call | None:
        inside = self._decoder is not None and f"{name}.".startswith(f"{self._decoder}.")
        return self._calls.get(_DECODER if inside else "")


@dataclass(frozen=True)
class _Call:
    """One side of a call.

    Attributes:
        keep: Its mask, [batch, token] bool.
        excluded: Tokens to leave out by id, [batch, token] bool.
        ids: Token ids, [batch, token].
        positions: As the call names them, [batch or 1, token].
        width: Tokens that it runs; fewer than the mask has where a cache holds the others.
        sentences: Entries of the batch.
        frames: Samples to frames, for audio.
    """

    keep: Tensor | None
    excluded: Tensor | None
    ids: Tensor | None
    positions: Tensor | None
    width: int | None
    sentences: int
    frames: Callable[[Tensor], Tensor] | None

    def positions_of(self, shape: torch.Size) -> Tensor:
        """The position of every token of hidden states [batch, token, d]."""
        if isinstance(self.positions, torch.Tensor) and self.positions.shape[-1] == shape[1]:
            return self.positions.expand(shape)
        if self.keep is None or self.frames is not None or self.keep.shape[1] < shape[1]:
            return torch.arange(shape[1]).expand(shape)
        counted = self.keep.long().cumsum(dim=1) - 1
        return counted[:, counted.shape[1] - shape[1] :].clamp(min=0)


def _fitted(tokens: Tensor, hidden: Tensor, call: _Call, name: str) -> Tensor:
    """What is known of the tokens of a call, [batch, token], by rows of hidden states."""
    tokens = tokens.to(hidden.device)
    if hidden.ndim == 3 and len(tokens) == len(hidden):
        if tokens.shape[1] == hidden.shape[1]:
            return tokens
        if call.frames is not None:
            return _frame_mask(tokens, hidden, call.frames, name)
        # With a key-value cache the mask covers the past too, the hidden states the new end.
        if tokens.shape[1] > hidden.shape[1] == call.width:
            return tokens[:, tokens.shape[1] - hidden.shape[1] :]
    if hidden.ndim == 2 and hidden.shape[0] == tokens.numel():
        return tokens.reshape(-1)
    raise InputError(
        f"layer {name} gives {list(hidden.shape)}, which does not match the attention mask or "
        f"token ids {list(tokens.shape)}; leave this layer out with layers=…"
    )


def device_of(module: nn.Module) -> torch.device:
    """Where the first parameter or buffer of a module lies; the CPU where it has none.

    Weights that accelerate offloads have no place of their own: it is where their module runs.
    """
    tensors = (*module.parameters(), *module.buffers())
    if tensors and tensors[0].device.type != "meta":
        return tensors[0].device
    hooks = (getattr(part, "_hf_hook", None) for part in module.modules())
    places = (getattr(hook, "execution_device", None) for hook in hooks)
    return torch.device(next((place for place in places if place is not None), "cpu"))


def _positional(model: nn.Module) -> list[str]:
    """Names of the arguments that may be passed by position, in order."""
    parameters = inspect.signature(model.forward).parameters.values()
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.kind in by_place]


def _decoder_path(model: nn.Module) -> str | None:
    """Where an encoder-decoder's decoder is; None for other models."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return None
    decoder = getattr(model, "get_decoder", lambda: None)()
    return next((path for path, m in model.named_modules() if path and m is decoder), None)


def _width(call: dict[str, Any], side: str) -> int | None:
    """Tokens of the call: of its ids, its embeddings, or whatever tensor comes first."""
    named = [call.get(f"{side}input_ids"), call.get(f"{side}inputs_embeds")]
    others = [] if side else [x for name, x in call.items() if name != "attention_mask"]
    for value in (*named, *others):
        if isinstance(value, torch.Tensor) and value.ndim >= 2:
            return value.shape[1]
    return None


def _frame_mask(
    keep: Tensor, hidden: Tensor, frames: Callable[[Tensor], Tensor], name: str
) -> Tensor:
    """The mask of frames [batch, token] that follows from one of audio samples, padded right."""
    if keep.shape[1] > 1 and bool((keep[:, 1:] & ~keep[:, :-1]).any()):
        raise InputError(
            f"the mask of the audio has samples behind padding, so the frames of layer {name} "
            "cannot be told apart; pad audio on the right"
        )
    lengths = frames(keep.sum(dim=1))
    return torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]


def _mask_of(mask: Any) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        shape = list(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise InputError(
            f"attention_mask is {shape}; capture reads [batch, token] masks: pass that form"
        )
    return mask.bool()


def special_token_ids(model: nn.Module, tokenizer: Any = None) -> list[int]:
    """Ids of [CLS], [SEP], padding and the like, from the tokenizer, or the model's own one.

    Raises:
        InputError: no tokenizer was given and the model's cannot be loaded.
    """
    if tokenizer is None:
        name = getattr(model, "name_or_path", "")
        try:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(name)
        except (ImportError, OSError, ValueError) as error:
            raise InputError(
                f"the tokenizer of {name or type(model).__name__} cannot be loaded; pass "
                "tokenizer=… or exclude_token_ids=…"
            ) from error
    return [int(token) for token in tokenizer.all_special_ids]
