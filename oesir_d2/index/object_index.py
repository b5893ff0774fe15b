"""Nearest-neighbour search over single objects: what set search asks of an engine, and FAISS behind it.

Shape shorthand: O objects in the index, Q queries, D dimensions, M matches a query.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import faiss
import numpy as np

logger = logging.getLogger(__name__)

FACTORY_EXAMPLES = ("Flat", "IVF256,Flat", "HNSW32", "OPQ16,IVF256,PQ16")

# A sample of this size, or of so many vectors: more takes longer and finds hardly better cells.
_TRAINING_BYTES = 128 << 20
_MIN_TRAINING_VECTORS = 10_000
# From so many queries on, a matrix product is faster than one pass over the vectors a query (measured: 1.15.1, 512
# dimensions, 44,360 objects; 50 queries take a sixth of the time).
_MATRIX_PRODUCT_QUERIES = 4


class ObjectIndex(Protocol):
    """What set search needs of an engine: the most similar objects of each query, by inner product.

    An engine may also have these attributes:
        is_exact: bool. False says that it misses objects or that its scores are not inner products: then set search
            does not fall back on scoring all images. Without it an engine counts as exact.
        has_exact_scores: bool: whether the scores are inner products though objects are missed; False without it.
        score_error: float >= 0: by how much a score may lie below the inner product, for 995 of 1,000 objects; 0
            if there is none.
        first_fetch: int or None: objects a query region with which a search does well to begin.
    """

    @property
    def dimension(self) -> int:
        """D, the length of a vector."""
        ...

    def __len__(self) -> int:
        """O, the number of objects."""
        ...

    def search(self, queries: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the ``m`` objects most similar to each query.

        Args:
            queries: (Q, D) float32, L2-normalised.
            m: matches wanted a query; > 0.

        Returns:
            scores: (Q, M) float32 inner products, best first, with M = min(m, O).
            ids: (Q, M) int64, positions of the objects in the order in which they were indexed. An engine that
                does not look everywhere may find fewer than M: such entries have id -1 and score -inf.
        """
        ...


class FaissObjectIndex:
    """An ``ObjectIndex`` in memory, by FAISS.

    Args:
        faiss_index: a filled FAISS index with the inner-product metric. It stays reachable under this name, for
            search-time parameters such as ``nprobe``.
        first_fetch: see ``ObjectIndex``.
        score_error: see ``ObjectIndex``.
    """

    def __init__(self, faiss_index: faiss.Index, first_fetch: int | None = None, score_error: float = 0.0) -> None:
        assert faiss_index.metric_type == faiss.METRIC_INNER_PRODUCT, "object indexes compare by inner product"
        self.faiss_index = faiss_index
        self.first_fetch = first_fetch
        self.score_error = score_error
        downcast = faiss.downcast_index(faiss_index)
        self.is_exact = isinstance(downcast, faiss.IndexFlat)
        # Others store codes, or vectors that were changed before.
        self.has_exact_scores = isinstance(downcast, (faiss.IndexFlat, faiss.IndexIVFFlat, faiss.IndexHNSWFlat))

    @property
    def dimension(self) -> int:
        return int(self.faiss_index.d)

    def __len__(self) -> int:
        return int(self.faiss_index.ntotal)

    def search(self, queries: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
        """See ``ObjectIndex.search``; exact if the factory string was "Flat"."""
        assert m > 0, f"m is {m}, must be positive"
        m = min(m, len(self))
        if m == 0 or len(queries) == 0:
            return np.empty((len(queries), m), np.float32), np.empty((len(queries), m), np.int64)
        with _matrix_products(len(queries) >= _MATRIX_PRODUCT_QUERIES):
            scores, ids = self.faiss_index.search(np.ascontiguousarray(queries, dtype=np.float32), m)
        # FAISS fills up with the lowest finite float where it found too few.
        return np.where(ids < 0, np.float32(-np.inf), scores), ids


def check_factory(factory: str, dimension: int) -> None:
    """Raise ``ValueError`` unless FAISS can build ``factory`` for ``dimension`` with the inner product."""
    make_faiss_index(factory, dimension)


def build_object_index(
    factory: str, dimension: int, chunks: Iterable[np.ndarray], total: int | None = None
) -> FaissObjectIndex:
    """Build a FAISS index over objects, in memory.

    Args:
        factory: a FAISS factory string, e.g. "Flat", which is exact and needs no training.
        dimension: D.
        chunks: arrays (n, D) float32, L2-normalised, which together hold the objects in the order of their ids;
            a list, or anything else that can be iterated more than once.
        total: objects that they hold together; None counts them.

    Returns:
        The index; object o of its answers is row o of the concatenated chunks.

    Raises:
        ValueError: if FAISS does not know the factory string, cannot use it with the inner product or in this
            dimension, or cannot train it on so few vectors.
    """
    index = make_faiss_index(factory, dimension)
    total = sum(len(chunk) for chunk in chunks) if total is None else total
    train_faiss_index(index, factory, chunks, total)
    add_chunks(index, factory, chunks)
    assert index.ntotal == total, f"FAISS holds {index.ntotal} of {total} objects"
    logger.debug("Built a %s index over %d objects of dimension %d", factory, total, dimension)
    return FaissObjectIndex(index)


def make_faiss_index(factory: str, dimension: int) -> faiss.Index:
    """An empty FAISS index; see ``build_object_index``."""
    with _naming_factory(factory, dimension, None):
        return faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)


