"""Files that are complete or not there: written beside their place, then renamed into it."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aniso._sizes import size_text
from aniso.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SUFFIX = ".aniso-partial"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it replaces `path` in one step.

    The data reach the disk before the rename and the rename before the return, so a crash leaves
    the previous file or the complete new one.
    """
    temporary = partial_path(path)
    try:
        mode = temporary.stat().st_mode
        yield temporary
        # Writers that make their own file may give it another mode than the user's umask.
        temporary.chmod(mode)
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def partial_path(path: Path) -> Path:
    """An empty file beside `path` that is no file of a dump; who makes it removes or places it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_SUFFIX}")
    # A killed process with this number may have left its own.
    temporary.unlink(missing_ok=True)
    temporary.touch(exist_ok=False)
    return temporary


def put_in_place(temporary: Path, path: Path) -> None:
    """Replaces `path` by the finished file, whose data reach the disk first."""
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces the file at `path` by `data`, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def writable_folder(path: Path) -> Path:
    """Makes the folder if need be, clears what a killed run left half-written, proves it writable.

    Raises:
        InputError: the folder cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        for leftover in path.glob(f".*{_SUFFIX}"):
            if leftover.is_file():
                leftover.unlink(missing_ok=True)
        write_atomic(path / ".aniso-write-test", b"")
        (path / ".aniso-write-test").unlink()
    except OSError as error:
        raise InputError(
            f"cannot write to folder {path} ({error.strerror}); choose another one"
        ) from error
    return path


def refuse_too_large(needed: int, folder: Path, what: str) -> None:
    """Raises InputError when so many bytes do not fit the disk of the folder."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"{what} take {size_text(needed)}, but the disk of {folder} has {size_text(free)} "
            "free; make room, choose another folder, or save fewer layers"
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
