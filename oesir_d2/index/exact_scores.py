"""Exact best-pair scores of images, and the order of images by them.

Shape shorthand: Q regions of the query, D dimensions, n images, N regions of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .aggregate import Aggregator
from .reader import EmbeddingIndex

SCORE_DECIMALS = 6
"""Scores are rounded to so many decimals before they are ranked, so that rounding errors decide nothing."""

CHUNK_IMAGES = 1024
"""Images compared in one matrix product: 10 MB of vectors."""

# Of so many images at most the vectors are kept.
_KEPT_IMAGES = 128


@dataclass(frozen=True)
class Ranked:
    """Images in the order of their scores.

    Attributes:
        images: (n,) int64, best first, equal scores in the order of their image ids.
        scores: (n,) float64, exact, rounded.
        best_pairs: (n, Q) float64, what the scores are the aggregates of, not rounded.
    """

    images: np.ndarray
    scores: np.ndarray
    best_pairs: np.ndarray


class RecentVectors:
    """Reads the vectors of images, and keeps some: those that are compared twice are the best ones.

    Args:
        index: the images.
    """

    def __init__(self, index: EmbeddingIndex) -> None:
        self._index = index
        self._kept: dict[int, np.ndarray] = {}

    def read(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ``EmbeddingIndex.vectors_of``."""
        if not 0 < len(images) <= _KEPT_IMAGES:
            return self._index.vectors_of(images)
        numbers = images.tolist()
        missing = [image for image in numbers if image not in self._kept]
        if missing:
            if len(self._kept) + len(missing) > _KEPT_IMAGES:
                self._kept, missing = {}, numbers
            vectors, offsets = self._index.vectors_of(np.array(missing, np.int64))
            ends = offsets.tolist()
            self._kept.update(
                (image, vectors[start:end]) for image, start, end in zip(missing, ends, ends[1:], strict=False)
            )
            if len(missing) == len(numbers):
                return vectors, offsets
        parts = [self._kept[image] for image in numbers]
        return np.concatenate(parts), np.cumsum([0, *map(len, parts)])


class ExactScores:
    """Compares images with a query in double precision.

    Products of float32 numbers are exact in float64. So the same pair of regions has the same score wherever it stands
    in a matrix, and copies of a photo tie.

    Args:
        index: the images.
        vectors: reads their vectors.
        query_vectors: (Q, D) float32, L2-normalised.
    """

    def __init__(self, index: EmbeddingIndex, vectors: RecentVectors, query_vectors: np.ndarray) -> None:
        self._index = index
        self._vectors = vectors
        self._query_vectors = np.ascontiguousarray(query_vectors.T, np.float64)

    def compare(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compare all regions of some images with all of the query.

        Args:
            images: (n,) int64, of images with regions.

        Returns:
            similarities: (N, Q) float64, not rounded, image by image.
            offsets: (n + 1,): those of the i-th image are rows offsets[i] to offsets[i + 1].
        """
        vectors, offsets = self._vectors.read(images)
        return vectors.astype(np.float64) @ self._query_vectors, offsets

    def rank(self, images: np.ndarray, aggregator: Aggregator, shift: np.ndarray, wanted: int) -> Ranked:
        """The best of some images.

        Args:
            images: (n,) int64, of images with regions.
            aggregator: see ``aggregate``.
            shift: (Q,) subtracted from the best-pair scores of each query region.
            wanted: images to keep.
        """
        best_pairs = np.empty((len(images), self._query_vectors.shape[1]))
        for start in range(0, len(images), CHUNK_IMAGES):
            similarities, offsets = self.compare(images[start : start + CHUNK_IMAGES])
            best_pairs[start : start + CHUNK_IMAGES] = np.maximum.reduceat(similarities, offsets[:-1], axis=0)
        scores = round_scores(aggregator(best_pairs - shift)) if len(images) else np.empty(0)
        order = self._order(images, scores)[:wanted]
        return Ranked(images[order], scores[order], best_pairs[order])

    def _order(self, images: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Sort by score, best first, and images of equal scores by their ids; only those ids are read."""
        order = np.argsort(-scores, kind="stable")
        in_order = scores[order]
        if (in_order[1:] < in_order[:-1]).all():
            return order
        ids: dict[int, str] = {}
        is_equal = np.append(in_order[1:] == in_order[:-1], False)
        for place in np.flatnonzero(is_equal | np.append(False, is_equal[:-1])):
            ids[int(order[place])] = self._index.images[int(images[order[place]])].image_id
        return np.array(sorted(order.tolist(), key=lambda position: (-scores[position], ids.get(position, ""))))


def round_scores(scores: np.ndarray) -> np.ndarray:
    """Scores as they are compared and shown."""
    # Adding zero makes a negative zero positive.
    return np.round(scores, SCORE_DECIMALS) + 0.0
