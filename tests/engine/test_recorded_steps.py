"""Steps of a long job: done once, taken up after an interruption, never made over."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oesir_d2.engine.recorded_steps import RecordedSteps

SETTINGS: dict[str, dict[str, Any]] = {"first": {"size": 3, "kind": "a"}, "second": {"first": "hash"}}


def write(text: str) -> Callable[[Path], dict[str, Any]]:
    def work(folder: Path) -> dict[str, Any]:
        (folder / "out.txt").write_text(text)
        return {"text": text, "loss": math.nan}

    return work


def fail(folder: Path) -> dict[str, Any]:
    raise AssertionError("not to be done")


def test_a_finished_step_is_not_repeated_and_reports_the_same(tmp_path: Path) -> None:
    report = RecordedSteps(tmp_path / "job", SETTINGS).run("first", "out.txt", write("x"))
    assert report == {"text": "x", "loss": None}
    again = RecordedSteps(tmp_path / "job", SETTINGS)
    assert again.run("first", "out.txt", fail) == report
    assert (again.locate("first") / "out.txt").read_text() == "x"


def test_a_step_whose_outcome_is_gone_is_done_again(tmp_path: Path) -> None:
    steps = RecordedSteps(tmp_path, SETTINGS)
    steps.run("first", "out.txt", write("x"))
    (tmp_path / "first" / "out.txt").unlink()
    assert RecordedSteps(tmp_path, SETTINGS).run("first", "out.txt", write("y"))["text"] == "y"


def test_an_interrupted_step_finds_what_it_left(tmp_path: Path) -> None:
    def interrupt(folder: Path) -> dict[str, Any]:
        (folder / "half").touch()
        (folder / "out.txt").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RecordedSteps(tmp_path, SETTINGS).run("first", "out.txt", interrupt)

    def go_on(folder: Path) -> dict[str, Any]:
        assert (folder / "half").exists()
        return {"went": "on"}

    assert RecordedSteps(tmp_path, SETTINGS).run("first", "out.txt", go_on) == {"went": "on"}


def test_what_was_made_from_something_else_is_refused_and_stays(tmp_path: Path) -> None:
    steps = RecordedSteps(tmp_path, SETTINGS)
    steps.run("first", "out.txt", write("x"))
    steps.run("second", "out.txt", write("z"))
    changed = {"first": {"size": 4, "kind": "a"}, "second": {"first": "other"}}
    with pytest.raises(FileExistsError, match=r"something else: first \(size\); second \(first\); delete"):
        RecordedSteps(tmp_path, changed)
    assert (tmp_path / "first" / "out.txt").read_text() == "x"

    # As the message says.
    for name in ("first", "second"):
        (tmp_path / name / "out.txt").unlink()
        (tmp_path / name).rmdir()
    assert RecordedSteps(tmp_path, changed).run("first", "out.txt", write("y"))["text"] == "y"


def test_a_folder_without_a_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    RecordedSteps(tmp_path, SETTINGS)  # it is empty
    (tmp_path / "first" / "my thesis.txt").touch()
    for content in (None, b"", b"[]", b'{"settings": 3, "report": null}'):
        if content is not None:
            (tmp_path / "first.json").write_bytes(content)
        with pytest.raises(FileExistsError, match=r"first \(not made by this tool\)"):
            RecordedSteps(tmp_path, SETTINGS)
