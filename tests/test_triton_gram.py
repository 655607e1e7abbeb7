from __future__ import annotations

import math
import re

import pytest
import torch
import triton
import triton.language as tl
from aniso.triton_kernels import planes
from aniso.triton_kernels.aot import AotCase
from aniso.triton_kernels.gram import aot_cases, gram, gram64_kernel, gram_kernel
from aniso.triton_kernels.launch_configs import gram_config
from aniso.triton_kernels.tiles import FLOAT64_DOTS
from aot import SHARED_LIMIT, compiled, resources, serialized
from interpreter import interpreted
from rows import DTYPES

from aniso import reference

CASES = aot_cases() + planes.aot_cases()
RUNS = [(case, capability) for case in CASES for capability in case.capabilities]
CODE = """
from aniso.triton_kernels import gram as module
for capability, slab, x, weights, out, options in arguments.values():
    module.capability = lambda device: capability
    module._SLAB_BYTES = slab
    module.gram(x, weights, out, **options)
"""
POINTERS, DESCRIPTORS = 0, 90  # capabilities: how the kernel reads its tiles
SLAB = 1 << 29


@pytest.mark.parametrize("run", RUNS, ids=lambda r: f"{r[0].name} {r[1]}".replace(" ", "-"))
def test_compiles_without_spills(run, tmp_path):
    case, capability = run
    kernel = compiled(case, capability)
    local, shared = resources(kernel, tmp_path)
    assert local == 0
    assert kernel.metadata.shared + shared <= SHARED_LIMIT[capability]
    assert re.search(r"tt\.addptr .*(xi64>|, i64)", kernel.asm["ttir"])
    if case.kernel is gram_kernel and capability == 90:
        assert "wgmma.mma_async" in kernel.asm["ptx"]
        # One dot is in flight while the next step's tiles are waited for.
        assert "wgmma.wait_group.sync.aligned 1;" in kernel.asm["ptx"]
        assert not serialized(kernel, tmp_path)
    if case.kernel is gram64_kernel:
        assert re.search(r"mma\.sync\.aligned\.\S*\.f64\.f64", kernel.asm["ptx"])


@triton.jit
def two_dots_kernel(x, out_ptr, N, BLOCK: tl.constexpr):
    """What gram.py avoids: promotion after the second dot of a step."""
    b_acc = tl.zeros([BLOCK, BLOCK], tl.float32)
    b_total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for i_n in tl.range(0, N, 64, num_stages=3):
        b_a = x.load([i_n, 0])
        b_b = x.load([i_n, BLOCK])
        b_acc = tl.dot(b_a.T, b_a, b_acc)
        b_acc = tl.dot(b_a.T, b_b, b_acc)
        if i_n % 512 == 448:
            b_total += b_acc
            b_acc -= b_acc
    o = tl.arange(0, BLOCK)
    tl.store(out_ptr + o[:, None] * BLOCK + o[None, :], b_total + b_acc)


def test_serialized_dots_would_be_seen(tmp_path):
    signature = {"x": "tensordesc<bf16[64,128]>", "out_ptr": "*fp32", "N": "i32"}
    signature["BLOCK"] = "constexpr"
    options = {"num_warps": 8, "enable_fp_fusion": True}
    case = AotCase("two dots", two_dots_kernel, signature, {"BLOCK": 128}, options)
    assert serialized(compiled(case, 90), tmp_path)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [(c, dtype) for dtype in (torch.bfloat16, torch.float16) for c in (80, 90, 100)]
    + [(c, torch.float64) for c in FLOAT64_DOTS],
    ids=str,
)
@pytest.mark.parametrize("d", [1, 64, 65, 768, 8192])
def test_cases_cover_every_launch(capability, d, dtype):
    wanted = gram_config(d, dtype.itemsize, capability)
    assert any(
        str(dtype) in case.name
        and capability in case.capabilities
        and case.options == wanted.options()
        and wanted.constants().items() <= case.constants.items()
        and case.constants.get("NUM_STAGES") == wanted.num_stages
        for case in CASES
    )


