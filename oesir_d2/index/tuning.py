"""Choosing the type of the object index, and the parameters of its search, from a budget.

The types are tried from the most accurate to the smallest. What ``budget`` can refuse is refused at once. Recall and
latency are measured on photos of the index itself, with and without explaining away, against a search that scores every
image: parameters are chosen by one half of these queries, and what is reported, and held against the budget, was
measured on the other.
"""

from __future__ import annotations

import logging
from pathlib import Path

import faiss
import numpy as np

from .budget import TOP_K, Budget, Plan, drop_too_slow, plan_object_indexes
from .manifest import StoredObjectIndex
from .object_index import FaissObjectIndex, check_factory, set_parameters
from .reader import EmbeddingIndex
from .set_search import SetSearcher
from .stored_object_index import fill_object_index, opened_store, save_object_index
from .tuning_queries import Reached, TuningQuery, make_tuning_queries, measure_search

logger = logging.getLogger(__name__)

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
        chosen_by, held_out = make_tuning_queries(index)
        missed = []
        for plan in plans:
            faiss_index, trained_on = fill_object_index(index, plan.factory)
            described = _best_parameters(index, plan.factory, faiss_index, chosen_by, budget)
            set_parameters(faiss_index, described.parameters)
            objects = FaissObjectIndex(faiss_index, described.first_fetch, described.score_error)
            reached = measure_search(SetSearcher(index, objects), held_out)
            described.measured.update(
                recall_at_10=round(reached.recall, 4),
                milliseconds=round(1000 * reached.seconds, 3),
                queries=len(held_out),
            )
            is_enough = reached.recall >= budget.min_recall and reached.seconds <= (budget.max_latency or np.inf)
            if is_enough or factory is not None:
                return save_object_index(store, index, faiss_index, trained_on, described)
            logger.info("%s does not fit the budget: %s", plan.factory, described.measured)
            missed.append(f"{plan.factory} {described.measured}")
    raise ValueError(f"no type of object index fits the budget here; reached were {'; '.join(missed)}")


def _best_parameters(
    index: EmbeddingIndex,
    factory: str,
    faiss_index: faiss.Index,
    queries: list[TuningQuery],
    budget: Budget,
) -> StoredObjectIndex:
    """The fastest parameters that reach the recall and a bit more, or those that come nearest to it."""
    # Other queries may reach less.
    wanted = (1 + budget.min_recall) / 2
    name = "nprobe" if faiss.try_extract_index_ivf(faiss_index) is not None else "efSearch" if "HNSW" in factory else ""
    ladder = [f"{name}={value}" for value in _PROBES] if name else [""]
    error = _score_error(index, faiss_index, queries, ladder[-1])
    found: list[tuple[Reached, str, int]] = []
    for fetch in _FETCHES:
        for parameters in ladder:
            set_parameters(faiss_index, parameters)
            searcher = SetSearcher(index, FaissObjectIndex(faiss_index, fetch, error))
            found.append((measure_search(searcher, queries), parameters, fetch))
            if found[-1][0].recall >= wanted:
                break  # more probes only take longer
        if found[-1][0].recall >= wanted:
            break
    best_recall = max(reached.recall for reached, *_ in found)
    least = next(recall for recall in (wanted, budget.min_recall, best_recall) if recall <= best_recall)
    enough = [entry for entry in found if entry[0].recall >= least]
    _, parameters, fetch = min(enough, key=lambda entry: entry[0].seconds)
    return StoredObjectIndex("", factory, parameters, fetch, error, "", 0, 0, 0, "", {})


def _score_error(index: EmbeddingIndex, faiss_index: faiss.Index, queries: list[TuningQuery], parameters: str) -> float:
    """By how much scores of the nearest objects of other photos lie below the inner product, but for the worst."""
    set_parameters(faiss_index, parameters)
    errors = []
    for query in queries[:8]:
        vectors = query.embeddings.vectors
        for vector, row, found in zip(
            vectors, *FaissObjectIndex(faiss_index).search(vectors, _FETCHES[1]), strict=True
        ):
            owners = index.image_of_objects(np.maximum(found, 0))
            of_others = (found >= 0) & ~np.isin(owners, list(query.known))
            row, found = row[of_others], found[of_others]
            exact = index.vectors_of_objects(found) @ vector
            nearest = np.argsort(-exact)[:TOP_K]
            errors.append(exact[nearest] - row[nearest])
    all_errors = np.concatenate(errors)
    return max(0.0, round(float(np.quantile(all_errors, _ERROR_QUANTILE)), 6)) if len(all_errors) else 0.0
