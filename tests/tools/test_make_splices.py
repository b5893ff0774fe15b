"""tools/make_splices.py, as a function and as a process."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oesir_d2.data.splicing import read_splices

REPOSITORY = Path(__file__).resolve().parents[2]
TOOL = REPOSITORY / "tools" / "make_splices.py"


@pytest.fixture(scope="module")
def main() -> Callable[[list[str]], None]:
    specification = importlib.util.spec_from_file_location("make_splices", TOOL)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.main


@pytest.fixture
def folders(tmp_path: Path, make_photo: Callable[..., np.ndarray]) -> Path:
    """Hosts, a COCO dataset, cut-outs and distractors, all with names that ask for trouble."""
    for folder, names in (
        ("häuser und gärten", ["Straße 1.jpg", "noël.png", "sub/猫.jpg"]),
        ("coco photos", ["a b.jpg", "ü.jpg"]),
        ("distractors", ["x.jpg", "Straße 1.jpg"]),
    ):
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(make_photo(150, 200)).save(path)
    (tmp_path / "stamps").mkdir()
    stamp = np.zeros((120, 120, 4), dtype=np.uint8)
    stamp[10:100, 20:110] = (200, 30, 60, 255)
    Image.fromarray(stamp).save(tmp_path / "stamps" / "pomme d'api.png")
    content = {
        "images": [{"id": i, "file_name": n, "width": 200, "height": 150} for i, n in enumerate(["a b.jpg", "ü.jpg"])],
        "annotations": [
            {"id": 7, "image_id": 0, "category_id": 1, "segmentation": [[30, 30, 130, 40, 80, 120]], "iscrowd": 0}
        ],
        "categories": [{"id": 1, "name": "kite"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


def arguments(folders: Path, *others: str) -> list[str]:
    output = ["--output", str(folders / "out put"), "--count", "3"]
    return ["--hosts", str(folders / "häuser und gärten"), *output, *others]


def coco_arguments(folders: Path) -> list[str]:
    return ["--coco", str(folders / "instances.json"), "--coco-images", str(folders / "coco photos")]


def run_process(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(TOOL), *command],
        capture_output=True,
        encoding="utf-8",
        env=environment,
        timeout=300,
        check=False,
    )


def test_a_process_writes_splices_and_a_json_line(folders: Path) -> None:
    finished = run_process(*arguments(folders, *coco_arguments(folders), "--distractors", str(folders / "distractors")))

    assert finished.returncode == 0, finished.stderr
    summary = json.loads(finished.stdout.splitlines()[-1])
    assert (summary["queries"], summary["database"]) == (3, 7)
    assert summary["seconds"] >= 0
    assert "splices" in finished.stderr  # the progress bar
    splices = read_splices(summary["splices"], check_files=("queries", "masks", "database"))
    ids = {image.image_id for image in splices.database}
    assert ids == {"Straße 1.jpg", "noël.png", "sub/猫.jpg", "a b.jpg", "ü.jpg", "x.jpg", "distractors/Straße 1.jpg"}
    assert {query.sources[1].image_id for query in splices.queries} == {"a b.jpg"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--scale", "0.5"], "--scale"),
        (["--unknown"], "--unknown"),
        (["--coco-images", "no such folder"], "no such folder"),
    ],
)
def test_a_mistake_ends_a_process_with_one_line_and_code_2(folders: Path, change: list[str], named: str) -> None:
    finished = run_process(*arguments(folders, *coco_arguments(folders), *change))

    assert finished.returncode == 2
    assert finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    assert line.startswith("make_splices: error: ")
    assert named in line
    assert not (folders / "out put").exists()


def test_cutouts_with_alpha_are_their_own_photos(
    main: Callable[[list[str]], None], folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(folders, "--cutouts", str(folders / "stamps"), "--rotate", "0", "--quality", "95,95"))

    summary = json.loads(capsys.readouterr().out)
    splices = read_splices(summary["splices"], check_files=("queries", "masks", "database"))
    assert {query.sources[1].image_id for query in splices.queries} == {"pomme d'api.png"}
    assert "pomme d'api.png" in {image.image_id for image in splices.database}


def test_objects_of_plain_photos_come_from_given_boxes(
    main: Callable[[list[str]], None], folders: Path, tmp_path: Path
) -> None:
    photo = np.full((200, 260, 3), 40, dtype=np.uint8)
    photo[60:150, 80:180] = (230, 60, 20)
    photo += np.random.default_rng(0).integers(0, 12, photo.shape, dtype=np.uint8)
    (tmp_path / "plain").mkdir()
    Image.fromarray(photo).save(tmp_path / "plain" / "brick.png")
    (tmp_path / "boxes.json").write_text('{"brick.png": [[60, 45, 200, 165]]}')
    main(
        arguments(folders, "--photos", str(tmp_path / "plain"), "--boxes", str(tmp_path / "boxes.json"), "--flip", "0")
    )

    splices = read_splices(folders / "out put" / "splices.json")
    x0, y0, x1, y1 = splices.queries[0].sources[1].query_box
    assert 0.25 * 200 - 2 <= max(x1 - x0, y1 - y0) <= 0.5 * 200 + 2


def test_options_reach_the_compositor(main: Callable[[list[str]], None], folders: Path) -> None:
    main(arguments(folders, *coco_arguments(folders), "--scale", "0.3,0.3", "--rotate", "0", "--softness", "0"))

    for query in read_splices(folders / "out put" / "splices.json").queries:
        x0, y0, x1, y1 = query.sources[1].query_box
        assert abs(max(x1 - x0, y1 - y0) - 0.3 * 200) <= 2


def test_a_second_run_adds_to_the_first(main: Callable[[list[str]], None], folders: Path) -> None:
    main(arguments(folders, *coco_arguments(folders)))
    first = read_splices(folders / "out put" / "splices.json")
    written = {path: path.stat().st_mtime_ns for path in (folders / "out put" / "queries").iterdir()}
    main(arguments(folders, *coco_arguments(folders), "--count", "5"))

    second = read_splices(folders / "out put" / "splices.json")
    assert len(second.queries) == 5
    assert second.queries[:3] == first.queries
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    with pytest.raises(FileExistsError, match="seed"):
        main(arguments(folders, *coco_arguments(folders), "--seed", "1"))


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ([], "exactly one"),
        (["--cutouts", "x", "--photos", "y"], "exactly one"),
        (["--coco", "x.json"], "--coco-images"),
        (["--cutouts", "x", "--coco-images", "y"], "--coco-images"),
        (["--cutouts", "x", "--boxes", "y.json"], "--boxes"),
        (["--photos", "y", "--scale", "0.5,0.2"], r"scale is \(0\.5, 0\.2\)"),
        (["--photos", "y", "--scale", "a,b"], "'a,b'"),
        (["--photos", "y", "--quality", "65.5,90"], "'65.5,90'"),
        (["--photos", "y", "--flip", "2"], "flip is 2"),
        (["--photos", "y", "--count", "many"], "'many'"),
    ],
)
def test_mistakes_are_named(main: Callable[[list[str]], None], folders: Path, others: list[str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        main(arguments(folders, *others))


@pytest.mark.parametrize("change", [{"count": "0"}, {"donors": "0"}, {"seed": "-1"}])
def test_numbers_out_of_range_are_named(
    main: Callable[[list[str]], None], folders: Path, change: dict[str, Any]
) -> None:
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        main(arguments(folders, *coco_arguments(folders), f"--{name}", value))


def test_help_has_examples_units_and_defaults(
    main: Callable[[list[str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])

    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("examples:", "degrees", "pixels", "(default: 0.25,0.5)", "(default: 65,90)", "--distractors"):
        assert part in text
