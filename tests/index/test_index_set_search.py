"""Set search against a brute-force search over all pairs of regions, written with plain loops."""

from __future__ import annotations

import json

import faiss
import numpy as np
import pytest

from oesir_d2.index import EmbeddingIndex, SetSearcher, build_object_index, register_aggregator
from oesir_d2.index.aggregate import AGGREGATORS
from oesir_d2.structures import ImageEmbeddings


def brute_force(images, query):
    """All images, best first, as (image id, {aggregate: score}, {query region: (best score, best database region)})."""
    ranked = {"max": [], "sum_max": [], "mean_top_m": []}
    for image in images:
        if len(image) == 0:
            continue
        best, exact = {}, []
        for q, query_vector in enumerate(query.vectors.astype(float)):
            pairs = [float(np.dot(query_vector, vector)) for vector in image.vectors.astype(float)]
            rounded = [round(pair, 6) for pair in pairs]
            best[q] = (max(rounded), rounded.index(max(rounded)))
            exact.append(max(pairs))
        for aggregate, function in (("max", max), ("sum_max", sum), ("mean_top_m", mean_of_three_best)):
            ranked[aggregate].append((image, round(function(exact), 6), best))
    return {
        aggregate: sorted(entries, key=lambda entry: (-entry[1], entry[0].image_id))
        for aggregate, entries in ranked.items()
    }


def mean_of_three_best(pairs):
    best = sorted(pairs)[-3:]
    return sum(best) / len(best)


def assert_equal(results, expected, query):
    assert [result.image_id for result in results] == [image.image_id for image, _, _ in expected]
    assert [result.rank for result in results] == list(range(1, len(expected) + 1))
    for result, (image, score, best) in zip(results, expected, strict=True):
        assert result.score == pytest.approx(score, abs=1e-9)
        order = sorted(best, key=lambda q: (-best[q][0], q))[:5]
        assert [match.score for match in result.matches] == pytest.approx([best[q][0] for q in order], abs=1e-9)
        for match, q in zip(result.matches, order, strict=True):
            assert match.query_box == tuple(query.boxes[q].tolist())
            assert match.database_box == tuple(image.boxes[best[q][1]].tolist())


def replace_tied(found, expected, top_k):
    """Put those of the images tied at the cut first that were found."""
    cut = expected[min(top_k, len(expected)) - 1][1]
    ids = [result.image_id for result in found]
    return sorted(expected, key=lambda entry: (-entry[1], entry[1] == cut and entry[0].image_id not in ids))


def make_searcher(path, factory="Flat", first_fetch=128, nprobe=None):
    index = EmbeddingIndex.open(path)
    object_index = build_object_index(factory, index.dimension, index.vector_chunks())
    if nprobe is not None:
        faiss.ParameterSpace().set_index_parameter(object_index.faiss_index, "nprobe", nprobe)
    return SetSearcher(index, object_index, first_fetch)


def rename(image, image_id):
    return ImageEmbeddings(image_id, image.vectors, image.boxes, image.scores, image.classes)


@pytest.fixture
def collection(make_image):
    """Images of 0 to 9 regions, one of them in five copies, one region in nine images, one region twice in an image."""
    rng = np.random.default_rng(5)
    images = [make_image(f"image{number:02d}", int(rng.integers(1, 10))) for number in range(60)]
    images += [rename(images[7], f"copy{number}") for number in (3, 1, 4, 0)]
    for number in range(20, 29):
        images[number].vectors[0] = images[7].vectors[0]
    images[40].vectors[-1] = images[40].vectors[0]
    images.append(make_image("empty", 0))
    return [images[position] for position in rng.permutation(len(images))]


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    ("factory", "first_fetch", "nprobe"),
    [("Flat", 1, None), ("Flat", 4, None), ("Flat", 1000, None), ("IVF4,Flat", 999, 4)],
)
def test_search_equals_brute_force(tmp_path, collection, make_image, store, factory, first_fetch, nprobe):
    store(tmp_path / "index", collection, segment_images=7)
    searcher = make_searcher(tmp_path / "index", factory, first_fetch, nprobe)
    queries = [make_image(f"query{number}", 1 + number % 4, seed=number) for number in range(8)]
    queries += [image for image in collection if image.image_id in ("image07", "copy3", "image20", "image40")]
    for query in queries:
        for aggregate, expected in brute_force(collection, query).items():
            for top_k in (1, 3, 10, 500):
                found = searcher.search(query, top_k, aggregate)
                # Of copies that the cut divides, an approximate index may have fetched another one.
                wanted = expected if factory == "Flat" else replace_tied(found, expected, top_k)
                assert_equal(found, wanted[:top_k], query)


