"""A training in a process of its own: how its end is told. That it trains, the tests of tools/ show."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from oesir_d2.engine import training_process
from oesir_d2.engine.training_process import train_in_process


def test_mistake_of_the_run_is_raised_here(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Found by the training itself, after its config was read.
    arguments = ["--config-file", "lite0/distill_S3.yaml", "--num-gpus", "1", "MODEL.DEVICE", "cpu"]
    with pytest.raises(ValueError, match="DATASETS.TRAIN names 'photos', which is no data set"):
        train_in_process([*arguments, "OUTPUT_DIR", str(tmp_path)])
    assert capfd.readouterr().out == ""


def end_at_once(arguments: list[str], sender: Connection) -> None:
    if arguments == ["killed"]:
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(int(arguments[0]))


@pytest.mark.parametrize(("how", "told"), [("3", "with exit code 3"), ("killed", "by signal 9")])
def test_other_ends_are_told(how: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A forked process does not need to import what this test is in.
    context = training_process.multiprocessing.get_context("fork")
    monkeypatch.setattr(training_process.multiprocessing, "get_context", lambda method: context)
    monkeypatch.setattr(training_process, "_train", end_at_once)
    with pytest.raises(ChildProcessError, match=f"ended {told}"):
        train_in_process([how])


def test_a_training_that_ends_well_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    context = training_process.multiprocessing.get_context("fork")
    monkeypatch.setattr(training_process.multiprocessing, "get_context", lambda method: context)
    monkeypatch.setattr(training_process, "_train", end_at_once)
    assert train_in_process(["0"]) is None
