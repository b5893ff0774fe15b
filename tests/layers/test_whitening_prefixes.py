"""One fit of the whitening serves every dimension: its first rows are the smaller whitenings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from oesir_d2.layers import CovarianceAccumulator, PCAWhitening, l2_normalize


def gather(vectors: torch.Tensor) -> CovarianceAccumulator:
    moments = CovarianceAccumulator(vectors.shape[1])
    moments.update(vectors)
    return moments


def test_every_prefix_is_the_whitening_to_its_dimension() -> None:
    vectors = torch.rand(60, 12) + 0.2
    largest = PCAWhitening.fit_largest(gather(vectors), most=10)
    assert (largest.input_dim, largest.output_dim) == (12, 10)
    projected = largest.project(vectors)
    for dimension in (1, 4, 10):
        expected = PCAWhitening(12, dimension).fit(vectors)(vectors)
        torch.testing.assert_close(l2_normalize(projected[:, :dimension]), expected)


def test_equals_numpy_s_singular_values() -> None:
    vectors = torch.rand(40, 6).double()
    units = (vectors / vectors.norm(dim=1, keepdim=True)).numpy()
    centred = units - units.mean(axis=0)
    _, scales, components = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ components.T / (scales / np.sqrt(len(units) - 1))
    projected = PCAWhitening.fit_largest(gather(vectors), most=6).project(vectors).numpy()
    # The directions' signs are arbitrary.
    np.testing.assert_allclose(np.abs(projected), np.abs(expected), atol=1e-5)


@pytest.mark.parametrize(
    ("count", "channels", "most", "expected"),
    [(50, 8, 64, 8), (50, 8, 3, 3), (5, 8, 64, 4), (2, 8, 64, 1)],
)
def test_as_many_dimensions_as_there_can_be(count: int, channels: int, most: int, expected: int) -> None:
    assert PCAWhitening.fit_largest(gather(torch.rand(count, channels)), most).output_dim == expected


def test_channels_that_never_fire_add_no_dimension() -> None:
    vectors = torch.rand(50, 8)
    vectors[:, 3:5] = 0
    whitening = PCAWhitening.fit_largest(gather(vectors), most=8)
    assert whitening.output_dim == 6
    assert whitening.project(vectors).var(dim=0).numpy() == pytest.approx(np.ones(6), rel=1e-3)


def test_vectors_that_are_all_the_same_are_refused() -> None:
    with pytest.raises(ValueError, match="the 3 vectors to fit are all the same"):
        PCAWhitening.fit_largest(gather(torch.ones(3, 4)), most=2)
