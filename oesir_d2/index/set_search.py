"""Search for images as sets of regions, on top of a nearest-neighbour search for single objects.

Shape shorthand: Q regions of the query, D dimensions, M objects fetched a query region.

The M most similar objects of each query region are fetched. The M-th score, the frontier, bounds from above whatever
was not fetched. So each image has an upper bound: for a query region that fetched one of its objects the best such
score, for any other the frontier, and the aggregate over both, since aggregators are monotone. Images are scored from
their stored vectors in the order of their bounds until the k-th best score lies above every bound that is left. If the
bound of the images never fetched is the one in the way, more is fetched, and in the end every image is scored. This is
the threshold algorithm of Fagin, Lotem and Naor (PODS 2001), and it is exact as long as the object index is.

An approximate object index misses objects, and its scores may be off. What is returned is scored exactly all the same,
but never by looking at all images. The pairs of the most promising images are scored first, a vector a pair; a score of
the engine counts as bound after the error that 99.5 % of them keep to was added to it. Only the images that are then
among the best are compared as a whole. Candidates are left when a batch of them brought nothing. More is fetched until
k images are certain by such bounds, a larger fetch changed nothing, or there is no more to fetch.

Explaining away. The regions of a spliced photo that come from its host match the host almost perfectly, and photos like
the host rather well; those matches drown the weaker ones of a small pasted object. So the first result may explain the
query away: from every best-pair score of the other images, the one that the first result has for the same query region
is subtracted, and they are ranked by what they explain beyond it. A shift of each query region keeps an aggregator
monotone, so this ranking is exact by the same argument. The first result is then the one that explains most of the
query: of the images that are best by the aggregate, the one with the highest sum of best-pair scores. A single pair
does not tell one cloudless sky from another.
"""

from __future__ import annotations

import numpy as np

from ..structures import ImageEmbeddings
from .aggregate import Aggregator, get_aggregator
from .candidates import Candidates
from .exact_scores import ExactScores, Ranked, RecentVectors, round_scores
from .explainer import EXPLAINERS, choose_explainer, find_contenders, weigh_regions
from .object_index import ObjectIndex
from .ranking import Ranking
from .reader import EmbeddingIndex
from .results import RegionMatch, SearchResult

FIRST_FETCH = 128
"""Objects fetched a query region to begin with, where nothing better is known."""

# How much more is fetched where it was too little.
_FETCH_GROWTH = 8
# To fetch a larger share of the objects takes longer than to score all images.
_LARGEST_FETCH = 1 / 64
# The same for an approximate object index: how much more, up to how much, after how many fruitless
# batches candidates are left, and how many images are scored before.
_APPROXIMATE_GROWTH = 4
_LARGEST_APPROXIMATE_FETCH = 4096
_PATIENCE = 1
_SCORED_AT_LEAST = 32


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
        self._first_fetch = first_fetch or getattr(object_index, "first_fetch", None) or FIRST_FETCH
        assert self._first_fetch > 0, f"first_fetch is {first_fetch}, must be positive"

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
            top_k: results wanted; > 0. With an exact object index, more than there are images with regions gives them
                all; an approximate one may give fewer than are wanted, since it looks at the nearest objects alone.
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
        search = _QuerySearch(self._index, self._object_index, self._first_fetch, query)
        explained = np.zeros(len(query))
        if explain_away == 0:
            ranked = search.rank(top_k, aggregator, explained)
            images, scores = ranked.images, ranked.scores
        else:
            first = search.find_explainer(aggregator)
            images, scores = first.images, first.scores
            if len(images):
                explained = explain_away * round_scores(first.best_pairs[0]).clip(min=0)
            others = search.rank(top_k, aggregator, explained)
            is_other = ~np.isin(others.images, images)
            images = np.concatenate([images, others.images[is_other]])[:top_k]
            scores = np.concatenate([scores, np.minimum(others.scores[is_other], scores[:1])])[:top_k]
        return self._make_results(query, search, images, scores, explained, matches_per_result)

    def _make_results(
        self,
        query: ImageEmbeddings,
        search: _QuerySearch,
        images: np.ndarray,
        scores: np.ndarray,
        explained: np.ndarray,
        matches_per_result: int,
    ) -> list[SearchResult]:
        if matches_per_result == 0:
            # A ranking of the whole database would read all its vectors once more.
            records = [self._index.images[image] for image in images.tolist()]
            return [
                SearchResult(rank, record.image_id, record.path, score, [], record)
                for rank, (record, score) in enumerate(zip(records, scores.tolist(), strict=True), start=1)
            ]
        similarities, offsets = search.exact_scores.compare(images)
        boxes_of_images = _to_boxes(self._index.boxes_of_images(images))
        similarities = round_scores(similarities)
        query_boxes = _to_boxes(query.boxes)
        results: list[SearchResult] = []
        for place, (image, score) in enumerate(zip(images.tolist(), scores.tolist(), strict=True)):
            of_image = similarities[offsets[place] : offsets[place + 1]]
            best_regions, best_scores = of_image.argmax(axis=0), of_image.max(axis=0)
            contributions = best_scores - explained if results else best_scores
            boxes = boxes_of_images[offsets[place] : offsets[place + 1]]
            matches = [
                RegionMatch(query_boxes[q], boxes[best_regions[q]], float(best_scores[q]))
                for q in np.argsort(-contributions, kind="stable")[:matches_per_result].tolist()
            ]
            record = self._index.images[image]
            results.append(SearchResult(place + 1, record.image_id, record.path, score, matches, record))
        return results


