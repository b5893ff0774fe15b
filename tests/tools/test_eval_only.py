"""tools/train_net.py on retrieval sets: --eval-only in one process and in two, and during training."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from oesir_d2.data.datasets.revisited import convert_ground_truth

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = [
    *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "MODEL.OESIR.REGIONS.GRID_LEVELS", "[1, 2]"),
    *("MODEL.OESIR.TEACHER.LAYER", "conv4_6"),
    *("MODEL.OESIR.EMBEDDING.WHITENING_DIM", "0", "MODEL.OESIR.EMBEDDING.WHITENING", ""),
]
GRID = ["--config-file", "oesir_lite0_grid.yaml", *QUICK]
RunTool = Callable[..., Any]


@pytest.fixture(scope="module")
def sets(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The overrides that make one set of each kind of the photos."""
    folder = tmp_path_factory.mktemp("sets")
    paths = sorted(photos.iterdir())
    stems = [path.stem for path in paths]

    sources = [{"image_id": paths[0].name, "role": "host"}, {"image_id": paths[1].name, "role": "donor"}]
    database = [{"image_id": path.name, "file_name": str(path)} for path in paths]
    queries = [{"file_name": str(path), "sources": sources} for path in paths[:3]]
    (folder / "splices.json").write_text(json.dumps({"version": 1, "database": database, "queries": queries}))

    truth = [{"bbx": [10, 10, 90, 90], "easy": [1], "hard": [2, 3], "junk": [0]}] * 2
    published = {"imlist": stems, "qimlist": stems[4:6], "gnd": truth}
    (folder / "gnd.pkl").write_bytes(pickle.dumps(published))

    tree = folder / "psbattles"
    lines: dict[str, list[str]] = {"originals": ["id\turl\tend\thash"], "photoshops": ["id\toriginal\turl\tend\thash"]}
    for number, path in enumerate(paths[:4]):
        ending, rest = path.suffix[1:], f"http://x\t{path.suffix[1:]}\t{'0' * 64}"
        (tree / f"photoshops/o{number}").mkdir(parents=True)
        (tree / "originals").mkdir(exist_ok=True)
        (tree / f"originals/o{number}.{ending}").symlink_to(path)
        with Image.open(path) as photo:
            photo.convert("RGB").resize((96, 80)).save(tree / f"photoshops/o{number}/p{number}.{ending}")
        lines["originals"].append(f"o{number}\t{rest}")
        lines["photoshops"].append(f"p{number}\to{number}\t{rest}")
    for name, content in lines.items():
        (tree / f"{name}.tsv").write_text("\n".join(content) + "\n")

    convert_ground_truth(folder / "gnd.pkl", folder / "gt.json")
    return [
        *("DATASETS.OESIR.SPLICES", str([["splices", str(folder / "splices.json")]])),
        *("DATASETS.OESIR.REVISITED", str([["oxford", str(folder / "gt.json"), str(photos)]])),
        *("DATASETS.OESIR.PSBATTLES", str([["psbattles", str(tree), str(photos)]])),
        *("DATASETS.OESIR.PIR", str([["pir", str(tree)]])),
    ]


def test_two_processes_and_one_give_the_same_figures(sets: list[str], run_tool: RunTool, tmp_path: Path) -> None:
    arguments = [*GRID, *sets, "DATASETS.TEST", "('splices', 'oxford', 'psbattles', 'pir')", "--eval-only"]
    one = run_tool("train_net", *arguments, "OUTPUT_DIR", tmp_path / "one").json
    two = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / "train_net.py"), "--num-gpus", "2", *arguments]
        + ["OUTPUT_DIR", str(tmp_path / "two")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert two.returncode == 0, two.stderr
    figures = json.loads(two.stdout.splitlines()[-1])
    assert (tmp_path / "two" / "log.txt.rank1").is_file()
    assert figures.pop("seconds") and one.pop("seconds")
    assert figures == one
    assert set(one) == {"splices", "oxford", "psbattles", "pir"}
    assert one["psbattles"]["copy_detection"]["recall@10"] == 100
    assert one["pir"]["splice_retrieval"]["donor_recall@1"] is None


def test_a_training_run_evaluates_beside_its_detector(
    photos: Path, sets: list[str], run_tool: RunTool, tmp_path: Path
) -> None:
    path = sorted(photos.iterdir())[0]
    with Image.open(path) as photo:
        width, height = photo.size
    box = [width / 4, height / 4, width / 2, height / 2]
    annotation = {"id": 1, "image_id": 0, "category_id": 5, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
    content = {
        "images": [{"id": 0, "file_name": path.name, "width": width, "height": height}],
        "annotations": [annotation],
        "categories": [{"id": 5, "name": "thing"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    finished = run_tool(
        *("train_net", "--config-file", "lite0/detector.yaml", *sets),
        *("DATASETS.OESIR.COCO", str([["objects", str(tmp_path / "instances.json"), str(photos)]])),
        *("DATASETS.TEST", "('objects', 'splices')", "TEST.EVAL_PERIOD", "1", "SOLVER.MAX_ITER", "1"),
        *("MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "1", "DATALOADER.NUM_WORKERS", "0"),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "MODEL.RPN.POST_NMS_TOPK_TEST", "30", "OUTPUT_DIR", tmp_path / "out"),
        *("MODEL.OESIR.REGIONS.WHOLE_IMAGE", "True"),
        *("MODEL.OESIR.EMBEDDING.WHITENING_DIM", "0"),
    )
    assert finished.code == 0, finished.stderr
    logged: dict[str, Any] = {}
    for line in (tmp_path / "out" / "metrics.json").read_text().splitlines():
        logged |= json.loads(line)
    assert "objects/bbox/AP50" in logged
    assert 0 <= logged["splices/splice_retrieval/mAP"] <= 100


def test_what_is_missing_is_named(run_tool: RunTool, tmp_path: Path) -> None:
    entry = ["DATASETS.OESIR.SPLICES", str([["splices", "nowhere.json"]]), "DATASETS.TEST", "('splices',)"]
    error = run_tool("train_net", *GRID, "--eval-only", *entry, "OUTPUT_DIR", tmp_path).error
    assert error == "train_net: error: DATASETS.OESIR.SPLICES: 'nowhere.json' of 'splices' is no file"
