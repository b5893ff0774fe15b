"""The images that a fetch found, with bounds of their best-pair scores, which are made exact where it matters.

Shape shorthand: Q regions of the query, D dimensions, M objects fetched a query region, P = Q * M pairs of a query
region and an object, C candidate images.

An image is *settled* when all its pairs that were fetched have exact scores, which costs a vector a pair to read; they
have them from the start if the engine gives exact scores. It is *scored* when all its regions were compared, which
costs all its vectors.
"""

from __future__ import annotations

import numpy as np

from .exact_scores import CHUNK_IMAGES, RecentVectors
from .reader import EmbeddingIndex

SLACK = 1e-5
"""Far above the error of a float32 inner product of unit vectors, far below a difference that matters."""

LOWEST_SCORE = -1.0
"""No inner product of unit vectors is lower: the score of what an object index did not find."""


class Candidates:
    """See the module; make it with ``Candidates.of_fetch`` or ``Candidates.of_all_images``.

    Attributes:
        images: (C,) int64, ascending.
        bounds: (Q, C) float32: for a scored image its best-pair scores, for a settled one upper bounds of them but for
            ``SLACK``, for another what the engine says of them.
        frontier: (Q,) float32: the same of an image that was not fetched.
        is_settled: (C,) bool.
        is_scored: (C,) bool; such an image is settled, too.
    """

    def __init__(
        self,
        index: EmbeddingIndex,
        vectors: RecentVectors,
        query_vectors: np.ndarray,
        images: np.ndarray,
        frontier: np.ndarray,
    ) -> None:
        self._index = index
        self._vectors = vectors
        # (D, Q): this layout multiplies fastest.
        self._query_vectors = np.ascontiguousarray(query_vectors.T, np.float32)
        self.images = images
        self.frontier = frontier
        self.bounds = np.empty((len(frontier), len(images)), np.float32)
        self.bounds[:] = frontier[:, None]
        self.is_settled = np.zeros(len(images), bool)
        self.is_scored = np.zeros(len(images), bool)
        # Of every pair fetched: the object, its image's place in ``images``, the query's region, and the score.
        self._objects = self._places = self._regions = np.empty(0, np.int64)
        self._scores = np.empty(0, np.float32)

    @classmethod
    def of_fetch(
        cls,
        index: EmbeddingIndex,
        vectors: RecentVectors,
        query_vectors: np.ndarray,
        scores: np.ndarray,
        ids: np.ndarray,
        has_exact_scores: bool,
        known: Candidates | None = None,
    ) -> Candidates:
        """The candidates of a fetch.

        Args:
            index: the images.
            vectors: reads their vectors.
            query_vectors: (Q, D) float32, L2-normalised.
            scores: (Q, M) float32, best first, -inf where nothing was found.
            ids: (Q, M) int64 object ids, -1 where nothing was found.
            has_exact_scores: whether the scores are inner products.
            known: of a smaller fetch of the same query: what it scored stays scored.
        """
        regions, objects, scores_of_pairs = np.repeat(np.arange(len(ids)), ids.shape[1]), ids.ravel(), scores.ravel()
        is_found = objects >= 0
        if not is_found.all():
            regions, objects, scores_of_pairs = regions[is_found], objects[is_found], scores_of_pairs[is_found]
        owners = index.image_of_objects(objects)
        scored = np.empty(0, np.int64) if known is None else known.images[known.is_scored]
        images, places = np.unique(np.concatenate([owners, scored]), return_inverse=True)
        frontier = np.maximum(scores[:, -1], np.float32(LOWEST_SCORE))
        candidates = cls(index, vectors, query_vectors, images, frontier)
        candidates._objects, candidates._places, candidates._regions = objects, places[: len(objects)], regions
        candidates._scores = scores_of_pairs.copy()
        candidates.is_settled[:] = has_exact_scores
        candidates._raise_bounds(slice(None))
        if known is not None:
            candidates._enter(places[len(objects) :], known.bounds[:, known.is_scored])
        return candidates

    @classmethod
    def of_all_images(cls, index: EmbeddingIndex, vectors: RecentVectors, query_vectors: np.ndarray) -> Candidates:
        """All images that have regions, scored."""
        images = np.flatnonzero(np.diff(index.offsets))
        candidates = cls(index, vectors, query_vectors, images, np.full(len(query_vectors), -np.inf, np.float32))
        for start in range(0, len(images), CHUNK_IMAGES):
            candidates.score(np.arange(start, min(start + CHUNK_IMAGES, len(images))))
        return candidates

    def settle(self, places: np.ndarray) -> None:
        """Give exact scores to all fetched pairs of some images.

        Args:
            places: (n,) positions in ``images``, of images that are not settled.
        """
        is_wanted = np.zeros(len(self.images), bool)
        is_wanted[places] = True
        pairs = np.flatnonzero(is_wanted[self._places])
        objects, of_pairs = np.unique(self._objects[pairs], return_inverse=True)
        exact = self._index.vectors_of_objects(objects) @ self._query_vectors
        self._scores[pairs] = exact[of_pairs, self._regions[pairs]]
        self.is_settled[places] = True
        self.bounds[:, places] = self.frontier[:, None]
        self._raise_bounds(pairs)

    def score(self, places: np.ndarray) -> None:
        """Compare all regions of some images with all regions of the query.

        Args:
            places: (n,) positions in ``images``.
        """
        vectors, offsets = self._vectors.read(self.images[places])
        self._enter(places, np.maximum.reduceat(vectors @ self._query_vectors, offsets[:-1], axis=0).T)

    def _enter(self, places: np.ndarray, best_pairs: np.ndarray) -> None:
        """Enter the best-pair scores (Q, n) of images."""
        self.bounds[:, places] = best_pairs
        self.is_settled[places] = self.is_scored[places] = True

    def _raise_bounds(self, pairs: np.ndarray | slice) -> None:
        """Raise bounds to the scores of pairs, where these are higher."""
        entries = self._regions[pairs] * len(self.images) + self._places[pairs]
        np.maximum.at(self.bounds.reshape(-1), entries, self._scores[pairs])
