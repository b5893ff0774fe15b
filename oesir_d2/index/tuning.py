"""Choosing the type of the object index, and the parameters of its search, from a budget.

The types are tried from the most accurate to the smallest. What ``budget`` can refuse is refused at once. Recall and
latency are measured on photos of the index itself, against a search that scores every image: parameters are chosen by
one half of these queries, and what is reported, and held against the budget, was measured on the other. A photo finds
itself easily, so that does not count.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from ..structures import ImageEmbeddings
from .budget import QUERY_REGIONS, TOP_K, Budget, Plan, drop_too_slow, plan_object_indexes
from .manifest import StoredObjectIndex
from .object_index import FaissObjectIndex, check_factory, set_parameters
from .reader import EmbeddingIndex
from .set_search import SetSearcher
from .stored_object_index import fill_object_index, opened_store, save_object_index

logger = logging.getLogger(__name__)

_QUERIES = 64
_FETCHES = (64, 128, 256, 512)
_PROBES = (4, 8, 16, 32, 64, 128, 256)
# Of the scores, in which share the error may be larger than what a bound allows for.
_ERROR_QUANTILE = 0.995


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
            plans = drop_too_slow(plans, index, budget)
        else:
            check_factory(factory, index.dimension)
            plans = [Plan(factory, 0)]
        chosen_by, held_out = _make_queries(index)
        reached = []
        for plan in plans:
            faiss_index = fill_object_index(index, plan.factory)
            described = _best_parameters(index, plan.factory, faiss_index, chosen_by, budget)
            set_parameters(faiss_index, described.parameters)
            objects = FaissObjectIndex(faiss_index, described.first_fetch, described.score_error)
            recall, seconds = _measure(SetSearcher(index, objects), held_out)
            described.measured.update(
                recall_at_10=round(recall, 4), milliseconds=round(1000 * seconds, 3), queries=len(held_out)
            )
            is_enough = recall >= budget.min_recall and seconds <= (budget.max_latency or np.inf)
            if is_enough or factory is not None:
                return save_object_index(store, index, faiss_index, described)
            logger.info("%s does not fit the budget: %s", plan.factory, described.measured)
            reached.append(f"{plan.factory} {described.measured}")
    raise ValueError(f"no type of object index fits the budget here; reached were {'; '.join(reached)}")


@dataclass(frozen=True)
class _Query:
    """A photo of the index, as a query.

    Attributes:
        image: its number.
        embeddings: of at most ``QUERY_REGIONS`` of its regions.
        tenth_score: the best-pair score of the tenth most similar among the other photos.
    """

    image: int
    embeddings: ImageEmbeddings
    tenth_score: float


def _best_parameters(
    index: EmbeddingIndex,
    factory: str,
    faiss_index: faiss.Index,
    queries: list[_Query],
    budget: Budget,
) -> StoredObjectIndex:
    """The fastest parameters that reach the recall and a bit more, or those that come nearest to it."""
    # Other queries may reach less.
    wanted = (1 + budget.min_recall) / 2
    name = "nprobe" if faiss.try_extract_index_ivf(faiss_index) is not None else "efSearch" if "HNSW" in factory else ""
    ladder = [f"{name}={value}" for value in _PROBES] if name else [""]
    error = _score_error(index, faiss_index, queries, ladder[-1])
    found: list[tuple[float, float, str, int]] = []
    for fetch in _FETCHES:
        for parameters in ladder:
            set_parameters(faiss_index, parameters)
            searcher = SetSearcher(index, FaissObjectIndex(faiss_index, fetch, error))
            found.append((*_measure(searcher, queries), parameters, fetch))
            if found[-1][0] >= wanted:
                break  # more probes only take longer
        if found[-1][0] >= wanted:
            break
    best_recall = max(recall for recall, *_ in found)
    least = next(recall for recall in (wanted, budget.min_recall, best_recall) if recall <= best_recall)
    _, _, parameters, fetch = min((entry for entry in found if entry[0] >= least), key=lambda entry: entry[1])
    return StoredObjectIndex("", factory, parameters, fetch, error, "", 0, 0, 0, "", {})


def _measure(searcher: SetSearcher, queries: list[_Query]) -> tuple[float, float]:
    """Recall at 10, the query's own photo left out, and the median of the seconds a query."""
    recalls, seconds = [], []
    wanted = min(TOP_K, searcher.index.num_findable - 1)
    for query in queries:
        start = time.perf_counter()
        results = searcher.search(query.embeddings, TOP_K + 1)
        seconds.append(time.perf_counter() - start)
        others = [result for result in results if result.image_id != query.embeddings.image_id][:TOP_K]
        found = sum(result.score >= query.tenth_score - 1e-5 for result in others)
        recalls.append(min(1.0, found / wanted) if wanted else 1.0)
    return float(np.mean(recalls)), float(np.median(seconds))


def _make_queries(index: EmbeddingIndex) -> tuple[list[_Query], list[_Query]]:
    """Queries to choose parameters by, and others to measure with; the same ones if there are too few photos."""
    sample = [(image, _shorten(index.embeddings_of(image))) for image in _sample(len(index.images), _QUERIES)]
    sample = [(image, query) for image, query in sample if len(query)]
    scores = _tenth_scores(index, sample)
    queries = [_Query(image, query, score) for (image, query), score in zip(sample, scores, strict=True)]
    return queries[::2], queries[1::2] or queries


def _tenth_scores(index: EmbeddingIndex, queries: list[tuple[int, ImageEmbeddings]]) -> list[float]:
    """The best-pair score of the tenth of all other images for each query, by looking at every one."""
    regions = np.concatenate([query.vectors for _, query in queries]).T
    bounds = np.cumsum([0] + [len(query) for _, query in queries])[:-1]
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
    best[np.arange(len(queries)), [image for image, _ in queries]] = -np.inf
    wanted = max(1, min(TOP_K, index.num_findable - 1))
    return [float(np.partition(scores, -wanted)[-wanted]) for scores in best]


def _score_error(index: EmbeddingIndex, faiss_index: faiss.Index, queries: list[_Query], parameters: str) -> float:
    """By how much scores of the nearest objects of other photos lie below the inner product, but for the worst."""
    set_parameters(faiss_index, parameters)
    errors = []
    for query in queries[:8]:
        vectors = query.embeddings.vectors
        for vector, row, found in zip(
            vectors, *FaissObjectIndex(faiss_index).search(vectors, _FETCHES[1]), strict=True
        ):
            of_others = (found >= 0) & (index.image_of_objects(np.maximum(found, 0)) != query.image)
            row, found = row[of_others], found[of_others]
            exact = index.vectors_of_objects(found) @ vector
            nearest = np.argsort(-exact)[:TOP_K]
            errors.append(exact[nearest] - row[nearest])
    all_errors = np.concatenate(errors)
    return max(0.0, round(float(np.quantile(all_errors, _ERROR_QUANTILE)), 6)) if len(all_errors) else 0.0


def _shorten(query: ImageEmbeddings) -> ImageEmbeddings:
    rows = slice(QUERY_REGIONS)
    return ImageEmbeddings(
        query.image_id, query.vectors[rows], query.boxes[rows], query.scores[rows], query.classes[rows]
    )


def _sample(total: int, wanted: int) -> list[int]:
    """Evenly spaced positions, so that what is measured is the same in every run."""
    return np.unique(np.linspace(0, max(total - 1, 0), num=min(wanted, total)).astype(np.int64)).tolist()
