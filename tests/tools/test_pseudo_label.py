"""datasets/pseudo_label.py, as a function and as a process."""

from __future__ import annotations

import importlib.util
import json
import runpy
import signal
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from oesir_d2.data.pseudo_labels import Detections

TOOL = Path(__file__).resolve().parents[2] / "datasets" / "pseudo_label.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    specification = importlib.util.spec_from_file_location("pseudo_label", TOOL)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class BrightPhotos:
    """Stands in for the network: finds the whole of each bright photo."""

    def __init__(self, path: str, *, min_score: float, max_overlap: float) -> None:
        self.settings = {"network": path, "min_score": min_score, "max_overlap": max_overlap}
        self.num_classes = 80

    def detect(self, pixels: np.ndarray) -> Detections:
        num = int(pixels.mean() > 128)
        box = np.array([[0, 0, pixels.shape[1], pixels.shape[0]]], dtype=np.float32)
        return Detections(box[:num], np.ones(num, dtype=np.float32), np.zeros(num, dtype=np.int64))


def test_labels_and_counts_are_written(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "YoloxDetector", BrightPhotos)
    (tmp_path / "photos").mkdir()
    for name, grey in (("a b.png", 250), ("ü.png", 240), ("dark.png", 10)):
        Image.new("L", (50, 40), grey).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no photo")
    output = tmp_path / "new folder" / "pseudo.json"
    tool.main(
        ["--images", str(tmp_path / "photos"), "--network", "n.onnx", "--min-score", "0.25", "--output", str(output)]
    )

    captured = capsys.readouterr()
    summary = json.loads(captured.out.splitlines()[-1])
    assert summary.pop("seconds") >= 0
    assert summary == {"output": str(output), "photos": 3, "skipped": 1, "without_object": 1, "objects": 2}
    assert "photos" in captured.err  # the progress bar
    content = json.loads(output.read_text(encoding="utf-8"))
    assert content["info"] == {"pseudo_labels": {"network": "n.onnx", "min_score": 0.25, "max_overlap": 0.6}}
    assert [image["file_name"] for image in content["images"]] == ["a b.png", "dark.png", "ü.png"]
    assert [item["bbox"] for item in content["annotations"]] == [[0, 0, 50, 40]] * 2


def test_a_mistake_ends_the_tool_with_one_line_and_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (50, 40)).save(tmp_path / "a.png")
    (tmp_path / "net.onnx").write_text("no network")
    monkeypatch.chdir(tmp_path)
    command = [str(TOOL), *"--images . --network net.onnx --output out/pseudo.json".split()]
    monkeypatch.setattr(sys, "argv", command)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOL), run_name="__main__")
    signal.signal(signal.SIGTERM, handler)

    captured = capsys.readouterr()
    assert (ended.value.code, captured.out) == (2, "")
    (line,) = captured.err.splitlines()
    assert line.startswith("pseudo_label: error: net.onnx is no ONNX network")
    assert not (tmp_path / "out" / "pseudo.json").exists()
