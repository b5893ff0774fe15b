"""Photos that users add: kept under safe names, found at once, and a mistake of the user's told in one line."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from oesir_d2.index import EmbeddingIndex
from oesir_d2.index.lock import WriterLock
from oesir_d2.web.__main__ import listen, main
from oesir_d2.web.added_photos import open_copies
from oesir_d2.web.scratch_folder import ScratchFolder
from oesir_d2.web.uploads import UploadStore, make_label


@pytest.fixture(scope="module")
def growing(index: Path, start_app: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An app that may add photos to a copy of the index, and does not tell paths."""
    folder = tmp_path_factory.mktemp("growing")
    shutil.copytree(index, folder / "index")
    with start_app(folder / "index", folder, "--allow-add", str(folder / "added"), "--hide-paths") as running:
        yield running


def make_files(folder: Path, rng: np.random.Generator, names: list[str]) -> list[tuple[str, tuple[str, bytes]]]:
    files = []
    for name in names:
        path = folder / "photo.jpg"
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).resize((160, 120)).save(path)
        files.append(("file", (name, path.read_bytes())))
    return files


def test_added_photos_are_found_at_once(growing: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    before = httpx.get(growing.url + "api/status").json()["images"]
    files = make_files(tmp_path, rng, ["../../evil.png", "/etc/passwd"])
    bad = [("file", ("bad.jpg", b"no photo"))]
    answer = httpx.post(growing.url + "api/photos", files=[*files, *bad, files[0]], timeout=120).json()
    assert answer["images"] == before + 2 and len(answer["added"]) == 2
    assert answer["refused"] == [
        {"file": "bad.jpg", "error": "bad.jpg cannot be read: not an image of a known format, or its header is damaged"}
    ]
    # By their content they are JPEG files, whatever they were called.
    kept = list(growing.added.iterdir())
    assert sorted(f"added/{path.name}" for path in kept) == sorted(answer["added"])
    assert all(path.suffix == ".jpg" and path.stem.isalnum() for path in kept)
    for _, (_, content) in files:
        found = httpx.post(growing.url + "api/search", files={"file": ("q", content)}, timeout=120).json()["results"][0]
        assert found["image_id"] in answer["added"] and found["score"] == pytest.approx(1, abs=1e-4)
        assert found["path"] == "" and (growing.added / Path(found["image_id"]).name).read_bytes() == content
    assert growing.list_uploads() == []
    # Once more adds nothing.
    again = httpx.post(growing.url + "api/photos", files=files, timeout=120).json()
    assert again["images"] == before + 2
    assert len(EmbeddingIndex.open(growing.index).images) == before + 2


def test_index_that_another_process_writes_refuses_and_nothing_is_kept(
    growing: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    kept = set(growing.added.iterdir()) if growing.added.exists() else set()
    lock = WriterLock(growing.index)
    try:
        files = make_files(tmp_path, rng, ["a.png"])
        answer = httpx.post(growing.url + "api/photos", files=files, timeout=120)
    finally:
        lock.release()
    assert answer.status_code == 409 and "another process writes the index" in answer.json()["error"]
    assert str(growing.index) not in answer.text
    assert set(growing.added.iterdir()) == kept


def test_copies_of_a_process_that_was_killed_are_deleted_by_the_next(
    growing: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    """As after a time-out in the middle of adding: three photos are copied, one of them is in the index by then."""
    photos = []
    for number, (_, (_, content)) in enumerate(make_files(tmp_path, rng, ["a", "b", "c"])):
        photos.append(tmp_path / f"{number}.jpg")
        photos[-1].write_bytes(content)
    folder = tmp_path / "added"
    script = (
        "import os, signal, sys; from pathlib import Path; from oesir_d2.web.added_photos import open_copies\n"
        "with open_copies(Path(sys.argv[1]), Path(sys.argv[2]), lambda _: set()) as keep:\n"
        "    for path in sys.argv[3:]: print(keep(Path(path)).image_id, flush=True)\n"
        "    (Path(sys.argv[1]) / '.tmp-1-half').write_bytes(b'half a photo')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", script, str(folder), str(growing.index), *map(str, photos)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    ids = killed.stdout.split()
    assert len(ids) == 3 and len(list(folder.glob("*.jpg"))) == 3
    mine = folder / "mine.jpg"
    mine.write_bytes(b"nobody's business")
    with open_copies(folder, growing.index, lambda _: {ids[0]}) as keep:
        assert {path.name for path in folder.glob("[!.]*")} == {Path(ids[0]).name, "mine.jpg"}
        assert list(folder.glob(".tmp-*")) == []
        keep(photos[1])
        with pytest.raises(BlockingIOError), open_copies(folder, growing.index, lambda _: set()):
            pass
    assert {path.name for path in folder.iterdir()} == {Path(ids[0]).name, "mine.jpg"}


def test_index_is_asked_for_new_copies_only(tmp_path: Path, photos: Path) -> None:
    asked: list[Collection[str]] = []

    def find_indexed(ids: Collection[str]) -> Collection[str]:
        asked.append(list(ids))
        return ids

    ids = []
    for name in ("coffee.png", "coins.png", "coffee.png"):
        with open_copies(tmp_path / "added", tmp_path / "index", find_indexed) as keep:
            ids.append(keep(photos / name).image_id)
    assert asked == [[ids[0]], [ids[1]]] and ids[2] == ids[0]
    assert sorted(f"added/{path.name}" for path in (tmp_path / "added").iterdir()) == sorted(set(ids))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--index", "nowhere"], "index nowhere does not exist"),
        (["--index", "."], "is not an index"),
        ([], "--index"),
        (["--index", "nowhere", "--port", "70000"], "port 70000 is not allowed"),
        (["--index", "nowhere", "--max-megapixels", "179"], "max_megapixels 179 is not allowed, expected 1 to 178"),
        (["--index", "nowhere", "--timeout", "-1"], "'-1' is not allowed"),
        (["--index", "nowhere", "--host", "no.such.host.invalid"], "is not an address of this machine"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--host" in arguments:
        monkeypatch.setattr("socket.getaddrinfo", _know_no_host)
    with pytest.raises((ValueError, OSError)) as error:
        main([*arguments, *([] if "--port" in arguments else ["--port", "0"])])
    assert words in str(error.value)
    assert list(tmp_path.iterdir()) == []


def _know_no_host(*_: Any, **__: Any) -> Any:
    import socket

    raise socket.gaierror(-2, "Name or service not known")


def test_port_in_use_is_told(growing: Any) -> None:
    port = growing.url.rstrip("/").rsplit(":", 1)[1]
    with pytest.raises(OSError, match="Address already in use") as error:
        listen("127.0.0.1", int(port))
    assert error.value.filename == f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("a.png", "a.png"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\win.ini", "win.ini"),
        ("../..", "photo"),
        (None, "photo"),
        ("", "photo"),
        ("a\0b\r\nc\u202e.png", "abc.png"),
        ("x" * 300 + ".jpeg", "x" * 74 + "….jpeg"),
    ],
)
def test_labels_are_harmless(name: str | None, label: str) -> None:
    assert make_label(name) == label


def test_uploads_that_nobody_takes_go(tmp_path: Path) -> None:
    store = UploadStore(tmp_path, max_kept=2, max_age=1000)
    uploads = [store.save(io.BytesIO(b"%d" % number), "a") for number in range(3)]
    ids = [store.keep(upload) for upload in uploads]
    assert store.take(ids[0]) is None and not uploads[0].path.exists()
    taken = store.take(ids[1])
    assert taken is not None and taken.path.read_bytes() == b"1" and store.take(ids[1]) is None
    store.discard(uploads[2])
    assert uploads[2].path.exists(), "it is kept"
    store.discard(taken)
    assert not taken.path.exists()
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_uploads_go_in_time_though_nobody_asks_for_anything(tmp_path: Path) -> None:
    store = UploadStore(tmp_path, max_kept=2, max_age=0.2)
    uploads = [store.save(io.BytesIO(b"old"), "a") for _ in range(2)]
    ids = [store.keep(upload) for upload in uploads]
    deadline = time.monotonic() + 60
    while any(upload.path.exists() for upload in uploads):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [store.take(upload_id) for upload_id in ids] == [None, None]
    store.close()


def test_folder_of_an_app_that_was_killed_is_deleted_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import os, signal, sys; from oesir_d2.web.scratch_folder import ScratchFolder\n"
        "folder = ScratchFolder(); (folder.path / 'upload').write_bytes(b'a photo'); print(folder.path, flush=True)\n"
        "if sys.argv[1] == 'die': os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.stdin.read(); folder.delete()"
    )

    def start(what: str) -> tuple[subprocess.Popen[str], Path]:
        command = [sys.executable, "-c", script, what]
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        return process, Path(process.stdout.readline().strip())

    living, its_folder = start("live")
    killed, left_behind = start("die")
    assert killed.wait(120) == -signal.SIGKILL and left_behind.parent == tmp_path
    (tmp_path / "oesir_d2-web-link").symlink_to(its_folder)
    (tmp_path / "others").mkdir()
    assert (left_behind / "upload").exists()

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = ScratchFolder()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {mine.path.name, its_folder.name, "oesir_d2-web-link", "others"}
    assert (its_folder / "upload").exists()
    mine.delete()
    living.communicate(timeout=120)
    assert {path.name for path in tmp_path.iterdir()} == {"oesir_d2-web-link", "others"}
