"""What is added to an index comes back from it, in every way of adding."""

from __future__ import annotations

import resource
from dataclasses import replace

import numpy as np
import pytest

from oesir_d2.index import EmbeddingIndex, IndexWriter, SetSearcher, build_object_index
from oesir_d2.structures import ImageEmbeddings


def assert_same_embeddings(actual, expected):
    assert actual.image_id == expected.image_id
    for name in ("vectors", "boxes", "scores", "classes"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))
        assert getattr(actual, name).dtype == getattr(expected, name).dtype


def search_all(path, queries, aggregate="max"):
    index = EmbeddingIndex.open(path)
    searcher = SetSearcher(index, build_object_index("Flat", index.dimension, index.vector_chunks()))
    return [[result.to_dict() for result in searcher.search(query, 10, aggregate)] for query in queries]


def test_embeddings_and_records_come_back_unchanged(tmp_path, make_image, make_record, store, model_info):
    images = [make_image(name, regions) for name, regions in (("b", 3), ("a", 1), ("żółw 1.jpg", 0), ("c", 5))]
    store(tmp_path / "new" / "index", images)

    index = EmbeddingIndex.open(tmp_path / "new" / "index", model_info)
    assert list(index.images) == [make_record(image.image_id) for image in images]
    assert (index.num_objects, index.dimension) == (9, 8)
    assert index.offsets.tolist() == [0, 3, 4, 4, 9]
    for number, image in enumerate(images):
        assert_same_embeddings(index.embeddings_of(number), image)
    np.testing.assert_array_equal(
        np.concatenate(list(index.vector_chunks())), np.concatenate([image.vectors for image in images])
    )
    assert index.image_of_objects(np.arange(9)).tolist() == [0, 0, 0, 1, 3, 3, 3, 3, 3]
    vectors, offsets = index.vectors_of(np.array([3, 1]))
    np.testing.assert_array_equal(vectors, np.concatenate([images[3].vectors, images[1].vectors]))
    assert offsets.tolist() == [0, 5, 6]
    index.verify()


def test_a_file_name_that_is_not_unicode_survives(tmp_path, make_image, store):
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    image = make_image("plain")
    image = ImageEmbeddings(name, image.vectors, image.boxes, image.scores, image.classes)
    store(tmp_path / "index", [image])
    assert EmbeddingIndex.open(tmp_path / "index").images[0].image_id == name


@pytest.mark.parametrize("aggregate", ["max", "sum_max"])
def test_incremental_add_equals_bulk_add(tmp_path, make_image, store, aggregate):
    images = [make_image(f"image{number}", 1 + number % 4) for number in range(11)]
    store(tmp_path / "bulk", images, segment_images=100)
    for begin in range(0, len(images), 3):
        store(tmp_path / "steps", images[begin : begin + 3], segment_images=2)

    assert len(list((tmp_path / "bulk/segments").iterdir())) == 1
    assert len(list((tmp_path / "steps/segments").iterdir())) == 7
    bulk, steps = EmbeddingIndex.open(tmp_path / "bulk"), EmbeddingIndex.open(tmp_path / "steps")
    assert list(bulk.images) == list(steps.images)
    for number in range(len(images)):
        assert_same_embeddings(steps.embeddings_of(number), bulk.embeddings_of(number))
    assert search_all(tmp_path / "steps", images, aggregate) == search_all(tmp_path / "bulk", images, aggregate)


def test_writing_one_image_at_a_time(tmp_path, make_image, store):
    store(tmp_path / "index", [make_image("only", 1)], segment_images=1)
    assert EmbeddingIndex.open(tmp_path / "index").num_objects == 1


def test_adding_an_image_again_replaces_it(tmp_path, make_image, make_record, store, model_info):
    path = tmp_path / "index"
    store(path, [make_image(name) for name in "abcde"])
    with IndexWriter(path, model_info, "Flat", 2) as writer:
        # Once in a segment of its own, once twice within the buffer.
        writer.add(make_image("b", 5, seed=1), make_record("b", 1))
        writer.flush()
        writer.add(make_image("e", 1, seed=2), make_record("e", 2))
        writer.add(make_image("e", 2, seed=3), make_record("e", 3))
        assert writer.known() == {name: make_record(name, {"b": 1, "e": 3}.get(name, 0)) for name in "abcde"}

    index = EmbeddingIndex.open(path)
    assert [record.image_id for record in index.images] == ["a", "c", "d", "b", "e"]
    assert_same_embeddings(index.embeddings_of(3), make_image("b", 5, seed=1))
    assert_same_embeddings(index.embeddings_of(4), make_image("e", 2, seed=3))
    assert (index.manifest.images, index.manifest.objects) == (5, 16) == (len(index.images), index.num_objects)

    fresh = [make_image(name) for name in "acd"] + [make_image("b", 5, seed=1), make_image("e", 2, seed=3)]
    store(tmp_path / "fresh", fresh)
    np.testing.assert_array_equal(
        np.concatenate(list(index.vector_chunks())), np.concatenate([image.vectors for image in fresh])
    )
    queries = [make_image("b"), make_image("e", 2, seed=3)]
    assert search_all(path, queries) == search_all(tmp_path / "fresh", queries)


