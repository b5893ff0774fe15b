"""Mean and covariance of many vectors, gathered batch by batch so that the vectors need not be held.

Shape shorthand: n vectors, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oesir_d2.layers.numerics import l2_normalize


class CovarianceAccumulator:
    """Gathers the moments of L2-normalised vectors in float64, in memory of D x D.

    Plain sums of products are exact enough here: the vectors have length 1, so that in float64 the difference of the
    second moment and the squared mean keeps about 15 decimal places of the covariance's scale.

    Args:
        dimension: D, >= 1.

    >>> moments = CovarianceAccumulator(dimension=2)
    >>> moments.update(torch.tensor([[2.0, 0.0]]))
    >>> moments.update(torch.tensor([[0.0, 5.0]]))
    >>> moments.count, moments.mean().tolist()
    (2, [0.5, 0.5])
    """

    def __init__(self, dimension: int) -> None:
        if dimension < 1:
            raise ValueError(f"vectors to accumulate have dimension {dimension}, expected at least 1")
        self.count = 0
        self._sum = torch.zeros(dimension, dtype=torch.float64)
        self._sum_of_products = torch.zeros(dimension, dimension, dtype=torch.float64)

    @property
    def dimension(self) -> int:
        return len(self._sum)

    def update(self, vectors: Tensor) -> None:
        """Add a batch of vectors. They are L2-normalised here, as whitening normalises its input.

        Args:
            vectors: (n, D), any floating dtype and device; n may be 0.

        Raises:
            ValueError: if the shape is another or a value is not finite; nothing is added then.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise ValueError(f"vectors have shape {tuple(vectors.shape)}, expected (n, {self.dimension})")
        finite = torch.isfinite(vectors).all(dim=1)
        if not finite.all():
            raise ValueError(f"{int((~finite).sum())} of {len(vectors)} vectors hold values that are not finite")
        # Converted before it is normalised, for in float16 a length may overflow.
        normalized = l2_normalize(vectors.detach().to(self._sum))
        self.count += len(normalized)
        self._sum += normalized.sum(dim=0)
        self._sum_of_products.addmm_(normalized.T, normalized)

    def mean(self) -> Tensor:
        """The mean of the normalised vectors: (D,) float64.

        Raises:
            ValueError: if no vector was added.
        """
        if self.count < 1:
            raise ValueError("the mean of 0 vectors was asked for, expected at least 1")
        return self._sum / self.count

    def covariance(self) -> Tensor:
        """The unbiased covariance of the normalised vectors, divided by n - 1: (D, D) float64, symmetric.

        Raises:
            ValueError: if fewer than two vectors were added.
        """
        if self.count < 2:
            raise ValueError(f"the covariance of {self.count} vectors was asked for, expected at least 2")
        mean = self.mean()
        covariance = (self._sum_of_products - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return (covariance + covariance.T) / 2


def decompose_covariance(covariance: Tensor) -> tuple[Tensor, Tensor, int]:
    """The principal components of the covariance of unit vectors.

    Args:
        covariance: (D, D) float64, symmetric.

    Returns:
        The variances (D,), largest first and not below 0; the components (D, D), one a row, each one's entry of
        largest magnitude positive; and in how many directions the vectors vary by more than rounding noise.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)  # ascending, in columns
    rounding_noise = len(covariance) * torch.finfo(torch.float64).eps  # of moments of unit vectors
    rank = int((eigenvalues > rounding_noise).sum())
    return eigenvalues.clamp(min=0).flip(0), with_fixed_signs(eigenvectors.T.flip(0)), rank


def with_fixed_signs(components: Tensor) -> Tensor:
    """Flip rows so that each one's entry of largest magnitude is positive: eigenvectors come with an arbitrary sign."""
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    return components * torch.sign(largest)
