"""What an object index may cost and must reach, and which types can: told by arithmetic and by timing the least work.

Nothing here trains anything, so an impossible budget is refused at once.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .exact_scores import ExactScores, RecentVectors
from .reader import EmbeddingIndex

QUERY_REGIONS = 20
"""A budget's latency is that of a query of so many regions."""

TOP_K = 10
"""And of so many results."""

# Below, cells cost more than they spare.
_OBJECTS_FOR_CELLS = 20_000
# FAISS's product quantiser has 256 centroids, and needs as many vectors to train on.
_OBJECTS_FOR_CODES = 256
# The tables that a search holds beside the object index, a photo.
_BYTES_PER_IMAGE = 24
# Vectors that are multiplied to learn how long that takes for any number.
_TIMED_VECTORS = 4096
# The fastest of so many tries is the least that is needed.
_TRIES = 5


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
        if self.max_memory is not None and not self.max_memory > 0:
            raise ValueError(f"max_memory is {self.max_memory} bytes, must be positive")
        if self.max_latency is not None and not self.max_latency > 0:
            raise ValueError(f"max_latency is {1000 * self.max_latency:g} ms, must be positive")


@dataclass(frozen=True)
class Plan:
    """A type of object index and the bytes that a search with it holds in memory."""

    factory: str
    bytes: int


def plan_object_indexes(images: int, objects: int, dimension: int, budget: Budget) -> list[Plan]:
    """The types whose memory fits a budget, the most accurate first; only arithmetic.

    Raises:
        ValueError: if there is none; it says what would be possible.
    """
    # The one type that finds everything by construction.
    types = [("Flat", 4.0 * dimension, 0.0)] if budget.min_recall == 1 else _types(objects, dimension)
    plans = [
        Plan(factory, int(objects * per_object + fixed) + images * _BYTES_PER_IMAGE)
        for factory, per_object, fixed in types
    ]
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


def drop_too_slow(plans: list[Plan], index: EmbeddingIndex, budget: Budget) -> list[Plan]:
    """Leave out the types that are too slow however they are searched.

    Any search compares the query with the centres of the cells, or with all vectors if it is exact, and scores the
    photos that it returns. That is timed, and is the least that a query takes.

    Raises:
        ValueError: if none is left; it says what the least is.
    """
    if budget.max_latency is None:
        return plans
    least = {plan.factory: _time_least(plan.factory, index) for plan in plans}
    left = [plan for plan in plans if least[plan.factory] <= budget.max_latency]
    if not left:
        fastest = min(least, key=least.__getitem__)
        raise ValueError(
            f"max_latency is {1000 * budget.max_latency:.3g} ms, but of the types that fit the rest of the budget even "
            f"{fastest} takes at least {1000 * least[fastest]:.3g} ms here for a query of {QUERY_REGIONS} regions; "
            "allow more"
        )
    return left


def _time_least(factory: str, index: EmbeddingIndex) -> float:
    """Seconds below which no query with this type of index can be."""
    rng = np.random.default_rng(0)
    cells = re.match(r"IVF(\d+)", factory)
    compared = int(cells[1]) if cells else index.num_objects if factory == "Flat" else 0
    timed = min(compared, _TIMED_VECTORS)
    vectors = rng.standard_normal((timed, index.dimension), np.float32)
    query = rng.standard_normal((QUERY_REGIONS, index.dimension), np.float32)
    seconds = _time_fastest(lambda: query @ vectors.T) * compared / timed if timed else 0.0
    images = np.flatnonzero(np.diff(index.offsets))[:TOP_K]
    return seconds + _time_fastest(lambda: ExactScores(index, RecentVectors(index), query).compare(images))


def _time_fastest(function: Callable[[], object]) -> float:
    times = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


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
