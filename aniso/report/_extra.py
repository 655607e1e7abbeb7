"""What the HTML pages need beyond aniso itself, and how files are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aniso._files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def missing_extra() -> str | None:
    """Return what to install for the HTML pages, or None if nothing is missing."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        missing = error.name or "matplotlib or jinja2"
        return f'The HTML report needs {missing}: pip install "aniso[report]".'
    return None


def write_texts(folder: Path, contents: Mapping[str, str]) -> list[Path]:
    """Write files of these names and texts, each whole or not at all; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        write_atomic(folder / name, text.encode("utf-8", "replace"))
    return [folder / name for name in contents]
