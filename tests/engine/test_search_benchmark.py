"""The benchmark of search and of builds: what is measured is right, kept, and taken up after a crash."""

from __future__ import annotations

import os
from dataclasses import replace

import faiss
import numpy as np
import pytest

from oesir_d2.engine import build_benchmark, search_benchmark
from oesir_d2.engine.benchmark_report import (
    SEARCH_COLUMNS,
    describe_growth,
    extraction_to_markdown,
    fit_growth,
    to_markdown,
)
from oesir_d2.engine.build_benchmark import benchmark_build
from oesir_d2.engine.measured_process import run_measured
from oesir_d2.engine.search_benchmark import SearchOptions, benchmark_search, measure_search
from oesir_d2.engine.synthetic_index import build_synthetic_index, make_queries
from oesir_d2.evaluation.synthetic_embeddings import SyntheticWorld
from oesir_d2.index import Budget, EmbeddingIndex, EmbeddingModelInfo, IndexWriter, Manifest, tune_object_index

OPTIONS = SearchOptions(queries=3, query_regions=8, repetitions=1, explain_away=0.0, photo_regions=4, dimension=16)
WORLD = SyntheticWorld(dimension=16, seed=0)


@pytest.fixture
def measured_here(monkeypatch):
    """Measure in this process, and list what was measured."""
    calls = []

    def run(function, *arguments):
        calls.append((function.__name__, *arguments))
        return function(*arguments), 1000

    monkeypatch.setattr(search_benchmark, "run_measured", run)
    monkeypatch.setattr(build_benchmark, "run_measured", run)
    return calls


@pytest.fixture
def index_path(tmp_path):
    build_synthetic_index(tmp_path / "index", WORLD, 150, 4)
    return tmp_path / "index"


def test_exact_search_is_the_truth(index_path):
    row = measure_search(index_path, "Flat", OPTIONS, None)
    index = EmbeddingIndex.open(index_path)
    vectors = np.concatenate(list(index.vector_chunks()))
    for query, found in zip(make_queries(index, WORLD, 3, 8), row["found"], strict=True):
        scores = (query.vectors @ vectors.T).reshape(8, 150, 4).max(axis=(0, 2))
        assert found == [f"photo{photo:09d}" for photo in np.argsort(-scores, kind="stable")[:10]]
    assert (row["objects"], row["recall"]) == (600, 1.0)
    # Four bytes a number, and a header.
    assert 64 <= row["bytes_per_object"] < 65
    assert min(row["ms"], row["faiss_ms"], row["ratio"], row["batch_ms"], row["batch_ratio"]) > 0


def test_recall_is_the_share_of_the_true_results(index_path):
    truth = measure_search(index_path, "Flat", OPTIONS, None)["found"]
    narrow, wide = (measure_search(index_path, f"IVF32,PQ2 nprobe={n}", OPTIONS, truth) for n in (1, 32))
    shared = [len(set(found) & set(true)) / 10 for found, true in zip(narrow["found"], truth, strict=True)]
    assert narrow["recall"] == pytest.approx(np.mean(shared))
    assert narrow["recall"] < wide["recall"] <= 1
    # Two bytes a code and eight a number; the rest are cells and codebooks.
    assert 10 <= narrow["bytes_per_object"] < 64


def test_measured_sizes_are_kept(tmp_path, measured_here):
    rows = benchmark_search([400], ["IVF4,Flat nprobe=4"], OPTIONS, tmp_path)
    assert [(row["factory"], row["objects"], row["recall"]) for row in rows] == [
        ("Flat", 400, 1.0),
        ("IVF4,Flat nprobe=4", 400, 1.0),
    ]
    assert not (tmp_path / "index-400").exists()

    again = benchmark_search([400, 600], ["IVF4,Flat nprobe=4"], OPTIONS, tmp_path)
    assert again[:2] == rows
    assert [row["objects"] for row in again] == [400, 400, 600, 600]
    assert len(measured_here) == 4

    # A crash between two measurements: the truth that later ones need is kept, too.
    newest = max((tmp_path / "search").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.write_text('{"key": ')
    benchmark_search([400, 600], ["IVF4,Flat nprobe=4"], OPTIONS, tmp_path)
    assert len(measured_here) == 5
    benchmark_search([400], [], replace(OPTIONS, seed=1), tmp_path)
    assert len(measured_here) == 6


def test_stored_means_the_object_index_on_disk(tmp_path, measured_here):
    def search(**options):
        return benchmark_search([400], ["stored", "stored nprobe=4"], OPTIONS, tmp_path, **options)

    path = tmp_path / "index-400"
    with pytest.raises(ValueError, match="'stored' needs an index of 400 objects of these options at .*index-400"):
        search()
    benchmark_search([400], [], OPTIONS, tmp_path, keep_indexes=True)
    with pytest.raises(ValueError, match="'stored' needs an object index that is up to date in .*; make it .* tune"):
        search()
    assert len(measured_here) == 1 and path.is_dir()

    sizes = []
    for factory in ("IVF4,Flat", "IVF4,SQ8"):
        stored = tune_object_index(path, Budget(min_recall=0.1), factory)
        rows = search()
        assert [row["factory"] for row in rows] == ["Flat", "stored", "stored nprobe=4"]
        assert [row["bytes_per_object"] for row in rows[1:]] == [stored.bytes / 400] * 2
        assert search() == rows
        sizes.append(rows[1]["bytes_per_object"])
        assert Manifest.load(path).object_index == stored, "an index that was tuned is kept"
    assert sizes[0] > sizes[1] and len(measured_here) == 5

    file = path / "object_index" / f"{stored.name}.faiss"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="is damaged: its SHA-256"):
        search()
    assert len(measured_here) == 5


