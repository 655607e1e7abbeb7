"""Compiled kernels (csrc/bindings); call them through aniso.ops."""

from typing import Any

version: str
isa: str
has_amx: bool
has_cuda: bool
pair_histogram_max_dim: int

batched_svd_max_side: int
batched_svd_max_size: int
batched_svd_cuda_max_size: int

def batched_svd_cpu(
    x: Any,
    values: Any,
    left: Any,
    right: Any,
    bounds: Any,
    checks: Any,
    methods: Any,
    high: bool,
    threads: int,
    isa: str,
) -> None: ...
def batched_svd_emulated(x: Any, outputs: Any, effort: str, threads: int, near: bool) -> None: ...
def batched_svd_cuda_max_side() -> int: ...
def batched_svd_cuda(x: Any, outputs: Any, effort: str, workspace: Any, stream: int) -> None: ...
def batched_svd_workspace_bytes(x: Any, outputs: Any, effort: str) -> int: ...
def read_stream_cpu(buffer: Any, threads: int) -> int: ...
def gram_cpu(
    x: Any,
    mask: Any,
    pilot: Any,
    raw: Any,
    unit: Any,
    totals: Any,
    noise: Any,
    threads: int,
    isa: str,
) -> None: ...
def pair_histogram_cpu(
    a: Any, b: Any, low: float, high: float, counts: Any, extremes: Any, threads: int, isa: str
) -> None: ...
def group_moments_cpu(
    x: Any, runs: Any, outputs: Any, scale: float, threads: int, isa: str
) -> None: ...
def group_moments_cuda(
    x: Any, runs: Any, outputs: Any, scale: float, workspace: Any, stream: int
) -> None: ...
def group_moments_workspace_bytes(rows: int) -> int: ...
def row_moments_cpu(
    x: Any,
    mask: Any,
    sums: Any,
    norm_sums: Any,
    norm_range: Any,
    abs_max: Any,
    counts: Any,
    threads: int,
    isa: str,
) -> None: ...
def row_moments_cuda(
    x: Any,
    mask: Any,
    sums: Any,
    norm_sums: Any,
    norm_range: Any,
    abs_max: Any,
    counts: Any,
    workspace: Any,
    stream: int,
) -> None: ...
def spectral_factors_cpu(
    x: Any, mask: Any, factors: Any, methods: Any, threads: int, isa: str
) -> None: ...
def spectral_map_cpu(
    x: Any, mask: Any, defined: Any, factors: Any, values: Any, out: Any, threads: int, isa: str
) -> None: ...
def spectral_map_backward_cpu(
    grad: Any,
    mask: Any,
    defined: Any,
    factors: Any,
    values: Any,
    slopes: Any,
    dx: Any,
    dvalues: Any,
    threads: int,
    isa: str,
) -> None: ...
def row_moments_workspace_bytes(x: Any) -> int: ...
