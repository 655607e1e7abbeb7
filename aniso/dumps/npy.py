"""NumPy files: one layer each, memory-mapped, never unpickled."""

from __future__ import annotations

from tokenize import TokenError
from typing import TYPE_CHECKING

import numpy as np
import torch

from aniso.dumps._part import Part
from aniso.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_MAGIC = b"\x93NUMPY"
_DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16}


def npy_parts(path: Path) -> list[Part]:
    """The array of a .npy file as one part named after the file.

    Raises:
        InputError: not a NumPy file, truncated, or of Python objects.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise InputError(f"{path} is no NumPy file; write it with numpy.save")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    # NumPy parses the header as a Python literal: a damaged one fails in the tokenizer.
    except (ValueError, EOFError, OSError, SyntaxError, TypeError, TokenError) as error:
        raise InputError(
            f"{path} cannot be read as an array of numbers ({error}); write it with numpy.save"
        ) from error

    def read(start: int, stop: int) -> Tensor:
        rows = array[start:stop]
        return torch.from_numpy(np.array(rows, dtype=rows.dtype.newbyteorder("="), order="C"))

    dtype = _DTYPES.get(array.dtype.name)
    return [Part(path.stem, path, "", array.shape, dtype, str(array.dtype), read, ())]
