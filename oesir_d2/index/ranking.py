"""Ranking images by upper bounds of their scores: the threshold algorithm's half of set search.

Shape shorthand: I images of the index, Q regions of the query, D dimensions, C candidate images, M objects fetched a
query region, B images of a batch.
"""

from __future__ import annotations

import numpy as np

from .aggregate import Aggregator
from .reader import EmbeddingIndex

SCORE_DECIMALS = 6
"""Scores are rounded to so many decimals before they are ranked, so that rounding errors decide nothing."""

# Far above the error of a float32 inner product of unit vectors, far below a difference that matters.
_BOUND_SLACK = 1e-5
# No inner product of unit vectors is lower: the score of what an object index did not find.
_LOWEST_SCORE = -1.0
# Images scored in one matrix product: enough to keep the processor busy, little enough for its cache.
_BATCH_IMAGES = 32


def bound_images(
    index: EmbeddingIndex, scores: np.ndarray, ids: np.ndarray, aggregator: Aggregator, score_error: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Bound all images' scores by what was fetched.

    Args:
        index: the images.
        scores: (Q, M) float32, best first, -inf where nothing was found.
        ids: (Q, M) int64 object ids, -1 where nothing was found.
        aggregator: see ``aggregate``.
        score_error: by how much a score may lie below the inner product that it stands for; >= 0.

    Returns:
        candidates: (C,) int64, the images fetched.
        bounds: (C,) upper bounds of their scores.
        bound_of_others: upper bound of the score of any other image.
    """
    frontier = np.maximum(scores[:, -1].astype(np.float64), _LOWEST_SCORE)
    # From the worst to the best: where an image is named twice, the assignment below keeps its best pair.
    regions, columns = np.nonzero(ids[:, ::-1] >= 0)
    columns = ids.shape[1] - 1 - columns
    candidates, positions = np.unique(index.image_of_objects(ids[regions, columns]), return_inverse=True)
    best_pairs = np.tile(frontier, (len(candidates), 1))
    best_pairs[positions, regions] = scores[regions, columns]
    slack = score_error + _BOUND_SLACK
    bounds = round_scores(aggregator(best_pairs + slack))
    return candidates, bounds, float(round_scores(aggregator(frontier[None] + slack))[0])


class Ranking:
    """The best images among those scored so far.

    Args:
        index: the images.
        query_vectors: (Q, D) float32, L2-normalised.
        wanted: images to keep.
        aggregator: see ``aggregate``.
        patience: give up on candidates when so many batches in a row brought no image among the best; None never does.

    Attributes:
        images: (n,) int64, best first, equal scores in the order of their image ids; n is ``wanted`` as soon as so many
            were scored.
        scores: (n,) float64 exact scores, rounded.
    """

    def __init__(
        self,
        index: EmbeddingIndex,
        query_vectors: np.ndarray,
        wanted: int,
        aggregator: Aggregator,
        patience: int | None = None,
    ) -> None:
        self._index = index
        self._query_vectors = query_vectors.T.astype(np.float32)
        self._wanted = wanted
        self._aggregator = aggregator
        self._patience = patience
        self._is_scored = np.zeros(len(index.images), dtype=bool)
        self._images = np.empty(0, np.int64)
        self._scores = np.empty(0, np.float64)
        # Scored, but not sorted in yet: while there is room for all, sorting every batch in would be quadratic.
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._num_pending = 0

    @property
    def images(self) -> np.ndarray:
        self._sort_in()
        return self._images

    @property
    def scores(self) -> np.ndarray:
        self._sort_in()
        return self._scores

    @property
    def lowest(self) -> float:
        """The score that another image must reach to be among the best."""
        return float(self._scores[-1]) if len(self._scores) == self._wanted > 0 else -np.inf

    def score_by_bound(self, candidates: np.ndarray, bounds: np.ndarray) -> bool:
        """Score the candidates that can be among the best.

        Args:
            candidates: (C,) int64 images, each with one region at least.
            bounds: (C,) upper bounds of their scores.

        Returns:
            Whether one of them is.
        """
        is_new = ~self._is_scored[candidates]
        candidates, bounds = candidates[is_new], bounds[is_new]
        order = np.argsort(-bounds, kind="stable")
        has_changed, fruitless = False, 0
        for start in range(0, len(order), _BATCH_IMAGES):
            batch = order[start : start + _BATCH_IMAGES]
            # An equal score may still win by its image id.
            batch = batch[bounds[batch] >= self.lowest]
            if len(batch) == 0 or fruitless == self._patience:
                break
            is_fruitful = self._score(candidates[batch])
            has_changed |= is_fruitful
            fruitless = 0 if is_fruitful else fruitless + 1
        return has_changed

    def _score(self, images: np.ndarray) -> bool:
        """Score images, and say whether one of them is among the best."""
        vectors, offsets = self._index.vectors_of(images)
        self._is_scored[images] = True
        # Single precision sorts out most images in half the time.
        bounds = round_scores(self._aggregator(self._best_pairs(vectors, offsets) + _BOUND_SLACK))
        kept = bounds >= self.lowest
        if not kept.any():
            return False
        counts = np.diff(offsets)
        vectors, offsets = vectors[np.repeat(kept, counts)], np.append(0, np.cumsum(counts[kept]))
        # Products of float32 numbers are exact in float64. So the same pair of regions has the same score wherever it
        # stands in a matrix, and copies of a photo tie.
        scores = round_scores(self._aggregator(self._best_pairs(vectors.astype(np.float64), offsets)))
        self._pending.append((images[kept], scores))
        self._num_pending += len(scores)
        num_known = len(self._scores) + self._num_pending
        if num_known < self._wanted:
            return True
        best = self._sort_in()
        return bool((best >= num_known - len(scores)).any())

    def _sort_in(self) -> np.ndarray:
        """Sort in what was scored, and give the places that the best had before, in the order of their scoring."""
        all_images = np.concatenate([self._images, *(images for images, _ in self._pending)])
        all_scores = np.concatenate([self._scores, *(scores for _, scores in self._pending)])
        best = np.arange(len(all_images))
        if self._pending:
            best = self._order(all_images, all_scores)[: self._wanted]
            self._images, self._scores = all_images[best], all_scores[best]
            self._pending, self._num_pending = [], 0
        return best

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

    def _best_pairs(self, vectors: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """(B, Q) best-pair scores of B images, in the precision of ``vectors``."""
        similarities = vectors @ self._query_vectors.astype(vectors.dtype)
        return np.maximum.reduceat(similarities, offsets[:-1], axis=0)


def round_scores(scores: np.ndarray) -> np.ndarray:
    """Scores as they are compared and shown."""
    # Adding zero makes a negative zero positive.
    return np.round(scores, SCORE_DECIMALS) + 0.0
