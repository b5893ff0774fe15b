"""How search gets its answers: a few images read, rows read in batches, and the same results however it is fetched."""

from __future__ import annotations

import numpy as np
import pytest

from oesir_d2.index import EmbeddingIndex, IndexWriter, SetSearcher, build_object_index, ranking
from oesir_d2.structures import ImageEmbeddings


@pytest.fixture
def searched(tmp_path, make_image, store):
    """``searched(factory)``: an index of 300 photos, with copies, gaps and photos without regions, and a search."""
    images = [make_image(f"image{number:03d}", number % 5) for number in range(300)]
    images += [
        ImageEmbeddings(f"copy{n}", images[9].vectors, images[9].boxes, images[9].scores, images[9].classes)
        for n in range(3)
    ]
    store(tmp_path / "index", images, segment_images=16)

    def make(factory, first_fetch=64):
        index = EmbeddingIndex.open(tmp_path / "index")
        objects = build_object_index(factory, index.dimension, index.vector_chunks())
        return SetSearcher(index, objects, first_fetch)

    return make


class Codes:
    """An engine that finds every object and is wrong about all scores, by up to 0.2."""

    is_exact, has_exact_scores, score_error, first_fetch = False, False, 0.2, None

    def __init__(self, exact):
        self._exact, self.dimension = exact, exact.dimension

    def __len__(self):
        return len(self._exact)

    def search(self, queries, m):
        scores, ids = self._exact.search(queries, len(self))
        wrong = scores + 0.2 * np.sin(7.0 * ids).astype(np.float32)
        order = np.argsort(-wrong, axis=1)[:, :m]
        return np.take_along_axis(wrong, order, axis=1), np.take_along_axis(ids, order, axis=1)


@pytest.mark.parametrize("explain_away", [0.0, 1.0])
@pytest.mark.parametrize(("aggregate", "least"), [("max", 0.95), ("mean_top_m", 0.9), ("sum_max", 0.85)])
def test_wrong_scores_of_an_engine_are_put_right(searched, make_image, monkeypatch, aggregate, least, explain_away):
    monkeypatch.setattr(ranking, "_SETTLED_IMAGES", 40)
    exact = searched("Flat")
    codes = SetSearcher(exact.index, Codes(build_object_index("Flat", 8, exact.index.vector_chunks())), 200)
    shares = []
    for seed in range(12):
        query = make_image("query", 6, seed=seed)
        host = exact.index.embeddings_of(20 * seed + 4)
        query.vectors[: len(host)] = host.vectors
        query.boxes[:] = np.arange(4)
        found, expected = (
            searcher.search(query, 5, aggregate, explain_away=explain_away) for searcher in (codes, exact)
        )
        by_id = {result.image_id: result for result in expected}
        both = [result.image_id for result in found if result.image_id in by_id]
        shares.append(len(both) / 5)
        assert found[0] == expected[0]
        # What is returned has its exact score, boxes included.
        assert [by_id[name].score for name in both] == [r.score for r in found if r.image_id in by_id]
        assert [by_id[name].matches for name in both] == [r.matches for r in found if r.image_id in by_id]
    assert np.mean(shares) >= least


def test_few_images_are_read(searched, make_image, monkeypatch):
    """The copies tie with the original, so all four are compared; of three hundred others only what could be next."""
    searcher = searched("Flat")
    monkeypatch.setattr("oesir_d2.index.set_search._LARGEST_FETCH", 1)
    read = []
    vectors_of = EmbeddingIndex.vectors_of

    def remember(self, images):
        read.extend(images.tolist())
        return vectors_of(self, images)

    monkeypatch.setattr(EmbeddingIndex, "vectors_of", remember)
    results = searcher.search(make_image("image009", 4), 4, explain_away=0.0)
    assert [result.image_id for result in results] == ["copy0", "copy1", "copy2", "image009"]
    assert len(read) == len(set(read)) == 4
    read.clear()
    [first, *_] = searcher.search(make_image("image009", 4), 4, explain_away=1.0)
    assert first.image_id == "copy0"
    assert len(set(read)) < 60


def test_rows_come_from_where_they_lie(searched, tmp_path, model_info):
    with IndexWriter(tmp_path / "index", model_info, "Flat", 5) as writer:
        writer.remove([f"image{number:03d}" for number in (0, 15, 16, 17, 40, 299)])
    index = EmbeddingIndex.open(tmp_path / "index")
    everything = np.concatenate(list(index.vector_chunks()))
    rng = np.random.default_rng(0)
    objects = rng.integers(index.num_objects, size=200)
    np.testing.assert_array_equal(index.vectors_of_objects(objects), everything[objects])
    images = rng.permutation(len(index.images))
    vectors, offsets = index.vectors_of(images)
    expected = [everything[index.offsets[image] : index.offsets[image + 1]] for image in images]
    np.testing.assert_array_equal(vectors, np.concatenate(expected))
    assert np.diff(offsets).tolist() == [len(rows) for rows in expected]
    boxes = index.boxes_of_images(images)
    np.testing.assert_array_equal(boxes, np.concatenate([index.boxes_of(int(image)) for image in images]))


def test_a_file_that_became_shorter_is_named(searched, tmp_path):
    index = searched("Flat").index
    objects = np.arange(index.num_objects)
    index.vectors_of_objects(objects)
    path = tmp_path / "index" / "segments" / "000002" / "vectors.npy"
    with open(path, "r+b") as stream:
        stream.truncate(path.stat().st_size - 40)
    with pytest.raises(ValueError, match="000002/vectors.npy is truncated"):
        index.vectors_of_objects(objects)
