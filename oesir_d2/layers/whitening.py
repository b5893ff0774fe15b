"""PCA whitening: from a pooled vector to the embedding that is indexed.

Shape shorthand: n vectors, D_in dimensions of a pooled vector, D_out of an embedding.

The supplement whitens at 64 to 2,048 dimensions and learns it on 10,000 images of OpenImagesV4. As is usual in instance
retrieval (Jégou and Chum, ECCV 2012), vectors are L2-normalised before and after.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from oesir_d2.files import replace_file
from oesir_d2.layers.covariance import CovarianceAccumulator, decompose_covariance, with_fixed_signs
from oesir_d2.layers.numerics import at_least_float32, l2_normalize

FILE_FORMAT = "oesir_d2.whitening.v1"
FIT_CHUNK = 4096
"""Vectors that ``PCAWhitening.fit`` converts to float64 at a time."""


class PCAWhitening(nn.Module):
    """Normalise, centre, project on the whitened principal components, and normalise again.

    It begins unfitted. Its buffers are part of a model's state dict, so that a checkpoint brings the whitening that the
    model was used with.

    Args:
        input_dim: D_in, >= 1.
        output_dim: D_out, in [1, D_in].

    Attributes:
        mean: (D_in,) float32, the mean of the normalised vectors of the fit.
        projection: (D_out, D_in) float32, row k is the k-th principal component over its standard deviation.
        fitted: () bool.

    Raises:
        ValueError: if a dimension is out of its range.

    >>> vectors = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    >>> embeddings = PCAWhitening(input_dim=8, output_dim=4).fit(vectors)(vectors)
    >>> tuple(embeddings.shape), torch.allclose(embeddings.norm(dim=1), torch.ones(100))
    ((100, 4), True)
    """

    mean: Tensor
    projection: Tensor
    fitted: Tensor

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__()
        if not 1 <= output_dim <= input_dim:
            raise ValueError(f"whitening to {output_dim} dimensions, expected 1 to the input's {input_dim}")
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("projection", torch.zeros(output_dim, input_dim))
        self.register_buffer("fitted", torch.tensor(False))

    @property
    def input_dim(self) -> int:
        return self.projection.shape[1]

    @property
    def output_dim(self) -> int:
        return self.projection.shape[0]

    def forward(self, vectors: Tensor) -> Tensor:
        """Whiten vectors.

        Args:
            vectors: (n, D_in), any floating dtype; their length does not matter.

        Returns:
            (n, D_out), L2-normalised, float32 or float64. A vector of zeros gives a finite vector.

        Raises:
            ValueError: if the whitening was not fitted, or the vectors have another dimension.
        """
        return l2_normalize(self.project(vectors))

    def project(self, vectors: Tensor) -> Tensor:
        """Whiten vectors without the last normalisation: the vectors of the fit get an identity covariance.

        Args:
            vectors: (n, D_in), any floating dtype; they are L2-normalised first.

        Returns:
            (n, D_out), float32 or float64.

        Raises:
            ValueError: as ``forward``.
        """
        if not self.fitted:
            raise ValueError(
                "the PCA whitening is not fitted: run tools/fit_whitening.py, or set "
                "MODEL.OESIR.EMBEDDING.WHITENING to its file, or MODEL.OESIR.EMBEDDING.WHITENING_DIM to 0"
            )
        if vectors.ndim != 2 or vectors.shape[1] != self.input_dim:
            raise ValueError(f"vectors to whiten have shape {tuple(vectors.shape)}, expected (n, {self.input_dim})")
        # Autocast would round the projection, and so the embeddings, to half precision.
        with torch.autocast(vectors.device.type, enabled=False):
            normalized = l2_normalize(at_least_float32(vectors))
            return (normalized - self.mean.to(normalized)) @ self.projection.to(normalized).T

    def thaw(self) -> Self:
        """Make a learned projection of the whitening, in place: mean and projection become parameters.

        Their names in the state dict stay, so that whatever reads a whitening reads what was learned, too.
        """
        for name in ("mean", "projection"):
            value = getattr(self, name)
            if not isinstance(value, nn.Parameter):
                delattr(self, name)
                self.register_parameter(name, nn.Parameter(value))
        return self

    def fit(self, vectors: Tensor, shrinkage: float = 0.0) -> Self:
        """Fit the whitening, in place, to vectors that are held in memory.

        Args:
            vectors: (n, D_in), any floating dtype, n > D_out; they are L2-normalised first.
            shrinkage: see ``fit_from_moments``.

        Returns:
            The module itself.

        Raises:
            ValueError: as ``fit_from_moments``, and if a value is not finite.
        """
        moments = CovarianceAccumulator(self.input_dim)
        for chunk in vectors.split(FIT_CHUNK):
            moments.update(chunk)
        return self.fit_from_moments(moments, shrinkage)

    def fit_from_moments(
        self, moments: CovarianceAccumulator, shrinkage: float = 0.0, blocks: Sequence[int] | None = None
    ) -> Self:
        """Fit the whitening, in place, to vectors whose moments were gathered batch by batch.

        Row k of the projection is u_k / sqrt(lambda_k + shrinkage * mean lambda), where u_k is the eigenvector of the
        k-th largest eigenvalue lambda_k of the covariance, its entry of largest magnitude made positive.

        Args:
            moments: moments of more than D_out vectors of D_in dimensions.
            shrinkage: >= 0; damps components of little variance, which are mostly noise when vectors are few. 0 is
                plain PCA whitening.
            blocks: how many of the D_in dimensions each map brought, where vectors were pooled from several. Each
                block is whitened on its own, to at most D_out components, and a PCA without whitening brings them
                together: whitened at once, what one map knows would drown in the little that it adds to the other.

        Returns:
            The module itself.

        Raises:
            ValueError: if the vectors are too few, their dimension is another, they vary in fewer than D_out
                directions and the shrinkage is 0, or the shrinkage is out of its range.
        """
        if moments.dimension != self.input_dim:
            raise ValueError(f"moments are of dimension {moments.dimension}, the whitening takes {self.input_dim}")
        # n vectors vary about their mean in at most n - 1 directions.
        if moments.count <= self.output_dim:
            raise ValueError(
                f"PCA whitening to {self.output_dim} dimensions needs more than {self.output_dim} vectors, "
                f"got {moments.count}"
            )
        if not 0 <= shrinkage < float("inf"):
            raise ValueError(f"shrinkage is {shrinkage}, expected a finite number >= 0")
        covariance = moments.covariance()
        if blocks is None or len(blocks) == 1:
            projection = self._whiten_covariance(covariance, self.output_dim, moments.count, shrinkage)
        else:
            assert sum(blocks) == self.input_dim, f"blocks {list(blocks)} of {self.input_dim} dimensions"
            parts = [
                self._whiten_covariance(
                    covariance[start : start + size, start : start + size],
                    min(size, self.output_dim),
                    moments.count,
                    shrinkage,
                )
                for start, size in zip(accumulate(blocks, initial=0), blocks)
            ]
            whitened = torch.block_diag(*parts)
            _, eigenvectors = torch.linalg.eigh(whitened @ covariance @ whitened.T)
            projection = with_fixed_signs(eigenvectors.T.flip(0)[: self.output_dim] @ whitened)
        self.mean.copy_(moments.mean())
        self.projection.copy_(projection)
        self.fitted.fill_(True)
        return self

    @classmethod
    def fit_largest(cls, moments: CovarianceAccumulator, most: int) -> Self:
        """Fit a whitening to as many dimensions as the vectors allow, and at most ``most``.

        Its first d rows are the whitening to d dimensions that the same vectors give: one fit serves all of them.

        Args:
            moments: moments of at least two vectors.
            most: >= 1.

        Raises:
            ValueError: if the vectors are fewer than two, or all the same.
        """
        variances, components, rank = decompose_covariance(moments.covariance())
        if rank == 0:
            raise ValueError(f"the {moments.count} vectors to fit are all the same once L2-normalised")
        dimension = min(most, rank, moments.count - 1)
        whitening = cls(moments.dimension, dimension)
        whitening.mean.copy_(moments.mean())
        whitening.projection.copy_(components[:dimension] / variances[:dimension].sqrt()[:, None])
        whitening.fitted.fill_(True)
        return whitening

    @staticmethod
    def _whiten_covariance(covariance: Tensor, dimension: int, count: int, shrinkage: float) -> Tensor:
        """The whitening (dimension, D) that a covariance (D, D) of unit vectors asks for."""
        variances, components, rank = decompose_covariance(covariance)
        if rank == 0:
            raise ValueError(f"the {count} vectors to fit are all the same once L2-normalised")
        if rank < dimension and shrinkage == 0:
            raise ValueError(
                f"the {count} vectors vary in {rank} directions only, too few to whiten to {dimension} "
                f"dimensions; use at most {rank} dimensions, or more diverse images, or a shrinkage > 0"
            )
        damped = variances[:dimension] + shrinkage * variances.mean()
        return components[:dimension] / damped.sqrt()[:, None]

    def extra_repr(self) -> str:
        return f"input_dim={self.input_dim}, output_dim={self.output_dim}, fitted={bool(self.fitted)}"


def save_whitening(path: str | Path, whitening: PCAWhitening, metadata: Mapping[str, Any]) -> None:
    """Write a fitted whitening to a safetensors file, to a temporary name first.

    Args:
        path: the file, usually ``*.safetensors``; replaced if it exists. Its folder must exist.
        whitening: the fitted whitening.
        metadata: what JSON can hold; at least "source", a description of the images of the fit, and "count", their
            number of vectors. The dimensions are added.

    Raises:
        ValueError: if the whitening is not fitted or the metadata lack a key.
        FileNotFoundError: if there is no such folder.
    """
    path = Path(path)
    if not whitening.fitted:
        raise ValueError(f"the whitening to write to {path} is not fitted")
    missing = sorted({"source", "count"} - set(metadata))
    if missing:
        raise ValueError(f"metadata of the whitening to write to {path} lack {missing}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} to write the whitening {path.name} to")
    description = {**metadata, "input_dim": whitening.input_dim, "output_dim": whitening.output_dim}
    tensors = {name: getattr(whitening, name).detach().float().cpu().contiguous() for name in ("mean", "projection")}
    replace_file(path, save(tensors, {"format": FILE_FORMAT, "metadata": json.dumps(description, sort_keys=True)}))


def load_whitening(path: str | Path) -> tuple[PCAWhitening, dict[str, Any]]:
    """Read a whitening that ``save_whitening`` wrote.

    Returns:
        The fitted whitening on the CPU, and the metadata with "input_dim" and "output_dim".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is corrupt, not a whitening, or of shapes that do not belong together.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no whitening file {path}; tools/fit_whitening.py writes one")
    try:
        with safe_open(path, framework="pt") as file:
            header, names = file.metadata() or {}, file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"whitening file {path} is corrupt: {error}") from error
    if header.get("format") != FILE_FORMAT:
        raise ValueError(f"{path} has format {header.get('format')!r}, expected {FILE_FORMAT!r}")
    if sorted(tensors) != ["mean", "projection"]:
        raise ValueError(f"whitening file {path} holds {sorted(tensors)}, expected ['mean', 'projection']")
    mean, projection = tensors["mean"], tensors["projection"]
    try:
        metadata = json.loads(header["metadata"])
        output_dim, input_dim = metadata["output_dim"], metadata["input_dim"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"whitening file {path} does not describe its dimensions: {error!r}") from error
    if mean.shape != (input_dim,) or projection.shape != (output_dim, input_dim):
        raise ValueError(
            f"whitening file {path} holds a mean of shape {tuple(mean.shape)} and a projection of shape "
            f"{tuple(projection.shape)}, expected {(input_dim,)} and {(output_dim, input_dim)}"
        )
    if not (mean.isfinite().all() and projection.isfinite().all()):
        raise ValueError(f"whitening file {path} holds values that are not finite")
    whitening = PCAWhitening(input_dim, output_dim)
    whitening.load_state_dict({"mean": mean, "projection": projection, "fitted": torch.tensor(True)})
    return whitening, metadata
