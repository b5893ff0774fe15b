"""tools/train_net.py for landmarks: fine-tuned on a small Google Landmarks, then a teacher; mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = ["--config-file", "landmarks/finetune_lite0.yaml"]
TINY = [
    *("MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.OESIR.EPOCHS", "1", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.OESIR.SHAPES", "[[64, 32], [32, 64], [64, 64]]"),
]
RunTool = Callable[..., Any]


@pytest.fixture
def landmarks(photos: Path, tmp_path: Path) -> Path:
    """Four photos of two landmarks in the folders of Google Landmarks v2, and a fifth that is not there."""
    lines = ["id,url,landmark_id"]
    for i, path in enumerate(sorted(photos.iterdir())[:5]):
        photo_id = f"{i}b{7 - i}4ecbfd7a5cf9{i}"
        lines.append(f"{photo_id},http://photos.test/{path.name},{[20, 300][i % 2]}")
        if i < 4:
            target = tmp_path.joinpath("train", *photo_id[:3], f"{photo_id}.jpg")
            target.parent.mkdir(parents=True)
            with Image.open(path) as photo:
                photo.save(target)
    (tmp_path / "train.csv").write_text("\n".join(lines))
    return tmp_path


def name_landmarks(folder: Path) -> list[str]:
    return ["DATASETS.OESIR.LANDMARKS", str([["landmarks", str(folder / "train.csv"), str(folder / "train")]])]


def test_teacher_is_fine_tuned_and_then_teaches_and_embeds(
    photos: Path, landmarks: Path, run_tool: RunTool, tmp_path: Path
) -> None:
    output = tmp_path / "landmarks"
    report = run_tool("train_net", *CONFIG, *name_landmarks(landmarks), *TINY, "OUTPUT_DIR", output).json

    assert (report["iterations"], report["skipped"]) == (2, 0)
    assert report["weights"] == str(output / "model_final.pth")
    assert "1 of 5 photos are not in" in (output / "log.txt").read_text()
    state = torch.load(report["weights"], weights_only=True)["model"]
    assert state["classifier.weight"].shape == (2, 1280)

    # What it wrote is all that a model needs: the teacher of a student, …
    teacher = ["MODEL.OESIR.TEACHER.WEIGHTS", report["weights"]]
    tiny = [*TINY[:-2], "INPUT.OESIR.CROP_SIZE", "64", "SOLVER.OESIR.EPOCHS", "0", "SOLVER.MAX_ITER", "2"]
    sets = ["DATASETS.OESIR.PHOTOS", str([["photos", str(photos)]]), "OUTPUT_DIR", tmp_path / "student"]
    distilled = run_tool("train_net", "--config-file", "lite0/distill_S3.yaml", *sets, *tiny, *teacher).json
    assert distilled["iterations"] == 2

    # … and a model that embeds, which differs from the one of the original weights.
    vectors = {}
    for name, options in {"finetuned": teacher, "original": []}.items():
        index = tmp_path / f"index_{name}"
        config = ["--config-file", output / "config.yaml", "MODEL.META_ARCHITECTURE", "OESIR"]
        summary = run_tool("build_index", "--images", photos, "--output", index, *config, *options).json
        assert (summary["images"], summary["bytes_per_object"]) == (10, 4 * 1280)
        (path,) = index.rglob("*vectors*")
        vectors[name] = np.fromfile(path, np.uint8)
    assert not np.array_equal(vectors["finetuned"], vectors["original"])


def test_run_of_two_processes(landmarks: Path, tmp_path: Path) -> None:
    """In processes of their own: what they start imports its main module anew."""
    command = [sys.executable, str(REPOSITORY / "tools" / "train_net.py"), "--num-gpus", "2", *CONFIG]
    finished = subprocess.run(
        [*command, *name_landmarks(landmarks), *TINY, "OUTPUT_DIR", str(tmp_path / "out")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout.splitlines()[-1])["iterations"] == 2
    assert "batch_size=1" in (tmp_path / "out" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("csv_file", "folder", "message"),
    [
        ("nowhere.csv", "train", "DATASETS.OESIR.LANDMARKS: 'nowhere.csv' of 'landmarks' is no file"),
        ("train.csv", "nowhere", "DATASETS.OESIR.LANDMARKS: 'nowhere' of 'landmarks' is no folder"),
        ("other.csv", "train", "other.csv is no file of Google Landmarks: it begins with 'a,b'"),
        ("train.csv", "empty", "train.csv leaves no photo: it lists 5, of which 0 are in empty"),
    ],
)
def test_mistakes_end_with_one_line(
    csv_file: str, folder: str, message: str, landmarks: Path, run_tool: RunTool
) -> None:
    (landmarks / "other.csv").write_text("a,b\n1,2\n")
    (landmarks / "empty").mkdir()
    sets = ["DATASETS.OESIR.LANDMARKS", str([["landmarks", csv_file, folder]])]
    assert message in run_tool("train_net", *CONFIG, *sets, *TINY, "OUTPUT_DIR", "out", cwd=landmarks).error
