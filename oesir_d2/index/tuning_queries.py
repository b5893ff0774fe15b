"""Queries that an index is tuned by, made of its own photos, with what a search that scores every image finds for them.

Half of them are photos, searched by similarity alone; half are made-up splices, with most regions of one photo and some
of another, searched with the first result explained away. Sources find themselves easily, so they do not count.

Shape shorthand: Q regions of a query, D dimensions, n images.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from ..structures import ImageEmbeddings
from .aggregate import get_aggregator
from .budget import QUERY_REGIONS, TOP_K
from .exact_scores import ExactScores, RecentVectors, round_scores
from .explainer import EXPLAINERS, choose_explainer, weigh_regions
from .reader import EmbeddingIndex
from .set_search import SetSearcher

# Of each kind; every second one serves to measure.
_QUERIES = 64
# Of the regions of a splice; the others are the host's.
_DONOR_REGIONS = 6
# What is pasted is smaller than in its own photo.
_DONOR_SCALE = 0.4
# By so much of its length a vector of a splice is moved: recompressed, scaled and cut, nothing looks quite as it did. A
# splice of exact copies would leave its host nothing to be explained, and be found too easily.
_VIEW_NOISE = 0.5
# Scores that differ by less are equal.
_TIE = 1e-5


@dataclass(frozen=True)
class TuningQuery:
    """A query, and what has to be found for it.

    Attributes:
        embeddings: of at most ``QUERY_REGIONS`` regions.
        explainer: number of the image that explains it away; None if it is searched by similarity alone.
        known: numbers of the images that do not count: its sources, and what explains it away.
        wanted: how many of the others have to be found, at most ``TOP_K``.
        least_score: of so many of the others, in the ranking asked for.
    """

    embeddings: ImageEmbeddings
    explainer: int | None
    known: frozenset[int]
    wanted: int
    least_score: float

    @property
    def explains_away(self) -> bool:
        """Whether the search explains away."""
        return self.explainer is not None


@dataclass(frozen=True)
class Reached:
    """What a search reaches.

    Attributes:
        recall: share of the wanted images that are found, of that kind of queries of which less are.
        seconds: a query, the median of that kind which takes longer.
    """

    recall: float
    seconds: float


def make_tuning_queries(index: EmbeddingIndex) -> tuple[list[TuningQuery], list[TuningQuery]]:
    """Queries to choose parameters by, and others to measure with; the same ones if there are too few photos.

    The index has a photo with regions; the others have nothing to be searched by.
    """
    findable = np.flatnonzero(np.diff(index.offsets))
    sample = findable[_sample(len(findable), _QUERIES)].tolist()
    photos = [_Sources((image,), _take(index.embeddings_of(image), QUERY_REGIONS)) for image in sample]
    # A photo far away; of the same half, so that the halves have no photo in common.
    step = max(1, len(photos) // 4 // 2 * 2)
    pairs = zip(photos, photos[step:] + photos[:step], strict=True)
    splices = [_splice(host, donor) for host, donor in pairs if host.images != donor.images]
    asked = _rank_by_similarity(index, photos), _rank_explained(index, splices)
    chosen_by = [query for queries in asked for query in queries[::2]]
    return chosen_by, [query for queries in asked for query in queries[1::2]] or chosen_by


def measure_search(searcher: SetSearcher, queries: list[TuningQuery]) -> Reached:
    """Search for every query, and count what is found of what has to be."""
    recalls: dict[bool, list[float]] = {}
    seconds: dict[bool, list[float]] = {}
    for query in queries:
        known = {image: searcher.index.images[image].image_id for image in query.known}
        start = time.perf_counter()
        results = searcher.search(query.embeddings, TOP_K + len(known), explain_away=float(query.explains_away))
        seconds.setdefault(query.explains_away, []).append(time.perf_counter() - start)
        others = [result for result in results if result.image_id not in known.values()][: query.wanted]
        found = sum(result.score >= query.least_score - _TIE for result in others)
        if query.explainer is not None and results[0].image_id != known[query.explainer]:
            found = 0  # what was ranked is something else
        recalls.setdefault(query.explains_away, []).append(found / query.wanted if query.wanted else 1.0)
    return Reached(
        min(float(np.mean(values)) for values in recalls.values()),
        max(float(np.median(values)) for values in seconds.values()),
    )


@dataclass(frozen=True)
class _Sources:
    """A query and the numbers of the images that it is made of."""

    images: tuple[int, ...]
    embeddings: ImageEmbeddings


def _rank_by_similarity(index: EmbeddingIndex, photos: list[_Sources]) -> list[TuningQuery]:
    scores = _score_all(index, [photo.embeddings.vectors for photo in photos])
    return [_make_query(photo, None, row) for photo, row in zip(photos, scores, strict=True)]


def _rank_explained(index: EmbeddingIndex, splices: list[_Sources]) -> list[TuningQuery]:
    if not splices:
        return []
    vectors = [splice.embeddings.vectors for splice in splices]
    explainers, left = [], []
    count = min(EXPLAINERS, index.num_findable)
    for splice, row in zip(splices, _score_all(index, vectors), strict=True):
        best = np.sort(np.argpartition(-row, count - 1)[:count])
        query = splice.embeddings
        pairs = ExactScores(index, RecentVectors(index), query.vectors)
        similar = pairs.rank(best, get_aggregator("max"), np.zeros(len(query)), count)
        chosen = choose_explainer(similar, weigh_regions(query.boxes))
        explainers.append(int(chosen.images[0]))
        left.append(round_scores(chosen.best_pairs[0]).clip(min=0))
    rows = _score_all(index, vectors, left)
    return [_make_query(*of_one) for of_one in zip(splices, explainers, rows, strict=True)]


def _make_query(sources: _Sources, explainer: int | None, scores: np.ndarray) -> TuningQuery:
    known = frozenset(sources.images if explainer is None else (*sources.images, explainer))
    scores[list(known)] = -np.inf
    wanted = min(TOP_K, int(np.isfinite(scores).sum()))
    least_score = float(np.partition(scores, -wanted)[-wanted]) if wanted else 0.0
    return TuningQuery(sources.embeddings, explainer, known, wanted, least_score)


def _score_all(index: EmbeddingIndex, queries: list[np.ndarray], shifts: list[np.ndarray] | None = None) -> np.ndarray:
    """Score every image for each query, by its best pair of regions.

    Args:
        index: the images.
        queries: the vectors of each, (Q, D).
        shifts: for each query what is subtracted from the scores of its regions, (Q,).

    Returns:
        (queries, n) float32; -inf for an image without regions.
    """
    regions = np.concatenate(queries).T
    shift = None if shifts is None else np.concatenate(shifts).astype(np.float32)
    bounds = np.cumsum([0] + [len(query) for query in queries])[:-1]
    best = np.full((len(queries), len(index.images)), -np.inf, np.float32)
    seen = 0
    for chunk in index.vector_chunks():
        owners = index.image_of_objects(np.arange(seen, seen + len(chunk)))
        seen += len(chunk)
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        scores = chunk @ regions
        if shift is not None:
            scores -= shift
        of_objects = np.maximum.reduceat(scores, bounds, axis=1)
        of_images = np.maximum.reduceat(of_objects, starts, axis=0)
        # An image may lie on both sides of the end of a chunk.
        columns = owners[starts]
        best[:, columns] = np.maximum(best[:, columns], of_images.T)
    return best


def _splice(host: _Sources, donor: _Sources) -> _Sources:
    """Most regions of the one photo, and some of the other, made smaller; all as in another view."""
    of_donor = _take(donor.embeddings, _DONOR_REGIONS)
    of_host = _take(host.embeddings, QUERY_REGIONS - len(of_donor))
    parts = (of_host, replace(of_donor, boxes=_DONOR_SCALE * of_donor.boxes))
    names = ("vectors", "boxes", "scores", "classes")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    joined["vectors"] = _move(joined["vectors"], np.random.default_rng([*host.images, *donor.images]))
    return _Sources(host.images + donor.images, ImageEmbeddings(of_host.image_id, **joined))


def _move(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors (Q, D), moved by noise of ``_VIEW_NOISE`` of their length."""
    noise = rng.standard_normal(vectors.shape, dtype=np.float32) / np.sqrt(vectors.shape[1])
    moved = vectors + np.float32(_VIEW_NOISE) * noise
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    return np.asarray(moved / lengths, np.float32)


def _take(query: ImageEmbeddings, count: int) -> ImageEmbeddings:
    rows = slice(count)
    return ImageEmbeddings(
        query.image_id, query.vectors[rows], query.boxes[rows], query.scores[rows], query.classes[rows]
    )


def _sample(total: int, wanted: int) -> list[int]:
    """Evenly spaced positions, so that what is measured is the same in every run."""
    return np.unique(np.linspace(0, max(total - 1, 0), num=min(wanted, total)).astype(np.int64)).tolist()