def test_replacing_within_what_the_same_writer_wrote(tmp_path, make_image, make_record, model_info):
    with IndexWriter(tmp_path / "index", model_info, "Flat", 1) as writer:
        for version in range(4):
            writer.add(make_image("a", 1 + version), make_record("a", version))
    index = EmbeddingIndex.open(tmp_path / "index")
    assert list(index.images) == [make_record("a", 3)]
    assert index.num_objects == 4


def test_refresh_changes_the_record_and_keeps_the_embeddings(tmp_path, make_image, make_record, store, model_info):
    path = tmp_path / "index"
    store(path, [make_image(name) for name in "ab"])
    moved = replace(make_record("a"), path="/elsewhere/a", modified_ns=5)
    with IndexWriter(path, model_info, "Flat", 10) as writer:
        writer.refresh(moved)
        with pytest.raises(ValueError, match="'a' has changed since it was embedded"):
            writer.refresh(make_record("a", version=1))
        with pytest.raises(ValueError, match="'z' is not in index"):
            writer.refresh(make_record("z"))

    index = EmbeddingIndex.open(path)
    assert list(index.images) == [make_record("b"), moved]
    assert_same_embeddings(index.embeddings_of(1), make_image("a"))


def test_what_was_gathered_is_written_when_the_block_ends_by_an_exception(
    tmp_path, make_image, make_record, model_info
):
    for error in (KeyboardInterrupt, SystemExit, RuntimeError):
        path = tmp_path / error.__name__
        with pytest.raises(error):
            with IndexWriter(path, model_info, "Flat", 64) as writer:
                writer.add(make_image("a"), make_record("a"))
                raise error
        assert [record.image_id for record in EmbeddingIndex.open(path).images] == ["a"]


def test_an_index_without_images(tmp_path, make_image, store):
    store(tmp_path / "index", [])
    index = EmbeddingIndex.open(tmp_path / "index")
    assert (list(index.images), index.num_objects, list(index.vector_chunks())) == ([], 0, [])
    assert search_all(tmp_path / "index", [make_image("query")]) == [[]]


def test_another_factory_string_or_place_of_the_weights_replaces_the_old_one(tmp_path, make_image, store, model_info):
    store(tmp_path / "index", [make_image("a")])
    moved = replace(model_info, references={"MODEL.WEIGHTS": "/moved/weights.safetensors"})
    with IndexWriter(tmp_path / "index", moved, "HNSW8", 2):
        pass
    index = EmbeddingIndex.open(tmp_path / "index", model_info)
    assert index.manifest.factory == "HNSW8"
    assert index.manifest.model.references == moved.references
    assert len(index.images) == 1


def test_wrong_embeddings_are_refused(tmp_path, make_image, make_record, model_info):
    with IndexWriter(tmp_path / "index", model_info, "Flat", 2) as writer:
        image = make_image("a")
        with pytest.raises(ValueError, match="'a' came with the record of 'b'"):
            writer.add(image, make_record("b"))
        doubled = ImageEmbeddings("a", 2 * image.vectors, image.boxes, image.scores, image.classes)
        with pytest.raises(ValueError, match="image 'a' has norm 2, expected 1"):
            writer.add(doubled, make_record("a"))
        narrow = ImageEmbeddings("a", image.vectors[:, :4], image.boxes, image.scores, image.classes)
        with pytest.raises(ValueError, match="dimension 4, the index 8"):
            writer.add(narrow, make_record("a"))
        assert writer.known() == {}


def test_many_segments_do_not_exhaust_the_open_files(tmp_path, make_image, make_record, model_info):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        images = [make_image(f"image{number}", 1) for number in range(200)]
        with IndexWriter(tmp_path / "index", model_info, "Flat", 1) as writer:
            for image in images:
                writer.add(image, make_record(image.image_id))
        with IndexWriter(tmp_path / "index", model_info, "Flat", 1):
            index = EmbeddingIndex.open(tmp_path / "index")
            vectors, _ = index.vectors_of(np.arange(200))
            np.testing.assert_array_equal(vectors, np.concatenate([image.vectors for image in images]))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
