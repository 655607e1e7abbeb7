"""Which files make a dump, and which reader reads them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aniso._names import natural_key
from aniso.dumps._part import stamp_of
from aniso.dumps.arrow import arrow_parts, dataset_files, inside, parquet_parts
from aniso.dumps.npy import npy_parts
from aniso.dumps.pt import pt_parts
from aniso.dumps.raw import raw_parts
from aniso.dumps.safetensors import ROWS_INDEX, safetensors_parts
from aniso.dumps.zarr import is_zarr, zarr_parts
from aniso.errors import InputError
from aniso.state import is_state

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aniso.dumps._part import Part

READERS: dict[str, Callable[[Path], list[Part]]] = {
    ".safetensors": safetensors_parts,
    ".npy": npy_parts,
    ".bin": raw_parts,
    ".raw": raw_parts,
    ".parquet": parquet_parts,
    ".arrow": arrow_parts,
    ".feather": arrow_parts,
    ".pt": pt_parts,
    ".pth": pt_parts,
}
_INDEX_SUFFIX = ".index.json"
_INDEX_BYTES = 1 << 26


def parts_of(path: Path) -> list[Part]:
    """The arrays of a file or folder, in order.

    Raises:
        InputError: nothing that a reader reads, or damaged.
    """
    if path.is_dir() and is_zarr(path):
        return _stamped(path, zarr_parts)
    if not path.is_dir():
        return _file_parts(path)
    indexed = _indexed(path)
    if indexed is not None:
        return indexed
    if (path / ROWS_INDEX).is_file():
        return _listed(path / ROWS_INDEX)
    files = dataset_files(path)
    return [part for file in files or _files(path) for part in _file_parts(file)]


def _listed(index: Path) -> list[Part]:
    """The files that the writer listed when it had ended, all there and of as many rows."""
    facts = _facts(index)
    files, rows = facts.get("files"), facts.get("rows")
    if not isinstance(files, list) or not isinstance(rows, dict):
        raise InputError(f"{index} lists no files and rows; remove it to read what is there")
    parts = [
        part
        for name in dict.fromkeys(map(str, files))
        for part in _file_parts(inside(index.parent, name, index))
    ]
    found = Counter[str]()
    for part in parts:
        found[part.layer] += part.shape[0] if part.shape else 0
    if wrong := sorted(name for name in found.keys() | rows if found[name] != rows.get(name)):
        raise InputError(
            f"{index} states {repr(rows.get(wrong[0]))[:80]} rows of layer {wrong[0][:80]!r}, its "
            f"files hold {found[wrong[0]]:,}; bring the missing files back, or remove the index to "
            "read what is there"
        )
    return parts


def _indexed(folder: Path) -> list[Part] | None:
    """The tensors that the folder's index names, in the index's order; None without an index."""
    indices = [f for f in folder.iterdir() if f.name.endswith(f".safetensors{_INDEX_SUFFIX}")]
    if not indices:
        return None
    if len(indices) > 1:
        raise InputError(f"folder {folder} has {len(indices)} indices; a dump has one")
    (index,) = indices
    places = _weight_map(index)
    files = {name: inside(folder, name, index) for name in dict.fromkeys(places.values())}
    parts = {name: _file_parts(files[name]) for name in sorted(files, key=natural_key)}
    for key, name in places.items():
        # Scales of fp8 rows are no layer; they belong to the tensor whose name they begin with.
        if not any(key.startswith(part.key) for part in parts[name]):
            raise InputError(f"{index} names the tensor {key[:80]!r}, which {name} lacks; mend it")
    return [part for name in parts for part in parts[name] if places.get(part.key) == name]


def _weight_map(index: Path) -> dict[str, str]:
    places = _facts(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise InputError(f"{index} has no weight_map of tensors and files; write it again")
    return places


def _facts(index: Path) -> dict[str, Any]:
    """The object that an index holds, an empty one where it holds none."""
    facts: Any = None
    if index.stat().st_size <= _INDEX_BYTES:
        try:
            facts = json.loads(index.read_bytes())
        except (ValueError, RecursionError):
            facts = None
    return facts if isinstance(facts, dict) else {}


def _files(folder: Path) -> list[Path]:
    found = [
        file
        for file in folder.iterdir()
        if file.suffix in READERS and not file.name.startswith(".") and not is_state(file)
    ]
    if not found:
        raise InputError(
            f"folder {folder} has no file of a dump ({', '.join(READERS)}); pass another"
        )
    suffixes = sorted({file.suffix for file in found})
    if len(suffixes) > 1:
        raise InputError(
            f"folder {folder} has {' and '.join(suffixes)} files; a dump is of one kind"
        )
    return sorted(found, key=lambda file: natural_key(file.name))


def _file_parts(path: Path) -> list[Part]:
    reader = READERS.get(path.suffix)
    if is_state(path):
        raise InputError(f"{path} is a saved state, not a dump; load it with LayerState.load")
    if reader is None:
        raise InputError(f"{path} is none of {', '.join(READERS)}; convert it to one of them")
    if not path.exists():
        raise InputError(f"{path} is a link to nothing; remove it or mend it")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); write it again")
    return _stamped(path, reader)


def _stamped(path: Path, reader: Callable[[Path], list[Part]]) -> list[Part]:
    stamp = stamp_of(path)
    return [replace(part, stamp=stamp) for part in reader(path)]
