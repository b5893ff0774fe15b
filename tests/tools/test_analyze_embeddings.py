"""tools/analyze_embeddings.py as a process: killed at any moment it goes on, and mistakes are named."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

RunTool = Callable[..., Any]

LIST = """
.tiny: &tiny
  MODEL.DEVICE: cpu
models:
  - {name: classification, network: teacher, config: oesir_lite0.yaml, overrides: *tiny, layers: [conv4_1, conv4_6]}
  - {name: detection, title: Detector, network: detector, config: oesir_lite0.yaml, overrides: *tiny, layers: [p5]}
  - name: lost
    network: detector
    config: oesir_lite0.yaml
    overrides: {<<: *tiny, MODEL.WEIGHTS: "${WEIGHTS_DIR}/nothing.pth"}
    layers: [p5]
"""
# More than one chunk of vectors for each network.
NUM_QUERIES, NUM_PHOTOS, NUM_FIT = 20, 60, 30
NUM_CELLS = {"classification": 2 * 4 * 2, "detection": 4 * 2}
MOST_KILLS = 8


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """An analysis of small photos; its output is still to be named."""
    folder = tmp_path_factory.mktemp("analysis")
    rng = np.random.default_rng(0)
    (folder / "fit").mkdir()

    def make(name: str) -> np.ndarray:
        coarse = Image.fromarray(rng.integers(0, 255, size=(6, 9, 3), dtype=np.uint8))
        photo = coarse.resize((96, 64), Image.Resampling.BICUBIC)
        photo.save(folder / name)
        return np.asarray(photo)

    photos = [make(f"{i:02}.png") for i in range(NUM_PHOTOS)]
    for i in range(NUM_FIT):
        make(f"fit/{i:02}.png")
    queries = []
    for i in range(NUM_QUERIES):
        spliced = photos[i].copy()
        spliced[8:40, 8:48] = photos[i + NUM_QUERIES][8:40, 8:48]
        Image.fromarray(spliced).save(folder / f"query{i}.png")
        sources = [("host", i), ("donor", i + NUM_QUERIES)]
        sources = [{"image_id": f"{position}", "role": role} for role, position in sources]
        queries.append({"file_name": f"query{i}.png", "sources": sources})
    database = [{"image_id": f"{i}", "file_name": f"{i:02}.png"} for i in range(NUM_PHOTOS)]
    splices = {"version": 1, "database": database, "queries": queries}
    (folder / "splices.json").write_text(json.dumps(splices))
    (folder / "list.yaml").write_text(LIST)
    words = ["--models", folder / "list.yaml", "--splices", f"set={folder / 'splices.json'}"]
    return [*words, "--whitening-images", folder / "fit", "--dimensions", "0", "8", "4096"]


def list_stored(output: Path) -> Counter[tuple[str, str]]:
    """How often the vectors of each photo were stored, by model."""
    stored: Counter[tuple[str, str]] = Counter()
    for path in (output / "models").glob("*/vectors/*.safetensors"):
        if not path.name.startswith("."):
            with safe_open(path, framework="numpy") as file:
                keys = json.loads(file.metadata()["photos"])
            stored.update((path.parts[-3].split("-")[0], key) for key in keys)
    return stored


def count_cells(output: Path) -> int:
    return len(list((output / "models").glob("*/cells/set/[!.]*.json")))


def test_killed_again_and_again(arguments: list[Any], run_tool: RunTool, start_tool: RunTool, tmp_path: Path) -> None:
    whole = run_tool("analyze_embeddings", *arguments, "--output", tmp_path / "whole").json
    photos = NUM_QUERIES + NUM_PHOTOS + NUM_FIT
    for name, cells in NUM_CELLS.items():
        assert whole["models"][name] == {
            "photos": photos,
            "passed": photos,
            "unreadable": 0,
            "scored": cells,
            "kept": 0,
        }

    output = tmp_path / "killed"
    rng = np.random.default_rng(1)

    def measure() -> tuple[int, int]:
        return list_stored(output).total(), count_cells(output)

    states = [(0, 0)]
    while len(states) <= MOST_KILLS:
        running = start_tool("analyze_embeddings", *arguments, "--output", output)
        # Until there is something new, and then a random moment longer.
        while measure() <= states[-1] and running.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.15))
        if running.poll() is not None:
            break
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        states.append(measure())
        kept = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors") if path.name[0] != "."}
    assert len(states) > 3
    finished = run_tool("analyze_embeddings", *arguments, "--output", output).json

    # The last run but the one that was killed last may have finished by itself.
    stored = list_stored(output)
    assert set(stored.values()) == {1} and stored.total() == 2 * photos, "no photo was passed again once it was stored"
    assert all(path.stat().st_mtime_ns == modified for path, modified in kept.items())
    assert all(later >= earlier for earlier, later in zip(states, states[1:]))
    assert Path(finished["csv"]).read_bytes() == Path(whole["csv"]).read_bytes()
    assert not [path for path in output.rglob("*") if path.name.startswith(".tmp-")]
    again = run_tool("analyze_embeddings", *arguments, "--output", output).json
    for name, cells in NUM_CELLS.items():
        assert again["models"][name] == {"photos": photos, "passed": 0, "unreadable": 0, "scored": 0, "kept": cells}


def test_the_run_after_a_kill_passes_what_was_not_stored(
    arguments: list[Any], run_tool: RunTool, start_tool: RunTool, tmp_path: Path
) -> None:
    running = start_tool("analyze_embeddings", *arguments, "--output", tmp_path)
    running.wait_until(lambda: list_stored(tmp_path).total() > 0)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    stored = Counter(name for name, _ in list_stored(tmp_path))
    finished = run_tool("analyze_embeddings", *arguments, "--output", tmp_path).json
    photos = NUM_QUERIES + NUM_PHOTOS + NUM_FIT
    for name in NUM_CELLS:
        assert finished["models"][name]["passed"] == photos - stored[name]


def test_files_and_what_is_left_out(arguments: list[Any], run_tool: RunTool, tmp_path: Path) -> None:
    finished = run_tool(
        "analyze_embeddings", *arguments, "--output", tmp_path / "new" / "out", "--poolings", "GeM", "MAC"
    )
    summary = finished.json
    lines = Path(summary["csv"]).read_text().splitlines()
    assert lines[0] == "model,layer,pooling,dimension,dataset,metric,value"
    assert {line.split(",")[2] for line in lines[1:]} == {"GeM", "MAC"}
    assert [Path(path).name[:8] for path in summary["figures"]] == ["figure_1", "figure_1", "figure_2"]
    assert "not run" in Path(summary["table_1"]).read_text()
    assert len(summary["left_out"]) == 3 and "no 4096 dimensions, for 30 photos to fit on" in summary["left_out"][0]
    (warning,) = finished.messages
    assert "model 'lost' is left out" in warning and "--weights-dir" in summary["skipped"]["lost"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--strict"], "model 'lost': its weights are in ${WEIGHTS_DIR}"),
        (["--only", "nobody"], "--only names 'nobody'"),
        (["--splices", "set=other.json"], "--splices names 'set' twice"),
        (["--splices", "b=none.json"], "none.json does not exist"),
        (["--datasets", "nowhere"], "data set 'nowhere' is not registered"),
        (["--datasets", "set"], "the data set 'set' is named twice"),
        (["--models", "nowhere"], "'nowhere' not found"),
        (["--images", "nowhere"], "nowhere does not exist"),
        (["--whitening-images", "nowhere"], "nowhere does not exist"),
        (["--poolings", "Mean"], "argument --poolings: invalid choice: 'Mean'"),
        (["--dimensions", "-1"], "argument --dimensions"),
        (["--alpha", "nan"], "argument --alpha: 'nan' is not allowed"),
        (["--score-normalization", "all"], "invalid choice: 'all'"),
    ],
)
def test_mistakes_are_named(
    words: list[str], named: str, arguments: list[Any], run_tool: RunTool, tmp_path: Path
) -> None:
    finished = run_tool("analyze_embeddings", *arguments, "--output", tmp_path / "out", *words, cwd=tmp_path)
    assert named in finished.error and finished.error.startswith("analyze_embeddings: error: ")


def test_one_process_at_a_time(arguments: list[Any], run_tool: RunTool, start_tool: RunTool, tmp_path: Path) -> None:
    first = start_tool("analyze_embeddings", *arguments, "--output", tmp_path)
    first.wait_until(lambda: list_stored(tmp_path).total() > 0)
    os.kill(first.pid, signal.SIGSTOP)
    second = run_tool("analyze_embeddings", *arguments, "--output", tmp_path)
    os.kill(first.pid, signal.SIGCONT)
    assert "another analysis works in" in second.messages[-1] and second.code == 2
    assert first.wait().json["models"]["classification"]["photos"] == NUM_QUERIES + NUM_PHOTOS + NUM_FIT


def test_no_data_set_and_help(arguments: list[Any], run_tool: RunTool, tmp_path: Path) -> None:
    without = [word for word in arguments if not str(word).startswith(("--splices", "set="))]
    finished = run_tool("analyze_embeddings", *without, "--output", tmp_path / "out")
    assert "no data set is named; allowed: --splices NAME=JSON and --datasets NAME" in finished.error
    text = " ".join(run_tool("analyze_embeddings", "--help").stdout.split())
    for words in ("examples:", "percent", "(default: 10000)", "0: not whitened", "--query-expansion"):
        assert words in text
