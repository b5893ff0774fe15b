"""tools/train_net.py as a process: runs, interruptions, several processes, mistakes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = [
    *("MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.OESIR.CROP_SIZE", "64", "INPUT.MIN_SIZE_TRAIN", "(64,)", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50"),
]
DISTILLATION = ["--config-file", "lite0/distill_S3.yaml"]
DETECTOR = ["--config-file", "lite0/detector"]
RunTool = Callable[..., Any]


# The photos' folder as the working directory of a run has it.
COLLECTION = Path("collection")


def name_photos(folder: Path) -> list[str]:
    return ["DATASETS.OESIR.PHOTOS", str([["photos", str(folder)]])]


@pytest.fixture(scope="module")
def coco(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The override that makes a COCO-format set of the photos, an object in the middle of each."""
    images, annotations = [], []
    for i, path in enumerate(sorted(photos.iterdir())):
        with Image.open(path) as photo:
            width, height = photo.size
        images.append({"id": i, "file_name": path.name, "width": width, "height": height})
        box = [width / 4, height / 4, width / 2, height / 2]
        annotations.append(
            {"id": i + 1, "image_id": i, "category_id": 5, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        )
    path = tmp_path_factory.mktemp("coco") / "instances.json"
    categories = [{"id": 5, "name": "thing"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return ["DATASETS.OESIR.COCO", str([["objects", str(path), str(photos)]])]


def test_student_is_distilled_and_then_embeds(photos: Path, run_tool: RunTool, tmp_path: Path) -> None:
    output = tmp_path / "out"
    report = run_tool("train_net", *DISTILLATION, *name_photos(photos), *TINY, "OUTPUT_DIR", output).json

    assert report["iterations"] == 2
    assert report["skipped"] == 0
    assert report["weights"] == str(output / "model_final.pth")
    files = {path.name for path in output.iterdir()}
    assert {"config.yaml", "last_checkpoint", "log.txt", "metrics.json", "model_final.pth"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)

    # What the run wrote is all that embedding needs.
    summary = run_tool(
        *("build_index", "--images", photos, "--output", tmp_path / "index", "--config-file", output / "config.yaml"),
        *("MODEL.META_ARCHITECTURE", "OESIR", "MODEL.WEIGHTS", report["weights"]),
    ).json
    assert (summary["images"], summary["skipped"], summary["bytes_per_object"]) == (10, 0, 4 * 1280)


def test_killed_run_goes_on_from_its_last_checkpoint(
    photos: Path, run_tool: RunTool, start_tool: RunTool, tmp_path: Path
) -> None:
    arguments = [*DISTILLATION, *name_photos(photos), *TINY, "OUTPUT_DIR", tmp_path]
    period = ["SOLVER.CHECKPOINT_PERIOD", "2"]
    running = start_tool("train_net", *arguments, *period, "SOLVER.MAX_ITER", "100000")
    running.wait_until(lambda: (tmp_path / "model_0000003.pth").exists())
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    last = int(re.fullmatch(r"model_(\d+)\.pth", (tmp_path / "last_checkpoint").read_text())[1])
    newest = max(int(path.stem.split("_")[1]) for path in tmp_path.glob("model_*.pth"))
    assert newest - last in (0, 2), "killed between the two renames at most"

    finished = run_tool("train_net", *arguments, *period, "SOLVER.MAX_ITER", str(last + 3), "--resume")

    assert finished.json["iterations"] == last + 3
    assert f"Starting training from iteration {last + 1}\n" in re.sub(r"\x1b\[[0-9;]*m", "", finished.stdout)


def test_detector_is_trained_and_evaluated(coco: list[str], run_tool: RunTool, tmp_path: Path) -> None:
    arguments = [*DETECTOR, *coco, *TINY, "OUTPUT_DIR", tmp_path]
    report = run_tool("train_net", *arguments).json
    assert report["iterations"] == 2

    test_on = ["DATASETS.TEST", "('objects',)", "MODEL.WEIGHTS", report["weights"]]
    result = run_tool("train_net", "--eval-only", *arguments, *test_on).json

    assert {"AP", "AP50", "APs", "APm", "APl"} <= set(result["bbox"])


def test_photos_that_cannot_be_read_are_counted(photos: Path, run_tool: RunTool, tmp_path: Path) -> None:
    names = sorted(str(path) for path in photos.iterdir())[:3]
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    (tmp_path / "list.txt").write_text("\n".join([*names, "broken.jpg"]))
    sets = name_photos(tmp_path / "list.txt")
    output = tmp_path / "out"
    report = run_tool("train_net", *DISTILLATION, *sets, *TINY, "SOLVER.MAX_ITER", "4", "OUTPUT_DIR", output).json

    assert (report["iterations"], report["skipped"]) == (4, 1)
    (line,) = (output / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == str(tmp_path / "broken.jpg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config-file is missing"),
        (["--config-file", "nowhere.yaml"], "config file 'nowhere.yaml' not found; under configs/ there are "),
        ([*DISTILLATION, "--gpus", "2"], "unrecognized arguments: --gpus; --help shows examples"),
        ([*DISTILLATION, "SOLVER.MAX_ITERS", "2"], "config key 'SOLVER.MAX_ITERS' does not exist"),
        (DISTILLATION, "DATASETS.TRAIN names 'photos', which is no data set"),
        ([*DISTILLATION, *name_photos(Path("nowhere"))], "DATASETS.OESIR.PHOTOS: 'nowhere' of 'photos' does not exist"),
        ([*DISTILLATION, *name_photos(COLLECTION), "MODEL.DEVICE", "cuda", "--num-gpus", "99"], "torch finds"),
        ([*DISTILLATION, *name_photos(COLLECTION), "--eval-only"], "DATASETS.TEST is empty"),
        ([*DISTILLATION, *name_photos(REPOSITORY / "configs")], "has no image"),
        ([*DISTILLATION, *name_photos(COLLECTION), "MODEL.WEIGHTS", "nowhere.pth"], "'nowhere.pth' not found"),
    ],
)
def test_mistakes_end_with_one_line(
    arguments: list[str], message: str, run_tool: RunTool, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / COLLECTION).symlink_to(photos)
    assert message in run_tool("train_net", *arguments, cwd=tmp_path).error


def run_processes(*arguments: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own: what it starts imports its main module anew."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / "train_net.py"), "--num-gpus", "2", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_several_processes_share_a_batch(photos: Path, tmp_path: Path) -> None:
    finished = run_processes(*DISTILLATION, *name_photos(photos), *TINY, "OUTPUT_DIR", tmp_path)

    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout.splitlines()[-1])["iterations"] == 2
    assert (tmp_path / "log.txt.rank1").is_file()
    assert "batch_size=1" in (tmp_path / "log.txt").read_text()


def test_mistake_in_another_process_ends_with_one_line(photos: Path, tmp_path: Path) -> None:
    options = ["OUTPUT_DIR", tmp_path, "MODEL.OESIR.STUDENT.FUSION", "product"]
    finished = run_processes(*DISTILLATION, *name_photos(photos), *TINY, *options)

    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1] == (
        "train_net: error: MODEL.OESIR.STUDENT.FUSION 'product' unknown; allowed: ['sum', 'concat']"
    )


def test_mistakes_found_while_training_end_with_one_line(photos: Path, run_tool: RunTool, tmp_path: Path) -> None:
    sets = name_photos(photos)
    rate = ["SOLVER.BASE_LR", "1e30", "SOLVER.MAX_ITER", "4", "OUTPUT_DIR", "out"]
    error = run_tool("train_net", *DISTILLATION, *sets, *TINY, *rate, cwd=tmp_path).error
    assert re.search(r"training stopped at iteration [12]: loss_distill_l2 is (nan|inf), .*; its files: ", error)
    assert error.count(str(photos)) == 2

    # In the loader's own processes.
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n")
    sets = name_photos(tmp_path / "list.txt")
    workers = ["DATALOADER.NUM_WORKERS", "2", "OUTPUT_DIR", "out"]
    error = run_tool("train_net", *DISTILLATION, *sets, *TINY, *workers, cwd=tmp_path).error
    assert error == "train_net: error: none of the 2 training photos can be read; out/skipped.jsonl says why"
