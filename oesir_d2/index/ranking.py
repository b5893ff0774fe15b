"""Ranking images by upper bounds of their scores: the threshold algorithm's half of set search.

Shape shorthand: Q regions of the query, C candidate images, F finalists, n some candidates.
"""

from __future__ import annotations

import numpy as np

from .aggregate import Aggregator
from .candidates import LOWEST_SCORE, SLACK, Candidates

# Images scored in one matrix product, once there are as many as wanted.
_BATCH_IMAGES = 32
# At most so many are wanted at once before.
_LARGEST_BATCH = 1024
# Images settled at once: for ten wanted images one batch is nearly always enough.
_SETTLED_IMAGES = 320


class Ranking:
    """Ranks the candidates for one query by the aggregate of their best-pair scores, less a shift.

    Args:
        candidates: what was fetched; it gets to know more of them.
        aggregator: see ``aggregate``.
        shift: (Q,) subtracted from the best-pair scores of each query region.
        wanted: images to find; > 0.
        score_error: by how much a score of the engine may lie below the inner product that it stands for; >= 0.

    Attributes:
        lowest: what the score of another image must reach to be among the best.
        upper: (C,) float32, upper bounds of the candidates' scores; of what is not settled, within the engine's error.
    """

    def __init__(
        self, candidates: Candidates, aggregator: Aggregator, shift: np.ndarray, wanted: int, score_error: float
    ) -> None:
        self._candidates = candidates
        self._aggregator = aggregator
        self._shift = shift.astype(np.float32)[:, None]
        self._wanted = wanted
        self._error = np.float32(score_error)
        self.upper = self._bound(slice(None))
        # (C,): lower bounds of the scores, of what was scored.
        self._lower = np.full(len(candidates.images), -np.inf, np.float32)
        self.lowest = -np.inf
        self._take_scored(np.flatnonzero(candidates.is_scored))

    @property
    def bound_of_others(self) -> float:
        """Upper bound of the score of an image that was not fetched."""
        return float(self._aggregate(self._candidates.frontier[:, None], self._error + np.float32(SLACK))[0])

    def find_likely(self, is_exact: bool) -> np.ndarray | None:
        """The candidates that are the best, before any is scored.

        Args:
            is_exact: whether none of the best may be missing; else they are those that the engine finds best.

        Returns:
            (n,) positions among the candidates, at most twice as many as are wanted; None if that cannot be told.
        """
        bounds, frontier = self._candidates.bounds, self._candidates.frontier[:, None]
        if len(self.upper) <= self._wanted:
            return None
        top = self._best(np.ones(len(self.upper), bool), 2 * self._wanted)
        if not is_exact:
            return top
        # What lies above the frontier was fetched, so it is a score and no bound alone.
        fetched = np.where(bounds[:, top] > frontier, bounds[:, top], np.float32(LOWEST_SCORE))
        lowest = _kth_largest(self._aggregate(fetched, np.float32(-SLACK)), self._wanted)
        likely = np.flatnonzero(self.upper >= lowest)
        return None if lowest <= self.bound_of_others or len(likely) > 2 * self._wanted else likely

    def are_best(self, places: np.ndarray) -> np.ndarray:
        """(n,) bool: which of some scored candidates can be the best of them."""
        self._take_scored(places)
        self.upper[places] = self._bound(places)
        best: np.ndarray = self.upper[places] >= _kth_largest(self._lower[places], self._wanted)
        return best

    def is_surely_best(self, place: int) -> bool:
        """Whether a scored candidate is among the best, whatever the scores of those that are not scored."""
        [lower] = self._aggregate(self._candidates.bounds[:, [place]], np.float32(-SLACK))
        return bool(np.count_nonzero(self.upper >= lower) <= self._wanted)

    def settle(self) -> None:
        """Settle the candidates that can be among the best, until a batch of them brought nothing."""
        is_settled = self._candidates.is_settled
        while not is_settled.all():
            lowest = _kth_largest(self.upper[is_settled], self._wanted)
            batch = self._best(~is_settled & (self.upper >= lowest), _SETTLED_IMAGES)
            if len(batch) == 0:
                return
            self._candidates.settle(batch)
            self.upper[batch] = self._bound(batch)
            is_fruitful = self.upper[batch].max() >= _kth_largest(self.upper[is_settled], self._wanted)
            if not is_fruitful:
                return

    def score(self, at_least: int = 1, patience: int | None = None) -> np.ndarray:
        """Score the settled candidates that can be among the best.

        Args:
            at_least: images to score first, if they can be.
            patience: give up when so many batches in a row brought no image among the best; None never does.

        Returns:
            (F,) int64, the images that can be: ``wanted``, if there are so many, and those about as good as the last.
        """
        candidates = self._candidates
        size, fruitless = min(max(self._wanted, at_least), _LARGEST_BATCH), 0
        while fruitless != patience:
            is_open = candidates.is_settled & ~candidates.is_scored & (self.upper >= self.lowest)
            batch = self._best(is_open, size)
            if len(batch) == 0:
                break
            candidates.score(batch)
            self.upper[batch] = self._bound(batch)
            self._take_scored(batch)
            fruitless = 0 if self.upper[batch].max() >= self.lowest else fruitless + 1
            if np.count_nonzero(candidates.is_scored) >= self._wanted:
                size = _BATCH_IMAGES
        return candidates.images[candidates.is_scored & (self.upper >= self.lowest)]

    def _take_scored(self, places: np.ndarray) -> None:
        if len(places):
            self._lower[places] = self._aggregate(self._candidates.bounds[:, places], np.float32(-SLACK))
            self.lowest = _kth_largest(self._lower[self._candidates.is_scored], self._wanted)

    def _bound(self, places: np.ndarray | slice) -> np.ndarray:
        """(n,) upper bounds of the scores of candidates."""
        slack = np.where(self._candidates.is_settled[places], np.float32(0), self._error) + np.float32(SLACK)
        return self._aggregate(self._candidates.bounds[:, places], slack)

    def _aggregate(self, best_pairs: np.ndarray, slack: np.ndarray | np.float32) -> np.ndarray:
        if best_pairs.shape[1] == 0:
            return np.empty(0, np.float32)
        # Transposed and not laid out anew: so a maximum over the regions runs over the images at once.
        return self._aggregator((best_pairs + (slack - self._shift)).T)

    def _best(self, is_open: np.ndarray, count: int) -> np.ndarray:
        """Of the candidates that are open, the ``count`` with the highest bounds."""
        places = np.flatnonzero(is_open)
        if len(places) <= count:
            return places
        best: np.ndarray = places[np.argpartition(-self.upper[places], count - 1)[:count]]
        return best


def _kth_largest(values: np.ndarray, k: int) -> float:
    return float(np.partition(values, len(values) - k)[len(values) - k]) if len(values) >= k else -np.inf
