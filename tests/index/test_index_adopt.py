"""Merging indexes: every image of both once, the newer version of what both have, whatever kills the process."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import replace
from multiprocessing import get_context

import pytest

from oesir_d2.index import IndexWriter


@pytest.fixture
def store_versions(model_info, make_image, make_record):
    """``store_versions(path, {image_id: version})``: an index in which each image's content tells its version."""

    def store(path, versions):
        with IndexWriter(path, model_info, "Flat", 2) as writer:
            for name, version in versions.items():
                writer.add(make_image(name, 3, seed=version), make_record(name, version))

    return store


@pytest.fixture
def adopt(model_info):
    def run(path, *sources):
        with IndexWriter(path, model_info, "Flat", 2) as writer:
            return [writer.adopt(source) for source in sources]

    return run


OURS, THEIRS = {"a": 0, "b": 1, "c": 5, "d": 3}, {"b": 2, "c": 4, "d": 3, "e": 7, "f": 0}
MERGED = {"a": 0, "b": 2, "c": 5, "d": 3, "e": 7, "f": 0}


@pytest.mark.parametrize("links", [True, False])
def test_the_newer_version_of_every_image_counts_once(
    tmp_path, store_versions, versions_in, adopt, snapshot, links, monkeypatch
):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "Invalid cross-device")))
    store_versions(tmp_path / "ours", OURS)
    store_versions(tmp_path / "theirs", dict.fromkeys(THEIRS, 0))
    store_versions(tmp_path / "theirs", THEIRS)  # superseded rows on their side, too
    before = snapshot(tmp_path / "theirs")
    assert adopt(tmp_path / "ours", tmp_path / "theirs", tmp_path / "theirs") == [3, 0]
    assert versions_in(tmp_path / "ours") == MERGED
    assert snapshot(tmp_path / "theirs") == before


def test_ranks_that_wrote_an_index_each(tmp_path, store_versions, versions_in, adopt):
    for rank in range(3):
        store_versions(tmp_path / f"rank{rank}", {f"image{number}": rank for number in range(rank, 12, 3)})
    assert adopt(tmp_path / "all", *(tmp_path / f"rank{rank}" for rank in range(3))) == [4, 4, 4]
    assert versions_in(tmp_path / "all") == {f"image{number}": number % 3 for number in range(12)}


def test_what_is_gathered_is_written_first(tmp_path, store_versions, versions_in, model_info, make_image, make_record):
    store_versions(tmp_path / "theirs", {"a": 1, "b": 1})
    with IndexWriter(tmp_path / "ours", model_info, "Flat", 64) as writer:
        writer.add(make_image("a", 3, seed=2), make_record("a", 2))
        assert writer.adopt(tmp_path / "theirs") == 1
        assert writer.known()["a"].modified_ns == make_record("a", 2).modified_ns
        writer.add(make_image("b", 3, seed=3), make_record("b", 3))
    assert versions_in(tmp_path / "ours") == {"a": 2, "b": 3}


@pytest.mark.parametrize("links", [True, False])
def test_a_source_that_is_compacted_meanwhile_is_taken_over_as_it_was(
    tmp_path, store_versions, versions_in, adopt, model_info, monkeypatch, links
):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    store_versions(ours, OURS)
    store_versions(theirs, THEIRS)
    link = os.link

    def compact_first(source, target):
        monkeypatch.setattr(os, "link", link)
        with IndexWriter(theirs, model_info, "Flat", 2) as writer:
            writer.remove(["f"])
            assert sum(writer.compact()) == 3
        if not links:
            raise OSError(errno.EXDEV, "Invalid cross-device")
        link(source, target)

    monkeypatch.setattr(os, "link", compact_first)
    assert adopt(ours, theirs) == [3]
    assert versions_in(ours) == MERGED
    assert versions_in(theirs) == {name: version for name, version in THEIRS.items() if name != "f"}


def test_removed_images_are_gone_until_they_are_added_again(tmp_path, store_versions, versions_in, model_info):
    path = tmp_path / "index"
    store_versions(path, OURS)
    with IndexWriter(path, model_info, "Flat", 2) as writer:
        writer.remove(["b", "d", "b"])
        assert set(writer.known()) == {"a", "c"}
        with pytest.raises(ValueError, match="image 'x' and 1 more are not in index .*nothing was removed"):
            writer.remove(["a", "x", "b"])
    assert versions_in(path) == {"a": 0, "c": 5}
    store_versions(path, {"b": 0})
    assert versions_in(path) == {"a": 0, "b": 0, "c": 5}


def test_refusals(tmp_path, store_versions, versions_in, adopt, model_info, snapshot):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    store_versions(ours, OURS)
    store_versions(theirs, THEIRS)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        adopt(ours, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="ours cannot be merged into itself"):
        adopt(ours, tmp_path / "." / "ours")
    IndexWriter(tmp_path / "other", replace(model_info, weights_sha256="c" * 64), "Flat", 2).close()
    with pytest.raises(ValueError, match="another model: weights"):
        adopt(ours, tmp_path / "other")
    file = theirs / "segments" / "000001" / "vectors.npy"
    file.write_bytes(file.read_bytes()[:-1])
    before = snapshot(ours)
    with pytest.raises(ValueError, match="000001/vectors.npy is truncated or damaged"):
        adopt(ours, theirs)
    assert snapshot(ours) == before
    assert versions_in(ours) == OURS


def test_a_copy_is_checked(tmp_path, store_versions, adopt, monkeypatch, snapshot):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    store_versions(ours, OURS)
    store_versions(theirs, THEIRS)
    file = theirs / "segments" / "000002" / "vectors.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    before = snapshot(ours)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    with pytest.raises(ValueError, match="000002/vectors.npy is damaged: its SHA-256"):
        adopt(ours, theirs)
    assert snapshot(ours) == before


@pytest.mark.parametrize("call", ["mkdir", "link", "rename", "replace", "fsync"])
def test_killed_at_every_step(tmp_path, store_versions, versions_in, adopt, call):
    for step in range(1, 100):
        ours, theirs = tmp_path / f"ours{step}", tmp_path / f"theirs{step}"
        store_versions(ours, OURS)
        store_versions(theirs, THEIRS)

        def child(step=step, ours=ours, theirs=theirs):
            calls, function = 0, getattr(os, call)

            def counting(*arguments, **keywords):
                nonlocal calls
                calls += 1
                if calls == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **keywords)

            setattr(os, call, counting)
            adopt(ours, theirs)

        process = get_context("fork").Process(target=child)
        process.start()
        process.join()
        assert versions_in(ours) in (OURS, MERGED)
        assert versions_in(theirs) == THEIRS
        adopt(ours, theirs)
        assert versions_in(ours) == MERGED
        assert not list(ours.glob("**/.tmp-*"))
        if process.exitcode == 0:
            return
        assert process.exitcode == -signal.SIGKILL
    pytest.fail(f"more than 100 calls of {call}")


def test_a_full_disk_leaves_the_index_as_it_was(tmp_path, store_versions, versions_in, adopt, monkeypatch, snapshot):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    store_versions(ours, OURS)
    store_versions(theirs, THEIRS)
    before = snapshot(ours)
    calls = []

    def full_disk(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="theirs could not be merged into index .*No space left.*keeps its 4 images"):
        adopt(ours, theirs)
    monkeypatch.undo()
    assert snapshot(ours) == before
    assert versions_in(ours) == OURS