class _QuerySearch:
    """The rankings of one query, which share what was fetched and what was scored."""

    def __init__(
        self, index: EmbeddingIndex, object_index: ObjectIndex, first_fetch: int, query: ImageEmbeddings
    ) -> None:
        self._index = index
        self._object_index = object_index
        self._first_fetch = first_fetch
        self._query = query
        self._vectors = RecentVectors(index)
        self.exact_scores = ExactScores(index, self._vectors, query.vectors)
        # An engine that does not say otherwise is exact.
        self._is_exact = getattr(object_index, "is_exact", True)
        self._error = 0.0 if self._is_exact else float(getattr(object_index, "score_error", 0.0))
        self._has_exact_scores = self._is_exact or getattr(object_index, "has_exact_scores", False)
        # Where scores are exact but objects were missed, too little is said of some images.
        self._at_least = _SCORED_AT_LEAST if self._has_exact_scores else 1
        share = len(object_index) * _LARGEST_FETCH
        self._largest_fetch = share if self._is_exact else min(_LARGEST_APPROXIMATE_FETCH, len(object_index))
        self._candidates: Candidates | None = None
        self._fetched = 0
        self._is_exhausted = False

    def find_explainer(self, aggregator: Aggregator) -> Ranked:
        """The image that explains most of the query; none only in an index without objects."""
        weights = weigh_regions(self._query.boxes)
        no_shift = np.zeros(len(weights))
        if self._index.num_findable == 0:
            return self.rank(EXPLAINERS, aggregator, no_shift)
        candidates = self._fetch(max(self._first_fetch, 4 * EXPLAINERS))
        ranking = Ranking(candidates, aggregator, no_shift, EXPLAINERS, self._error)
        contenders = find_contenders(candidates, ranking, weights, self._is_exact)
        if contenders is None:
            return choose_explainer(self.rank(EXPLAINERS, aggregator, no_shift), weights)
        return choose_explainer(self.exact_scores.rank(contenders, aggregator, no_shift, EXPLAINERS), weights)

    def rank(self, top_k: int, aggregator: Aggregator, shift: np.ndarray) -> Ranked:
        """The ``top_k`` best images by the aggregate of their best-pair scores less a shift (Q,)."""
        num_findable = self._index.num_findable
        wanted = min(top_k, num_findable)
        if wanted == 0 or (self._is_exact and wanted == num_findable):
            findable = np.flatnonzero(np.diff(self._index.offsets))
            return self.exact_scores.rank(findable, aggregator, shift, wanted)
        fetch = max(self._first_fetch, 4 * wanted)
        before: np.ndarray | None = None
        while True:
            candidates = self._fetch(fetch)
            ranking = Ranking(candidates, aggregator, shift, wanted, self._error)
            ranking.settle()
            finalists = ranking.score() if self._is_exact else ranking.score(self._at_least, _PATIENCE)
            is_certain = self._is_exhausted or ranking.lowest > ranking.bound_of_others
            fetch = self._fetched * (_FETCH_GROWTH if self._is_exact else _APPROXIMATE_GROWTH)
            is_enough = fetch > self._largest_fetch or (before is not None and np.array_equal(finalists, before))
            if is_certain or (is_enough and not self._is_exact):
                return self.exact_scores.rank(finalists, aggregator, shift, wanted)
            before = finalists

    def _fetch(self, count: int) -> Candidates:
        """The candidates of a fetch of at least ``count`` objects a query region."""
        if self._candidates is not None and (count <= self._fetched or self._is_exhausted):
            return self._candidates
        self._fetched = count
        if self._is_exact and count > self._largest_fetch:
            self._candidates = Candidates.of_all_images(self._index, self._vectors, self._query.vectors)
            self._is_exhausted = True
            return self._candidates
        scores, ids = self._object_index.search(self._query.vectors, count)
        self._candidates = Candidates.of_fetch(
            self._index, self._vectors, self._query.vectors, scores, ids, self._has_exact_scores, self._candidates
        )
        self._is_exhausted = bool((ids[:, -1] < 0).all())
        return self._candidates


def _to_boxes(boxes: np.ndarray) -> list[tuple[float, float, float, float]]:
    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in boxes.tolist()]
