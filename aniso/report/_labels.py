"""Layer names short enough for an axis, and sentences about skipped rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aniso.metrics import LayerMetrics

ROWS = {
    "nonfinite_rows": "Skipped because not finite",
    "zero_rows": "Zero, so without direction and in no cosine",
    "masked_rows": "Masked and left out",
    "excluded_rows": "Left out by token id",
    "outlier_rows": "Left out because of their norm",
}


def clip(name: str, width: int) -> str:
    """Return `name` in at most `width` characters; the end stays, it tells layers apart."""
    return name if len(name) <= width else "…" + name[len(name) - width + 1 :]


def printable(name: str) -> str:
    """Return `name` with control characters replaced, which no SVG may hold."""
    return "".join(letter if letter.isprintable() else "�" for letter in name)


def shared_path(names: Sequence[str]) -> tuple[str, str]:
    """Return what most layers' names begin and end with: ("model.layers.", ".mlp")."""
    paths = [name.split(".") for name in (names[1:] if len(names) > 2 else names)]
    if len(paths) < 2:
        return "", ""
    room = min(len(path) for path in paths) - 1
    before = _shared(paths, room)
    after = _shared([path[::-1] for path in paths], room - before)
    suffix = paths[0][len(paths[0]) - after :]
    return "".join(part + "." for part in paths[0][:before]), "".join("." + part for part in suffix)


def short_names(names: Sequence[str], width: int) -> list[str]:
    """Return names of at most `width` characters that still tell the layers apart."""
    if all(len(name) <= width for name in names):
        return [printable(name) for name in names]
    whole = [clip(printable(name), width) for name in names]
    if len(set(whole)) == len(whole):
        return whole
    labels = axis_labels(names, width - 1)
    return [
        label if label == name else "…" + label for label, name in zip(labels, names, strict=True)
    ]


def axis_labels(names: Sequence[str], width: int = 12) -> list[str]:
    """Return a label per layer without the shared module path; whole names if those clash."""
    prefix, suffix = shared_path(names)
    short = [
        name[len(prefix) : len(name) - len(suffix)]
        if name.startswith(prefix) and name.endswith(suffix) and prefix + suffix
        else name.split(".")[-1]
        for name in names
    ]
    if len(set(short)) < len(short) or len(short) == 1:
        return [clip(printable(name), max(width, 40 // len(names))) for name in names]
    return [clip(printable(name), width) for name in short]


def _shared(paths: Sequence[Sequence[str]], room: int) -> int:
    same = 0
    while same < room and all(path[same] == paths[0][same] for path in paths):
        same += 1
    return same


def total(layers: Mapping[str, LayerMetrics], key: str) -> int:
    """Return the sum of one count over all layers."""
    return sum(int(layer.counts.get(key, 0)) for layer in layers.values())


def row_notes(layers: Mapping[str, LayerMetrics]) -> list[str]:
    """Return one sentence per kind of row that did not count as an ordinary one."""
    notes = []
    for key, meaning in ROWS.items():
        found = {name: int(layer.counts.get(key, 0)) for name, layer in layers.items()}
        found = {name: number for name, number in found.items() if number}
        if found:
            notes.append(_sentence(found, meaning, len(layers)))
    return notes


def _sentence(found: Mapping[str, int], meaning: str, layers: int) -> str:
    number = sum(found.values())
    if len(found) == layers > 1 and len(set(found.values())) == 1:
        return f"{meaning}: {_rows(number // layers)} of every layer."
    places = [f"{name} ({rows:,})" if len(found) > 1 else name for name, rows in found.items()]
    more = [f"{len(found) - 3} more layers"] if len(found) > 3 else []
    return f"{meaning}: {_rows(number)}, in {', '.join(places[:3] + more)}."


def _rows(number: int) -> str:
    return f"{number:,} row{'' if number == 1 else 's'}"
