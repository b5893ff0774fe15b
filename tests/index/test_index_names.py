"""Names of segments are used once, and files of one name that come after each other are told apart."""

from __future__ import annotations

import json
import shutil

import pytest

from oesir_d2.index import Budget, EmbeddingIndex, IndexWriter, Manifest, refresh_object_index, tune_object_index


def ids_and_embeddings(path):
    """The image ids of an index, as its records give them one by one, and as its embeddings do."""
    index = EmbeddingIndex.open(path)
    numbers = range(len(index.images))
    return [index.images[n].image_id for n in numbers], [index.embeddings_of(n).image_id for n in numbers]


@pytest.fixture
def empty_out(model_info):
    """``empty_out(path)``: remove all images of an index, and free the disk."""

    def run(path):
        with IndexWriter(path, model_info, "Flat", 2) as writer:
            writer.remove(list(writer.known()))
            list(writer.compact())
        refresh_object_index(path)

    return run


def test_an_index_that_was_made_anew_in_its_place_is_read_anew(tmp_path, store, make_image):
    path = tmp_path / "index"
    for names in (["aa", "ab"], ["xx", "xy"]):  # of one length, so that a line lies where another one lay
        shutil.rmtree(path, ignore_errors=True)
        store(path, map(make_image, names))
        assert ids_and_embeddings(path) == (names, names)


def test_no_name_is_used_twice(tmp_path, store, make_image, empty_out):
    path = tmp_path / "index"
    used = set()
    for names in (["aa", "ab", "ac"], ["ba", "bb", "bc"], ["ca", "cb", "cc"]):
        store(path, map(make_image, names))
        assert ids_and_embeddings(path) == (names, names)
        tune_object_index(path, Budget(), "Flat")
        new = Manifest.load(path).names()
        assert len(new) == 3 and used.isdisjoint(new)
        used.update(new)
        empty_out(path)
        assert Manifest.load(path).names() == []


def test_a_manifest_of_before_goes_on_from_its_names(tmp_path, store, make_image, model_info):
    path = tmp_path / "index"
    store(path, map(make_image, ["aa", "ab", "ac"]))
    file = path / "manifest.json"
    content = json.loads(file.read_bytes())
    assert content.pop("last_number") == 2
    file.write_text(json.dumps(content))
    before = file.read_bytes()
    IndexWriter(path, model_info, "Flat", 2).close()
    assert file.read_bytes() == before, "there was nothing to write"
    store(path, [make_image("ad")])
    assert Manifest.load(path).names() == ["000001", "000002", "000003"]
    assert json.loads(file.read_bytes())["last_number"] == 3


@pytest.mark.parametrize(("value", "words"), [(-1, "'last_number' is -1"), ("3", "'last_number' is '3', expected int")])
def test_a_damaged_number_is_refused(tmp_path, store, make_image, value, words):
    store(tmp_path / "index", [make_image("aa")])
    file = tmp_path / "index" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_bytes()), "last_number": value}))
    with pytest.raises(ValueError, match=words):
        EmbeddingIndex.open(tmp_path / "index")
