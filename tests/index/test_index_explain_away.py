"""Explaining away against its definition in plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from oesir_d2.index import EmbeddingIndex, SetSearcher, build_object_index
from oesir_d2.index.set_search import EXPLAINERS
from oesir_d2.structures import ImageEmbeddings

from .conftest import DIMENSION


def best_pair(query_vector, image):
    return max(float(np.dot(query_vector.astype(float), vector)) for vector in image.vectors.astype(float))


def rank_by_definition(images, query, aggregate, weight):
    """(image id, score) of all images, best first: the one that explains most, the others by what they add to it."""
    pairs = {image.image_id: [best_pair(vector, image) for vector in query.vectors] for image in images}
    function = {"max": max, "sum_max": sum}[aggregate]
    by_similarity = sorted(pairs, key=lambda image_id: (-round(function(pairs[image_id]), 6), image_id))
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in query.boxes.astype(float)]
    mean = {image_id: sum(p * a for p, a in zip(values, areas)) / sum(areas) for image_id, values in pairs.items()}
    # max() takes the first of equal means, which is the more similar one.
    first = max(by_similarity[:EXPLAINERS], key=lambda image_id: round(mean[image_id], 6))
    score_of_first = round(function(pairs[first]), 6)
    explained = [weight * max(0.0, round(pair, 6)) for pair in pairs[first]]
    others = [
        (image_id, round(function([p - e for p, e in zip(values, explained, strict=True)]), 6))
        for image_id, values in pairs.items()
        if image_id != first
    ]
    others.sort(key=lambda entry: (-entry[1], entry[0]))
    return [(first, score_of_first), *((image_id, min(score, score_of_first)) for image_id, score in others)]


@pytest.fixture
def searcher_of(tmp_path, store):
    def make(images, first_fetch=4):
        store(tmp_path / "index", images)
        index = EmbeddingIndex.open(tmp_path / "index")
        return SetSearcher(index, build_object_index("Flat", index.dimension, index.vector_chunks()), first_fetch)

    return make


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("aggregate", ["max", "sum_max"])
@pytest.mark.parametrize("weight", [0.4, 1.0])
def test_equals_the_definition(searcher_of, make_image, aggregate, weight):
    images = [make_image(f"photo {i:03d}", regions=1 + i % 5) for i in range(80)]
    searcher = searcher_of(images)
    for seed in range(10):
        query = make_image("query", regions=6, seed=seed)
        results = searcher.search(query, top_k=12, aggregate=aggregate, explain_away=weight)
        expected = rank_by_definition(images, query, aggregate, weight)[:12]
        assert [result.image_id for result in results] == [image_id for image_id, _ in expected]
        assert [result.score for result in results] == pytest.approx([score for _, score in expected], abs=2e-6)
        assert [result.rank for result in results] == list(range(1, 13))
        assert all(a.score >= b.score for a, b in zip(results, results[1:]))


def test_brings_out_the_donor_that_the_host_drowns(searcher_of, make_image):
    host, donor = make_image("host", 4), make_image("donor", 2)
    rng = np.random.default_rng(0)

    def noisy(vector, noise):
        moved = vector + noise * rng.standard_normal(vector.shape) / np.sqrt(len(vector))
        return (moved / np.linalg.norm(moved)).astype(np.float32)

    def image_of(image_id, vectors):
        n = len(vectors)
        boxes = np.tile(np.float32([0, 0, 9, 9]), (n, 1)) + np.arange(n, dtype=np.float32)[:, None]
        return ImageEmbeddings(image_id, np.stack(vectors), boxes, np.ones(n, np.float32), np.full(n, -1))

    # Photos that look like the host are nearer to the query's host regions than the donor is to the pasted object.
    like_host = [image_of(f"like host {i}", [noisy(vector, 0.7) for vector in host.vectors]) for i in range(9)]
    query = image_of("query", [*(noisy(vector, 0.1) for vector in host.vectors), noisy(donor.vectors[0], 1.2)])
    searcher = searcher_of([host, donor, *like_host])

    def rank_of_donor(weight):
        results = searcher.search(query, top_k=11, explain_away=weight)
        assert results[0].image_id == "host"
        return [result.image_id for result in results].index("donor") + 1

    assert rank_of_donor(0.0) > 2
    assert rank_of_donor(1.0) == 2
    match = searcher.search(query, top_k=2, explain_away=1.0)[1].matches[0]
    assert match.query_box == tuple(query.boxes[4].tolist()), "the pasted object is what links donor and query"
    assert match.database_box == tuple(donor.boxes[0].tolist())
    assert match.score == pytest.approx(best_pair(query.vectors[4], donor), abs=1e-6), "a match's score is a similarity"


def test_the_whole_query_decides_on_the_first_result(searcher_of, make_image):
    original, other = make_image("original", 5), make_image("other", 5)
    # A sky that both photos have is, by the noise of a re-encoding, a little more like the other photo's.
    sky = other.vectors[0]
    copy = original.vectors + 0.05 * np.random.default_rng(0).standard_normal(original.vectors.shape)
    copy /= np.linalg.norm(copy, axis=1, keepdims=True)
    vectors = np.concatenate([copy[1:], sky[None]]).astype(np.float32)
    query = ImageEmbeddings("copy", vectors, original.boxes, original.scores, original.classes)
    searcher = searcher_of([original, other])
    assert searcher.search(query, top_k=1)[0].image_id == "other"
    assert searcher.search(query, top_k=1, explain_away=1.0)[0].image_id == "original"


def test_one_result_and_more_than_there_are(searcher_of, make_image):
    searcher = searcher_of([make_image("a"), make_image("b")])
    query = make_image("query")
    assert searcher.search(query, top_k=1, explain_away=1.0) == searcher.search(query, top_k=2, explain_away=1.0)[:1]
    assert len(searcher.search(query, top_k=99, explain_away=1.0)) == 2


@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan")])
def test_weight_out_of_range(searcher_of, make_image, weight):
    with pytest.raises(ValueError, match="explain_away"):
        searcher_of([make_image("a")]).search(make_image("query"), explain_away=weight)


def test_many_regions_on_a_small_object_do_not_make_its_photo_the_first(searcher_of):
    def make(image_id, vectors, boxes):
        vectors, count = np.eye(DIMENSION, dtype=np.float32)[vectors], len(vectors)
        boxes = np.array(boxes, dtype=np.float32)
        return ImageEmbeddings(image_id, vectors, boxes, np.ones(count, np.float32), np.zeros(count, np.int64))

    # Three of the query's four regions lie on a pasted object of a sixteenth of its area.
    small, large = [0, 0, 10, 10], [0, 0, 40, 40]
    searcher = searcher_of([make("donor", [1], [small]), make("host", [0], [large]), make("other", [3], [large])])
    results = searcher.search(make("query", [1, 1, 1, 0], [small, small, small, large]), top_k=3, explain_away=1.0)
    assert [result.image_id for result in results] == ["host", "donor", "other"]


def test_box_of_no_area_is_searched_with_all_the_same(searcher_of, make_image):
    """A box that is thinner than single precision can tell, alone or twice."""
    thin = np.array([[10, 10, 10.0000001, 10.0000001]], dtype=np.float32)
    searcher = searcher_of([make_image("a"), make_image("b")])
    for count in (1, 2):
        query = make_image("query", count)
        boxes = np.repeat(thin, count, axis=0)
        query = ImageEmbeddings("query", query.vectors, boxes, query.scores, query.classes)
        with np.errstate(all="raise"):
            results = searcher.search(query, top_k=2, explain_away=1.0)
        assert sorted(result.image_id for result in results) == ["a", "b"]
        assert np.isfinite([result.score for result in results]).all()
