"""datasets/compose_detection_set.py, as a function and as a process."""

from __future__ import annotations

import importlib.util
import json
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oesir_d2.data.datasets.coco import load_coco

TOOL = Path(__file__).resolve().parents[2] / "datasets" / "compose_detection_set.py"


@pytest.fixture(scope="module")
def main() -> Callable[[list[str]], None]:
    specification = importlib.util.spec_from_file_location("compose_detection_set", TOOL)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.main


@pytest.fixture
def folder(tmp_path: Path, make_photo: Callable[..., np.ndarray]) -> Path:
    """Annotated photos, pseudo-labelled photos with a brick each, and a stamp with transparency."""
    content: dict[str, dict[str, Any]] = {}
    for name in ("annotated", "labelled"):
        (tmp_path / name).mkdir()
        content[name] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "kite"}]}
    noise = np.random.default_rng(0).integers(0, 12, (180, 240, 3), dtype=np.uint8)
    for i, name in enumerate(("a b.jpg", "ü.jpg")):
        Image.fromarray(make_photo(180, 240)).save(tmp_path / "annotated" / name)
        brick = np.full((180, 240, 3), 40, dtype=np.uint8) + noise
        brick[50:140, 60:180] += np.array((180, 20, 0), dtype=np.uint8)
        Image.fromarray(brick).save(tmp_path / "labelled" / f"{i}.png")
        for key, file_name in (("annotated", name), ("labelled", f"{i}.png")):
            content[key]["images"].append({"id": i, "file_name": file_name, "width": 240, "height": 180})
        triangle = {"bbox": [30, 30, 100, 90], "segmentation": [[30, 30, 130, 40, 80, 120]], "iscrowd": 0}
        content["annotated"]["annotations"].append({"id": i, "image_id": i, "category_id": 1, **triangle})
        box = {"id": i, "image_id": i, "category_id": 1, "bbox": [55, 45, 130, 100], "score": 0.5}
        content["labelled"]["annotations"].append(box)
    for name, item in content.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(item), encoding="utf-8")
    (tmp_path / "stamps").mkdir()
    stamp = np.zeros((120, 120, 4), dtype=np.uint8)
    stamp[10:100, 20:110] = (200, 30, 60, 255)
    Image.fromarray(stamp).save(tmp_path / "stamps" / "pomme d'api.png")
    return tmp_path


def test_hosts_and_objects_of_all_kinds_make_one_set(
    main: Callable[[list[str]], None],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    command = "--hosts annotated.json annotated --hosts labelled.json labelled 2 --coco annotated.json annotated "
    command += "--boxed labelled.json labelled 0.5 --photos labelled --cutouts stamps 2 --count 30 --whole-hosts "
    command += "--long-side 120,240 --max-objects 3 --without 0.2 --scale 0.2,0.4 --output set"
    main(command.split())

    captured = capsys.readouterr()
    summary = json.loads(captured.out.splitlines()[-1])
    content = json.loads((folder / "set" / "instances.json").read_text(encoding="utf-8"))
    annotations = content["annotations"]
    assert summary.pop("seconds") >= 0
    pasted = [item for item in annotations if item["pasted"]]
    assert summary == {
        "instances": str(Path("set", "instances.json")),
        "photos": 34,
        "whole_hosts": 4,
        "objects": len(annotations),
        "pasted": len(pasted),
        "crowds": 0,
        "composed_now": 34,
        "unreadable": 0,
    }
    assert "photos" in captured.err  # the progress bar
    assert {image["host"] for image in content["images"]} == {"a b.jpg", "ü.jpg", "0.png", "1.png"}
    assert {item["source"] for item in pasted} == {"a b.jpg", "ü.jpg", "0.png", "1.png", "pomme d'api.png"}
    assert {item.get("score") for item in annotations if not item["pasted"]} == {None, 0.5}
    assert {"kite", None} == {item["category_name"] for item in pasted}
    # What GrabCut found is kept: two sources of two photos.
    assert len(list((folder / "set" / "cutouts").iterdir())) == 4
    assert len(load_coco("set/instances.json", "set/images")) == 34

    first = {path.name: path.read_bytes() for path in (folder / "set" / "images").iterdir()}
    cached = command.replace("--output set", "--output again --cache set/cutouts")
    main(cached.split())
    assert {path.name: path.read_bytes() for path in (folder / "again" / "images").iterdir()} == first
    main(command.split())
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["composed_now"] == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--coco", "annotated.json"], "--coco annotated.json has 1 values"),
        (["--coco", "annotated.json", "annotated", "1", "2"], "has 4 values"),
        (["--cutouts", "stamps", "many"], "--cutouts has the weight 'many'"),
        (["--cutouts", "stamps", "0"], "weights of the sources of objects are [0.0]"),
        (["--cutouts", "nowhere"], "nowhere"),
        (["--coco", "annotated.json", "stamps"], "annotated.json has no segmented object"),
        (["--boxed", "labelled.json", "stamps"], "labelled.json describes no photo of stamps"),
        ([], "no sources of objects are given"),
        (["--cutouts", "stamps", "--scale", "0.5,0.1"], "scale is (0.5, 0.1)"),
        (["--cutouts", "stamps", "--count", "0"], "count is 0"),
    ],
)
def test_mistakes_are_named(
    main: Callable[[list[str]], None],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    named: str,
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        main(["--hosts", "annotated.json", "annotated", *words, "--output", "set"])

    assert named in str(caught.value)
    assert not (folder / "set").exists()


def test_a_mistake_ends_the_tool_with_one_line_and_code_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    command = [str(TOOL), *"--hosts annotated.json annotated --cutouts stamps --output stamps".split()]
    monkeypatch.setattr(sys, "argv", command)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOL), run_name="__main__")
    signal.signal(signal.SIGTERM, handler)

    captured = capsys.readouterr()
    assert (ended.value.code, captured.out) == (2, "")
    (line,) = captured.err.splitlines()
    assert line.startswith("compose_detection_set: error: stamps is not a folder of a detection set")
