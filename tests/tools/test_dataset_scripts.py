"""datasets/prepare_revisited.py and datasets/download_psbattles.py as command lines."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pickle
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DATASETS = Path(__file__).resolve().parents[2] / "datasets"
Main = Callable[[list[str]], None]


def load_main(name: str) -> Main:
    specification = importlib.util.spec_from_file_location(name, DATASETS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.main


def test_ground_truth_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published = {"imlist": ["a"], "qimlist": ["q"], "gnd": [{"bbx": [0, 0, 9, 9], "easy": [0], "hard": [], "junk": []}]}
    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps(published))
    output = tmp_path / "new" / "gt.json"
    load_main("prepare_revisited")(["--ground-truth", str(tmp_path / "gnd.pkl"), "--output", str(output)])
    assert json.loads(capsys.readouterr().out) == {"output": str(output), "queries": 1, "database": 1}
    assert json.loads(output.read_text())["queries"][0]["easy"] == ["a"]


class Malicious:
    def __reduce__(self) -> Any:
        return os.mkdir, ("trace",)


def test_code_in_a_pickle_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gnd.pkl").write_bytes(pickle.dumps(Malicious()))
    tool = DATASETS / "prepare_revisited.py"
    monkeypatch.setattr(sys, "argv", [str(tool), "--ground-truth", "gnd.pkl", "--output", "gt.json"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(tool), run_name="__main__")
    assert ended.value.code == 2
    problem = "the file asks for posix.mkdir; only numpy arrays are allowed"
    expected = f"error: gnd.pkl is no ground truth of the revisited protocol: {problem}"
    assert capsys.readouterr().err.strip().endswith(expected)
    assert [path.name for path in tmp_path.iterdir()] == ["gnd.pkl"]


def test_download_reports_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    sha256 = hashlib.sha256(b"photo").hexdigest()
    # Nothing listens on this port.
    lines = [f"{name}\thttp://127.0.0.1:9/{name}.jpg\tjpg\t{sha256}" for name in ("a", "b", "c")]
    (tmp_path / "originals.tsv").write_text("\n".join(["id\turl\tend\thash", *lines, "broken"]) + "\n")
    photoshops = [f"p{name}\t{name}\thttp://127.0.0.1:9/p.jpg\tjpg\t{sha256}" for name in ("a", "c")]
    (tmp_path / "photoshops.tsv").write_text("\n".join(["id\toriginal\turl\tend\thash", *photoshops]) + "\n")
    (tmp_path / "originals").mkdir()
    (tmp_path / "originals" / "a.jpg").write_bytes(b"photo")
    words = ["--dir", str(tmp_path), "--limit", "2", "--retries", "0", "--pause", "0"]

    load_main("download_psbattles")(words)

    summary = json.loads(capsys.readouterr().out)
    originals, photoshops_summary = summary["originals.tsv"], summary["photoshops.tsv"]
    assert (originals["total"], originals["on_disk"], originals["percent"]) == (2, 1, 50.0)
    assert originals["missing"] == {"no answer": 1} and originals["broken_lines"] == 1
    # Of the first two originals only one has a photoshop.
    assert (photoshops_summary["total"], photoshops_summary["on_disk"]) == (1, 0)
    assert "originals.tsv: 1 lines left out: line 5" in caplog.text
    report = json.loads((tmp_path / "coverage.json").read_text())
    assert list(report["originals.tsv"]["failures"]) == ["originals/b.jpg"]


def test_missing_lists_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"originals.tsv does not exist; it is part of PS-Battles"):
        load_main("download_psbattles")(["--dir", str(tmp_path)])
