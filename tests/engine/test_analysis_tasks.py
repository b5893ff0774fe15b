"""The data sets of an analysis: registered ones, crops of queries, and how rankings of them are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from oesir_d2.data import ImageFile
from oesir_d2.data.datasets.photos import register_photos
from oesir_d2.data.datasets.retrieval import make_database, make_query, register_retrieval
from oesir_d2.data.splicing import DatabaseImage, SpliceQuery, SpliceSet, SpliceSource
from oesir_d2.engine.analysis_list import AnalysisModel
from oesir_d2.engine.analysis_tasks import cut_behind, make_registered_task, make_splice_task
from oesir_d2.engine.layer_vectors import AnalysisPhoto, LayerNetwork
from oesir_d2.evaluation import RevisitedQuery, evaluate_revisited, evaluate_splice_retrieval

WritePhoto = Callable[..., ImageFile]


@pytest.fixture
def register(request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """``register(dicts, evaluator_type)`` registers a retrieval set for the time of the test and gives its name."""
    name = f"analysis_{request.node.name}"

    def register_set(dicts: list[dict[str, Any]], evaluator_type: str) -> str:
        register_retrieval(name, lambda: dicts, evaluator_type)
        return name

    yield register_set
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


def test_a_registered_revisited_set(register: Callable[..., str], write_photo: WritePhoto) -> None:
    files = [write_photo(f"{i}.png") for i in range(6)]
    truth = {"easy": ["1.png"], "hard": ["4.png"], "junk": ["0.png"]}
    queries = [make_query(files[5], truth, (10, 5, 50, 45)), make_query(files[0], truth)]
    task = make_registered_task(register([*queries, *make_database(files)], "revisited"))

    assert task.headline == "medium/mAP"
    assert [photo.query_box for photo in task.queries] == [(10.0, 5.0, 50.0, 45.0), None]
    assert [photo.path for photo in task.database] == [file.path for file in files]
    rankings, scores = [np.array([0, 2, 1, 3, 4, 5]), np.array([4, 1])], [np.linspace(1, 0, 6), np.ones(2)]
    expected = evaluate_revisited([RevisitedQuery([1], [4], [0])] * 2, rankings, scores).metrics
    metrics = task.score(rankings, scores)
    assert metrics["hard/mP@10"] == expected["hard"]["mP@10"] and metrics["easy/mAP"] == expected["easy"]["mAP"]
    assert len(metrics) == 12


def test_a_registered_splice_set_is_the_set_of_its_file(register: Callable[..., str], write_photo: WritePhoto) -> None:
    files = [write_photo(f"{i}.png") for i in range(4)]
    query = make_query(write_photo("query.png"), {"host": ["2.png"], "donor": ["0.png"]})
    registered = make_registered_task(register([query, *make_database(files)], "splice_retrieval"))
    database = tuple(DatabaseImage(file.image_id, str(file.path)) for file in files)
    sources = (SpliceSource("2.png", "host"), SpliceSource("0.png", "donor"))
    listed = make_splice_task("set", SpliceSet(Path(), database, (SpliceQuery(query["file_name"], sources),)))
    ranking, scores = [np.array([2, 3, 1, 0])], [np.ones(4)]
    assert registered.score(ranking, scores) == listed.score(ranking, scores)
    assert registered.score(ranking, scores)["donor_recall@5"] == 100
    assert registered.photos == listed.photos and registered.headline == "mAP"


def test_sets_that_are_none_are_refused(tmp_path: Path, write_photo: WritePhoto, register: Callable[..., str]) -> None:
    write_photo("a.png")
    register_photos("analysis_photos", str(tmp_path / "photos"))
    with pytest.raises(
        ValueError, match="'analysis_photos' has the evaluator type 'photos'; an analysis takes revisited"
    ):
        make_registered_task("analysis_photos")
    with pytest.raises(ValueError, match="data set 'nowhere' is not registered; retrieval sets are "):
        make_registered_task("nowhere")


def test_the_key_tells_sets_apart(register: Callable[..., str], write_photo: WritePhoto) -> None:
    files = [write_photo(f"{i}.png") for i in range(3)]

    def make_key(easy: str, box: tuple[int, ...] | None) -> str:
        query = make_query(files[0], {"easy": [easy], "hard": [], "junk": []}, box)
        return make_registered_task(register([query, *make_database(files)], "revisited")).key

    keys = {
        make_key("1.png", None),
        make_key("2.png", None),
        make_key("1.png", (0, 0, 9, 9)),
        make_key("1.png", (0, 0, 9, 8)),
    }
    assert len(keys) == 4 and make_key("1.png", None) in keys


def test_a_query_s_box_is_what_the_network_sees(write_photo: WritePhoto) -> None:
    file = write_photo("photo.png", 60, 80)
    model = AnalysisModel("a", "A", "oesir_lite0.yaml", ("MODEL.DEVICE", "cpu"), layers={"conv4_1": "conv4_1"})
    network = LayerNetwork(model, model.load_config(), ("MAC",))
    whole, part = AnalysisPhoto.of(file), AnalysisPhoto.of(file, (8, 4, 40, 36))
    assert network.read(whole)["image"].shape == (3, 60, 80)
    seen = network.read(part)["image"]
    assert (seen == network.read(whole)["image"][:, 4:36, 8:40]).all()
    assert whole.key != part.key == AnalysisPhoto.of(file, (8, 4, 40, 36)).key


def test_what_comes_behind_the_last_source_changes_nothing() -> None:
    sources = (SpliceSource("b", "host"), SpliceSource("d", "donor"))
    splices = SpliceSet(Path(), tuple(DatabaseImage(i, i) for i in "abcdef"), (SpliceQuery("q", sources),))
    for ranking in ("abcdef", "bdacef", "fecadb", "ace"):
        positions = np.array(["abcdef".index(image_id) for image_id in ranking])
        cut = ["abcdef"[position] for position in cut_behind(positions, [1, 3])]
        assert (
            evaluate_splice_retrieval(splices, [cut]).metrics == evaluate_splice_retrieval(splices, [ranking]).metrics
        )
