"""The command lines as processes, on real photos: how they are started, the photos, and an index of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SERVED_TOOLS = (
    "build_index",
    "search",
    "fit_whitening",
    "evaluate_splices",
    "make_splices",
    "demo",
    "train_net",
    "index",
)
TIMEOUT = 120
# Photos that lie inside the wheel of scikit-image, all different.
PHOTO_NAMES = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "ihc", "moon", "motorcycle_left", "page")
PHOTO_SIDE = 192
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}


@dataclass(frozen=True)
class Finished:
    """How a process ended: its exit code, negative for a signal, and what it wrote."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The last line of stdout."""
        assert self.code == 0, self.stderr
        return json.loads(self.stdout.splitlines()[-1])

    @property
    def messages(self) -> list[str]:
        """The lines of stderr that are not progress bars."""
        lines = re.split(r"[\r\n]+", self.stderr)
        return [line for line in lines if line.strip() and not re.search(r"\d+%\|.*\d+/\d+", line)]

    @property
    def error(self) -> str:
        """The one line about a user's mistake."""
        assert self.code == 2, (self.code, self.stderr)
        (message,) = self.messages
        return message


class RunningTool:
    """A tool's process that was started."""

    def __init__(self, ask: Callable[..., Any], pid: int, stdout: Path, stderr: Path) -> None:
        self._ask, self.pid, self._paths = ask, pid, (stdout, stderr)
        self._finished: Finished | None = None

    def poll(self) -> Finished | None:
        """How it ended, or None while it runs."""
        if self._finished is None:
            code = self._ask(wait=self.pid)["exit_code"]
            if code is not None:
                texts = (path.read_text(encoding="utf-8") if path.is_file() else "" for path in self._paths)
                self._finished = Finished(code, *texts)
        return self._finished

    def wait(self) -> Finished:
        deadline = time.monotonic() + TIMEOUT
        while (finished := self.poll()) is None:
            assert time.monotonic() < deadline, f"still running: {self._paths[1].read_text()}"
            time.sleep(0.01)
        return finished

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until something has happened that the process is to do before it ends."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert self.poll() is None, f"ended before: {self.poll()}"
            assert time.monotonic() < deadline, f"still waiting: {self._paths[1].read_text()}"
            time.sleep(0.002)


StartTool = Callable[..., RunningTool]
RunTool = Callable[..., Finished]


@pytest.fixture(scope="session")
def start_tool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartTool]:
    """``start_tool("search", "--index", …, cwd=…)`` starts a tool as a process, outside of the repository."""
    outputs = tmp_path_factory.mktemp("outputs")
    paths = [str(TOOLS / f"{name}.py") for name in SERVED_TOOLS]
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("tool_server.py")), *paths],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=outputs,
        env=ENVIRONMENT,
        text=True,
    )
    assert json.loads(server.stdout.readline()) == "ready"
    started = 0

    def ask(**request: Any) -> Any:
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    def start(
        tool: str,
        *argv: str | Path,
        cwd: Path = outputs,
        stdout: Path | None = None,
        file_size_limit: int | None = None,
    ) -> RunningTool:
        nonlocal started
        started += 1
        stdout, stderr = stdout or outputs / f"{started}.out", outputs / f"{started}.err"
        answer = ask(
            tool=str(TOOLS / f"{tool}.py"),
            argv=[str(word) for word in argv],
            cwd=str(cwd),
            stdout=str(stdout),
            stderr=str(stderr),
            file_size_limit=file_size_limit,
        )
        return RunningTool(ask, answer["pid"], stdout, stderr)

    yield start
    server.stdin.close()
    server.wait(TIMEOUT)


@pytest.fixture(scope="session")
def run_tool(start_tool: StartTool) -> RunTool:
    """``run_tool("search", "--index", …, cwd=…)`` runs a tool to its end."""
    return lambda *arguments, **options: start_tool(*arguments, **options).wait()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ten small photos; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    for name in PHOTO_NAMES:
        with files("skimage").joinpath(f"data/{name}.png").open("rb") as file:
            photo = Image.open(file).convert("RGB")
        photo.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
        photo.save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def index(photos: Path, run_tool: RunTool) -> Path:
    """An index of these photos in three segments; tests that change it work on a copy."""
    path = photos.parent / "index"
    summary = run_tool("build_index", "--images", photos, "--output", path, "INDEX.SEGMENT_IMAGES", "4").json
    assert (summary["images"], summary["embedded"], summary["skipped"]) == (len(PHOTO_NAMES), len(PHOTO_NAMES), 0)
    return path
