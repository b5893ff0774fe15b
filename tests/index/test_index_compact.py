"""Compaction frees what does not count, changes no answer, and lets readers finish, whatever kills the process."""

from __future__ import annotations

import errno
import os
import signal
from multiprocessing import get_context

import numpy as np
import pytest

from oesir_d2.index import EmbeddingIndex, IndexWriter, SetSearcher, build_object_index

NAMES = [f"image{number:02d}" for number in range(20)]
REPLACED, REMOVED = NAMES[3:9], NAMES[8:12]


@pytest.fixture
def path(tmp_path, model_info, make_image, make_record):
    """An index of many small segments, with replaced and removed images and one without regions."""
    with IndexWriter(tmp_path / "index", model_info, "Flat", 3) as writer:
        for version, names in ((0, NAMES), (1, REPLACED)):
            for number, name in enumerate(names):
                writer.add(make_image(name, (number + 2) % 5, seed=version), make_record(name, version))
        writer.remove(REMOVED)
    return tmp_path / "index"


@pytest.fixture
def compact(model_info):
    def run(path, segment_objects=12):
        with IndexWriter(path, model_info, "Flat", 3) as writer:
            planned = writer.compaction_segments(segment_objects)
            assert sum(writer.compact(segment_objects)) == planned
            return planned

    return run


@pytest.fixture
def search(make_image):
    def run(index):
        searcher = SetSearcher(index, build_object_index("Flat", index.dimension, index.vector_chunks()), 2)
        queries = [make_image(name, 4, seed=1) for name in NAMES]
        return [[result.to_dict() for result in searcher.search(query, 5)] for query in queries]

    return run


def content(index):
    index.verify()
    return [(record, index.embeddings_of(number).vectors.tolist()) for number, record in enumerate(index.images)]


def objects_stored(path):
    return sum(len(np.load(file)) for file in path.glob("segments/*/scores.npy"))


def test_same_images_same_answers_less_room(path, compact, search):
    before = EmbeddingIndex.open(path)
    expected, answers, objects = content(before), search(before), before.num_objects
    assert objects_stored(path) > objects
    del before
    assert compact(path) > 2
    after = EmbeddingIndex.open(path)
    assert content(after) == expected and search(after) == answers
    assert objects_stored(path) == objects
    assert all(info.objects <= 12 and not info.superseded for info in after.manifest.segments)
    assert compact(path) == 0, "nothing is left to do"


def test_an_index_whose_images_were_all_removed(path, model_info, compact, make_image, make_record):
    with IndexWriter(path, model_info, "Flat", 3) as writer:
        writer.remove(list(writer.known()))
    compact(path)
    assert EmbeddingIndex.open(path).manifest.segments == ()
    assert os.listdir(path / "segments") == []
    with IndexWriter(path, model_info, "Flat", 3) as writer:
        writer.add(make_image("new"), make_record("new"))
    assert [record.image_id for record in EmbeddingIndex.open(path).images] == ["new"]


def test_readers_go_on_and_the_last_one_frees_the_disk(path, compact, search, model_info, make_image, make_record):
    reader = EmbeddingIndex.open(path)
    expected, answers = content(reader), search(reader)
    compact(path)
    newer = EmbeddingIndex.open(path)
    with IndexWriter(path, model_info, "Flat", 3) as writer:
        writer.add(make_image("new"), make_record("new"))
        writer.remove(NAMES[:2])
    compact(path)
    assert content(reader) == expected and search(reader) == answers
    assert len(content(newer)) == len(expected)
    assert search(newer) == answers
    del reader, newer
    IndexWriter(path, model_info, "Flat", 3).close()
    named = {info.name for info in EmbeddingIndex.open(path).manifest.segments}
    assert set(os.listdir(path / "segments")) == named


def test_a_reader_in_another_process_goes_on_until_it_is_killed(path, compact, search, model_info):
    context = get_context("fork")
    opened, compacted, answer = context.Event(), context.Event(), context.Queue()

    def child():
        reader = EmbeddingIndex.open(path)
        opened.set()
        compacted.wait(60)
        answer.put(search(reader))
        signal.pause()

    answers = search(EmbeddingIndex.open(path))
    process = context.Process(target=child)
    process.start()
    assert opened.wait(60)
    old = set(os.listdir(path / "segments"))
    compact(path)
    compacted.set()
    assert answer.get(timeout=60) == answers
    assert old < set(os.listdir(path / "segments"))
    process.kill()
    process.join()
    IndexWriter(path, model_info, "Flat", 3).close()
    named = {info.name for info in EmbeddingIndex.open(path).manifest.segments}
    assert set(os.listdir(path / "segments")) == named


@pytest.mark.parametrize("call", ["mkdir", "rename", "replace", "fsync", "unlink", "rmdir"])
def test_killed_at_every_step(tmp_path, path, compact, search, call):
    expected, answers = content(EmbeddingIndex.open(path)), search(EmbeddingIndex.open(path))
    segments = len(EmbeddingIndex.open(path).manifest.segments)
    for step in range(1, 200, 1 if call in ("rename", "replace") else 5):

        def child(step=step):
            calls, function = 0, getattr(os, call)

            def counting(*arguments, **keywords):
                nonlocal calls
                calls += 1
                if calls == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **keywords)

            setattr(os, call, counting)
            compact(path)

        process = get_context("fork").Process(target=child)
        process.start()
        process.join()
        index = EmbeddingIndex.open(path)
        assert content(index) == expected and search(index) == answers
        assert len(index.manifest.segments) <= segments, "what was compacted stays so"
        segments = len(index.manifest.segments)
        if process.exitcode == 0:
            return
        assert process.exitcode == -signal.SIGKILL
    pytest.fail(f"more than 200 calls of {call}")


def test_a_full_disk_keeps_the_steps_done(path, compact, monkeypatch):
    expected = content(EmbeddingIndex.open(path))
    segments = len(EmbeddingIndex.open(path).manifest.segments)
    calls = []

    def full_disk(descriptor):
        calls.append(descriptor)
        if len(calls) == 14:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="could not be compacted .*No space left on device.*keeps its 16 images"):
        compact(path)
    monkeypatch.undo()
    index = EmbeddingIndex.open(path)
    assert content(index) == expected and len(index.manifest.segments) < segments
