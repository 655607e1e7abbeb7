from __future__ import annotations

import pytest
import torch
from aniso.triton_kernels.group_moments import aot_cases, group_moments
from aniso.triton_kernels.launch_configs import group_moments_config
from groups import GROUP_SIZES, assert_sums, reference_sums, runs_and_outputs
from interpreter import interpreted
from rows import DTYPES, spoiled

CODE = """
from aniso.triton_kernels.group_moments import group_moments
for case in arguments.values():
    group_moments(*case)
"""
SCALE = 0.25


def inputs():
    """Rows and ids by name: every dtype, odd sizes, strides, extreme norms, one group and many."""
    torch.manual_seed(0)
    cases = {}
    for dtype in DTYPES:
        for n, d, count in GROUP_SIZES:
            cases[f"{dtype} {n}x{d}"] = spoiled(n, d, dtype), torch.randint(-1, count, (n,))
        strided = spoiled(90, 150, dtype)[::3, 3:144]
        cases[f"{dtype} strided"] = strided, torch.arange(30) // 4
    for scale in (1e-200, 1e-320, 1e200):
        rows = torch.rand(33, 40, dtype=torch.float64) * scale
        cases[f"float64 {scale}"] = rows, torch.arange(33) % 3
    cases["wide"] = torch.randn(9, 1100), torch.arange(9) // 4
    return cases


INPUTS = inputs()
OUTPUTS = ("sums", "unit_sums", "products")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of all inputs, from Triton's interpreter."""
    cases = {}
    for name, (x, ids) in INPUTS.items():
        for kind in OUTPUTS:
            runs, outputs = runs_and_outputs(x, ids, {kind})
            cases[f"{name} {kind}"] = (x, *runs.tensors(), *outputs, SCALE)
        runs, outputs = runs_and_outputs(x, ids, {"sums", "unit_sums"})
        cases[f"{name} both"] = (x, *runs.tensors(), *outputs, SCALE)
    done = interpreted(CODE, cases, tmp_path_factory.mktemp("groups"))
    return {name: case[5:11] for name, case in done.items()}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("kind", [*OUTPUTS, "both"])
def test_interpreter_equals_reference(name, kind, results):
    assert_sums(results[f"{name} {kind}"], reference_sums(*INPUTS[name], SCALE))


def test_one_wrong_row_would_be_seen(results):
    name = f"{torch.float32} strided"
    x, ids = INPUTS[name]
    altered = x.clone()
    altered[-1, 7] += 1e-3
    for kind in OUTPUTS:
        with pytest.raises(AssertionError):
            assert_sums(results[f"{name} {kind}"], reference_sums(altered, ids, SCALE))


@pytest.mark.parametrize("d", [1, 128, 129, 768, 20000])
def test_cases_cover_every_launch(d):
    wanted = group_moments_config(d)
    for dtype in DTYPES:
        found = [
            case
            for case in aot_cases()
            if str(dtype) in case.name
            and case.options == wanted.options()
            and wanted.constants().items() <= case.constants.items()
        ]
        kernels = sorted(case.kernel.fn.__name__ for case in found)
        assert kernels == ["norms_kernel", "runs_kernel", "runs_kernel"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("kind", OUTPUTS)
def test_gpu_equals_reference(name, kind):
    x, ids = INPUTS[name]
    repeated = []
    for _ in range(2):
        runs, outputs = runs_and_outputs(x.cuda(), ids.cuda(), {kind})
        group_moments(x.cuda(), *runs.tensors(), *outputs, SCALE)
        repeated.append([None if out is None else out.cpu() for out in outputs])
    assert_sums(repeated[0], reference_sums(x, ids, SCALE))
    for first, second in zip(*repeated, strict=True):
        assert first is None or torch.equal(first, second)
