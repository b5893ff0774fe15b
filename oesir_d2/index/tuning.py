"""Choosing the type of the object index, and the parameters of its search, from a budget.

The types are tried from the most accurate to the smallest. What arithmetic can refuse is refused at once; recall and
latency are measured on photos of the index itself, against a search that scores every image.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from ..structures import ImageEmbeddings
from .manifest import StoredObjectIndex
from .object_index import FaissObjectIndex, check_factory, set_parameters
from .reader import EmbeddingIndex
from .set_search import SetSearcher
from .stored_object_index import fill_object_index, opened_store, save_object_index

logger = logging.getLogger(__name__)

_QUERIES = 32
_QUERY_REGIONS = 20
_TOP_K = 10
_FETCHES = (64, 128, 256, 512)
_PROBES = (4, 8, 16, 32, 64, 128, 256)
# Below, cells cost more than they spare.
_OBJECTS_FOR_CELLS = 20_000
# FAISS's product quantiser has 256 centroids, and needs as many vectors to train on.
_OBJECTS_FOR_CODES = 256
# The tables that a search holds beside the object index, a photo.
_BYTES_PER_IMAGE = 24
# Of the scores, in which share the error may be larger than what a bound allows for.
_ERROR_QUANTILE = 0.9


@dataclass(frozen=True)
class Budget:
    """What the object index may cost, and what it must reach.

    Attributes:
        max_memory: bytes that the search may hold in memory; None for any number.
        max_latency: seconds that a query of 20 regions may take; None for any time.
        min_recall: share of the 10 most similar photos that must be found, in (0, 1]; 1 asks for an exact index.
    """

    max_memory: int | None = None
    max_latency: float | None = None
    min_recall: float = 0.98

    def __post_init__(self) -> None:
        if not 0 < self.min_recall <= 1:
            raise ValueError(f"min_recall is {self.min_recall}, expected a number above 0 and up to 1")
        for name, value in (("max_memory", self.max_memory), ("max_latency", self.max_latency)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}, must be positive")


@dataclass(frozen=True)
class Plan:
    """A type of object index and the bytes that a search with it holds in memory."""

    factory: str
    bytes: int


def plan_object_indexes(images: int, objects: int, dimension: int, budget: Budget) -> list[Plan]:
    """The types that fit a budget, the most accurate first.

    Raises:
        ValueError: if there is none; it says what would be possible.
    """
    plans = [
        Plan(factory, int(objects * per_object + fixed) + images * _BYTES_PER_IMAGE)
        for factory, per_object, fixed in _types(objects, dimension)
    ]
    if budget.min_recall == 1:
        plans = plans[:1]
    fitting = [plan for plan in plans if budget.max_memory is None or plan.bytes <= budget.max_memory]
    if not fitting:
        smallest = min(plans, key=lambda plan: plan.bytes)
        exactly = " that finds everything" if budget.min_recall == 1 else ""
        raise ValueError(
            f"max_memory is {budget.max_memory} bytes, but for {objects} objects of dimension {dimension} the smallest "
            f"type{exactly}, {smallest.factory}, needs {smallest.bytes}; allow so much"
            + (", or a min_recall below 1" if exactly else "")
        )
    return fitting


def tune_object_index(index_path: Path, budget: Budget, factory: str | None = None) -> StoredObjectIndex:
    """Build the object index on disk for a budget, or of a given type with the best parameters.

    Args:
        index_path: the index folder.
        budget: what it may cost and must reach.
        factory: FAISS factory string; None chooses the type by the budget. A given type is taken whatever it reaches.

    Returns:
        What the manifest says of it, the figures measured included.

    Raises:
        ValueError: if nothing fits the budget, with what was reached; the index then stays as it was.
        OSError: if the object index could not be written.
    """
    with opened_store(index_path) as store:
        index = EmbeddingIndex.open(index_path)
        if index.num_objects == 0:
            raise ValueError(f"index {index_path} has no objects to be searched")
        if factory is None:
            plans = plan_object_indexes(len(index.images), index.num_objects, index.dimension, budget)
        else:
            check_factory(factory, index.dimension)
            plans = [Plan(factory, 0)]
        queries = [index.embeddings_of(image) for image in _sample(len(index.images), _QUERIES)]
        queries = [_shorten(query) for query in queries if len(query)]
        truth = _tenth_scores(index, queries)
        reached = []
        for plan in plans:
            faiss_index = fill_object_index(index, plan.factory)
            described = _best_parameters(index, plan.factory, faiss_index, queries, truth, budget)
            is_enough = described.measured["recall_at_10"] >= budget.min_recall and (
                budget.max_latency is None or described.measured["milliseconds"] <= 1000 * budget.max_latency
            )
            if is_enough or factory is not None:
                return save_object_index(store, index, faiss_index, described)
            logger.info("%s does not fit the budget: %s", plan.factory, described.measured)
            reached.append(f"{plan.factory} {described.measured}")
    raise ValueError(f"no type of object index fits the budget here; reached were {'; '.join(reached)}")


def _types(objects: int, dimension: int) -> list[tuple[str, float, float]]:
    """Factory string, bytes an object and fixed bytes of each type, from the most accurate to the smallest."""
    codes = [math.gcd(dimension, most) for most in (dimension // 4, dimension // 8, dimension // 16) if most]
    codes = list(dict.fromkeys(codes)) if objects >= _OBJECTS_FOR_CODES else []
    quantisers = [("Flat", 4.0 * dimension, 0.0), ("SQ8", dimension, 8.0 * dimension)]
    quantisers += [(f"PQ{code}", code, 4 * 256 * dimension) for code in codes]
    if objects < _OBJECTS_FOR_CELLS:
        return quantisers
    cells = 2 ** round(math.log2(4 * math.sqrt(objects)))
    # With each code lies the object's 8-byte number.
    return [quantisers[0]] * (objects < 2 * _OBJECTS_FOR_CELLS) + [
        (f"IVF{cells},{name}", per_object + 8, fixed + 4 * cells * dimension) for name, per_object, fixed in quantisers
    ]


def _best_parameters(
    index: EmbeddingIndex,
    factory: str,
    faiss_index: faiss.Index,
    queries: list[ImageEmbeddings],
    truth: list[float],
    budget: Budget,
) -> StoredObjectIndex:
    """The fastest parameters that reach the recall, or those that come nearest to it."""
    name = "nprobe" if faiss.try_extract_index_ivf(faiss_index) is not None else "efSearch" if "HNSW" in factory else ""
    ladder = [f"{name}={value}" for value in _PROBES] if name else [""]
    error = _score_error(index, faiss_index, queries, ladder[-1])
    found: list[tuple[bool, float, float, str, int]] = []
    for fetch in _FETCHES:
        for parameters in ladder:
            set_parameters(faiss_index, parameters)
            searcher = SetSearcher(index, FaissObjectIndex(faiss_index, fetch, error))
            recall, seconds = _measure(searcher, queries, truth)
            found.append((recall >= budget.min_recall, recall, seconds, parameters, fetch))
            if recall >= budget.min_recall:
                break  # more probes only take longer
        if found[-1][0]:
            break
    is_enough = [entry for entry in found if entry[0]]
    best = min(is_enough, key=lambda entry: entry[2]) if is_enough else max(found, key=lambda entry: entry[1])
    measured = {"recall_at_10": round(best[1], 4), "milliseconds": round(1000 * best[2], 3), "queries": len(queries)}
    return StoredObjectIndex("", factory, best[3], best[4], error, "", 0, 0, 0, "", measured)


def _measure(searcher: SetSearcher, queries: list[ImageEmbeddings], truth: list[float]) -> tuple[float, float]:
    """Recall at 10, and the median of the seconds a query."""
    recalls, seconds = [], []
    for query, tenth in zip(queries, truth, strict=True):
        start = time.perf_counter()
        results = searcher.search(query, _TOP_K)
        seconds.append(time.perf_counter() - start)
        wanted = min(_TOP_K, len(searcher.index.images))
        recalls.append(min(1.0, sum(result.score >= tenth - 1e-5 for result in results) / wanted))
    return float(np.mean(recalls)), float(np.median(seconds))


def _tenth_scores(index: EmbeddingIndex, queries: list[ImageEmbeddings]) -> list[float]:
    """The best-pair score of the tenth of all images for each query, by looking at every one."""
    regions = np.concatenate([query.vectors for query in queries]).T
    bounds = np.cumsum([0] + [len(query) for query in queries])[:-1]
    best = np.full((len(queries), len(index.images)), -np.inf, np.float32)
    seen = 0
    for chunk in index.vector_chunks():
        owners = index.image_of_objects(np.arange(seen, seen + len(chunk)))
        seen += len(chunk)
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        of_objects = np.maximum.reduceat(chunk @ regions, bounds, axis=1)
        of_images = np.maximum.reduceat(of_objects, starts, axis=0)
        # An image may lie on both sides of the end of a chunk.
        columns = owners[starts]
        best[:, columns] = np.maximum(best[:, columns], of_images.T)
    wanted = min(_TOP_K, best.shape[1])
    return [float(np.partition(scores, -wanted)[-wanted]) for scores in best]


def _score_error(
    index: EmbeddingIndex, faiss_index: faiss.Index, queries: list[ImageEmbeddings], parameters: str
) -> float:
    """By how much nine of ten scores of the truly nearest objects that are found lie below the inner product."""
    set_parameters(faiss_index, parameters)
    errors = []
    for query in queries[:8]:
        scores, ids = FaissObjectIndex(faiss_index).search(query.vectors, _FETCHES[1])
        for vector, row, found in zip(query.vectors, scores, ids, strict=True):
            row, found = row[found >= 0], found[found >= 0]
            images, places = np.unique(index.image_of_objects(found), return_inverse=True)
            vectors, offsets = index.vectors_of(images)
            exact = vectors[offsets[places] + found - index.offsets[images][places]] @ vector
            nearest = np.argsort(-exact)[:_TOP_K]
            errors.append(exact[nearest] - row[nearest])
    return max(0.0, round(float(np.quantile(np.concatenate(errors), _ERROR_QUANTILE)), 6))


def _shorten(query: ImageEmbeddings) -> ImageEmbeddings:
    rows = slice(_QUERY_REGIONS)
    return ImageEmbeddings(
        query.image_id, query.vectors[rows], query.boxes[rows], query.scores[rows], query.classes[rows]
    )


def _sample(total: int, wanted: int) -> list[int]:
    """Evenly spaced positions, so that what is measured is the same in every run."""
    return np.unique(np.linspace(0, max(total - 1, 0), num=min(wanted, total)).astype(np.int64)).tolist()
