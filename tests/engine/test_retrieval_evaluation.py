"""Evaluators of retrieval sets on a quick model: against the tools' own search, and against brute force."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from oesir_d2.data import ImageFile, list_images
from oesir_d2.data.splicing import read_splices
from oesir_d2.engine.embedder import Embedder
from oesir_d2.engine.indexing import build_index
from oesir_d2.engine.retrieval import Retriever
from oesir_d2.engine.splice_evaluation import evaluate_splices
from oesir_d2.engine.trainer import OESIRTrainer
from oesir_d2.engine.training_data import register_datasets
from oesir_d2.evaluation import RevisitedQuery, evaluate_revisited, evaluators
from oesir_d2.evaluation.retrieval_evaluator import CopyEvaluator

Evaluate = Callable[..., dict[str, dict[str, float]]]


@pytest.fixture
def evaluate(cfg: CfgNode, embedder: Embedder, tmp_path: Path) -> Evaluate:
    """``evaluate("SPLICES", [NAME, …])`` registers a set and evaluates the quick model on it, as --eval-only does."""

    def run(key: str, entry: Sequence[str], *opts: Any) -> dict[str, dict[str, float]]:
        cfg.merge_from_list([f"DATASETS.OESIR.{key}", [list(map(str, entry))], "DATASETS.TEST", (entry[0],)])
        cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path), "DATALOADER.NUM_WORKERS", 0, *opts])
        register_datasets(cfg)
        return dict(OESIRTrainer.test(cfg, embedder.model))

    return run


@pytest.fixture
def splices(photos: list[ImageFile], tmp_path: Path) -> Path:
    """Each photo as a query that has itself as the host and the next as the donor; a photo that cannot be read, too."""
    (tmp_path / "photos" / "broken.png").write_bytes(b"no photo")
    names = [file.image_id for file in photos]
    queries = []
    for name, donor in zip(names, [*names[1:], names[0]], strict=True):
        sources = [{"image_id": name, "role": "host"}, {"image_id": donor, "role": "donor"}]
        queries.append({"file_name": f"photos/{name}", "sources": sources})
    queries.append({"file_name": "photos/broken.png", "sources": [{"image_id": "broken.png", "role": "host"}]})
    database = [{"image_id": name, "file_name": f"photos/{name}"} for name in [*names, "broken.png"]]
    path = tmp_path / "splices.json"
    path.write_text(json.dumps({"version": 1, "database": database, "queries": queries}))
    return path


def test_splices_get_the_figures_of_the_tool(
    evaluate: Evaluate, cfg: CfgNode, splices: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="oesir_d2"):
        figures = evaluate("SPLICES", ["splices", splices])
    assert "2 photos could not be read" in caplog.text and "broken.png" in caplog.text
    assert not list(tmp_path.glob(".tmp-evaluation-*"))

    build_index(cfg, list_images(splices), tmp_path / "index")
    retriever = Retriever(tmp_path / "index", ["MODEL.DEVICE", "cpu"])
    expected = evaluate_splices(retriever, read_splices(splices), depth=100, allow_missing=True).evaluation.metrics
    assert figures == expected  # to the last digit
    # Each photo finds itself, but for the one that nobody can read.
    assert figures["splice_retrieval"]["host_recall@1"] == pytest.approx(100 * 6 / 7)


def make_revisited(photos: list[ImageFile], tmp_path: Path) -> Path:
    names = [file.path.stem for file in photos]
    truth = {
        "version": 1,
        "database": names,
        "queries": [
            {"name": names[0], "box": [5, 5, 40, 40], "easy": [names[1]], "hard": [names[2]], "junk": [names[0]]},
            {"name": names[3], "box": [0, 0, 72, 48], "easy": [], "hard": [names[5], names[4]], "junk": []},
        ],
    }
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    return tmp_path / "gt.json"


def test_revisited_protocol_ranks_the_whole_database(
    evaluate: Evaluate, embedder: Embedder, photos: list[ImageFile], tmp_path: Path
) -> None:
    truth = make_revisited(photos, tmp_path)
    folder = tmp_path / "photos"
    # Every photo is there once more as a distractor, which ties with it.
    figures = evaluate("REVISITED", ["oxford", truth, folder, folder], "RETRIEVAL.EXPLAIN_AWAY", 0.0)

    indices = {file.path.stem: index for index, file in enumerate(photos)}
    database = [embedder.embed(file).embeddings.vectors.astype(np.float64) for file in [*photos, *photos]]
    queries, scores = [], []
    for number, query in enumerate(json.loads(truth.read_text())["queries"]):
        crop = tmp_path / f"crop{number}.png"
        Image.open(photos[indices[query["name"]]].path).crop(query["box"]).save(crop)
        vectors = embedder.embed(ImageFile(crop.name, crop)).embeddings.vectors.astype(np.float64)
        scores.append(np.array([np.round((vectors @ image.T).max(), 6) for image in database]))
        queries.append(
            RevisitedQuery(*([indices[name] for name in query[label]] for label in ("easy", "hard", "junk")))
        )
    assert figures == evaluate_revisited(queries, [np.arange(len(database))] * 2, scores).metrics


def make_instances(vectors: Sequence[Sequence[float]]) -> Instances:
    embeddings = torch.nn.functional.normalize(torch.tensor(vectors, dtype=torch.float32), dim=1)
    count = len(vectors)
    return Instances(
        (8, 8),
        embeddings=embeddings,
        pred_boxes=Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]] * count)),
        scores=torch.ones(count),
        pred_classes=torch.full((count,), -1),
    )


def test_copies_are_ranked_over_all_queries() -> None:
    def item(role: str, image_id: str, positive: Sequence[str] = ()) -> dict[str, Any]:
        return {"role": role, "image_id": image_id, "file_name": image_id, "ground_truth": {"positive": list(positive)}}

    items = [item("query", "copy", ["a"]), item("query", "none"), item("database", "a"), item("database", "b")]
    vectors = {"copy": [[1, 0.2]], "none": [[0, 1.0]], "a": [[1, 0]], "b": [[0.1, 1]]}
    evaluator = CopyEvaluator(items, explain_away=1.0)
    evaluator.reset()
    for dataset_dict in items:
        evaluator.process([dataset_dict], [{"instances": make_instances(vectors[dataset_dict["image_id"]])}])
    figures = evaluator.evaluate()["copy_detection"]
    # The query without an original has the best pair of all, which halves precision where the true pair stands.
    assert figures["mAP"] == figures["recall@1"] == 100
    assert figures["uAP"] == 50
    assert figures["recall@P90"] == 0


def test_a_set_without_readable_photos_is_refused() -> None:
    item = {"role": "database", "image_id": "a", "file_name": "a", "unreadable": "empty"}
    evaluator = CopyEvaluator([item | {"role": "query", "ground_truth": {"positive": ["a"]}}, item])
    evaluator.reset()
    evaluator.process([item], [{}])
    with pytest.raises(ValueError, match="none of the 1 photos to search could be read"):
        evaluator.evaluate()


def test_kinds_that_cannot_be_evaluated_are_named(cfg: CfgNode, photos: list[ImageFile]) -> None:
    cfg.DATASETS.OESIR.PHOTOS = [["plain", str(photos[0].path.parent)]]
    register_datasets(cfg)
    allowed = r"\['coco', 'copy_detection', 'revisited', 'splice_retrieval'\]"
    with pytest.raises(ValueError, match=f"'plain' cannot be evaluated: .* kind 'photos'; allowed: {allowed}"):
        evaluators.build_evaluator(cfg, "plain")
    # Nothing of it was embedded: the error comes first.
    assert len(DatasetCatalog.get("plain")) == len(photos)


def test_average_precision_needs_a_detector(cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match="PROPOSER is 'GridRegions', allowed: 'DetectorRegions'"):
        evaluators.coco(cfg, "any")


def test_wrong_options_are_named(cfg: CfgNode) -> None:
    cfg.RETRIEVAL.EVALUATION_DEPTH = -1
    with pytest.raises(ValueError, match="EVALUATION_DEPTH is -1; allowed: 0 or more"):
        evaluators.build_retrieval_options(cfg)
    cfg.RETRIEVAL.AGGREGATE = "min"
    with pytest.raises(ValueError, match="unknown aggregate 'min'"):
        evaluators.build_retrieval_options(cfg)
