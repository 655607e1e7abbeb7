"""What an analysis of a dump would take, from its first blocks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aniso.state import LayerState

if TYPE_CHECKING:
    import torch

    from aniso.dumps import Dump, DumpLayer


@dataclass(frozen=True)
class LayerFacts:
    """One layer of a dump.

    Attributes:
        name: The layer.
        rows: Its rows.
        dim: Its columns.
        dtype: Its dtype's name.
        bytes: Size of all rows.
        ids: What is stored per row beside them.
        seconds: Estimated time of an analysis.
    """

    name: str
    rows: int
    dim: int
    dtype: str
    bytes: int
    ids: tuple[str, ...]
    seconds: float


def dump_facts(dump: Dump, *, gram: bool = True) -> list[LayerFacts]:
    """Layers of a dump, with the time that an analysis would take.

    Reading and kernels overlap, so a row costs the slower of the two; both are measured on the
    first block of every width and dtype. A block that lies in the page cache reads faster than the
    disk does: the estimate is a lower bound there.

    Args:
        dump: From `open_dump`.
        gram: With second moments, as `analyze` by default.

    Raises:
        InputError: a layer that is no rows of a floating dtype.
    """
    paces: dict[tuple[int, torch.dtype], float] = {}
    facts = []
    for layer in (dump[name] for name in dump.layers):
        kind = layer.dim, layer.dtype
        if kind not in paces or not paces[kind]:
            paces[kind] = _seconds_per_row(layer, gram=gram)
        name = str(layer.dtype).removeprefix("torch.")
        seconds = layer.rows * paces[kind]
        facts.append(
            LayerFacts(layer.name, layer.rows, layer.dim, name, layer.bytes, layer.ids, seconds)
        )
    return facts


def _seconds_per_row(layer: DumpLayer, *, gram: bool) -> float:
    blocks = layer.stored_blocks()
    if not blocks:
        return 0.0
    began = time.perf_counter()
    rows = blocks[0].read().rows
    read = time.perf_counter() - began
    state = LayerState(layer.dim, gram=gram)
    # The first rows pay for what is set up once.
    state.update(rows[: max(1, len(rows) // 16)])
    began = time.perf_counter()
    state.update(rows)
    return max(read, time.perf_counter() - began) / len(rows)
