"""Which tokens of a batch count: the attention mask and the token ids of a model's call."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from aniso.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn


class TokenFilter:
    """Reads a call's arguments and says which positions [batch, token] count.

    Args:
        model: The model that is called.
        exclude_token_ids: Ids of tokens to leave out.
    """

    def __init__(self, model: nn.Module, exclude_token_ids: Iterable[int] = ()) -> None:
        self._signature = inspect.signature(model.forward)
        self._excluded = sorted(set(exclude_token_ids))

    def keep(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Positions that count, bool [batch, token]; None when all do.

        Raises:
            InputError: a mask that is not [batch, token], or tokens to leave out without ids.
        """
        call = self._signature.bind_partial(*args, **kwargs).arguments
        # What a **kwargs parameter swallowed counts as named too.
        call = {**kwargs, **call}
        keep = _mask_of(call.get("attention_mask"))
        if not self._excluded:
            return keep
        ids = call.get("input_ids")
        if not isinstance(ids, torch.Tensor):
            raise InputError(
                "tokens are to be left out by id, but the model was called without input_ids; "
                "pass them, or do not exclude tokens"
            )
        wanted = ~torch.isin(ids, torch.tensor(self._excluded, device=ids.device))
        return wanted if keep is None else keep[:, -ids.shape[1] :] & wanted


def _mask_of(mask: Any) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        shape = list(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise InputError(
            f"attention_mask is {shape}; capture reads [batch, token] masks: pass that form"
        )
    return mask.bool()


def matching_mask(keep: Tensor | None, hidden: Tensor, name: str) -> Tensor | None:
    """The mask for hidden states [batch, token, d] or, without padding, [tokens, d].

    Raises:
        InputError: the two do not belong together.
    """
    if keep is None:
        return None
    keep = keep.to(hidden.device)
    if hidden.ndim == 3 and keep.shape[0] == hidden.shape[0] and keep.shape[1] >= hidden.shape[1]:
        # With a key-value cache the mask covers the past too; the hidden states only the new end.
        return keep[:, keep.shape[1] - hidden.shape[1] :]
    if hidden.ndim == 2 and hidden.shape[0] == keep.numel():
        return keep.reshape(-1)
    raise InputError(
        f"layer {name} gives {list(hidden.shape)}, which does not match the attention mask "
        f"{list(keep.shape)}; leave this layer out with layers=…"
    )


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
