"""Damage to files: bytes and numbers overwritten, cut, doubled, JSON and archives rewritten."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from random import Random

_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 16, 127, 128, 255, 256, 4096, 65535, 65536)
_WORDS = (
    "F32", "BF16", "F8_E4M3", "I64", "BOOL", "X", "bfloat16", "float32", "uint16", "../x", "/etc",
    "a", "a_scale", "hidden_states", "token_ids", "attention_mask", "f.safetensors", "", "\n", "é",
    "__metadata__", "zstd", "gzip", "pickle", "bytes", "transpose", "default", "regular", "<f4",
    "|O",
)  # fmt: skip

_KINDS = ("<f4", ">f8", "<f2", "<u2", "|V2", "|O", "<i8", "|b1", "f4,f4", "<M8", "")


def number(chance: Random) -> int:
    """A number that a parser may stumble over."""
    near = 1 << chance.choice((7, 8, 15, 16, 24, 31, 32, 33, 40, 47, 48, 53, 62, 63, 64))
    return chance.choice((*_NUMBERS, near, near - 1, near + 1, -1, -near))


def value(chance: Random, depth: int = 2) -> Any:
    """Any JSON."""
    kind = chance.randrange(9 if depth else 7)
    if kind < 3:
        return number(chance)
    if kind < 5:
        return chance.choice(_WORDS)
    if kind == 5:
        return chance.choice((None, True, False, 0.5, 1e308, float("nan"), float("inf")))
    if kind == 6:
        return chance.choice(([], {}))
    inner = [value(chance, depth - 1) for _ in range(chance.randrange(4))]
    return inner if kind == 7 else {chance.choice(_WORDS): item for item in inner}


def damaged_json(tree: Any, chance: Random) -> Any:
    """The tree with one value, name or entry changed."""
    if not isinstance(tree, dict | list) or not tree or chance.random() < 0.15:
        return value(chance)
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key, kind = chance.choice(keys), chance.randrange(8)
    changed = tree.copy()
    if kind == 0:
        del changed[key]
    elif kind == 1 and isinstance(tree, dict):
        changed[chance.choice(_WORDS)] = changed.pop(key)
    elif kind == 2 and isinstance(tree, list):
        changed.insert(key, value(chance))
    elif kind == 3:
        changed[key] = changed[chance.choice(keys)]
    else:
        changed[key] = damaged_json(tree[key], chance)
    return changed


def damaged_text(data: bytes, chance: Random) -> bytes:
    """JSON changed as a tree, or else as bytes."""
    try:
        tree = json.loads(data)
    except ValueError:
        return damaged_bytes(data, chance)
    for _ in range(chance.choice((1, 1, 2, 3))):
        tree = damaged_json(tree, chance)
    text = json.dumps(tree).encode()
    return text + chance.choice((b"",) * 20 + (b"[" * 5000, b"}", b"\0", b" " * 9))


def damaged_bytes(data: bytes, chance: Random) -> bytes:
    """Up to five places overwritten, cut out, filled or doubled."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 5))):
        changed = changed or bytearray(1)
        at = _place(len(changed), chance)
        _damage(changed, at, chance)
    return bytes(changed or b"\0")


def _place(size: int, chance: Random) -> int:
    """Anywhere, but headers begin a file and footers end it."""
    near = chance.choice((size, size, 16, 128, 512))
    at = chance.randrange(min(size, near))
    return size - 1 - at if chance.random() < 0.4 else at


def _damage(data: bytearray, at: int, chance: Random) -> None:
    kind, length = chance.randrange(9), chance.choice((1, 2, 3, 8, 16, 64, 200))
    if kind == 0:
        data[at] = chance.randrange(256)
    elif kind == 1:
        data[at] ^= 1 << chance.randrange(8)
    elif kind < 4:
        size = chance.choice("BHIQ")
        word = struct.pack(f"<{size}", number(chance) % (1 << 8 * struct.calcsize(size)))
        data[at : at + len(word)] = word[: len(data) - at]
    elif kind == 4:
        del data[at : at + length]
    elif kind == 5:
        del data[at:]
    elif kind == 6:
        data[at:at] = data[at : at + length]
    elif kind == 7:
        other = chance.randrange(len(data))
        data[at : at + length] = data[other : other + length]
    else:
        data[at : at + length] = bytes([chance.choice((0, 255, 128))]) * min(length, len(data) - at)


def damaged_safetensors(data: bytes, chance: Random) -> bytes:
    """The header changed as JSON, its length right (or nearly)."""
    (size,) = struct.unpack("<Q", data[:8])
    text = damaged_text(data[8 : 8 + size], chance)
    stated = len(text) + chance.choice((0,) * 12 + (1, -1))
    return struct.pack("<Q", max(0, stated)) + text + data[8 + size :]


def damaged_npy(data: bytes, chance: Random) -> bytes:
    """The header's text changed, its length right."""
    (size,) = struct.unpack("<H", data[8:10])
    text = data[10 : 10 + size]
    if chance.random() < 0.5:
        shape = tuple(number(chance) for _ in range(chance.randrange(4)))
        kind = chance.choice(
            ("<f4", ">f8", "<f2", "<u2", "|V2", "|O", "<i8", "|b1", "f4,f4", "<M8", "")
        )
        order = chance.choice((True, False, 1, None))
        text = repr({"descr": kind, "fortran_order": order, "shape": shape}).encode() + b"\n"
    else:
        text = damaged_bytes(text, chance)[:60_000]
    return data[:8] + struct.pack("<H", len(text)) + text + data[10 + size :]


def damaged_archive(data: bytes, chance: Random) -> bytes:
    """One member of a zip file changed, its checksum right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        members = old.infolist()
        pickles = [m for m in members if m.filename.endswith(".pkl")]
        chosen = chance.choice((*members, *pickles * len(members)))
        for member in members:
            content = old.read(member)
            new.writestr(member, damaged_bytes(content, chance) if member is chosen else content)
    return out.getvalue()


_STRUCTURED = {
    ".safetensors": damaged_safetensors,
    ".json": damaged_text,
    ".npy": damaged_npy,
    ".pt": damaged_archive,
}


def damaged(files: dict[str, bytes], chance: Random) -> dict[str, bytes]:
    """The files of a dump, by name, with one or two of them damaged; rarely one is missing."""
    changed = dict(files)
    for name in chance.choices(list(files), k=chance.choice((1, 1, 1, 2))):
        if len(files) > 1 and chance.random() < 0.03:
            changed.pop(name, None)
            continue
        whole = [end for end in _STRUCTURED if name.endswith(end)]
        deep = _STRUCTURED[whole[0]] if whole and chance.random() < 0.6 else damaged_bytes
        changed[name] = deep(files[name], chance)
    return changed
