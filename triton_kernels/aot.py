"""What every kernel tells the tests, so that it can be compiled without a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .launch_configs import LaunchConfig

POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
}


@dataclass(frozen=True)
class AotCase:
    """One kernel as it is launched, to be compiled ahead of time.

    Attributes:
        name: Kernel, dtype and what else tells it from others, for messages.
        kernel: The `triton.jit` function.
        signature: Type of every argument, "constexpr" for compile-time ones.
        constants: Values of the compile-time arguments.
        options: Launch options, such as num_warps.
        capabilities: Compute capabilities that it is launched on.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any]
    capabilities: tuple[int, ...] = (80, 90, 100)


def aot_case(
    name: str,
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    config: LaunchConfig,
    capabilities: tuple[int, ...] = (80, 90, 100),
) -> AotCase:
    """The case of a launch; arguments without a type are compile-time constants.

    Args:
        name: What tells this launch from the kernel's others.
        kernel: The `triton.jit` function.
        types: Triton's type of every run-time argument, by name; more names do no harm.
        constants: Values of compile-time arguments that `config` does not hold.
        config: The launch configuration.
        capabilities: Compute capabilities that it is launched on.
    """
    signature = {arg: types.get(arg, "constexpr") for arg in kernel.arg_names}
    known = config.constants() | {"NUM_STAGES": config.num_stages} | constants
    values = {arg: known[arg] for arg, kind in signature.items() if kind == "constexpr"}
    title = f"{kernel.fn.__name__} {name}"
    return AotCase(title, kernel, signature, values, config.options(), capabilities)
