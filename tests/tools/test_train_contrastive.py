"""The contrastive stage from its command line: whitening, training, embedding with what came out, resuming."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RunTool = Callable[..., Any]
STAGE = ["--config-file", "lite0/contrastive.yaml"]
TINY = [
    *("MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.OESIR.PAIR_SIZE", "64", "MODEL.OESIR.EMBEDDING.WHITENING_DIM", "8"),
]
# Detectors' maps: whitening them needs no training of anything.
MAPS = [
    *("MODEL.OESIR.EMBEDDING.SOURCE", "DetectorSource", "MODEL.OESIR.EMBEDDING.DETECTOR_FEATURES", "['p4']"),
    *("MODEL.OESIR.REGIONS.PROPOSER", "GridRegions", "MODEL.OESIR.CONTRASTIVE.DISTILLATION_WEIGHT", "0.0"),
    *("DATASETS.TRAIN", "('regions',)"),
]


def name_regions(folder: Path) -> list[str]:
    return ["DATASETS.OESIR.CUTOUTS", str([["regions", "blobs", str(folder)]])]


def test_projection_is_learned_and_then_embeds(photos: Path, run_tool: RunTool, tmp_path: Path) -> None:
    # In the order of docs: a whitening, the stage, an index.
    whitening = tmp_path / "whitening.safetensors"
    oesir = ["MODEL.META_ARCHITECTURE", "OESIR"]
    run_tool("fit_whitening", *STAGE, "--images", photos, "--output", whitening, *TINY, *MAPS, *oesir)
    start = ["MODEL.OESIR.EMBEDDING.WHITENING", whitening]
    stage = [*STAGE, *name_regions(photos), *TINY, *MAPS, *start, "OUTPUT_DIR", tmp_path / "out"]
    report = run_tool("train_net", *stage).json
    assert (report["iterations"], report["skipped"]) == (2, 0)
    learned = tmp_path / "out" / "whitening.safetensors"
    assert learned.read_bytes() != whitening.read_bytes()

    resumed = run_tool("train_net", *stage, "SOLVER.MAX_ITER", "3", "--resume").json
    assert resumed["iterations"] == 3

    summary = run_tool(
        *("build_index", "--images", photos, "--output", tmp_path / "index", *STAGE, *TINY, *MAPS, *oesir),
        *("MODEL.WEIGHTS", resumed["weights"]),
    ).json
    assert (summary["images"], summary["skipped"], summary["bytes_per_object"]) == (10, 0, 4 * 8)
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert "CONTRASTIVE" not in json.dumps(manifest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "DATASETS.TRAIN names 'regions', which is no data set"),
        (["DATASETS.OESIR.CUTOUTS", "[['regions', 'blobs', 'nowhere']]"], "'nowhere' of 'regions' does not exist"),
        (["DATASETS.OESIR.CUTOUTS", "[['regions', 'circles', '.']]"], "allowed: [NAME, 'coco', JSON, DIR]"),
    ],
)
def test_mistakes_end_with_one_line(arguments: list[str], message: str, run_tool: RunTool, tmp_path: Path) -> None:
    error = run_tool("train_net", *STAGE, *TINY, *MAPS, *arguments, cwd=tmp_path).error
    assert message in error


def test_a_start_without_a_whitening_is_refused(photos: Path, run_tool: RunTool, tmp_path: Path) -> None:
    error = run_tool("train_net", *STAGE, *name_regions(photos), *TINY, *MAPS, "OUTPUT_DIR", tmp_path).error
    assert "the contrastive stage starts from a whitening; set MODEL.OESIR.EMBEDDING.WHITENING" in error
