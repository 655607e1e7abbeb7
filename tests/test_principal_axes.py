from __future__ import annotations

import numpy as np
import pytest
import torch

import aniso


def state_of(x):
    state = aniso.LayerState(x.shape[1])
    state.update(x)
    return state


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(("n", "d"), [(400, 30), (10, 30), (1, 5)])
def test_axes_are_those_of_an_svd_of_all_rows(n, d, center, dtype):
    x = (torch.randn(n, d) * torch.logspace(0, -2, d) + 2 * torch.randn(d)).to(dtype)
    merged = state_of(x[: n // 2]) + state_of(x[n // 2 :])
    axes = merged.principal_axes(5, center=center)
    rows = x.double() - x.double().mean(0) * int(center)
    u, sigma, vh = torch.linalg.svd(rows, full_matrices=False)
    expected = torch.zeros(5).double()
    expected[: min(n, 5)] = sigma[:5]
    near = 1e-7 if dtype == torch.bfloat16 else 1e-9
    size = torch.linalg.matrix_norm(x.double())
    assert ((axes.singular_values - expected).abs() <= near * size).all()
    assert axes.centered is center and axes.rows == n
    assert torch.allclose(axes.mean, x.double().mean(0), rtol=1e-6)
    clear = int((expected > 1e-3).sum())
    signs = (axes.components[:clear] * vh[:clear]).sum(1)
    assert torch.allclose(signs.abs(), torch.ones(clear).double(), atol=1e-6)
    left = axes.left(x)
    assert left.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(left[:, :clear].double(), u[:, :clear] * signs, atol=1e-4)
    assert torch.isfinite(left).all()


def test_transform_is_left_times_sigma():
    x = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    axes = state_of(x).principal_axes(8)
    coordinates = axes.transform(x)
    assert isinstance(coordinates, np.ndarray)
    np.testing.assert_allclose(coordinates, axes.left(x) * axes.singular_values.numpy(), rtol=1e-5)
    np.testing.assert_allclose(coordinates @ axes.components.numpy(), x, atol=1e-5)


def test_refusals():
    state = state_of(torch.randn(10, 4))
    with pytest.raises(aniso.InputError, match="k is 5; rows of 4 columns have 4 axes"):
        state.principal_axes(5)
    with pytest.raises(aniso.InputError, match="there are no rows yet"):
        aniso.LayerState(4).principal_axes(1)
    with pytest.raises(aniso.InputError, match="keeps no Gram"):
        aniso.LayerState(4, gram=False).principal_axes(1)
    with pytest.raises(aniso.InputError, match="rows have 3 columns, these axes have 4"):
        state.principal_axes(1).transform(torch.randn(2, 3))
