"""Which tokens of a batch count: the attention mask and the token ids of a model's call."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from aniso.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn


_DECODER = "decoder_"
_AUDIO = ("input_values", "input_features")


class TokenFilter:
    """Reads a call's arguments and says which tokens of a layer count.

    The layers of an encoder-decoder's decoder follow decoder_attention_mask and decoder_input_ids,
    all others attention_mask and input_ids.

    Args:
        model: The model that is called.
        exclude_token_ids: Ids of tokens to leave out.
    """

    def __init__(self, model: nn.Module, exclude_token_ids: Iterable[int] = ()) -> None:
        self._signature = inspect.signature(model.forward)
        self._excluded = sorted(set(exclude_token_ids))
        self._decoder = _decoder_path(model)
        self._frames = getattr(model, "_get_feat_extract_output_lengths", None)
        self._calls: dict[str, _Call] = {}

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Takes in the arguments of a call; to be called before the model runs.

        Raises:
            InputError: a mask that is not [batch, token], or tokens to leave out without ids.
        """
        call = self._signature.bind_partial(*args, **kwargs).arguments
        # What a **kwargs parameter swallowed counts as named too.
        call = {**kwargs, **call}
        sides = ("",) if self._decoder is None else ("", _DECODER)
        self._calls = {side: self._read_side(call, side) for side in sides}

    def _read_side(self, call: dict[str, Any], side: str) -> _Call:
        keep = _mask_of(call.get(f"{side}attention_mask"))
        ids = call.get(f"{side}input_ids")
        width = _width(call, side)
        audio = any(name in call for name in _AUDIO) and not side
        if self._excluded and not audio:
            if not isinstance(ids, torch.Tensor):
                raise InputError(
                    f"tokens are to be left out by id, but the model was called without {side}"
                    "input_ids; pass them, or do not exclude tokens"
                )
            wanted = ~torch.isin(ids, torch.tensor(self._excluded, device=ids.device))
            keep = wanted if keep is None else keep[:, -ids.shape[1] :] & wanted
        return _Call(keep, width, self._frames if audio else None)

    def mask(self, hidden: Tensor, name: str) -> Tensor | None:
        """Which of a layer's hidden states count; None when all do.

        Args:
            hidden: [batch, token, d] or, without padding, [tokens, d].
            name: The layer's.

        Returns:
            Bool, [batch, token] or [tokens].

        Raises:
            InputError: the hidden states do not belong to the mask of the call.
        """
        call = self._call_of(name)
        if call is None or call.keep is None:
            return None
        keep = call.keep.to(hidden.device)
        if hidden.ndim == 3 and len(keep) == len(hidden):
            if keep.shape[1] == hidden.shape[1]:
                return keep
            if call.frames is not None:
                return _frame_mask(keep, hidden, call.frames, name)
            # With a key-value cache the mask covers the past too, the hidden states the new end.
            if keep.shape[1] > hidden.shape[1] == call.width:
                return keep[:, keep.shape[1] - hidden.shape[1] :]
        if hidden.ndim == 2 and hidden.shape[0] == keep.numel():
            return keep.reshape(-1)
        raise InputError(
            f"layer {name} gives {list(hidden.shape)}, which does not match the attention mask "
            f"{list(keep.shape)}; leave this layer out with layers=…"
        )

    def batch_shape(self, name: str) -> torch.Size | None:
        """[batch, token] of the mask that a layer's tokens follow; None without one."""
        call = self._call_of(name)
        return None if call is None or call.keep is None else call.keep.shape

    def _call_of(self, name: str) -> _Call | None:
        inside = self._decoder is not None and f"{name}.".startswith(f"{self._decoder}.")
        return self._calls.get(_DECODER if inside else "")


@dataclass(frozen=True)
class _Call:
    """One side of a call: its mask, how many tokens it runs, samples → frames for audio."""

    keep: Tensor | None
    width: int | None
    frames: Callable[[Tensor], Tensor] | None


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
