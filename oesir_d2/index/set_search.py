"""Search for images as sets of regions, on top of a nearest-neighbour search for single objects.

Shape shorthand: Q regions of the query, D dimensions, M objects fetched a query region.

The M most similar objects of each query region are fetched. The M-th score, the frontier, bounds from above whatever
was not fetched. So each image has an upper bound: for a query region that fetched one of its objects the best such
score, for any other the frontier, and the aggregate over both, since aggregators are monotone. Images are scored from
their stored vectors in the order of their bounds until the k-th best score lies above every bound that is left. If the
bound of the images never fetched is the one in the way, more is fetched, and in the end every image is scored. This is
the threshold algorithm of Fagin, Lotem and Naor (PODS 2001), and it is exact as long as the object index is.

An approximate object index misses objects, and its scores are off. What is returned is scored exactly all the same,
but never by looking at all images. A score counts as bound after the error that 90 % of the scores keep to was added
to it, and candidates are left when a batch of them brought nothing. More is fetched until k images are certain by
such bounds, a larger fetch changed nothing, or there is no more to fetch.

Explaining away. The regions of a spliced photo that come from its host match the host almost perfectly, and photos like
the host rather well; those matches drown the weaker ones of a small pasted object. So the first result may explain the
query away: from every best-pair score of the other images, the one that the first result has for the same query region
is subtracted, and they are ranked by what they explain beyond it. A shift of each query region keeps an aggregator
monotone, so this ranking is exact by the same argument. The first result is then the one that explains most of the
query: of the images that are best by the aggregate, the one with the highest sum of best-pair scores. A single pair
does not tell one cloudless sky from another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np

from ..structures import ImageEmbeddings
from .aggregate import Aggregator, get_aggregator
from .object_index import ObjectIndex
from .ranking import Ranking, bound_images, round_scores
from .reader import EmbeddingIndex
from .results import RegionMatch, SearchResult

EXPLAINERS = 32
"""The image that explains a query away is chosen among so many that are best by the aggregate."""

FIRST_FETCH = 128
"""Objects fetched a query region to begin with, where nothing better is known."""

# How much more is fetched where it was too little.
_FETCH_GROWTH = 8
# To fetch a larger share of the objects takes longer than to score all images.
_LARGEST_FETCH = 1 / 64
# The same for an approximate object index: how much more, up to how much, and after how many fruitless batches.
_APPROXIMATE_GROWTH = 4
_LARGEST_APPROXIMATE_FETCH = 4096
_PATIENCE = 1

# m -> (scores (Q, m), object ids (Q, m)) of the m nearest objects of each query region.
_Fetch = Callable[[int], tuple[np.ndarray, np.ndarray]]


class SetSearcher:
    """Finds the images most similar to a query image, each taken as the set of its regions.

    Args:
        index: the images and their embeddings.
        object_index: search over the same objects, numbered as in ``index``; "Flat" makes the results exact.
        first_fetch: objects fetched a query region to begin with; > 0, None for what the object index recommends. With
            an exact object index it changes the speed, never a result.

    Raises:
        ValueError: if the two hold different numbers of objects or dimensions.
    """

    def __init__(self, index: EmbeddingIndex, object_index: ObjectIndex, first_fetch: int | None = None) -> None:
        if (len(object_index), object_index.dimension) != (index.num_objects, index.dimension):
            raise ValueError(
                f"the object index holds {len(object_index)} objects of dimension {object_index.dimension}, "
                f"index {index.path} {index.num_objects} of dimension {index.dimension}"
            )
        self._index = index
        self._object_index = object_index
        # An engine that does not say otherwise is exact.
        self._is_exact = getattr(object_index, "is_exact", True)
        self._score_error = 0.0 if self._is_exact else float(getattr(object_index, "score_error", 0.0))
        self._first_fetch = first_fetch or getattr(object_index, "first_fetch", None) or FIRST_FETCH
        assert self._first_fetch > 0, f"first_fetch is {first_fetch}, must be positive"
        share = len(object_index) * _LARGEST_FETCH
        self._largest_fetch = share if self._is_exact else min(_LARGEST_APPROXIMATE_FETCH, len(object_index))
        # An image without any region has nothing to be found by.
        self._num_findable = int(np.count_nonzero(np.diff(index.offsets)))

    @property
    def index(self) -> EmbeddingIndex:
        """The images that are searched."""
        return self._index

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
        return self._make_results(query, images, scores, explained, matches_per_result)

    def _rank(
        self, query: ImageEmbeddings, fetch_objects: _Fetch, top_k: int, aggregator: Aggregator
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``top_k`` best images and their scores."""
        wanted = min(top_k, self._num_findable)
        ranking = Ranking(self._index, query.vectors, wanted, aggregator, None if self._is_exact else _PATIENCE)
        fetch = max(self._first_fetch, 4 * wanted)
        is_first = True
        while fetch <= self._largest_fetch or (is_first and not self._is_exact):
            scores, ids = fetch_objects(fetch)
            candidates, bounds, bound_of_others = bound_images(self._index, scores, ids, aggregator, self._score_error)
            has_changed = ranking.score_by_bound(candidates, bounds)
            is_settled = not (self._is_exact or is_first or has_changed)
            if ranking.lowest > bound_of_others or is_settled or (ids[:, -1] < 0).all():
                return ranking.images, ranking.scores
            fetch *= _FETCH_GROWTH if self._is_exact else _APPROXIMATE_GROWTH
            is_first = False
        if self._is_exact:
            findable = np.flatnonzero(np.diff(self._index.offsets))
            ranking.score_by_bound(findable, np.full(len(findable), np.inf))
        return ranking.images, ranking.scores

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
        best_pairs = np.stack([pairs for _, pairs in self._best_pairs(query, images)])
        areas = np.prod(query.boxes[:, 2:] - query.boxes[:, :2], axis=1, dtype=np.float64)
        chosen = int(round_scores(best_pairs @ (areas / areas.sum())).argmax())
        return images[chosen : chosen + 1], scores[chosen : chosen + 1], weight * best_pairs[chosen].clip(min=0)

    def _best_pairs(self, query: ImageEmbeddings, images: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each image, each query region's most similar region, (Q,) int64, and that pair's score, (Q,) float64."""
        vectors, offsets = self._index.vectors_of(images)
        similarities = round_scores(vectors.astype(np.float64) @ query.vectors.T.astype(np.float64))
        for start, stop in zip(offsets, offsets[1:], strict=False):
            of_image = similarities[start:stop]
            yield of_image.argmax(axis=0), of_image.max(axis=0)

    def _make_results(
        self,
        query: ImageEmbeddings,
        images: np.ndarray,
        scores: np.ndarray,
        explained: np.ndarray,
        matches_per_result: int,
    ) -> list[SearchResult]:
        if matches_per_result == 0:
            # A ranking of the whole database would read all its vectors once more.
            records = [self._index.images[image] for image in images.tolist()]
            return [
                SearchResult(rank, record.image_id, record.path, score, [])
                for rank, (record, score) in enumerate(zip(records, scores.tolist(), strict=True), start=1)
            ]
        results: list[SearchResult] = []
        query_boxes = [_to_box(box) for box in query.boxes]
        for image, score, (best_regions, best_scores) in zip(
            images.tolist(), scores.tolist(), self._best_pairs(query, images), strict=True
        ):
            contributions = best_scores - explained if results else best_scores
            boxes = self._index.boxes_of(image)
            matches = [
                RegionMatch(query_boxes[q], _to_box(boxes[best_regions[q]]), float(best_scores[q]))
                for q in np.argsort(-contributions, kind="stable")[:matches_per_result]
            ]
            record = self._index.images[image]
            results.append(SearchResult(len(results) + 1, record.image_id, record.path, score, matches))
        return results


def _make_fetch(object_index: ObjectIndex, query: ImageEmbeddings) -> _Fetch:
    """Fetch the m nearest objects of every query region, each m only once however many rankings ask for it."""
    return cache(lambda m: object_index.search(query.vectors, m))


def _to_box(box: np.ndarray) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box.tolist()
    return x0, y0, x1, y1
