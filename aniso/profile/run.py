"""The profile of a set of kernels on one device."""

from __future__ import annotations

import platform
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib.metadata import version
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from aniso.errors import InputError
from aniso.profile.builtin import builtin_kernels
from aniso.profile.ceilings import matmul_rates, measure_ceilings, read_rates
from aniso.profile.kernels import Kernel, registered_kernels
from aniso.profile.measurement import Measurement, Timing
from aniso.profile.report import ProfileReport
from aniso.profile.timing import ColdCache, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_DTYPES = (torch.float64, torch.float32, torch.bfloat16)
_BUDGET = 0.6
_PACE = 0.15


def profile(
    ops: Sequence[str] | None = None,
    *,
    kernels: Iterable[Kernel] | None = None,
    device: str = "cpu",
    budget: float = _BUDGET,
    shown: Callable[[str], object] = lambda name: None,
) -> ProfileReport:
    """Measures kernels against float64 first, then against this machine's limits and torch.

    The limits (read, copy, matrix product per dtype) are measured in the same run. Ours and the
    torch equivalent take turns, each time with cold caches; on a GPU by CUDA events. A result
    that is wrong has no speed.

    Args:
        ops: Names or globs of ops. Default: all.
        kernels: What to measure. Default: the ops of aniso, and those registered by `kernel`.
        device: "cpu", "cuda" or "cuda:N".
        budget: Seconds per kernel and input; three rounds at least.
        shown: Called with the name of what is measured next.

    Returns:
        ProfileReport, in the order of the kernels.

    Raises:
        InputError: no op matches, or the device is not there.

    The default run takes about a minute on two cores.
    """
    known = (*builtin_kernels(), *registered_kernels()) if kernels is None else tuple(kernels)
    wanted = _wanted(ops, known)
    _require_device(device)
    shown("ceilings")
    ceilings = measure_ceilings(device, _DTYPES)
    cold = ColdCache(device)
    rows: list[Measurement] = []
    pace, peaks = [read_rates(device, cold)], [ceilings.matmul]
    for entry in wanted:
        shown(entry.op)
        rows += _measure(entry, cold, device, budget)
        pace.append(read_rates(device, cold))
        peaks.append(matmul_rates(device, _DTYPES, patience=0.0))
    # What the machine gave at any moment of the run, it can give.
    read = max(ceilings.read, *(rates[-1] for rates in pace))
    matmul = {name: max(peak[name] for peak in peaks) for name in ceilings.matmul}
    ceilings = replace(ceilings, read=read, matmul=matmul)
    typical = [median(rates) for rates in pace]
    return ProfileReport(_machine(device), ceilings, tuple(rows), _notes(typical))


def _wanted(ops: Sequence[str] | None, known: tuple[Kernel, ...]) -> list[Kernel]:
    """The kernels whose op one of the globs matches."""
    globs = ["*"] if ops is None else ops
    for glob in globs:
        if not any(fnmatchcase(entry.op, glob) for entry in known):
            names = ", ".join(entry.op for entry in known)
            raise InputError(f"no op matches {glob!r}; the ops are {names}")
    return [entry for entry in known if any(fnmatchcase(entry.op, glob) for glob in globs)]


def _require_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"there is no device {device!r} here; use cpu, cuda or cuda:N") from error


def _measure(entry: Kernel, cold: ColdCache, device: str, budget: float) -> Iterator[Measurement]:
    for shape in entry.shapes:
        for dtype in entry.dtypes:
            inputs = entry.inputs(shape, dtype, device)
            on_cpu = [x.cpu() if isinstance(x, torch.Tensor) else x for x in inputs]
            exact = entry.reference(*on_cpu)
            for backend, run in entry.implementations(inputs).items():
                found = {
                    "op": entry.op,
                    "backend": backend,
                    "dtype": str(dtype).removeprefix("torch."),
                    "shape": "x".join(map(str, shape)),
                    "nbytes": float(entry.nbytes(*inputs)),
                    "flops": float(entry.flops(*inputs)),
                    "error": entry.error(run(*inputs), exact),
                    "tolerance": entry.allowed(dtype),
                }
                yield _timed(found, entry, run, inputs, cold, device, budget)


def _timed(
    found: dict[str, Any],
    entry: Kernel,
    run: Callable[..., Any],
    inputs: tuple[Any, ...],
    cold: ColdCache,
    device: str,
    budget: float,
) -> Measurement:
    untimed = Measurement(**found)
    if not untimed.correct:
        return untimed
    peer = entry.peer
    calls = {"ours": lambda: run(*inputs)}
    if peer is not None:
        calls["torch"] = lambda: peer(*inputs)
    timings = {
        name: Timing.of(seconds)
        for name, seconds in interleaved(calls, cold, device, budget).items()
    }
    other = timings["torch"].median if "torch" in timings else None
    return Measurement(**found, timing=timings["ours"], peer=other)


def _machine(device: str) -> dict[str, Any]:
    gpu = torch.device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else _processor()
    return {
        "device": device,
        "name": name,
        "threads": torch.get_num_threads(),
        "aniso": version("aniso"),
        "torch": torch.__version__,
    }


def _processor() -> str:
    """The processor's model as Linux names it, elsewhere its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            named = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    except OSError:
        named = []
    return next(iter(named), platform.processor() or platform.machine())


def _notes(pace: list[float]) -> tuple[str, ...]:
    slowest, fastest = min(pace), max(pace)
    if slowest >= (1 - _PACE) * fastest:
        return ()
    return (
        f"the machine did not keep its pace: memory was read at {slowest / 1e9:.1f} to "
        f"{fastest / 1e9:.1f} GB/s during the run (other work, or throttling)",
    )
