"""tools/compare_models.py as a process: a comparison that is killed goes on, and mistakes are named."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RunTool = Callable[..., Any]

# Grids of a part of the network.
LIST = """
whitening_dim: 16
.tiny: &tiny
  MODEL.DEVICE: cpu
  MODEL.OESIR.TEACHER.LAYER: conv4_6
  MODEL.OESIR.REGIONS.GRID_LEVELS: [1, 2]
  MODEL.OESIR.EMBEDDING.WHITENING_DIM: 0
  MODEL.OESIR.EMBEDDING.WHITENING: ""
  INPUT.OESIR.MAX_LONG_SIDE: 96
variants:
  - {name: gem, title: GeM, config: oesir_lite0_grid.yaml, overrides: *tiny}
  - name: mac
    config: oesir_lite0_grid.yaml
    overrides: {<<: *tiny, MODEL.OESIR.EMBEDDING.POOLER: MACPooler}
  - name: lost
    config: oesir_lite0_grid.yaml
    overrides: {<<: *tiny, MODEL.WEIGHTS: "${WEIGHTS_DIR}/nothing.pth"}
"""
QUICK = ("--cost-photos", "1", "--repetitions", "1", "--input-size", "64x64")


@pytest.fixture(scope="module")
def splices(run_tool: RunTool, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("splices") / "set"
    words = ("--hosts", photos, "--photos", photos, "--count", "4", "--output", folder)
    assert run_tool("make_splices", *words).json["queries"] == 4
    return folder / "splices.json"


@pytest.fixture(scope="module")
def arguments(photos: Path, splices: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """A comparison on the photos, whose whitenings are fitted on the spliced ones; its output is still to be named."""
    models = tmp_path_factory.mktemp("models") / "list.yaml"
    models.write_text(LIST)
    words = ["--models", models, "--images", photos, "--splices", f"medium={splices}", *QUICK]
    return [*words, "--whitening-images", splices.parent / "queries", "--weights-dir", models.parent]


def forget_times(comparison: dict[str, Any]) -> dict[str, Any]:
    for row in comparison["models"].values():
        del row["cost"]["milliseconds"]
    return comparison["models"]


def test_a_killed_comparison_goes_on(
    arguments: list[Any], run_tool: RunTool, start_tool: RunTool, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    running = start_tool("compare_models", *arguments, "--output", output)
    done = output / "variants" / "gem" / "cost.json"
    running.wait_until(done.exists)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    # The list of files that were skipped is begun anew by every run.
    files = [path for path in (output / "variants" / "gem").rglob("*.*") if path.name != "skipped.jsonl"]
    kept = {path: path.stat().st_mtime_ns for path in files}

    finished = run_tool("compare_models", *arguments, "--output", output)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "the first model was finished"
    comparison = finished.json
    assert list(comparison["models"]) == ["gem", "mac"]
    assert "nothing.pth" in comparison["skipped"]["lost"]
    (warning,) = finished.messages
    assert "variant 'lost' is left out: weights" in warning
    assert json.loads((output / "comparison.json").read_text())["rows"] == comparison["models"]
    assert Path(comparison["table"]).read_text().startswith("# Comparison of models")

    # A run that nothing came between finds the same.
    again = run_tool("compare_models", *arguments, "--output", tmp_path / "again").json
    assert forget_times(again) == forget_times(comparison)


def test_some_models_of_the_list(arguments: list[Any], run_tool: RunTool, tmp_path: Path) -> None:
    finished = run_tool("compare_models", *arguments, "--output", tmp_path, "--only", "mac", "--repetitions", "0")
    assert list(finished.json["models"]) == ["mac"] and finished.messages == []
    row = finished.json["models"]["mac"]
    assert row["splices"]["medium"]["queries"] == 4 and row["cost"]["milliseconds"] is None
    assert row["cost"]["multiply_adds"]["width"] == 64


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--strict"], "variant 'lost': weights"),
        (["--only", "nobody"], "--only names 'nobody', which the list does not have; it has gem, mac, lost"),
        (["--splices", "medium"], "--splices is 'medium', expected NAME=JSON"),
        (["--splices", "a/b=c.json"], "--splices is 'a/b=c.json', expected NAME=JSON with a NAME of letters"),
        (["--splices", "medium=other.json"], "--splices names 'medium' twice"),
        (["--splices", "small=none.json"], "none.json does not exist"),
        (["--models", "nowhere"], "'nowhere' not found"),
        (["--images", "nowhere"], "nowhere does not exist"),
        (["--whitening-images", "nowhere"], "nowhere does not exist"),
        (["--input-size", "64"], "--input-size is '64', expected WIDTHxHEIGHT"),
        (["--cost-photos", "0"], "argument --cost-photos: '0'"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_mistakes_are_named(
    words: list[str], named: str, arguments: list[Any], run_tool: RunTool, tmp_path: Path
) -> None:
    finished = run_tool("compare_models", *arguments, "--output", "out", *words, cwd=tmp_path)
    assert named in finished.error and finished.error.startswith("compare_models: error: ")
    assert list(tmp_path.iterdir()) == []


def test_help_names_units_defaults_and_examples(run_tool: RunTool) -> None:
    text = " ".join(run_tool("compare_models", "--help").stdout.split())
    for words in ("examples:", "percent", "milliseconds", "(default: 1024x768)", "(default: 5)", "OMP_NUM_THREADS"):
        assert words in text
