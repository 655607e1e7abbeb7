"""Arrays of other libraries, as CuPy's and JAX's: in and out through DLPack, whatever they are."""

from __future__ import annotations

import pytest
import torch

import aniso


class Foreign:
    """Speaks DLPack and names its namespace, and nothing else."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()

    def __array_namespace__(self, api_version=None):
        return ForeignNamespace


class ForeignNamespace:
    @staticmethod
    def from_dlpack(x):
        return Foreign(torch.from_dlpack(x))


def same(foreign, tensor):
    assert isinstance(foreign, Foreign) and torch.equal(foreign.tensor, tensor)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("shape", [(3, 12, 20), (20, 12)])
def test_singular_values_and_vectors(shape, dtype):
    x = torch.randn(shape).to(dtype)
    same(aniso.svdvals(Foreign(x)), aniso.svdvals(x))
    values, certificate = aniso.svdvals(Foreign(x), k=2, certificate=True)
    expected, known = aniso.svdvals(x, k=2, certificate=True)
    same(values, expected)
    same(certificate.lower, known.lower)
    same(certificate.upper, known.upper)
    found, expected = aniso.svd(Foreign(x)), aniso.svd(x)
    for mine, theirs in zip(found, expected, strict=True):
        same(mine, theirs)
    same(found.certificate.residual, expected.certificate.residual)
    assert found.certificate.method == expected.certificate.method


@pytest.mark.parametrize("method", ["auto", "gram", "krylov"])
def test_truncated_factors(method):
    x = torch.randn(300, 40)
    found = aniso.truncated_svd(Foreign(x), 3, method=method)
    expected = aniso.truncated_svd(x, 3, method=method)
    for mine, theirs in zip(found[:3], expected[:3], strict=True):
        same(mine, theirs)
    same(found.certificate.upper, expected.certificate.upper)


def test_spectra_of_sequences_and_maps_of_spectra():
    x, lengths = torch.randn(4, 9, 6), torch.tensor([9, 0, 3, 7])
    found = aniso.sequence_spectra(Foreign(x), lengths=Foreign(lengths))
    expected = aniso.sequence_spectra(x, lengths=lengths)
    same(found.tokens, expected.tokens)
    assert isinstance(found.cdf, Foreign)
    torch.testing.assert_close(found.cdf.tensor, expected.cdf, equal_nan=True)
    same(aniso.spectral_map(Foreign(x), torch.sqrt), aniso.spectral_map(x, torch.sqrt))


def test_coordinates_along_principal_axes():
    state, x = aniso.LayerState(6, gram=True), torch.randn(30, 6)
    state.update(Foreign(x))
    axes = state.principal_axes(2)
    same(axes.transform(Foreign(x)), axes.transform(x))


def test_an_array_without_dlpack_is_named():
    with pytest.raises(aniso.InputError, match=r"x is a list; pass an array with __dlpack__"):
        aniso.svdvals([[1.0, 2.0]])
