"""How fast an index is built, and how much memory that takes."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from oesir_d2.engine.kept_results import hash_json, read_kept, write_kept
from oesir_d2.engine.measured_process import resident_bytes, run_measured
from oesir_d2.engine.synthetic_index import (
    SEGMENT_IMAGES,
    build_synthetic_index,
    check_sizes,
    describe_world,
    make_record,
    remove_synthetic_index,
)
from oesir_d2.evaluation.synthetic_embeddings import SyntheticWorld
from oesir_d2.files import open_synced
from oesir_d2.index import EmbeddingIndex, IndexWriter, build_object_index


def benchmark_build(
    sizes: Sequence[int], factories: Sequence[str], world: SyntheticWorld, regions: int, folder: Path
) -> list[dict[str, Any]]:
    """Measure the building of segments, and of each object index over them; results are kept in ``folder``.

    Returns:
        A row a size and factory. ``write_objects_per_second``: into segments, and ``write_ratio``, that time over the
        time of writing the same vectors into plain files, in turns; ``write_peak_bytes``: the most memory of that.
        ``build_objects_per_second``: into the object index, training included; ``final_bytes``: its memory when it is
        built; ``build_peak_bytes``: the most memory of that, and ``peak_ratio``, that over ``final_bytes``.
        ``disk_bytes_per_object``: of the segments.

    Raises:
        ValueError: FAISS cannot build a factory, or a size is too small for it or for two photos.
    """
    check_sizes(sizes, regions)
    rows = []
    progress = tqdm(total=len(sizes) * (1 + len(factories)), desc="Measuring builds", unit="step")
    for size in sizes:
        index_path = folder / f"build-{size}"
        photos = size // regions
        written = _measure_once(folder, "write", size, measure_writing, index_path, world, photos, regions)
        progress.update()
        for factory in factories:
            built = _measure_once(
                folder, "build", size, measure_object_index, index_path, factory, world, photos, regions
            )
            peak_ratio = built["build_peak_bytes"] / built["final_bytes"]
            rows.append({"factory": factory, "objects": photos * regions, "peak_ratio": peak_ratio} | written | built)
            progress.update()
        remove_synthetic_index(index_path)
    progress.close()
    return rows


def _measure_once(
    folder: Path, step: str, size: int, function: Callable[..., dict[str, Any]], index_path: Path, *arguments: Any
) -> dict[str, Any]:
    """Measure in a process of its own, unless that was done before."""
    described = [vars(argument) if isinstance(argument, SyntheticWorld) else argument for argument in arguments]
    key = hash_json([step, size, described])
    path = folder / "build" / f"{step}-{size}-{key[:12]}.json"
    known = read_kept(path, key)
    if known is not None:
        return known
    figures, peak = run_measured(function, index_path, *arguments)
    return write_kept(path, key, figures | {f"{step}_peak_bytes": peak})


def measure_writing(index_path: Path, world: SyntheticWorld, photos: int, regions: int) -> dict[str, float]:
    """Write an index, and the same vectors into a plain file, segment by segment in turns; not their making up."""
    remove_synthetic_index(index_path)
    images = enumerate(world.make_photos(photos, regions))
    seconds = plain_seconds = 0.0
    plain = index_path.with_name(f"{index_path.name}.plain")
    with IndexWriter(index_path, describe_world(world), "Flat", SEGMENT_IMAGES) as writer:
        while chunk := list(islice(images, SEGMENT_IMAGES)):
            start = time.perf_counter()
            for number, image in chunk:
                writer.add(image, make_record(number, image.image_id))
            writer.flush()
            seconds += time.perf_counter() - start
            vectors = np.concatenate([image.vectors for _, image in chunk])
            start = time.perf_counter()
            with open_synced(plain) as stream:
                stream.write(vectors.tobytes())
            plain_seconds += time.perf_counter() - start
            plain.unlink()
    size = sum(os.path.getsize(file) for file in index_path.rglob("*") if file.is_file())
    return {
        "write_objects_per_second": photos * regions / seconds,
        "write_ratio": seconds / plain_seconds,
        "disk_bytes_per_object": size / (photos * regions),
    }


def measure_object_index(
    index_path: Path, factory: str, world: SyntheticWorld, photos: int, regions: int
) -> dict[str, float]:
    """Build an object index in memory, over the index that ``measure_writing`` left, or over one like it."""
    build_synthetic_index(index_path, world, photos, regions)
    gc.collect()
    index = EmbeddingIndex.open(index_path)
    before = resident_bytes()
    start = time.perf_counter()
    objects = build_object_index(factory, index.dimension, index.vector_chunks(), index.num_objects)
    seconds = time.perf_counter() - start
    return {
        "build_objects_per_second": len(objects) / seconds,
        "final_bytes": max(resident_bytes() - before, 1),
    }
