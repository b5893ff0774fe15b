"""The FAISS object index: exact where it says so, and clear about what it cannot build."""

from __future__ import annotations

import numpy as np
import pytest

from oesir_d2.index import build_object_index, check_factory


@pytest.fixture
def vectors():
    vectors = np.random.default_rng(0).standard_normal((300, 8))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_flat_finds_the_nearest_in_order(vectors):
    index = build_object_index("Flat", 8, [vectors[:7], vectors[7:7], vectors[7:]])
    assert (len(index), index.dimension) == (300, 8)
    scores, ids = index.search(vectors[:5], 20)
    exact = vectors[:5].astype(float) @ vectors.T.astype(float)
    np.testing.assert_array_equal(ids, np.argsort(-exact, axis=1)[:, :20])
    np.testing.assert_allclose(scores, np.sort(exact, axis=1)[:, ::-1][:, :20], atol=1e-6)
    assert (scores.dtype, ids.dtype) == (np.float32, np.int64)


def test_queries_need_not_be_contiguous_and_are_left_alone(vectors):
    queries = np.asfortranarray(vectors[:3])
    before = queries.copy()
    _, ids = build_object_index("Flat", 8, [vectors]).search(queries, 1)
    assert ids.tolist() == [[0], [1], [2]]
    np.testing.assert_array_equal(queries, before)


@pytest.mark.parametrize(("objects", "queries", "m"), [(2, 3, 9), (0, 3, 9), (2, 0, 9), (1, 1, 1)])
def test_no_more_matches_than_objects(vectors, objects, queries, m):
    scores, ids = build_object_index("Flat", 8, [vectors[:objects]]).search(vectors[:queries], m)
    assert scores.shape == ids.shape == (queries, min(m, objects))


def test_what_was_not_found_has_no_id(vectors):
    scores, ids = build_object_index("IVF16,Flat", 8, [vectors]).search(vectors[:4], 300)
    assert (ids[:, 0] == np.arange(4)).all()
    assert ((ids == -1) == np.isneginf(scores)).all() and (ids[:, -1] == -1).all()


@pytest.mark.parametrize("factory", ["nonsense", "", "LSH", "IVF4,PQ3"])
def test_a_factory_string_that_cannot_be_built_is_named(factory):
    with pytest.raises(ValueError, match=f"index factory {factory!r} .* 8 dimensions.* such as Flat, IVF256,Flat"):
        check_factory(factory, 8)


def test_too_few_objects_to_train_on(vectors):
    with pytest.raises(ValueError, match="'IVF256,Flat' .* over 5 objects .*Number of training points"):
        build_object_index("IVF256,Flat", 8, [vectors[:5]])


def test_training_sees_a_bounded_sample(vectors, monkeypatch):
    monkeypatch.setattr("oesir_d2.index.object_index._MIN_TRAINING_VECTORS", 100)
    monkeypatch.setattr("oesir_d2.index.object_index._TRAINING_BYTES", 100)
    index = build_object_index("IVF4,Flat", 8, [vectors[:150], vectors[150:]])
    assert len(index) == 300
