"""What every experiment hands over: a JSON file, an SVG file, a table."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

from aniso._files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rich.table import Table


def save_results(
    folder: Path, name: str, results: dict[str, Any], draw: Callable[[], str]
) -> list[Path]:
    """Writes NAME.json, then NAME.svg; returns their paths.

    Raises:
        InputError: matplotlib is not installed; the JSON file is written all the same.
    """
    paths = [folder / f"{name}.json", folder / f"{name}.svg"]
    write_atomic(paths[0], json.dumps(results, allow_nan=False, indent=1).encode())
    write_atomic(paths[1], draw().encode())
    return paths


def number(value: float) -> float | None:
    """The number, or None (null in JSON) when it is not finite."""
    return value if math.isfinite(value) else None


def plain_table(caption: str, columns: Sequence[str]) -> Table:
    """An empty table: the first column to the left, numbers to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for position, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if position else "left")
    table.caption = Text(caption)
    return table


def short_name(name: str) -> str:
    """A layer's name in a narrow column: its number where it has one."""
    numbers = re.findall(r"\d+", name)
    return numbers[-1] if numbers else name[:5]
