from __future__ import annotations

import importlib.util
import re
from dataclasses import replace

import pytest
import torch
from aniso.triton_kernels import group_moments as groups
from aniso.triton_kernels.launch_configs import ONE_READ_COLUMNS, row_moments_config
from aniso.triton_kernels.row_moments import aot_cases, one_read_kernel, row_moments
from aot import SHARED_LIMIT, compiled, resources
from interpreter import interpreted
from rows import DTYPES, assert_moments, spoiled

from aniso import reference
from aniso.moments import RowMoments

CASES = aot_cases() + groups.aot_cases()
SIZES = [(0, 5), (1, 1), (2, 7), (37, 63), (67, 257), (9, 768), (3, 4096), (2, 4097)]


@pytest.mark.parametrize(
    ("capability", "aligned"), [(80, True), (90, True), (90, False), (100, True)]
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_compiles_without_spills(case, capability, aligned, tmp_path):
    kernel = compiled(case, capability, aligned)
    assert resources(kernel, tmp_path)[0] == 0
    assert kernel.metadata.shared <= SHARED_LIMIT[capability]
    # Rows × stride may pass 2^31: the row part of every address is 64 bits wide.
    assert re.search(r"tt\.addptr .*(xi64>|, i64)", kernel.asm["ttir"])


def test_spills_would_be_seen(tmp_path):
    case = next(c for c in CASES if c.kernel is one_read_kernel and c.constants["BLOCK_D"] == 4096)
    crowded = replace(case, constants=case.constants | {"BLOCK_D": 4 * 4096})
    assert resources(compiled(crowded, 90), tmp_path)[0] > 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 63, 65, 300, 768, 4095, 4096, 4097, 16384])
def test_cases_cover_every_launch(d, dtype):
    wanted = row_moments_config(d, dtype.itemsize)
    kernels = {
        case.kernel.fn.__name__
        for case in CASES
        if str(dtype) in case.name
        and case.options == wanted.options()
        and wanted.constants().items() <= case.constants.items()
        and case.constants.get("NUM_STAGES", wanted.num_stages) == wanted.num_stages
    }
    one_read = {"one_read_kernel"}
    two_reads = {"norms_kernel", "columns_kernel"}
    assert (one_read if d <= ONE_READ_COLUMNS else two_reads) <= kernels


CODE = """
from aniso.triton_kernels.row_moments import row_moments
for case in arguments.values():
    row_moments(*case)
"""


def inputs():
    """Rows and masks by name: every dtype, odd sizes, strides, extreme norms."""
    torch.manual_seed(0)
    cases = {}
    for dtype in DTYPES:
        for n, d in SIZES:
            cases[f"{dtype} {n}x{d}"] = spoiled(n, d, dtype), None
        cases[f"{dtype} masked"] = spoiled(61, 130, dtype), (torch.rand(122) > 0.3)[::2]
        cases[f"{dtype} strided"] = spoiled(90, 50, dtype)[::3, 3:44], None
        cases[f"{dtype} all masked"] = spoiled(8, 9, dtype), torch.zeros(8, dtype=torch.bool)
    for dtype in (torch.float32, torch.bfloat16):
        for scale in (1e-30, 1e30):
            cases[f"{dtype} {scale}"] = (torch.randn(33, 40) * scale).to(dtype), None
    for scale in (1e-200, 1e-320, 1e200, 1e308):
        rows = torch.rand(33, 40, dtype=torch.float64) * scale
        cases[f"float64 {scale}"] = rows, None
    cases["float64 1e-200 wide"] = torch.rand(3, 4099, dtype=torch.float64) * 1e-200, None
    cases["bfloat16 wide"] = spoiled(7, 9001, torch.bfloat16), torch.rand(7) > 0.3
    return cases


INPUTS = inputs()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of all inputs, from Triton's interpreter."""
    empty = {name: RowMoments.zeros(x.shape[1]).tensors() for name, (x, _) in INPUTS.items()}
    cases = {name: (*INPUTS[name], *empty[name]) for name in INPUTS}
    done = interpreted(CODE, cases, tmp_path_factory.mktemp("moments"))
    return {name: RowMoments(*case[2:]) for name, case in done.items()}


@pytest.mark.parametrize("name", INPUTS)
def test_interpreter_equals_reference(name, results):
    assert_moments(results[name], reference.row_moments(*INPUTS[name]), torch.float64)


def test_one_wrong_row_would_be_seen(results):
    name = "torch.float32 masked"
    x, mask = INPUTS[name]
    altered = x.clone()
    altered[int(mask.nonzero()[-1]), 7] += 1e-3
    with pytest.raises(AssertionError):
        assert_moments(results[name], reference.row_moments(altered, mask), torch.float64)


def test_the_bare_name_stays_tritons():
    import aniso.triton_kernels

    path = aniso.triton_kernels.__file__
    spec = importlib.util.spec_from_file_location("triton_kernels", path)
    with pytest.raises(ImportError, match=r"aniso\.triton_kernels"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.gpu
@pytest.mark.parametrize("name", INPUTS)
def test_gpu_equals_reference(name):
    x, mask = INPUTS[name]
    runs = [RowMoments.zeros(x.shape[1], "cuda") for _ in range(2)]
    for moments in runs:
        row_moments(x.cuda(), None if mask is None else mask.cuda(), *moments.tensors())
    first, second = (moments.map(torch.Tensor.cpu) for moments in runs)
    assert_moments(first, reference.row_moments(x, mask), torch.float64)
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(first.tensors(), second.tensors(), strict=True)
    )
