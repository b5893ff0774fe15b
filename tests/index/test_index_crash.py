"""Whatever stops a writer, the index on disk is valid, and completing it gives the same search results."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from multiprocessing import get_context

import numpy as np
import pytest

from oesir_d2.index import EmbeddingIndex, IndexWriter, SetSearcher, build_object_index
from oesir_d2.index.store import IndexStore

NAMES = [f"image{number}" for number in range(6)]
REPLACED = NAMES[:3]
# The calls by which a commit reaches the disk: between two of them nothing changes that a crash could show.
COMMIT_CALLS = ("fsync", "replace", "rename", "mkdir")


@pytest.fixture
def build(model_info, make_image, make_record):
    """``build(path)``: add what is missing of six images, then newer versions of three of them; two a segment."""

    def run(path, pause=0.0):
        with IndexWriter(path, model_info, "Flat", 2) as writer:
            for version, names in ((0, NAMES), (1, REPLACED)):
                for name in names:
                    record = writer.known().get(name)
                    if record is None or record.modified_ns < make_record(name, version).modified_ns:
                        writer.add(make_image(name, 3, seed=version), make_record(name, version))
                        time.sleep(pause)

    return run


@pytest.fixture
def search(make_image):
    def run(path):
        index = EmbeddingIndex.open(path)
        searcher = SetSearcher(index, build_object_index("Flat", index.dimension, index.vector_chunks()), 2)
        queries = [make_image(name, 3, seed=1) for name in NAMES]
        return [[result.to_dict() for result in searcher.search(query, 4)] for query in queries]

    return run


@pytest.fixture
def assert_sound(make_image):
    """The index holds every image at most once, all versions intact, and never an older one than before."""

    def check(path):
        index = EmbeddingIndex.open(path)
        index.verify()
        ids = [record.image_id for record in index.images]
        assert len(set(ids)) == len(ids)
        for number, record in enumerate(index.images):
            expected = make_image(record.image_id, 3, seed=int(record.sha256, 16))
            np.testing.assert_array_equal(index.embeddings_of(number).vectors, expected.vectors)
        return index

    return check


def run_and_die(build, path, die_at_call):
    """Build in a child that kills itself at the n-th call that touches the disk; True if it got that far."""

    def child():
        calls = 0

        def counting(function):
            def call(*arguments, **keywords):
                nonlocal calls
                calls += 1
                if calls == die_at_call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **keywords)

            return call

        for name in COMMIT_CALLS:
            setattr(os, name, counting(getattr(os, name)))
        build(path)

    process = get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_killed_at_every_step(tmp_path, build, search, assert_sound):
    build(tmp_path / "whole")
    expected = search(tmp_path / "whole")
    step, images = 1, 0
    while run_and_die(build, tmp_path / f"killed{step}", step):
        path = tmp_path / f"killed{step}"
        if (path / "manifest.json").exists():
            # Every segment finished counts: of two runs, the one that got farther has no fewer images.
            assert len(assert_sound(path).images) >= images
            images = len(EmbeddingIndex.open(path).images)
        build(path)
        assert search(path) == expected
        assert_sound(path)
        assert not list(path.glob("**/.tmp-*"))
        named = {info.name for info in EmbeddingIndex.open(path).manifest.segments}
        assert {folder.name for folder in (path / "segments").iterdir()} == named
        step += 1
    assert images == len(NAMES)
    assert step > 40


def test_killed_again_and_again_at_random_moments(tmp_path, build, search, assert_sound):
    build(tmp_path / "whole")
    path = tmp_path / "index"
    rng = np.random.default_rng(0)
    versions: dict[str, int] = {}
    for _ in range(12):
        process = get_context("fork").Process(target=build, args=(path, 0.002))
        process.start()
        process.join(rng.uniform(0.005, 0.04))
        process.kill()
        process.join()
        if (path / "manifest.json").exists():
            now = {record.image_id: int(record.sha256, 16) for record in assert_sound(path).images}
            assert all(now[name] >= version for name, version in versions.items())
            versions = now
    build(path)
    assert_sound(path)
    assert search(path) == search(tmp_path / "whole")


def test_leftovers_are_cleaned_and_other_peoples_files_are_not(tmp_path, build):
    path = tmp_path / "index"
    build(path)
    for folder in (".tmp-123-000099", "000098"):
        (path / "segments" / folder).mkdir()
        (path / "segments" / folder / "vectors.npy").write_bytes(b"half")
    (path / ".tmp-123-manifest.json").write_bytes(b"half")
    for name in ("notes.txt", "segments/README"):
        (path / name).write_text("keep me")
    build(path)
    names = {item.name for item in path.rglob("*")}
    assert not names & {".tmp-123-000099", "000098", ".tmp-123-manifest.json"}
    assert names >= {"notes.txt", "README"}


@pytest.mark.parametrize("failing", [1, 4, 7, 8, 9, 10])
def test_a_full_disk_leaves_the_index_as_it_was(
    tmp_path, build, make_image, make_record, model_info, snapshot, monkeypatch, failing
):
    """fsync 1 to 6 are the segment's files, then its folder, its parent, and the manifest."""
    path = tmp_path / "index"
    build(path)
    before = snapshot(path)
    calls = 0
    real_fsync = os.fsync

    def full_disk(descriptor):
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="segment 000006 of index .* could not be written .*No space left") as caught:
        with IndexWriter(path, model_info, "Flat", 2) as writer:
            writer.add(make_image("image0", 5), make_record("image0", 9))
            writer.add(make_image("new"), make_record("new"))
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()

    if failing < 10:
        assert snapshot(path) == before
    else:
        # The manifest was in place when its folder could not be brought to disk: old or new, and sound.
        assert {record.image_id for record in EmbeddingIndex.open(path).images} == {*NAMES, "new"}
    EmbeddingIndex.open(path).verify()


def test_a_limit_on_file_sizes_leaves_the_index_as_it_was(
    tmp_path, build, make_image, make_record, model_info, snapshot
):
    """Writing itself fails here, as on a disk that is really full."""
    path = tmp_path / "index"
    build(path)
    before = snapshot(path)

    def child():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            with IndexWriter(path, model_info, "Flat", 64) as writer:
                writer.add(make_image("large", 1000), make_record("large"))
        except OSError as error:
            os._exit(77 if error.errno == errno.EFBIG and "keeps its 6 images" in str(error) else 1)

    process = get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 77
    assert snapshot(path) == before


def test_no_image_is_written_twice_when_writing_is_interrupted(
    tmp_path, make_image, make_record, model_info, monkeypatch
):
    """Ctrl-C right after the manifest was replaced: the writer must not write the same images once more."""
    path = tmp_path / "index"
    with pytest.raises(KeyboardInterrupt):
        with IndexWriter(path, model_info, "Flat", 2) as writer:
            monkeypatch.setattr(IndexStore, "_take_in", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            for name in "ab":
                writer.add(make_image(name), make_record(name))
    assert [record.image_id for record in EmbeddingIndex.open(path).images] == ["a", "b"]
