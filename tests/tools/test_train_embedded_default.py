"""tools/train_embedded_default.py as a process: all steps on a few small photos, killed on the way, and mistakes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

TOOL = Path(__file__).resolve().parents[2] / "tools" / "train_embedded_default.py"
DEADLINE = 300
SIDE = 64
# The cells of YOLOX's three grids on 64 pixels.
NUM_CELLS = 64 + 16 + 4
TINY = [
    *("MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.OESIR.PAIR_SIZE", "64", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50"),
    *("MODEL.OESIR.EMBEDDING.WHITENING_DIM", "8", "MODEL.OESIR.REGIONS.MAX_REGIONS", "5"),
]
STEPS = ("photos", "pseudo_labels", "detection_set", "detector", "whitening", "projection", "export")


def encode(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer: a number, or bytes with their length."""

    def encode_number(value: int) -> bytes:
        return bytes([value & 127 | 128]) + encode_number(value >> 7) if value > 127 else bytes([value])

    if isinstance(value, int):
        return encode_number(number << 3) + encode_number(value)
    return encode_number(number << 3 | 2) + encode_number(len(value)) + value


def write_network(path: Path) -> None:
    """An ONNX network in YOLOX's form that sees the same object in every photo."""

    def describe(name: bytes, shape: tuple[int, ...]) -> bytes:
        sizes = b"".join(encode(1, encode(1, size)) for size in shape)
        return encode(1, name) + encode(2, encode(1, encode(1, 1) + encode(2, sizes)))

    table = np.zeros((1, NUM_CELLS, 6), dtype="<f4")
    table[0, 64 + 5] = (0.5, 0.5, 0.7, 0.7, 1, 0.9)
    tensor = (
        b"".join(encode(1, size) for size in table.shape) + encode(2, 1) + encode(8, b"t") + encode(9, table.tobytes())
    )
    node = encode(1, b"t") + encode(2, b"out") + encode(4, b"Identity")
    graph = encode(1, node) + encode(2, b"g") + encode(5, tensor) + encode(11, describe(b"in", (1, 3, SIDE, SIDE)))
    graph += encode(12, describe(b"out", table.shape))
    path.write_bytes(encode(1, 8) + encode(7, graph) + encode(8, encode(1, b"") + encode(2, 13)))


@pytest.fixture(scope="module")
def arguments(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The photos as annotated and as plain ones; the output is still to be named."""
    folder = tmp_path_factory.mktemp("material")
    write_network(folder / "net.onnx")
    images, annotations = [], []
    for i, path in enumerate(sorted(photos.iterdir())):
        with Image.open(path) as photo:
            width, height = photo.size
        images.append({"id": i, "file_name": path.name, "width": width, "height": height})
        x0, y0, x1, y1 = width // 4, height // 4, width * 3 // 4, height * 3 // 4
        annotation = {"id": i + 1, "image_id": i, "category_id": 1, "iscrowd": 0, "bbox": [x0, y0, x1 - x0, y1 - y0]}
        annotation |= {"area": (x1 - x0) * (y1 - y0), "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}
        annotations.append(annotation)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "instances.json").write_text(json.dumps(content))
    words = ["--annotations", folder / "instances.json", "--annotated", photos, "--photos", photos]
    return [str(word) for word in [*words, "--network", folder / "net.onnx", "--held-out", "0", "--count", "4", *TINY]]


def start(arguments: list[str], output: Path) -> subprocess.Popen[str]:
    """In a process of its own: what it starts imports its main module anew."""
    return subprocess.Popen(
        [sys.executable, str(TOOL), *arguments, "--output", str(output)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def list_children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_run_goes_on_to_the_weights_that_ship(
    arguments: list[str], photos: Path, run_tool: Callable[..., Any], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    killed = start(arguments, output)
    wait_until(lambda: (output / "detector" / "log.txt").exists() or killed.poll() is not None)
    assert killed.poll() is None, killed.communicate()[1]
    children = list_children(killed.pid)
    assert children
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    # Else the next run would train beside it.
    wait_until(lambda: not any(map(is_running, children)))
    composed = (output / "detection_set" / "instances.json").stat().st_mtime_ns

    finished = start(arguments, output)
    stdout, stderr = finished.communicate(timeout=DEADLINE)
    assert finished.returncode == 0, stderr
    summary = json.loads(stdout.splitlines()[-1])
    assert len(stdout.splitlines()) == 1, "the logs of the trainings belong on stderr"
    assert tuple(summary["steps"]) == STEPS
    weights = Path(summary["weights"])
    assert summary["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    with safe_open(weights, framework="pt") as file:
        assert not any(name.startswith("backbone.bottom_up.trunk.") for name in file.keys())
        assert file.get_tensor("roi_heads.embedding_head.whitening.projection").shape == (8, 672 + 1152)
    assert (output / "detection_set" / "instances.json").stat().st_mtime_ns == composed
    assert summary["steps"]["pseudo_labels"] == {"photos": 10, "skipped": 0, "objects": 10}

    # Again it does nothing, and the weights are those of the default.
    again = run_tool("train_embedded_default", *arguments, "--output", output).json
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}
    index = ["--images", photos, "--output", tmp_path / "index", *TINY[-4:]]
    built = run_tool("build_index", *index, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", weights).json
    assert (built["images"], built["bytes_per_object"]) == (10, 4 * 8)

    refused = run_tool("train_embedded_default", *arguments, "--output", output, "--seed", "1")
    assert "steps that were made from something else: detection_set (recipe); detector" in refused.error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--network", "nowhere.onnx"], "network nowhere.onnx does not exist"),
        (["--photos", "nowhere"], "the image collection nowhere does not exist"),
        (["--students", "S4"], "invalid choice: 'S4' (choose from "),
        (["--held-out", "1"], "hold out is 1.0"),
        (["--count", "0"], "'0' is not allowed, expected a whole number of at least 1"),
        (["SOLVER.MAX_ITERS", "2"], "config key 'SOLVER.MAX_ITERS' does not exist"),
        (["--output", "file"], "file"),
    ],
)
def test_mistakes_end_with_one_line(
    words: list[str], message: str, arguments: list[str], run_tool: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    finished = run_tool("train_embedded_default", *arguments, "--output", "out", *words, cwd=tmp_path)
    assert message in finished.error
    assert not (tmp_path / "out").exists()
