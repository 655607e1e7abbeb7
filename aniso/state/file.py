"""State files: safetensors with a schema version, the sources and who wrote them."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from aniso._files import atomic_path
from aniso.errors import InputError
from aniso.state.sources import Sources

if TYPE_CHECKING:
    from torch import Tensor

STATE_SUFFIX = ".state.safetensors"
_SCHEMA = 1


def is_state(path: Path) -> bool:
    """Whether a file is a state by its name; dumps lie in folders beside them."""
    return path.name.endswith(STATE_SUFFIX)


def save_state(
    path: str | Path,
    tensors: dict[str, Tensor],
    sources: Sources,
    layer: str | None,
    kind: str = "LayerState",
) -> None:
    """Writes the accumulators of a `kind` and where their rows came from, atomically."""
    metadata = {
        "kind": f"aniso.{kind}",
        "schema": str(_SCHEMA),
        "sources": sources.to_json(),
        "aniso": version("aniso"),
    }
    if layer is not None:
        metadata["layer"] = layer
    with atomic_path(Path(path)) as temporary:
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, temporary, metadata)


def load_state(path: str | Path, kind: str = "LayerState") -> tuple[dict[str, Tensor], Sources]:
    """Reads what `save_state` wrote.

    Raises:
        InputError: no such file, not a state of this kind, damaged, or of a newer schema.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = metadata.get("kind", "")
            if not found.startswith("aniso."):
                raise InputError(f"{path} is no aniso state; pass a *.state.safetensors file")
            if found != f"aniso.{kind}":
                raise InputError(f"{path} holds an {found}; load it with {found}.load")
            if int(metadata["schema"]) > _SCHEMA:
                raise InputError(
                    f"{path} has schema {metadata['schema']}, this aniso reads up to {_SCHEMA}; "
                    "upgrade aniso"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(f"there is no state file {path}") from error
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as safetensors ({error}); pass another file, or "
            "--no-resume to start over"
        ) from error
    return tensors, Sources.from_json(metadata["sources"])


def state_facts(path: str | Path) -> tuple[str, str | None]:
    """The kind of a state file, as "LayerState", and its layer if it names one.

    Raises:
        InputError: no such file, not a state, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError as error:
        raise InputError(f"there is no state file {path}") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as safetensors ({error})") from error
    if not metadata.get("kind", "").startswith("aniso."):
        raise InputError(f"{path} is no aniso state; pass a *.state.safetensors file")
    return metadata["kind"].removeprefix("aniso."), metadata.get("layer")


def take_over(own: dict[str, Tensor], tensors: dict[str, Tensor], what: str) -> None:
    """Copies the tensors into a state's own; `what` names the state in errors.

    Raises:
        InputError: names, shapes or dtypes that do not belong to it.
    """
    shapes = {name: (t.shape, t.dtype) for name, t in tensors.items()}
    if shapes != {name: (t.shape, t.dtype) for name, t in own.items()}:
        raise InputError(f"the tensors {sorted(tensors)} are not those of {what}")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])
