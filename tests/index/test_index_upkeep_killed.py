"""kill -9 at random moments of add, remove, compact and merge: no photo is lost or doubled, and answers agree."""

from __future__ import annotations

from multiprocessing import get_context

import numpy as np
import pytest

from oesir_d2.index import EmbeddingIndex, IndexWriter, SetSearcher, build_object_index

KILLS = 10
NAMES = [f"image{number:03d}" for number in range(40)]
OTHERS = [f"other{number:03d}" for number in range(20)]
REMOVED = NAMES[5:20:3]


@pytest.fixture
def jobs(tmp_path, model_info, make_image, make_record):
    """What is done to an index, again and again, in this order."""

    def write(path, names, version):
        with IndexWriter(path, model_info, "Flat", 3) as writer:
            for name in names:
                known = writer.known().get(name)
                if known is None or known.modified_ns != make_record(name, version).modified_ns:
                    writer.add(make_image(name, 3, seed=version), make_record(name, version))

    write(tmp_path / "source", OTHERS, 0)

    def remove(path):
        with IndexWriter(path, model_info, "Flat", 3) as writer:
            writer.remove([name for name in [*REMOVED, *OTHERS] if name in writer.known()])

    def compact(path):
        with IndexWriter(path, model_info, "Flat", 3) as writer:
            list(writer.compact(30))

    def merge(path):
        with IndexWriter(path, model_info, "Flat", 3) as writer:
            writer.adopt(tmp_path / "source")

    # Each with the ids and versions that it leaves, and those that it may find or leave of the others.
    return {
        "add": lambda path: write(path, NAMES, 0),
        "replace": lambda path: write(path, NAMES[:20], 1),
        "merge": merge,
        "compact": compact,
        "remove": remove,
    }


@pytest.fixture
def contents(versions_in, make_image):
    """``contents(path)``: {image id: version} of a sound index, whose answers are those of its vectors."""

    def read(path):
        found = versions_in(path)
        index = EmbeddingIndex.open(path)
        searcher = SetSearcher(index, build_object_index("Flat", index.dimension, index.vector_chunks()))
        for name in list(found)[::9]:
            [first] = searcher.search(make_image(name, 3, seed=found[name]), top_k=1)
            assert first.image_id == name and first.score == 1.0
        return found

    return read


def test_killed_at_random_moments(tmp_path, jobs, contents):
    path, whole, steps = tmp_path / "index", tmp_path / "whole", list(jobs) * 2
    rng = np.random.default_rng(0)
    durations = dict.fromkeys(jobs, 0.05)
    kills = 0
    while kills < KILLS:
        for name in steps:
            before = contents(path) if path.exists() else {}
            jobs[name](whole)
            after = contents(whole)
            process = get_context("fork").Process(target=jobs[name], args=(path,))
            process.start()
            process.join(rng.uniform(0.2, 1.0) * durations[name])
            if process.is_alive():
                process.kill()
                kills += 1
            process.join()
            if (path / "manifest.json").exists():
                found = contents(path)
                assert all(found.get(key) in (before.get(key), after.get(key)) for key in {*before, *after, *found})
            jobs[name](path)
            assert contents(path) == after, f"{name} could not be completed"
