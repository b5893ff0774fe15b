"""What is not a sound index of the right model is refused with its reason, and left as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest

from oesir_d2.index import EmbeddingIndex, IndexWriter


@pytest.fixture
def path(tmp_path, make_image, store):
    """An index of three images in two segments."""
    store(tmp_path / "index", [make_image(name) for name in "abc"])
    return tmp_path / "index"


def edit_manifest(path, **changes):
    file = path / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def assert_refused(path, model_info, snapshot, match):
    """Neither the reader nor the writer opens it, and nothing in it changes."""
    before = snapshot(path)
    with pytest.raises(ValueError, match=match):
        EmbeddingIndex.open(path)
    with pytest.raises(ValueError, match=match):
        IndexWriter(path, model_info, "Flat", 2)
    assert snapshot(path) == before


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"dimension": 16}, r"another model: dimension \(index: 8, model: 16\)$"),
        ({"weights_sha256": "c" * 64}, r"another model: weights \(index: aaaaaaaaaaaa…, model: cccccccccccc…\)$"),
        ({"whitening_sha256": ""}, r"another model: whitening \(index: bbbbbbbbbbbb…, model: none\)$"),
        (
            {"preprocessing": {"max_long_side": 512, "input_format": "RGB", "size": [3, 4]}},
            r"another model: preprocessing max_long_side \(index: 1024, model: 512\)$",
        ),
        (
            {"preprocessing": {"max_long_side": 1024, "size": [3, 4]}},
            r"another model: preprocessing input_format \(index: 'RGB', model: None\)$",
        ),
        (
            {"config": {"MODEL.META_ARCHITECTURE": "RCNN", "MODEL.SIZES": (3, 4), "MODEL.NEW": 1}},
            r"another model: MODEL.META_ARCHITECTURE \(index: 'OESIR', model: 'RCNN'\)$",
        ),
        ({"weights_sha256": "", "whitening_sha256": "d" * 64}, r"weights .*; whitening .*"),
    ],
)
def test_another_model_is_refused_by_name(path, model_info, snapshot, changes, match):
    before = snapshot(path)
    other = replace(model_info, **changes)
    with pytest.raises(ValueError, match=match):
        EmbeddingIndex.open(path, other)
    with pytest.raises(ValueError, match=match):
        IndexWriter(path, other, "Flat", 2)
    assert snapshot(path) == before
    EmbeddingIndex.open(path, model_info)


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        EmbeddingIndex.open(tmp_path / "nowhere")


def test_a_foreign_folder_is_not_touched(tmp_path, model_info, snapshot):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"a cat")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".tmp-cat.jpg").write_bytes(b"half a cat")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="photos is neither an index nor an empty folder: it holds 'cat.jpg'"):
        IndexWriter(tmp_path / "photos", model_info, "Flat", 2)
    with pytest.raises(ValueError, match="cache is neither an index nor an empty folder: it holds '.tmp-cat.jpg'"):
        IndexWriter(tmp_path / "cache", model_info, "Flat", 2)
    with pytest.raises(ValueError, match="photos is not an index: there is no manifest.json in it"):
        EmbeddingIndex.open(tmp_path / "photos")
    with pytest.raises(ValueError, match="cat.jpg is a file, expected an index"):
        IndexWriter(tmp_path / "photos" / "cat.jpg", model_info, "Flat", 2)
    with pytest.raises(ValueError, match="cannot be created: Not a directory"):
        IndexWriter(tmp_path / "photos" / "cat.jpg" / "index", model_info, "Flat", 2)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"name": "a web app", "icons": []}', b'{"format_version": "1"}'],
)
def test_a_manifest_that_is_none(path, model_info, snapshot, content):
    (path / "manifest.json").write_bytes(content)
    assert_refused(path, model_info, snapshot, "manifest.json is (damaged|not a manifest)")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format_version": 2}, "format_version is 2, written by a newer oesir_d2; expected 1"),
        ({"metric": "l2"}, "metric is 'l2', expected 'inner_product'"),
        ({"segments": [{"name": "../../photos"}]}, "segment name is '../../photos'"),
        ({"counts": {"images": -1, "objects": True}}, "'images' is -1"),
        ({"counts": {"images": 1, "objects": True}}, "'objects' is True, expected int"),
    ],
)
def test_a_manifest_with_a_wrong_value(path, model_info, snapshot, changes, match):
    edit_manifest(path, **changes)
    assert_refused(path, model_info, snapshot, match)


def test_counts_that_do_not_fit_the_segments(path):
    edit_manifest(path, counts={"images": 4, "objects": 9})
    with pytest.raises(ValueError, match="holds 3 images and 9 objects, its manifest says 4 and 9"):
        EmbeddingIndex.open(path)


@pytest.mark.parametrize("name", ["vectors.npy", "boxes.npy", "scores.npy", "classes.npy", "offsets.npy"])
def test_a_truncated_array(path, model_info, snapshot, name):
    file = path / "segments" / "000001" / name
    for length in (file.stat().st_size - 1, 70, 0):
        file.write_bytes(file.read_bytes()[:length])
        assert_refused(path, model_info, snapshot, rf"segments/000001/{name} is truncated or damaged")
    file.unlink()
    assert_refused(path, model_info, snapshot, rf"segments/000001/{name} is missing")


def test_truncated_records(path, model_info, snapshot):
    file = path / "segments" / "000001" / "images.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    for content, match in ((lines[0], "holds 1 images, the manifest says 2"), (lines[0] + b'{"im', "truncated")):
        file.write_bytes(content)
        assert_refused(path, model_info, snapshot, match)
    file.unlink()
    assert_refused(path, model_info, snapshot, "images.jsonl is missing")


def test_arrays_of_another_shape_or_kind(path, model_info, snapshot):
    file = path / "segments" / "000002" / "vectors.npy"
    np.save(file, np.zeros((2, 8), np.float32))
    assert_refused(
        path, model_info, snapshot, r"000002/vectors.npy holds float32 \(2, 8\), the manifest says .*\(3, 8\)"
    )
    np.save(file, np.array([{}, {}, {}], dtype=object), allow_pickle=True)
    assert_refused(path, model_info, snapshot, r"vectors.npy holds object \(3,\), the manifest says")


def test_offsets_that_do_not_divide_the_objects(path, model_info, snapshot):
    np.save(path / "segments" / "000001" / "offsets.npy", np.array([0, 9, 6]))
    assert_refused(path, model_info, snapshot, "offsets.npy is damaged")


def test_verify_finds_a_flipped_bit(path):
    EmbeddingIndex.open(path).verify()
    file = path / "segments" / "000002" / "vectors.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="000002/vectors.npy is damaged: its SHA-256 is"):
        EmbeddingIndex.open(path).verify()


def test_a_second_writer_is_refused(path, model_info, make_image, make_record):
    with IndexWriter(path, model_info, "Flat", 2) as writer:
        with pytest.raises(ValueError, match="another process writes this index: .*index"):
            IndexWriter(path, model_info, "Flat", 2)
        writer.add(make_image("d"), make_record("d"))
    assert len(EmbeddingIndex.open(path).images) == 4
    IndexWriter(path, model_info, "Flat", 2).close()


def test_a_worker_of_the_writer_does_not_keep_the_lock(path, model_info):
    """A data loader's worker outlives a killed parent for a moment; the next run must not be refused."""
    writer = IndexWriter(path, model_info, "Flat", 2)
    context = get_context("fork")
    started, done = context.Event(), context.Event()
    worker = context.Process(target=lambda: (started.set(), done.wait()))
    worker.start()
    try:
        assert started.wait(60)
        with pytest.raises(ValueError, match="another process"):
            IndexWriter(path, model_info, "Flat", 2)
        writer.close()
        IndexWriter(path, model_info, "Flat", 2).close()
    finally:
        done.set()
        worker.join()


def test_a_creation_that_was_interrupted_is_taken_up(tmp_path, model_info):
    path = tmp_path / "index"
    path.mkdir()
    for name in (".lock", ".tmp-123-manifest.json"):
        (path / name).touch()
    IndexWriter(path, model_info, "Flat", 2).close()
    assert {item.name for item in path.iterdir()} == {".lock", ".readers", "manifest.json"}


def test_bad_arguments_create_nothing(tmp_path, model_info):
    with pytest.raises(ValueError, match="segment_images is 0"):
        IndexWriter(tmp_path / "index", model_info, "Flat", 0)
    with pytest.raises(ValueError, match="index factory 'Falt'"):
        IndexWriter(tmp_path / "index", model_info, "Falt", 2)
    assert list(tmp_path.iterdir()) == []
