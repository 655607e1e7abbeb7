"""Packages that only some formats need."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aniso.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


def optional(module: str, extra: str, path: Path) -> Any:
    """The module, imported when the first file asks for it.

    Raises:
        InputError: it is not installed; the sentence says which extra brings it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise InputError(
            f"{path} needs the package {package}; install it with pip install 'aniso[{extra}]'"
        ) from error
