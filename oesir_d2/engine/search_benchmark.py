"""How fast, how exact and how large search is, over indexes of growing size and types of object index."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from tqdm import tqdm

from oesir_d2.engine.kept_results import hash_json, read_kept, write_kept
from oesir_d2.engine.measured_process import resident_parts, run_measured
from oesir_d2.engine.synthetic_index import (
    build_synthetic_index,
    check_sizes,
    is_synthetic_index,
    make_queries,
    remove_synthetic_index,
)
from oesir_d2.evaluation.synthetic_embeddings import SyntheticWorld
from oesir_d2.index import EmbeddingIndex, Manifest, SetSearcher, build_object_index
from oesir_d2.index.manifest import StoredObjectIndex
from oesir_d2.index.object_index import set_parameters
from oesir_d2.index.set_search import FIRST_FETCH
from oesir_d2.index.stored_object_index import check_object_index, object_index_path, open_object_index
from oesir_d2.structures import ImageEmbeddings

EXACT = "Flat"
STORED = "stored"


@dataclass(frozen=True)
class SearchOptions:
    """What is measured.

    Attributes:
        queries: query photos.
        query_regions: regions of each of them.
        repetitions: timed rounds a query.
        top_k: results a query.
        explain_away: see ``SetSearcher.search``.
        photo_regions: regions of a photo in the index.
        dimension: of an embedding.
        seed: of the embeddings.
        first_fetch: objects a region that a search begins with; 0 for the default.
    """

    queries: int = 50
    query_regions: int = 20
    repetitions: int = 3
    top_k: int = 10
    explain_away: float = 1.0
    photo_regions: int = 10
    dimension: int = 256
    seed: int = 0
    first_fetch: int = 0


def benchmark_search(
    sizes: Sequence[int], factories: Sequence[str], options: SearchOptions, folder: Path, keep_indexes: bool = False
) -> list[dict[str, Any]]:
    """Measure every factory at every size; what was measured before with the same options is taken from ``folder``.

    Args:
        sizes: objects.
        factories: FAISS factory strings, each with search parameters after a space if it has any, such as
            "IVF1024,Flat nprobe=16"; "stored" for the object index that the index folder has, with its own parameters
            or others. "Flat" is measured in any case: the others are compared with its results.
        options: see there.
        folder: for indexes and results.
        keep_indexes: leave the indexes there that this call builds; others stay in any case.

    Returns:
        A row a size and factory; the keys are explained in ``measure_search``.

    Raises:
        ValueError: FAISS cannot build a factory, a size is too small for it or for two photos, or an index has no
            object index though "stored" is asked for.
    """
    check_sizes(sizes, options.photo_regions)
    rows = []
    specs = [EXACT, *(spec for spec in factories if spec != EXACT)]
    paths = {size: folder / f"index-{size}" for size in sizes}
    # Found out at once, and not after hours.
    stored = {size: _find_stored(paths[size], size, options) for size in sizes if any(map(_is_stored, specs))}
    progress = tqdm(total=len(sizes) * len(specs), desc="Measuring search", unit="index")
    for size in sizes:
        index_path = paths[size]
        truth = None
        is_own = False
        for spec in specs:
            described = [size, spec, asdict(options), faiss.omp_get_max_threads()]
            key = hash_json([*described, vars(stored[size])] if _is_stored(spec) else described)
            path = folder / "search" / f"{size}-{key[:12]}.json"
            row = read_kept(path, key)
            if row is None:
                photos = size // options.photo_regions
                is_own |= build_synthetic_index(index_path, _world(options), photos, options.photo_regions)
                measured, peak = run_measured(measure_search, index_path, spec, options, truth)
                row = write_kept(path, key, measured | {"peak_bytes": peak})
            truth = row["found"] if spec == EXACT else truth
            rows.append(row)
            progress.update()
        if is_own and not keep_indexes:
            remove_synthetic_index(index_path)
    progress.close()
    return [{name: value for name, value in row.items() if name != "found"} for row in rows]


def measure_search(
    index_path: Path, spec: str, options: SearchOptions, truth: list[list[str]] | None
) -> dict[str, Any]:
    """Build an object index in memory, search with it, and search with FAISS alone, in turns.

    Args:
        index_path: the index.
        spec: see ``benchmark_search``.
        options: see there.
        truth: for every query the image ids that exact search finds; None if this is exact search.

    Returns:
        ``factory``, ``objects``, ``threads``, ``clock``: with one thread all times are processor times, which a busy
        machine does not spoil, with more of them wall times; ``found``: image ids by query; ``recall``: the share of
        the exact results that were found; ``build_seconds``, ``bytes_per_object`` of the object index;
        ``anonymous_bytes`` and ``mapped_bytes``: by how much the process's resident memory has grown when everything
        is open and all queries were answered, its own and that of mapped files; ``ms`` a query
        and ``ms_p90``, its 90th percentile; ``faiss_ms``: FAISS alone for the same raw vectors at the same fetch;
        ``ratio``: the median of their quotients; ``fetch``: median of the largest fetch that a query needed;
        ``batch_ms``: a query, if the regions of all queries are searched at once; ``batch_faiss_ms``, ``batch_ratio``:
        FAISS alone at that.
    """
    clock = _clock()
    factory, _, parameters = spec.partition(" ")
    before = resident_parts()
    index = EmbeddingIndex.open(index_path)
    start = clock()
    stored = index.manifest.fresh_object_index() if factory == STORED else None
    if stored is not None:
        objects = open_object_index(index, stored.factory)
    else:
        objects = build_object_index(factory, index.dimension, index.vector_chunks(), index.num_objects)
    set_parameters(objects.faiss_index, parameters)
    build_seconds = clock() - start
    # Codes that are mapped from a file would not be written into another.
    size = stored.bytes if stored else _count_bytes(objects.faiss_index)
    recorder = _Recorder(objects)
    searcher = SetSearcher(index, recorder, options.first_fetch or None)
    queries = make_queries(index, _world(options), options.queries, options.query_regions)

    def search(query: ImageEmbeddings) -> list[str]:
        results = searcher.search(query, options.top_k, explain_away=options.explain_away)
        return [result.image_id for result in results]

    found, fetches = [], []
    for query in queries:
        recorder.largest = 0
        found.append(search(query))
        # So few objects are scored all, without a fetch.
        fetches.append(recorder.largest or FIRST_FETCH)
    anonymous, mapped = (after - earlier for after, earlier in zip(resident_parts(), before, strict=True))
    times, faiss_times = [], []
    for turn in range(options.repetitions):
        for query, fetch in zip(queries, fetches, strict=True):
            pair = [
                (times, lambda q=query: search(q)),
                (faiss_times, lambda q=query, m=fetch: objects.search(q.vectors, m)),
            ]
            # What comes second finds the caches warm.
            for collected, function in pair if turn % 2 else reversed(pair):
                start = clock()
                function()
                collected.append(clock() - start)
    fetch = int(statistics.median(fetches))
    batch, batch_faiss = _time_batch(recorder, objects, queries, search, fetch, options.repetitions)
    return {
        "factory": spec,
        "objects": index.num_objects,
        "threads": faiss.omp_get_max_threads(),
        "clock": clock.__name__,
        "found": found,
        "recall": 1.0 if truth is None else _recall(found, truth),
        "build_seconds": build_seconds,
        "bytes_per_object": size / index.num_objects,
        "anonymous_bytes": anonymous,
        "mapped_bytes": mapped,
        "ms": 1000 * statistics.median(times),
        "ms_p90": 1000 * float(np.percentile(times, 90)),
        "faiss_ms": 1000 * statistics.median(faiss_times),
        "ratio": statistics.median(t / f for t, f in zip(times, faiss_times, strict=True)),
        "fetch": fetch,
        "batch_ms": 1000 * batch / len(queries),
        "batch_faiss_ms": 1000 * batch_faiss / len(queries),
        "batch_ratio": batch / batch_faiss,
    }


def _is_stored(spec: str) -> bool:
    return spec.partition(" ")[0] == STORED


def _find_stored(index_path: Path, size: int, options: SearchOptions) -> StoredObjectIndex:
    """The object index on disk that "stored" means.

    Raises:
        ValueError: if the index is not there, is another one than these options make up, or has no object index that
            is up to date and undamaged.
    """
    advice = "make it by a search with --keep-indexes, and then the object index by tools/index.py tune"
    if not is_synthetic_index(index_path, _world(options), size // options.photo_regions, options.photo_regions):
        raise ValueError(f"{STORED!r} needs an index of {size} objects of these options at {index_path}; {advice}")
    stored = Manifest.load(index_path).fresh_object_index()
    if stored is None:
        raise ValueError(f"{STORED!r} needs an object index that is up to date in {index_path}; {advice}")
    try:
        check_object_index(object_index_path(index_path, stored), stored)
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} is missing") from error
    return stored


class _Recorder:
    """An object index that remembers the largest fetch, and may have answers ready."""

    def __init__(self, objects: Any) -> None:
        self._objects = objects
        self.largest = 0
        self.ready: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects, name)

    def __len__(self) -> int:
        return len(self._objects)

    def search(self, queries: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
        self.largest = max(self.largest, m)
        ready = self.ready.get(queries.tobytes())
        if ready is not None and ready[0].shape[1] >= m:
            return ready[0][:, :m], ready[1][:, :m]
        return self._objects.search(queries, m)


def _time_batch(
    recorder: _Recorder, objects: Any, queries: list[ImageEmbeddings], search: Any, fetch: int, repetitions: int
) -> tuple[float, float]:
    """Seconds for all queries, when their regions are searched at once, and of FAISS's part at that: medians."""
    clock = _clock()
    times, faiss_times = [], []
    vectors = np.concatenate([query.vectors for query in queries])
    places = np.cumsum([0, *map(len, queries)])
    for _ in range(repetitions):
        start = clock()
        scores, ids = objects.search(vectors, fetch)
        middle = clock()
        for query, begin, end in zip(queries, places, places[1:], strict=False):
            recorder.ready = {query.vectors.tobytes(): (scores[begin:end], ids[begin:end])}
            search(query)
        times.append(clock() - start)
        faiss_times.append(middle - start)
    recorder.ready = {}
    return statistics.median(times), statistics.median(faiss_times)


def _clock() -> Callable[[], float]:
    return time.process_time if faiss.omp_get_max_threads() == 1 else time.perf_counter


def _recall(found: list[list[str]], truth: list[list[str]]) -> float:
    shares = [len({*f} & {*t}) / len(t) for f, t in zip(found, truth, strict=True)]
    return statistics.fmean(shares)


def _count_bytes(index: faiss.Index) -> int:
    size = 0

    def count(data: bytes) -> int:
        nonlocal size
        size += len(data)
        return len(data)

    writer = faiss.PyCallbackIOWriter(count, 1 << 20)
    faiss.write_index(index, writer)
    del writer  # flushes what it holds back
    return size


def _world(options: SearchOptions) -> SyntheticWorld:
    return SyntheticWorld(dimension=options.dimension, seed=options.seed)
