"""The web app as a process of its own, on an index of a few real photos; what comes and goes with it can be seen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from PIL import Image

PHOTO_NAMES = ("astronaut", "brick", "chelsea", "coffee", "coins", "motorcycle_left")
PHOTO_SIDE = 256
MAX_UPLOAD_MB = 2
MAX_MEGAPIXELS = 4
START_SECONDS = 120
# Half of the network and few regions: what is searched with is not what these tests are about.
TINY_OPTS = [
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.OESIR.REGIONS.GRID_LEVELS", "[1, 2]"),
    *("MODEL.OESIR.EMBEDDING.WHITENING_DIM", "0"),
    *("MODEL.OESIR.EMBEDDING.WHITENING", ""),
    *("MODEL.OESIR.TEACHER.LAYER", "conv4_6"),
]


@dataclass(frozen=True)
class RunningApp:
    """An app that answers.

    Attributes:
        url: of its page.
        pid: of its process.
        uploads: the only folder that it may write uploads to, found under ``temporary``.
        temporary: its TMPDIR.
        added: the folder of photos that users add.
        index: its index.
    """

    url: str
    pid: int
    temporary: Path
    added: Path
    index: Path

    def list_uploads(self) -> list[Path]:
        """Every file under its folder for temporary files."""
        return [path for path in self.temporary.rglob("*") if not path.is_dir()]

    def find_worker(self) -> int:
        """The process that holds the model: the child that is not multiprocessing's resource tracker."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        (worker,) = (pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())
        return int(worker)

    def count_descriptors(self) -> int:
        """Files and sockets that the app and its worker have open."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in (self.pid, self.find_worker()))

    def measure_memory(self) -> int:
        """Bytes of memory that the app and its worker hold."""
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in (self.pid, self.find_worker())]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photos that come with scikit-image, shrunken."""
    import skimage

    folder = tmp_path_factory.mktemp("photos")
    for name in PHOTO_NAMES:
        with Image.open(Path(skimage.__file__).parent / "data" / f"{name}.png") as image:
            shrunken = image.convert("RGB")
        shrunken.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
        shrunken.save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def index(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of these photos. Tests do not change it."""
    from oesir_d2.data import list_images
    from oesir_d2.engine.config_loading import load_config
    from oesir_d2.engine.indexing import build_index

    path = tmp_path_factory.mktemp("web") / "index"
    build_index(load_config("oesir_lite0_grid.yaml", TINY_OPTS), list_images(photos), path)
    return path


@pytest.fixture(scope="session")
def start_app() -> Callable[..., AbstractContextManager[RunningApp]]:
    """``start_app(index, folder, *arguments)`` starts an app, and ends it at the end of its ``with`` block."""
    return _start_app


@contextmanager
def _start_app(index: Path, folder: Path, *arguments: str) -> Iterator[RunningApp]:
    """Start the app as a user does; at the end it is asked to end, and must leave nothing behind."""
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    environment = os.environ | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "oesir_d2.web", "--index", str(index), "--port", "0", *arguments]
    with open(folder / "stderr", "wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, (folder / "stderr").read_text()
        _wait_until_it_answers(url)
        yield RunningApp(url, process.pid, temporary, folder / "added", index)
        process.send_signal(signal.SIGTERM)
        assert process.wait(START_SECONDS) == 143
        assert list(temporary.iterdir()) == []
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def _wait_until_it_answers(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            httpx.get(url + "api/status").raise_for_status()
            return
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@pytest.fixture(scope="session")
def app(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """An app with small limits, shared by the tests that leave it as it is."""
    limits = ("--max-upload-mb", str(MAX_UPLOAD_MB), "--max-megapixels", str(MAX_MEGAPIXELS), "--max-waiting", "64")
    with _start_app(index, tmp_path_factory.mktemp("app"), *limits) as running:
        yield running


@pytest.fixture
def post(app: RunningApp) -> Callable[..., httpx.Response]:
    """``post(route, content, name, **fields)`` sends a photo to a route of the shared app."""

    def send(route: str, content: bytes, name: str = "photo.png", **fields: str) -> httpx.Response:
        files = {"file": (name, content, "image/png")}
        return httpx.post(app.url + "api/" + route, files=files, data=fields, timeout=120)

    return send
