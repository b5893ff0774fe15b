"""One index built by several processes, on one machine and on two: the same as by one, whichever of them is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from oesir_d2.index import EmbeddingIndex, read_skipped

from .conftest import PHOTO_NAMES, RunningTool, RunTool, StartTool

CONFIG = ("--config-file", "oesir_lite0_grid.yaml", "MODEL.DEVICE", "cpu", "INDEX.SEGMENT_IMAGES", "2")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """Twenty photos and two files that are none."""
    folder = tmp_path_factory.mktemp("processes") / "photos"
    shutil.copytree(photos, folder)
    for name in PHOTO_NAMES:
        ImageOps.mirror(Image.open(photos / f"{name}.png")).save(folder / f"{name} mirrored.png")
    for name in ("broken.jpg", "broken too.jpg"):
        (folder / name).write_bytes(b"no photo")
    return folder


@pytest.fixture(scope="module")
def build(collection: Path, start_tool: StartTool) -> Callable[..., RunningTool]:
    def start(path: Path, *arguments: str) -> RunningTool:
        return start_tool("build_index", "--images", collection, "--output", path, *CONFIG, *arguments)

    return start


@pytest.fixture(scope="module")
def whole(collection: Path, build: Callable[..., RunningTool]) -> Path:
    """The index that one process builds."""
    path = collection.parent / "whole"
    assert build(path).wait().json["images"] == 20
    return path


@pytest.fixture(scope="module")
def search(collection: Path, run_tool: RunTool) -> Callable[[Path], str]:
    def run(path: Path) -> str:
        queries = [collection / name for name in ("coins.png", "chelsea mirrored.png", "page.png")]
        finished = run_tool("search", "--index", path, "--query", *queries, "--top-k", "20")
        assert finished.code == 0, finished.stderr
        return finished.stdout

    return run


def read_embeddings(path: Path) -> dict[str, np.ndarray]:
    index = EmbeddingIndex.open(path)
    index.verify()
    return {record.image_id: index.embeddings_of(number).vectors for number, record in enumerate(index.images)}


def assert_same_index(actual: Path, expected: Path, search: Callable[[Path], str]) -> None:
    vectors, wanted = read_embeddings(actual), read_embeddings(expected)
    assert set(vectors) == set(wanted)
    assert all(np.array_equal(vectors[image_id], wanted[image_id]) for image_id in wanted)
    assert sorted(entry.path for entry in read_skipped(actual)) == sorted(
        entry.path for entry in read_skipped(expected)
    )
    assert search(actual) == search(expected)
    assert not (actual / "ranks").exists()


def find_writer(share: Path) -> int:
    """The process that holds the lock of a share."""
    lock = str(share / ".lock")
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and any(os.readlink(fd) == lock for fd in (process / "fd").iterdir()):
                return int(process.name)
        except OSError:
            continue
    raise AssertionError(f"nobody writes {share}")


def count_images(path: Path) -> int:
    manifest = path / "manifest.json"
    return json.loads(manifest.read_text())["counts"]["images"] if manifest.exists() else 0


def test_two_machines_build_what_one_process_builds(
    build: Callable[..., RunningTool], whole: Path, search: Callable[[Path], str], tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    path = tmp_path / "index"
    machines = [build(path, "--num-machines", "2", "--machine-rank", str(rank), "--dist-url", url) for rank in range(2)]
    first, second = [machine.wait() for machine in machines]
    summary = first.json
    assert (summary["images"], summary["embedded"], summary["skipped"]) == (20, 20, 2)
    assert (second.code, second.stdout) == (0, ""), second.stderr
    assert_same_index(path, whole, search)


def test_share_of_a_killed_process_is_taken_up_by_the_next_run(
    build: Callable[..., RunningTool], whole: Path, search: Callable[[Path], str], tmp_path: Path
) -> None:
    path = tmp_path / "index"
    share = path / "ranks" / "0001"
    running = build(path, "--num-gpus", "2")
    running.wait_until(lambda: count_images(share) > 0)
    os.kill(find_writer(share), signal.SIGKILL)
    finished = running.wait()
    assert finished.error.startswith(
        "build_index: error: process 1 of 2 was killed by SIGKILL; what is finished is kept"
    )
    left = count_images(share)
    kept = count_images(path) + left
    assert left >= 2 and kept < 20
    # A search meanwhile finds what the main process has finished.
    if count_images(path):
        read_embeddings(path)

    summary = build(path, "--num-gpus", "2").wait().json
    assert (summary["images"], summary["embedded"], summary["skipped"]) == (20, 20 - kept, 2)
    assert_same_index(path, whole, search)


def test_one_process_takes_up_what_several_left(
    build: Callable[..., RunningTool], whole: Path, search: Callable[[Path], str], tmp_path: Path
) -> None:
    """A share is an index: here, of a photo that the index has in an older version and of one that it lacks."""
    path = tmp_path / "index"
    shutil.copytree(whole, path / "ranks" / "0001")
    (path / "ranks" / "0002").mkdir()  # of a process that was killed before it wrote anything
    shutil.copytree(whole, path / "ranks" / "0003")
    damaged = next((path / "ranks" / "0003").rglob("*vectors*"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    # An index of the same model that holds nothing yet.
    manifest = json.loads((whole / "manifest.json").read_text())
    finished = build(path).wait()
    assert finished.code == 2 and "neither an index nor an empty folder" in finished.error
    shutil.move(path / "ranks", tmp_path / "ranks")
    path.rmdir()
    (tmp_path / "none.txt").write_text("missing.png\n")
    assert build(path, "--images", str(tmp_path / "none.txt")).wait().json["images"] == 0
    shutil.move(tmp_path / "ranks", path / "ranks")

    finished = build(path).wait()
    assert (finished.json["images"], finished.json["embedded"]) == (manifest["counts"]["images"], 0)
    (warning,) = finished.messages
    assert "what another process has embedded is left out" in warning.lower()
    assert_same_index(path, whole, search)


def test_decoding_processes_end_with_a_killed_build(
    build: Callable[..., RunningTool], whole: Path, search: Callable[[Path], str], tmp_path: Path
) -> None:
    path = tmp_path / "index"
    running = build(path, "MODEL.OESIR.EXTRACTION.DECODE_WORKERS", "1")
    running.wait_until(lambda: count_images(path) > 0)
    started = find_descendants(running.pid)
    assert len(started) >= 2
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in started):
        assert time.monotonic() < deadline, "decoding processes are still there"
        time.sleep(0.02)
    assert build(path).wait().json["images"] == 20
    assert_same_index(path, whole, search)


def find_descendants(pid: int) -> list[int]:
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [pid for child in children for pid in find_descendants(child)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--num-gpus", "0"], "'0' is not allowed, expected a whole number of at least 1"),
        (["--num-machines", "2"], "--dist-url is 'auto'; allowed: 'tcp://HOST:PORT' of the first machine"),
        (["--dist-url", "somewhere"], "--dist-url is 'somewhere'; allowed: 'tcp://HOST:PORT'"),
        (["--machine-rank", "1"], "--machine-rank is 1; allowed with --num-machines 1: 0 to 0"),
        (["--num-gpus", "99", "MODEL.DEVICE", "cuda"], "--num-gpus is 99 and MODEL.DEVICE 'cuda', but torch finds"),
        # Found by the main one of the processes.
        (["--num-gpus", "2", "--strict"], "cannot read the image"),
    ],
)
def test_mistakes(build: Callable[..., RunningTool], arguments: list[str], told: str, tmp_path: Path) -> None:
    finished = build(tmp_path / "index", *arguments).wait()
    assert told in finished.error, finished.messages