def rows(n, d, dtype, scale=1.0):
    """Rows with an offset; among them a row of zeros, two equal ones and a tiny column."""
    x = torch.randn(n, d, dtype=torch.float64) + 0.3
    if n >= 7:
        x[1] = 0
        x[5] = x[4]
    x[:, d // 2] *= 2.0**-12
    return (x * scale).to(dtype)


def weights_of(x):
    """1/‖x‖, 0 for rows of zeros and for every 13th row, which then holds NaN."""
    lengths = reference.norms(x.double())
    weights = torch.where(lengths > 0, 1 / torch.where(lengths > 0, lengths, 1.0), 0.0)
    weights[12::13] = 0
    x[12::13, 0] = math.nan
    return weights


def entry(x, capability, *, unit, slab=SLAB, **options):
    x = x.clone()
    weights = weights_of(x) if unit else None
    out = torch.ones(x.shape[1], x.shape[1], dtype=torch.float64)
    return capability, slab, x, weights, out, options


def inputs():
    torch.manual_seed(0)
    cases = {}
    for capability in (POINTERS, DESCRIPTORS):
        for dtype in DTYPES:
            for unit in (False, True):
                for n, d in ((1, 1), (2, 7), (37, 63), (300, 130)):
                    x = rows(n, d, dtype)
                    name = f"{capability} {dtype} {n}x{d} unit={unit}"
                    cases[name] = entry(x, capability, unit=unit)
                x = rows(400, 70, dtype)[::3, 3:44]
                cases[f"{capability} {dtype} strided unit={unit}"] = entry(x, capability, unit=unit)
    for dtype in DTYPES:
        for scale in (1e-30, 1e30) if dtype != torch.float16 else (1e-3, 1e3):
            options = {"any_range": True} if dtype == torch.bfloat16 else {}
            x = rows(90, 40, dtype, scale)
            cases[f"{dtype} {scale}"] = entry(x, POINTERS, unit=False, **options)
            cases[f"{dtype} {scale} unit"] = entry(x, POINTERS, unit=True)
        x = rows(500, 30, dtype)
        cases[f"{dtype} slabs"] = entry(x, DESCRIPTORS, unit=True, slab=1 << 14)
    for scale in (1e-200, 1e200):
        x = rows(40, 20, torch.float64, scale)
        cases[f"float64 {scale} unit"] = entry(x, POINTERS, unit=True)
    cases["spans"] = entry(rows(11100, 5, torch.float32), DESCRIPTORS, unit=False)
    return cases


INPUTS = inputs()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    results = interpreted(CODE, INPUTS, tmp_path_factory.mktemp("gram"))
    return {name: out for name, (_, _, _, _, out, _) in results.items()}


# Relative to the sum of magnitudes: 3·2⁻²⁴ of pieces, and sums of 512 products in float32 that
# tensor cores truncate (7e-7) or that round (2e-7), with room for as much again.
FLOAT32 = 2.0**-19
FLOAT64 = 2.0**-46  # sums of up to 11100 products in float64


def assert_gram(out, x, weights, dtype, before=1.0):
    """Equal to Σ w² x xᵀ, entry by entry relative to its sum of magnitudes, and symmetric."""
    mask = torch.isfinite(x).all(dim=1)
    expected = reference.gram(
        x, mask if weights is None else weights > 0, normalize=weights is not None
    )
    kept = reference.kept_rows(x, mask if weights is None else weights > 0)
    kept = kept if weights is None else reference.directions(kept)
    magnitude = kept.abs().T @ kept.abs()
    tolerance = FLOAT64 if dtype == torch.float64 else FLOAT32
    # What the sum held before takes part in its last rounding.
    allowed = tolerance * magnitude + 2.0**-50 * (magnitude + before)
    assert torch.equal(out, out.T)
    assert ((out - before - expected).abs() <= allowed).all()


@pytest.mark.parametrize("name", INPUTS)
def test_interpreter_equals_reference(name, outputs):
    _, _, x, weights, _, _ = INPUTS[name]
    assert_gram(outputs[name], x, weights, x.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_wrong_value_would_be_seen(dtype, outputs):
    name = f"{DESCRIPTORS} {dtype} 300x130 unit=False"
    x = INPUTS[name][2].clone()
    x[299, 7] += 0.25
    with pytest.raises(AssertionError):
        assert_gram(outputs[name], x, None, dtype)


def test_a_missing_piece_would_be_seen(outputs):
    """float16 alone, without the second piece, is far outside of the tolerance."""
    name = f"{DESCRIPTORS} torch.float32 300x130 unit=False"
    x = INPUTS[name][2]
    with pytest.raises(AssertionError):
        assert_gram(outputs[name], x.half().float(), None, torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [n for n in INPUTS if not n.startswith("0 ")])
def test_gpu_equals_reference(name):
    _, _, x, weights, out, options = INPUTS[name]
    outs = [out.cuda(), out.cuda()]
    for each in outs:
        gram(x.cuda(), None if weights is None else weights.cuda(), each, **options)
    assert_gram(outs[0].cpu(), x, weights, x.dtype)
    assert torch.equal(*outs)


@pytest.mark.gpu
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), [(70_001, 768), (20_000, 1025), (3_000, 4096)])
def test_gpu_equals_reference_on_large_rows(n, d, dtype, unit):
    _, _, x, weights, out, _ = entry(rows(n, d, dtype), DESCRIPTORS, unit=unit)
    x, result = x.cuda(), out.cuda()
    weights = None if weights is None else weights.cuda()
    gram(x, weights, result)
    assert_gram(result, x, weights, dtype)
