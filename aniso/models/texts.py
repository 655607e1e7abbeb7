"""Running a Hugging Face model over a file of texts."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aniso.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence


_COUNTED_TEXTS = 1024


@dataclass(frozen=True)
class TextModel:
    """A model with its tokenizer and the longest input it takes, in tokens."""

    model: Any
    tokenizer: Any
    max_length: int


def read_texts(path: Path) -> list[str]:
    """The texts of a UTF-8 file, one per line; blank lines are passed over.

    Raises:
        InputError: no such file, not UTF-8, or no text in it.
    """
    try:
        lines = re.split(r"\r\n|\r|\n", path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 at byte {error.start}; convert it, for instance with iconv"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); pass a text file") from error
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise InputError(f"{path} has no text in it; write one text per line")
    return texts


def load_model(
    name: str, *, device: str = "cpu", dtype: torch.dtype | None = None, max_length: int = 512
) -> TextModel:
    """Loads the model and tokenizer of a local folder or a hub id; runs no code from there.

    Raises:
        InputError: transformers is not installed, or there is no such model.
    """
    model = load_network(name, device=device, dtype=dtype)
    from transformers import AutoTokenizer

    with _refusals(name):
        tokenizer = AutoTokenizer.from_pretrained(name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    shortest = tokenizer.num_special_tokens_to_add() + 1
    if max_length < shortest:
        raise InputError(f"max-length is {max_length}; this tokenizer needs at least {shortest}")
    positions = getattr(model.config, "max_position_embeddings", None) or max_length
    return TextModel(model, tokenizer, min(max_length, positions, tokenizer.model_max_length))


def load_network(name: str, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Any:
    """Loads the model of a local folder or a hub id, without a tokenizer; runs no code from there.

    Raises:
        InputError: transformers is not installed, or there is no such model.
    """
    try:
        from transformers import AutoModel
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise InputError('running a model needs transformers; pip install "aniso[hf]"') from error
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(f"folder {name} has no config.json; pass the folder of a saved model")
    _check_device(device)
    disable_progress_bar()
    with _refusals(name):
        return AutoModel.from_pretrained(name, dtype=dtype or "auto").to(device).eval()


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """What transformers raises where there is no such model, as one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(
            f"{name} is no model that transformers can load ({reason}); pass a folder with "
            "config.json, weights and tokenizer, or a hub id"
        ) from error


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(f"there is no device {device!r}; use cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"this torch ({torch.__version__}) sees no CUDA device; use cpu")


def count_tokens(loaded: TextModel, texts: Sequence[str], excluded: Iterable[int] = ()) -> int:
    """Tokens that `run_texts` gives the model, without those of the excluded ids."""
    left_out = set(excluded)
    count = 0
    for start in range(0, len(texts), _COUNTED_TEXTS):
        batch = list(texts[start : start + _COUNTED_TEXTS])
        inputs = loaded.tokenizer(batch, truncation=True, max_length=loaded.max_length)
        count += sum(token not in left_out for ids in inputs["input_ids"] for token in ids)
    return count


def run_texts(
    loaded: TextModel,
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    after_batch: Callable[[int], None] = lambda count: None,
) -> int:
    """Calls the model on all texts in batches, padded; returns how many texts were cut short.

    Args:
        loaded: From `load_model`.
        texts: What to run, in order.
        batch_size: Texts per call.
        after_batch: Called with the number of texts of each batch.
    """
    cut = 0
    for start in range(0, len(texts), batch_size):
        batch = list(texts[start : start + batch_size])
        lengths = loaded.tokenizer(batch, verbose=False)["input_ids"]
        cut += sum(len(ids) > loaded.max_length for ids in lengths)
        inputs = loaded.tokenizer(
            batch,
            padding=True,
            truncation=True,
            max_length=loaded.max_length,
            return_tensors="pt",
        ).to(loaded.model.device)
        with torch.inference_mode():
            loaded.model(**inputs)
        after_batch(len(batch))
    return cut