def test_rows_of_another_number_of_threads_are_measured_anew(tmp_path, measured_here):
    threads = faiss.omp_get_max_threads()
    try:
        for count in (1, 2, 1):
            faiss.omp_set_num_threads(count)
            [row] = benchmark_search([400], [], OPTIONS, tmp_path)
            assert row["threads"] == count
    finally:
        faiss.omp_set_num_threads(threads)
    assert len(measured_here) == 2


def test_only_made_up_indexes_are_deleted(tmp_path, measured_here):
    path = tmp_path / "index-400"
    benchmark_search([400], [], OPTIONS, tmp_path, keep_indexes=True)
    benchmark_search([400], ["IVF4,Flat"], OPTIONS, tmp_path)
    assert path.is_dir(), "that call did not build it"
    rows = benchmark_search([400], [], replace(OPTIONS, seed=1), tmp_path, keep_indexes=True)
    assert EmbeddingIndex.open(path).manifest.model.config["SYNTHETIC.SEED"] == 1, "it was of another world"

    tune_object_index(path, Budget(min_recall=0.1), "SQ8")
    with pytest.raises(ValueError, match="index-400 is in the way and stays, since it was tuned; move it"):
        benchmark_search([400], ["IVF4,PQ2"], OPTIONS, tmp_path)
    assert benchmark_search([400], [], replace(OPTIONS, seed=1), tmp_path) == rows and path.is_dir()

    model = EmbeddingModelInfo({"MODEL.X": 1}, {}, "a" * 64, "", {}, 16)
    for name in ("index-600", "build-600"):
        IndexWriter(tmp_path / name, model, "Flat", 4).close()
    for function, name in ((benchmark_search, "index-600"), (benchmark_build, "build-600")):
        arguments = ([600], ["Flat"], OPTIONS) if function is benchmark_search else ([600], ["Flat"], WORLD, 4)
        with pytest.raises(ValueError, match=f"{name} is in the way and stays, since it is no made-up one"):
            function(*arguments, tmp_path)
        assert (tmp_path / name / "manifest.json").exists()


def test_sizes_of_less_than_two_photos_are_refused(tmp_path, measured_here):
    for call in (
        lambda size: benchmark_search([400, size], [], OPTIONS, tmp_path),
        lambda size: benchmark_build([400, size], ["Flat"], WORLD, 4, tmp_path),
    ):
        with pytest.raises(ValueError, match="sizes has 7, expected at least 8: two photos of 4 regions"):
            call(7)
        assert measured_here == []
    assert benchmark_search([8], [], OPTIONS, tmp_path)[0]["recall"] == 1
    assert benchmark_build([8], ["Flat"], WORLD, 4, tmp_path)[0]["objects"] == 8


def test_builds_are_measured_once(tmp_path, measured_here):
    rows = benchmark_build([400], ["Flat", "IVF4,PQ2"], WORLD, 4, tmp_path)
    assert [(row["factory"], row["objects"], row["write_peak_bytes"]) for row in rows] == [
        ("Flat", 400, 1000),
        ("IVF4,PQ2", 400, 1000),
    ]
    assert [name for name, *_ in measured_here] == ["measure_writing", "measure_object_index", "measure_object_index"]
    # Vectors, boxes, score and class: 64 + 16 + 4 + 8 bytes; records and manifest come on top.
    assert 92 < rows[0]["disk_bytes_per_object"] < 300
    assert benchmark_build([400], ["Flat", "IVF4,PQ2"], WORLD, 4, tmp_path) == rows
    assert len(measured_here) == 3


def test_growth_is_fitted_on_logarithms():
    factor, exponent = fit_growth([10, 100, 1000], [3 * n**0.5 for n in (10, 100, 1000)])
    assert (factor, exponent) == (pytest.approx(3), pytest.approx(0.5))
    with pytest.raises(ValueError, match="two sizes"):
        fit_growth([10, 10], [1, 2])
    rows = [{"factory": "Flat", "objects": n, "ms": n / 5} for n in (10, 20)] + [
        {"factory": "HNSW", "objects": 10, "ms": 1}
    ]
    assert describe_growth(rows, ["ms"]) == [{"factory": "Flat", "exponents": {"ms": pytest.approx(1)}}]


def test_table_has_a_line_a_row(tmp_path, measured_here):
    rows = benchmark_search([400, 600], [], OPTIONS, tmp_path)
    lines = to_markdown(SEARCH_COLUMNS, rows, describe_growth(rows, ["ms"])).splitlines()
    assert [line.split(" | ")[:3] for line in lines[2:4]] == [
        ["| 400", "`Flat`", "1.000"],
        ["| 600", "`Flat`", "1.000"],
    ]
    assert {line.count("|") for line in lines[:4]} == {len(SEARCH_COLUMNS) + 1}
    assert lines[-1].startswith("`Flat`: ms as objects^")


def test_table_of_extraction():
    figures = {
        "stages": {"decode": 4.0, "model": 150.0},
        "stages_in_products": {"decode": 0.2, "model": 7.5},
        "end_to_end": 1.0625,
        "processes": {"speedup": 1.8},
        "device": "cpu",
    }
    lines = extraction_to_markdown(figures).splitlines()
    assert {
        "| model | 150.0 | 7.50 |",
        "| end_to_end | 1.062 |",
        "| processes speedup | 1.800 |",
        "| device | cpu |",
    } <= set(lines)


def test_memory_of_a_process():
    value, peak = run_measured(exec, "block = bytearray(200_000_000)\nblock[::4096] = bytes(48829)")
    assert value is None
    assert 195e6 < peak < 260e6


def test_process_that_fails():
    with pytest.raises(RuntimeError, match="ended with exit code 3"):
        run_measured(os._exit, 3)
    with pytest.raises(ValueError, match="invalid literal"):
        run_measured(int, "x")
