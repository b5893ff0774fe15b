"""The object index on disk: as good as promised, never out of date unnoticed, and never the only copy."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from oesir_d2.evaluation.synthetic_embeddings import SyntheticWorld
from oesir_d2.index import (
    Budget,
    EmbeddingIndex,
    EmbeddingModelInfo,
    ImageRecord,
    IndexWriter,
    Manifest,
    SetSearcher,
    build_object_index,
    find_damage,
    open_object_index,
    refresh_object_index,
    stored_object_index,
    tune_object_index,
    tuning,
)
from oesir_d2.index.budget import plan_object_indexes

WORLD = SyntheticWorld(dimension=32)
PHOTOS = 600
MODEL = EmbeddingModelInfo({}, {}, "a" * 64, "", {}, 32)
BUDGET, TYPE = Budget(min_recall=0.1), "IVF4,SQ8"


def add(path: Path, first: int, last: int) -> None:
    with IndexWriter(path, MODEL, "Flat", 100) as writer:
        for number, image in enumerate(WORLD.make_photos(last, regions=5)):
            if number >= first:
                record = ImageRecord(image.image_id, f"/{image.image_id}", 640, 480, 1, number, f"{number:064x}")
                writer.add(image, record)


def answers(index, object_index, aggregate="max", explain_away=0.0):
    searcher = SetSearcher(index, object_index)
    queries = [
        WORLD.make_query(number, index.embeddings_of(7 * number), index.embeddings_of(7 * number + 3), regions=12)
        for number in range(20)
    ]
    return [
        [result.image_id for result in searcher.search(query, 10, aggregate, explain_away=explain_away)]
        for query in queries
    ]


def recall(found, exact):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, exact, strict=True)])


@pytest.fixture
def path(tmp_path):
    add(tmp_path / "index", 0, PHOTOS)
    return tmp_path / "index"


@pytest.mark.parametrize(
    ("factory", "least"),
    [
        ("Flat", 1.0),
        ("IVF32,Flat", 0.95),
        ("IVF32,SQ8", 0.95),
        ("OPQ8,IVF32,PQ8", 0.9),
        ("HNSW16", 0.8),
        ("PQ16", 0.9),
    ],
)
def test_finds_what_an_exact_search_finds(path, factory, least):
    stored = tune_object_index(path, Budget(min_recall=0.95), factory)
    index = EmbeddingIndex.open(path)
    assert stored.measured["recall_at_10"] >= least - 0.05
    exact = build_object_index("Flat", 32, index.vector_chunks())
    mapped = open_object_index(index)
    assert index.manifest.factory == factory and mapped.first_fetch == stored.first_fetch
    assert recall(answers(index, mapped), answers(index, exact)) >= least
    explained, expected = answers(index, mapped, explain_away=1.0), answers(index, exact, explain_away=1.0)
    assert recall(explained, expected) >= least - 0.1
    assert [found[0] for found in explained] == [found[0] for found in expected], "the host comes first"
    assert [found[0] for found in answers(index, mapped, "sum_max")] == [
        found[0] for found in answers(index, exact, "sum_max")
    ]


def test_follows_the_index(path, caplog):
    tune_object_index(path, Budget(), "IVF16,Flat")
    with IndexWriter(path, MODEL, "Flat", 100) as writer:
        writer.remove(["photo000000003", "photo000000100"])
    index = EmbeddingIndex.open(path)
    assert index.manifest.fresh_object_index() is None
    assert len(open_object_index(index)) == index.num_objects == 5 * (PHOTOS - 2)
    assert "out of date" in caplog.text
    assert refresh_object_index(path) and not refresh_object_index(path)
    add(path, PHOTOS, PHOTOS + 50)
    trained = Manifest.load(path).object_index.trained_on
    assert refresh_object_index(path)
    assert Manifest.load(path).object_index.trained_on == trained, "new photos need no training"
    with IndexWriter(path, MODEL, "Flat", 100) as writer:
        assert sum(writer.compact()) > 1
    index = EmbeddingIndex.open(path)
    assert index.manifest.fresh_object_index() is not None, "compaction keeps the objects and their order"
    assert index.manifest.factory == "IVF16,Flat", "a tuned index stays tuned"
    exact = build_object_index("Flat", 32, index.vector_chunks())
    assert recall(answers(index, open_object_index(index)), answers(index, exact)) >= 0.95
    IndexWriter(path, MODEL, "Flat", 100).close()
    assert len(list((path / "object_index").iterdir())) == 1, "the next writer deletes what a reader held"


@pytest.mark.parametrize("bring_up_to_date", [refresh_object_index, lambda path: tune_object_index(path, BUDGET, TYPE)])
def test_a_growing_index_is_trained_anew_whenever_it_has_outgrown_its_training(tmp_path, monkeypatch, bring_up_to_date):
    """Trained on 60 photos; so beyond 120 it is trained again, and beyond twice of what there were then once more."""
    path, trained = tmp_path / "index", []
    train = stored_object_index.train_faiss_index
    monkeypatch.setattr(stored_object_index, "train_faiss_index", lambda *a: (trained.append(a[3]), train(*a)))
    add(path, 0, 60)
    tune_object_index(path, BUDGET, TYPE)
    seen = []
    for first, last in ((60, 117), (117, 123), (123, 126), (126, 240), (240, 255)):
        add(path, first, last)
        bring_up_to_date(path)
        seen.append(Manifest.load(path).object_index.trained_on)
    assert trained == [300, 615, 1275]
    assert seen == [300, 615, 615, 615, 1275]


def test_damage_is_found_and_costs_no_answer(path, caplog):
    tune_object_index(path, Budget(), "SQ8")
    assert [found for found in find_damage(path) if found] == []
    [file] = (path / "object_index").iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert [found for found in find_damage(path) if found] == [
        f"{file} is damaged: its SHA-256 is not the one in the manifest"
    ]
    for broken in (content[:-1], b"", None):
        file.write_bytes(broken) if broken is not None else file.unlink()
        index = EmbeddingIndex.open(path)
        assert len(open_object_index(index)) == index.num_objects
    assert "built anew, in memory" in caplog.text
    add(path, PHOTOS, PHOTOS + 1)
    assert refresh_object_index(path)
    assert [found for found in find_damage(path) if found] == []


@pytest.mark.parametrize("change", ["add", "remove"])
def test_damage_is_not_carried_on(path, caplog, change):
    """Bytes of codes: FAISS reads them without a complaint."""
    tune_object_index(path, Budget(), "SQ8")
    [file] = (path / "object_index").iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-600] + bytes(500) + content[-100:])
    if change == "add":
        add(path, PHOTOS, PHOTOS + 1)
    else:
        with IndexWriter(path, MODEL, "Flat", 100) as writer:
            writer.remove(["photo000000003"])
    assert refresh_object_index(path)
    assert f"filled anew: {file} is damaged: its SHA-256" in caplog.text
    assert [found for found in find_damage(path) if found] == []
    index = EmbeddingIndex.open(path)
    whole = build_object_index("SQ8", 32, index.vector_chunks())
    queries = index.embeddings_of(len(index.images) - 2).vectors
    np.testing.assert_array_equal(open_object_index(index).search(queries, 20), whole.search(queries, 20))


def test_a_full_disk_leaves_the_index_as_it_was(path, monkeypatch, snapshot):
    tune_object_index(path, Budget(), "SQ8")
    before = snapshot(path)

    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="object index of .* could not be written .*No space left"):
        tune_object_index(path, Budget(), "PQ8")
    assert snapshot(path) == before


def test_a_reader_goes_on_when_the_object_index_is_replaced(path):
    tune_object_index(path, Budget(), "IVF16,SQ8")
    index = EmbeddingIndex.open(path)
    mapped = open_object_index(index)
    expected = answers(index, mapped)
    tune_object_index(path, Budget(), "Flat")
    assert answers(index, mapped) == expected


@pytest.mark.parametrize("photos", [1, 2, 5])
def test_an_index_of_few_photos_can_be_tuned(tmp_path, photos):
    add(tmp_path / "index", 0, photos)
    stored = tune_object_index(tmp_path / "index", Budget(min_recall=1))
    assert (stored.factory, stored.measured["recall_at_10"]) == ("Flat", 1.0)


def test_photos_without_regions_are_no_queries(tmp_path, make_image, store):
    """One photo of 200 has regions, and it is none of evenly spaced ones."""
    path = tmp_path / "index"
    store(path, [make_image(f"image{number}", 3 if number == 1 else 0) for number in range(200)])
    stored = tune_object_index(path, Budget())
    assert (stored.objects, stored.measured["recall_at_10"]) == (3, 1.0)


def test_a_tuned_index_keeps_its_type_and_says_so(path, caplog):
    tune_object_index(path, BUDGET, "SQ8")
    for factory, warnings in (("Flat", 0), ("SQ8", 0), ("IVF4,Flat", 1)):
        IndexWriter(path, MODEL, factory, 100).close()
        assert Manifest.load(path).factory == "SQ8"
        assert caplog.text.count("was tuned to SQ8 and keeps it; tools/index.py tune --factory IVF4,Flat") == warnings


def plan_bytes(factory):
    return next(plan.bytes for plan in plan_object_indexes(PHOTOS, 5 * PHOTOS, 32, Budget()) if plan.factory == factory)


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (
            Budget(max_latency=1e-9),
            r"is 1e-06 ms, but .* even PQ\d takes at least [0-9.]+ ms here .*allow more",
        ),
        (Budget(max_memory=200_000, max_latency=1e-9), r"max_latency is 1e-06 ms, but of the types that fit the rest"),
        (Budget(max_memory=200_000, min_recall=1), "max_memory is 200000 bytes, but .* finds everything, Flat, needs"),
    ],
)
def test_an_impossible_budget_is_refused_before_anything_is_trained(path, monkeypatch, budget, words):
    def train(*arguments):
        raise AssertionError("trained")

    monkeypatch.setattr("oesir_d2.index.tuning.fill_object_index", train)
    with pytest.raises(ValueError, match=words):
        tune_object_index(path, budget)


def test_recall_is_measured_on_other_queries_than_parameters_are_chosen_by(path, monkeypatch):
    """By the queries of one half anything is enough; what is reported is what the others reach, by brute force."""
    asked = []
    measure = tuning.measure_search

    def remember(searcher, queries):
        asked.append((queries, measure(searcher, queries)))
        return asked[-1][1]

    monkeypatch.setattr(tuning, "measure_search", remember)
    stored = tune_object_index(path, Budget(min_recall=0.5), "IVF32,PQ4")
    *chosen_by, (held_out, reached) = asked

    def images(queries):
        return {image for query in queries for image in query.known}

    assert not images(held_out) & {image for queries, _ in chosen_by for image in images(queries)}
    assert stored.measured["queries"] == len(held_out) == 64
    assert stored.measured["recall_at_10"] == round(reached.recall, 4)

    index = EmbeddingIndex.open(path)
    vectors = np.stack([index.embeddings_of(photo).vectors for photo in range(PHOTOS)])
    searcher = SetSearcher(index, open_object_index(index))
    shares = {"plain": [], "explained": []}
    for query in held_out:
        best_pairs = np.einsum("qd,prd->pqr", query.embeddings.vectors, vectors).max(axis=2)
        explain_away = 0.0
        if query.explainer is not None:
            explain_away = 1.0
            boxes = query.embeddings.boxes
            areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            assert len(query.known) == 2 and query.explainer == (best_pairs @ areas).argmax(), "the host"
            best_pairs = best_pairs - best_pairs[query.explainer].clip(min=0)
        scores = best_pairs.max(axis=1)
        scores[list(query.known)] = -9
        best = {f"photo{number:09d}" for number in np.argsort(-scores)[:10]}
        found = [result.image_id for result in searcher.search(query.embeddings, 12, explain_away=explain_away)]
        shares["explained" if explain_away else "plain"].append(len(best & set(found)) / 10)
    assert [len(values) for values in shares.values()] == [32, 32]
    assert reached.recall == pytest.approx(min(np.mean(values) for values in shares.values()), abs=0.01)


def test_a_budget_chooses_and_says_what_is_impossible(path):
    plans = plan_object_indexes(100_000, 1_000_000, 256, Budget())
    assert [plan.factory for plan in plans] == [
        "IVF4096,Flat", "IVF4096,SQ8", "IVF4096,PQ64", "IVF4096,PQ32", "IVF4096,PQ16"
    ]  # fmt: skip
    [largest, *_] = plan_object_indexes(100_000, 1_000_000, 256, Budget(max_memory=48_000_000))
    assert (largest.factory, largest.bytes) == ("IVF4096,PQ32", 40_000_000 + 256 * 1024 + 4096 * 1024 + 2_400_000)
    with pytest.raises(ValueError, match="max_memory is 1000000 bytes, .* IVF4096,PQ16, needs [0-9]+; allow so much"):
        plan_object_indexes(100_000, 1_000_000, 256, Budget(max_memory=1_000_000))
    for wrong in ({"min_recall": 1.5}, {"min_recall": 0}, {"max_memory": 0}, {"max_latency": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Budget(**wrong)
    assert [plan.factory for plan in plan_object_indexes(100_000, 1_000_000, 256, Budget(min_recall=1))] == ["Flat"]
    before = Manifest.load(path)
    with pytest.raises(ValueError, match="no type of object index fits the budget here; reached were PQ2 .*recall"):
        tune_object_index(path, Budget(max_memory=plan_bytes("PQ2"), min_recall=0.9999))
    assert Manifest.load(path) == before
    assert tune_object_index(path, Budget(max_memory=200_000)).factory in ("SQ8", "PQ8", "PQ4", "PQ2")
