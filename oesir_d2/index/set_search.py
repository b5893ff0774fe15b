"""Exact search for images as sets of regions, on top of a nearest-neighbour search for single objects.

Shape shorthand: I images of the index, O objects, Q regions of the query, D dimensions, C candidate images, M objects
fetched a query region.

The M most similar objects of each query region are fetched. The M-th score, the frontier, bounds from above whatever
was not fetched. So each image has an upper bound: for a query region that fetched one of its objects the best such
score, for any other the frontier, and the aggregate over both, since aggregators are monotone. Images are scored from
their stored vectors in the order of their bounds until the k-th best score lies above every bound that is left. If the
bound of the images never fetched is the one in the way, more is fetched, and in the end every image is scored. This is
the threshold algorithm of Fagin, Lotem and Naor (PODS 2001), and it is exact as long as the object index is; with an
approximate one the scores are exact all the same, but an image may be missed.

Explaining away. The regions of a spliced photo that come from its host match the host almost perfectly, and photos like
the host rather well; those matches drown the weaker ones of a small pasted object. So the first result may explain the
query away: from every best-pair score of the other images, the one that the first result has for the same query region
is subtracted, and they are ranked by what they explain beyond it. A shift of each query region keeps an aggregator
monotone, so this ranking is exact by the same argument. The first result is then the one that explains most of the
query: of the images that are best by the aggregate, the one with the highest sum of best-pair scores. A single pair
does not tell one cloudless sky from another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from ..structures import ImageEmbeddings
from .aggregate import Aggregator, get_aggregator
from .object_index import ObjectIndex
from .reader import EmbeddingIndex
from .results import RegionMatch, SearchResult

EXPLAINERS = 32
"""The image that explains a query away is chosen among so many that are best by the aggregate."""

SCORE_DECIMALS = 6
"""Scores are rounded to so many decimals before they are ranked, so that rounding errors decide nothing."""

# Far above the error of a float32 inner product of unit vectors, far below a difference that matters.
_BOUND_SLACK = 1e-5
# No inner product of unit vectors is lower: the score of what an object index did not find.
_LOWEST_SCORE = -1.0
# Images scored in one matrix product: enough to keep the processor busy, little enough for its cache.
_BATCH_IMAGES = 32
# How much more is fetched where it was too little.
_FETCH_GROWTH = 8
# To fetch a larger share of the objects takes longer than to score all images.
_LARGEST_FETCH = 1 / 64

# m -> (scores (Q, m), object ids (Q, m)) of the m nearest objects of each query region.
_Fetch = Callable[[int], tuple[np.ndarray, np.ndarray]]


class SetSearcher:
    """Finds the images most similar to a query image, each taken as the set of its regions.

    Args:
        index: the images and their embeddings.
        object_index: search over the same objects, numbered as in ``index``; "Flat" makes the results exact.
        first_fetch: objects fetched a query region to begin with; > 0. It changes the speed, never a result.

    Raises:
        ValueError: if the two hold different numbers of objects or dimensions.
    """

    def __init__(self, index: EmbeddingIndex, object_index: ObjectIndex, first_fetch: int = 128) -> None:
        if (len(object_index), object_index.dimension) != (index.num_objects, index.dimension):
            raise ValueError(
                f"the object index holds {len(object_index)} objects of dimension {object_index.dimension}, "
                f"index {index.path} {index.num_objects} of dimension {index.dimension}"
            )
        assert first_fetch > 0, f"first_fetch is {first_fetch}, must be positive"
        self._index = index
        self._object_index = object_index
        self._first_fetch = first_fetch
        # An image without any region has nothing to be found by.
        self._findable = np.flatnonzero(np.diff(index.offsets))
        by_id = sorted(range(len(index.images)), key=lambda image: index.images[image].image_id)
        self._order_of_id = np.argsort(by_id)

    def search(
        self,
        query: ImageEmbeddings,
        top_k: int = 10,
        aggregate: str = "max",
        matches_per_result: int = 5,
        explain_away: float = 0.0,
    ) -> list[SearchResult]:
        """Rank the images of the index by their similarity to a query.

        Args:
            query: the regions of the query image, embedded by the index's model; vectors L2-normalised.
            top_k: results wanted; > 0. More than there are images gives them all.
            aggregate: name in ``AGGREGATORS``: how the best-pair scores make an image's score.
            matches_per_result: pairs of regions that a result lists at most; >= 0.
            explain_away: how much of the first result's best-pair scores is subtracted from those of the others, in
                [0, 1]; 0 ranks by similarity alone. The scores of results from rank 2 on are then aggregates of such
                differences, and never above the first one's.

        Returns:
            The most similar images, best first, equal scores in the order of their image ids; [] for a query
            without regions.

        Raises:
            ValueError: if an argument is out of its range, or the query's dimension is not the index's.
        """
        aggregator = get_aggregator(aggregate)
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}, expected at least 1")
        if not 0 <= explain_away <= 1:
            raise ValueError(f"explain_away is {explain_away}, expected a number in [0, 1]")
        if matches_per_result < 0:
            raise ValueError(f"matches_per_result is {matches_per_result}, expected at least 0")
        if query.dimension != self._index.dimension:
            raise ValueError(
                f"query {query.image_id!r} has dimension {query.dimension}, "
                f"index {self._index.path} has dimension {self._index.dimension}"
            )
        if len(query) == 0:
            return []
        fetch = _make_fetch(self._object_index, query)
        explained = np.zeros(len(query))
        if explain_away == 0:
            images, scores = self._rank(query, fetch, top_k, aggregator)
        else:
            images, scores = self._rank(query, fetch, EXPLAINERS, aggregator)
            images, scores, explained = self._choose_explainer(query, images, scores, explain_away)
            others, their_scores = self._rank(query, fetch, top_k, lambda pairs: aggregator(pairs - explained))
            is_other = ~np.isin(others, images)
            images = np.concatenate([images, others[is_other]])[:top_k]
            scores = np.concatenate([scores, np.minimum(their_scores[is_other], scores[:1])])[:top_k]
        results = []
        for rank, (image, score) in enumerate(zip(images, scores, strict=True), start=1):
            subtracted = explained if rank > 1 else np.zeros(len(query))
            results.append(self._make_result(rank, int(image), float(score), query, subtracted, matches_per_result))
        return results

    def _rank(
        self, query: ImageEmbeddings, fetch_objects: _Fetch, top_k: int, aggregator: Aggregator
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``top_k`` best images and their scores."""
        wanted = min(top_k, len(self._findable))
        ranking = _Ranking(self._index, query, wanted, aggregator, self._order_of_id)
        fetch = max(self._first_fetch, 4 * wanted)
        while fetch <= len(self._object_index) * _LARGEST_FETCH:
            scores, ids = fetch_objects(fetch)
            candidates, bounds, bound_of_others = self._bound(scores, ids, aggregator)
            ranking.score_by_bound(candidates, bounds)
            if ranking.lowest > bound_of_others or (ids[:, -1] < 0).all():
                return ranking.images, ranking.scores
            fetch *= _FETCH_GROWTH
        ranking.score_by_bound(self._findable, np.full(len(self._findable), np.inf))
        return ranking.images, ranking.scores

    def _bound(
        self, scores: np.ndarray, ids: np.ndarray, aggregator: Aggregator
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Bound all images' scores by what was fetched.

        Args:
            scores: (Q, M) float32, best first, -inf where nothing was found.
            ids: (Q, M) int64 object ids, -1 where nothing was found.
            aggregator: see ``aggregate``.

        Returns:
            candidates: (C,) int64, the images fetched.
            bounds: (C,) upper bounds of their scores.
            bound_of_others: upper bound of the score of any other image.
        """
        frontier = np.maximum(scores[:, -1].astype(np.float64), _LOWEST_SCORE)
        regions, columns = np.nonzero(ids >= 0)
        found = ids[regions, columns]
        candidates, positions = np.unique(self._index.image_of_objects(found), return_inverse=True)
        best_pairs = np.tile(frontier, (len(candidates), 1))
        np.maximum.at(best_pairs, (positions, regions), scores[regions, columns])
        bounds = _round(aggregator(best_pairs + _BOUND_SLACK))
        return candidates, bounds, float(_round(aggregator(frontier[None] + _BOUND_SLACK))[0])

    def _choose_explainer(
        self, query: ImageEmbeddings, images: np.ndarray, scores: np.ndarray, weight: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Choose the image that explains most of the query: a region counts by its area.

        A detector may put most of its regions on a small part of the photo, and that part may be the pasted one.

        Args:
            query: the query.
            images: (n,) candidates, best first; 0 only in an index without objects.
            scores: (n,) their scores.
            weight: in (0, 1].

        Returns:
            The chosen image (1,) and its score (1,), and what it explains of each query region, (Q,), times the
            weight, none of it negative.
        """
        if len(images) == 0:
            return images, scores, np.zeros(len(query))
        best_pairs = np.stack([self._best_pairs(int(image), query)[1] for image in images])
        areas = np.prod(query.boxes[:, 2:] - query.boxes[:, :2], axis=1, dtype=np.float64)
        chosen = int(_round(best_pairs @ (areas / areas.sum())).argmax())
        return images[chosen : chosen + 1], scores[chosen : chosen + 1], weight * best_pairs[chosen].clip(min=0)

    def _best_pairs(self, image: int, query: ImageEmbeddings) -> tuple[np.ndarray, np.ndarray]:
        """For each query region the image's most similar region, (Q,) int64, and that pair's score, (Q,) float64."""
        vectors = self._index.embeddings_of(image).vectors
        similarities = _round(query.vectors.astype(np.float64) @ vectors.T.astype(np.float64))
        return similarities.argmax(axis=1), similarities.max(axis=1)

    def _make_result(
        self,
        rank: int,
        image: int,
        score: float,
        query: ImageEmbeddings,
        subtracted: np.ndarray,
        matches_per_result: int,
    ) -> SearchResult:
        boxes = self._index.embeddings_of(image).boxes
        best_regions, best_scores = self._best_pairs(image, query)
        matches = [
            RegionMatch(_to_box(query.boxes[q]), _to_box(boxes[best_regions[q]]), float(best_scores[q]))
            for q in np.argsort(subtracted - best_scores, kind="stable")[:matches_per_result]
        ]
        record = self._index.images[image]
        return SearchResult(rank, record.image_id, record.path, score, matches)


def _make_fetch(object_index: ObjectIndex, query: ImageEmbeddings) -> _Fetch:
    """Fetch the m nearest objects of every query region, each m only once however many rankings ask for it."""
    return cache(lambda m: object_index.search(query.vectors, m))


class _Ranking:
    """The best images among those scored so far.

    Attributes:
        images: (n,) int64, best first; n is ``wanted`` as soon as so many were scored.
        scores: (n,) float64 exact scores, rounded.
    """

    def __init__(
        self,
        index: EmbeddingIndex,
        query: ImageEmbeddings,
        wanted: int,
        aggregator: Aggregator,
        order_of_id: np.ndarray,
    ) -> None:
        self._index = index
        self._query_vectors = query.vectors.T.astype(np.float32)
        self._wanted = wanted
        self._aggregator = aggregator
        self._order_of_id = order_of_id
        self._is_scored = np.zeros(len(index.images), dtype=bool)
        self.images = np.empty(0, np.int64)
        self.scores = np.empty(0, np.float64)

    @property
    def lowest(self) -> float:
        """The score that another image must reach to be among the best."""
        return float(self.scores[-1]) if len(self.scores) == self._wanted > 0 else -np.inf

    def score_by_bound(self, candidates: np.ndarray, bounds: np.ndarray) -> None:
        """Score the candidates that can be among the best.

        Args:
            candidates: (C,) int64 images, each with one region at least.
            bounds: (C,) upper bounds of their scores.
        """
        is_new = ~self._is_scored[candidates]
        candidates, bounds = candidates[is_new], bounds[is_new]
        order = np.argsort(-bounds, kind="stable")
        for start in range(0, len(order), _BATCH_IMAGES):
            batch = order[start : start + _BATCH_IMAGES]
            # An equal score may still win by its image id.
            batch = batch[bounds[batch] >= self.lowest]
            if len(batch) == 0:
                return
            self._score(candidates[batch])

    def _score(self, images: np.ndarray) -> None:
        vectors, offsets = self._index.vectors_of(images)
        self._is_scored[images] = True
        # Single precision sorts out most images in half the time.
        bounds = _round(self._aggregator(self._best_pairs(vectors, offsets) + _BOUND_SLACK))
        kept = bounds >= self.lowest
        counts = np.diff(offsets)
        vectors, offsets = vectors[np.repeat(kept, counts)], np.append(0, np.cumsum(counts[kept]))
        # Products of float32 numbers are exact in float64. So the same pair of regions has the same score wherever it
        # stands in a matrix, and copies of a photo tie.
        scores = _round(self._aggregator(self._best_pairs(vectors.astype(np.float64), offsets)))
        all_images = np.concatenate([self.images, images[kept]])
        all_scores = np.concatenate([self.scores, scores])
        best = np.lexsort((self._order_of_id[all_images], -all_scores))[: self._wanted]
        self.images, self.scores = all_images[best], all_scores[best]

    def _best_pairs(self, vectors: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """(B, Q) best-pair scores of B images, in the precision of ``vectors``."""
        similarities = vectors @ self._query_vectors.astype(vectors.dtype)
        return np.maximum.reduceat(similarities, offsets[:-1], axis=0)


def _round(scores: np.ndarray) -> np.ndarray:
    # Adding zero makes a negative zero positive.
    return np.round(scores, SCORE_DECIMALS) + 0.0


def _to_box(box: np.ndarray) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box.tolist()
    return x0, y0, x1, y1