def train_faiss_index(index: faiss.Index, factory: str, chunks: Iterable[np.ndarray], total: int) -> None:
    """Train a FAISS index on a sample of ``total`` vectors, if its type needs it; see ``build_object_index``."""
    if index.is_trained:
        return
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        # FAISS would complain on stderr that the sample is small; how good the index is, tuning measures.
        ivf.cp.min_points_per_centroid = 1
    with _naming_factory(factory, index.d, total):
        index.train(_training_sample(chunks, total, index.d))


def add_chunks(index: faiss.Index, factory: str, chunks: Iterable[np.ndarray]) -> None:
    """Add vectors to a trained FAISS index, in their order."""
    with _naming_factory(factory, index.d, None):
        for chunk in chunks:
            index.add(np.ascontiguousarray(chunk, dtype=np.float32))


def set_parameters(index: faiss.Index, parameters: str) -> None:
    """Set search-time parameters such as "nprobe=16"; "" leaves them as they are.

    Raises:
        ValueError: if the index has no such parameter.
    """
    try:
        for parameter in filter(None, parameters.split(",")):
            name, value = parameter.split("=")
            faiss.ParameterSpace().set_index_parameter(index, name, float(value))
    except RuntimeError as error:
        raise ValueError(f"the object index has no parameters {parameters!r}") from error


def _training_sample(chunks: Iterable[np.ndarray], total: int, dimension: int) -> np.ndarray:
    """Evenly spaced objects, so that training is reproducible and its memory bounded."""
    wanted = max(_MIN_TRAINING_VECTORS, _TRAINING_BYTES // (4 * dimension))
    step = max(1, -(-total // wanted))
    sample = np.empty((-(-total // step), dimension), np.float32)
    seen = filled = 0
    for chunk in chunks:
        part = chunk[-seen % step :: step]
        sample[filled : filled + len(part)] = part
        seen, filled = seen + len(chunk), filled + len(part)
    return sample


@contextmanager
def _matrix_products(wanted: bool) -> Iterator[None]:
    """Let FAISS's exhaustive search multiply matrices, which by itself it does for hundreds of queries only."""
    threshold = faiss.cvar.distance_compute_blas_threshold
    if wanted:
        faiss.cvar.distance_compute_blas_threshold = 1
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = threshold


@contextmanager
def _naming_factory(factory: str, dimension: int, total: int | None) -> Iterator[None]:
    """Turn FAISS's errors about the factory string into one line that a user understands."""
    try:
        yield
    except RuntimeError as error:
        # FAISS puts its source's place before the reason.
        reason = str(error).splitlines()[0].rsplit(": ", 1)[-1]
        over = "" if total is None else f" over {total} objects"
        examples = ", ".join(FACTORY_EXAMPLES)
        raise ValueError(
            f"FAISS cannot build index factory {factory!r} with the inner product in {dimension} dimensions{over} "
            f"({reason}); expected a factory string such as {examples}"
        ) from error