@pytest.mark.parametrize("aggregate", ["max", "sum_max"])
def test_an_index_that_does_not_look_everywhere_still_answers(tmp_path, collection, store, aggregate):
    store(tmp_path / "index", collection, segment_images=7)
    searcher = make_searcher(tmp_path / "index", "IVF16,Flat", first_fetch=64, nprobe=1)
    query = next(image for image in collection if image.image_id == "image07")
    results = searcher.search(query, 5, aggregate)
    assert [result.image_id for result in results] == ["copy0", "copy1", "copy3", "copy4", "image07"]


def test_copies_of_a_photo_rank_by_their_ids_wherever_they_lie(tmp_path, make_image, store):
    """Float32 products of the same vectors differ with their place in a matrix; ranks and scores must not."""
    rng = np.random.default_rng(0)
    original = make_image("original", 13)
    copies = [rename(original, f"copy{number:02d}") for number in range(40)]
    others = [make_image(f"other{number}", int(rng.integers(1, 12))) for number in range(60)]
    images = [*copies, *others]
    for seed in range(3):
        path = tmp_path / str(seed)
        order = np.random.default_rng(seed).permutation(len(images))
        store(path, [images[position] for position in order], segment_images=9)
        results = make_searcher(path, first_fetch=3).search(make_image("query", 7), 100, "sum_max")
        ranked_copies = [result for result in results if result.image_id.startswith("copy")]
        assert [result.image_id for result in ranked_copies] == [copy.image_id for copy in copies]
        assert len({result.score for result in ranked_copies}) == 1


def test_result_as_json(tmp_path, make_image, store):
    image = make_image("a", 2)
    store(tmp_path / "index", [image, make_image("b", 1)])
    [result] = make_searcher(tmp_path / "index").search(image, top_k=1, matches_per_result=1)
    box = [round(float(value), 2) for value in image.boxes[0]]
    expected = {
        "rank": 1,
        "image_id": "a",
        "path": "/photos/a",
        "score": 1.0,
        "matches": [{"query_box": box, "database_box": box, "score": 1.0}],
    }
    assert result.to_dict() == expected
    assert json.loads(json.dumps(result.to_dict())) == expected


def test_bounds_of_the_arguments(tmp_path, make_image, store):
    store(tmp_path / "index", [make_image(name, 1) for name in "abc"] + [make_image("empty", 0)])
    searcher = make_searcher(tmp_path / "index")
    query = make_image("query", 2)
    assert len(searcher.search(query, top_k=100)) == 3
    assert len(searcher.search(query, top_k=2)) == 2
    assert searcher.search(make_image("query", 0)) == []
    assert searcher.search(query, top_k=1, matches_per_result=0)[0].matches == []
    assert len(searcher.search(query, top_k=1, matches_per_result=9)[0].matches) == 2
    with pytest.raises(ValueError, match="top_k is 0"):
        searcher.search(query, top_k=0)
    with pytest.raises(ValueError, match="matches_per_result is -1"):
        searcher.search(query, matches_per_result=-1)
    with pytest.raises(ValueError, match="unknown aggregate 'mean', expected one of max, mean_top_m, sum_max"):
        searcher.search(query, aggregate="mean")
    narrow = ImageEmbeddings("narrow", query.vectors[:, :5], query.boxes, query.scores, query.classes)
    with pytest.raises(ValueError, match="query 'narrow' has dimension 5, index .* has dimension 8"):
        searcher.search(narrow)


def test_an_object_index_of_other_objects_is_refused(tmp_path, make_image, store):
    store(tmp_path / "index", [make_image("a", 3)])
    other = build_object_index("Flat", 8, [make_image("b", 2).vectors])
    with pytest.raises(ValueError, match="object index holds 2 objects of dimension 8, index .* 3 of dimension 8"):
        SetSearcher(EmbeddingIndex.open(tmp_path / "index"), other)


def test_an_aggregator_can_be_registered_once(tmp_path, make_image, store, monkeypatch):
    monkeypatch.setattr("oesir_d2.index.aggregate.AGGREGATORS", dict(AGGREGATORS))
    register_aggregator("second_best")(lambda scores: np.sort(scores, axis=1)[:, -2])
    with pytest.raises(ValueError, match="'second_best' is registered already"):
        register_aggregator("second_best")(lambda scores: scores[:, 0])

    images = [make_image(f"image{number}", 4) for number in range(30)]
    store(tmp_path / "index", images)
    query = make_image("query", 3)
    results = make_searcher(tmp_path / "index", first_fetch=2).search(query, 4, "second_best")
    exact = {image.image_id: sorted((query.vectors @ image.vectors.T).max(axis=1))[-2] for image in images}
    assert [result.image_id for result in results] == sorted(exact, key=exact.__getitem__, reverse=True)[:4]
