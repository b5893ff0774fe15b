"""PS-Battles: its lists, broken lines in them, the sets made of it, and fetching it from a server on this machine."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from oesir_d2.data.datasets.psbattles import (
    ORIGINALS,
    PHOTOSHOPS,
    PSBattlesPhoto,
    load_psbattles,
    read_photo_list,
    register_pir,
)
from oesir_d2.data.psbattles_download import DownloadOptions, download_photos

OPTIONS = DownloadOptions(retries=2, timeout=5, pause=0, workers=2)
REST = "1000\t10\tauthor\tlink\t1500000000\t64\t48"
REST_HEADER = "filesize\tscore\tauthor\tlink\ttimestamp\twidth\theight"
SHA = "0" * 64


def write_lists(folder: Path, originals: list[str], photoshops: list[str]) -> None:
    (folder / ORIGINALS).write_text("\n".join([f"id\turl\tend\thash\t{REST_HEADER}", *originals]) + "\n")
    (folder / PHOTOSHOPS).write_text("\n".join([f"id\toriginal\turl\tend\thash\t{REST_HEADER}", *photoshops]) + "\n")


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"photo")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two originals, of which one has a photoshop on disk, one has only a dead link, and broken lines."""
    write_lists(
        tmp_path,
        [
            f"aa\thttp://x/aa.jpg\tjpg\t{SHA}\t{REST}",
            f'bb\thttp://x/bb.png\tpng\t{SHA}\t10\t10\t"quoted\tlink\t1\t2\t3',
            "no tabs here",
            f"../evil\thttp://x/e.jpg\tjpg\t{SHA}\t{REST}",
            f"aa\thttp://x/again.jpg\tjpg\t{SHA}\t{REST}",
            f"cc\thttp://x/cc.jpg\tjpg\tnohash\t{REST}",
        ],
        [
            f"p1\taa\thttp://x/p1.jpg\tjpg\t{SHA}\t{REST}",
            f"p2\tbb\thttp://x/p2.jpg\tjpg\t{SHA}\t{REST}",
            f"p3\tgone\thttp://x/p3.jpg\tjpg\t{SHA}\t{REST}",
        ],
    )
    for path in ("originals/aa.jpg", "originals/bb.png", "photoshops/aa/p1.jpg", "photoshops/gone/p3.jpg"):
        touch(tmp_path / path)
    return tmp_path


def test_broken_lines_are_counted_and_named(tree: Path) -> None:
    photos, broken = read_photo_list(tree / ORIGINALS)
    assert [photo.path for photo in photos] == ["originals/aa.jpg", "originals/bb.png"]
    assert broken.count == 4
    assert broken.first[0] == "line 4: it has 1 columns, expected 11"
    assert "'../evil'" in broken.first[1] and "'aa' was named before" in broken.first[2]


def test_a_part_of_the_photos_is_a_set(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = load_psbattles(tree, lambda original: {"positive": [original]})
    assert [(item["role"], item["image_id"]) for item in items] == [
        ("query", "photoshops/aa/p1.jpg"),
        ("database", "originals/aa.jpg"),
        ("database", "originals/bb.png"),
    ]
    assert items[0]["ground_truth"] == {"positive": ["originals/aa.jpg"]}
    text = caplog.text
    assert "4 lines left out" in text and "1 of 3 photos are not on disk: photoshops/bb/p2.jpg" in text
    assert "1 photoshops left out: their originals are not on disk" in text


def test_what_is_missing_is_named(tmp_path: Path, tree: Path) -> None:
    (tree / PHOTOSHOPS).unlink()
    with pytest.raises(FileNotFoundError, match=r"DATASETS.OESIR.PIR: '.*photoshops.tsv' of 'pir' is no file"):
        register_pir("pir", str(tree))
    (tree / PHOTOSHOPS).write_text("id\turl\n")
    with pytest.raises(ValueError, match="the first line lacks the column 'original'"):
        read_photo_list(tree / PHOTOSHOPS)


class Handler(BaseHTTPRequestHandler):
    """Serves what the paths of a test ask for; counts how often."""

    asked: Counter[str]

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        content = f"photo {self.path}".encode()
        if self.path == "/gone.jpg":
            self.send_error(404)
        elif self.path == "/busy.jpg" and self.asked[self.path] < 3:
            self.send_error(503)
        elif self.path == "/short.jpg" and self.asked[self.path] < 2:
            # The line breaks in the middle.
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:5])
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.asked = Counter()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def make_photo_of(url: str, name: str, content: bytes | None = None) -> PSBattlesPhoto:
    sha256 = hashlib.sha256(f"photo /{name}.jpg".encode() if content is None else content).hexdigest()
    return PSBattlesPhoto(name, None, f"{url}/{name}.jpg", sha256, f"originals/{name}.jpg")


def test_photos_are_fetched_with_patience_and_checked(server: str, tmp_path: Path) -> None:
    names = ("fine", "busy", "short", "gone")
    photos = [make_photo_of(server, name) for name in names] + [make_photo_of(server, "other", b"what it was once")]
    photos.append(PSBattlesPhoto("file", None, f"file://{__file__}", SHA, "originals/file.jpg"))
    photos.append(PSBattlesPhoto("nowhere", None, "http://127.0.0.1:9/x.jpg", SHA, "originals/nowhere.jpg"))

    coverage = download_photos(photos, tmp_path, OPTIONS)

    assert (coverage.total, coverage.fetched, coverage.kept) == (7, 3, 0)
    assert {path.name for path in (tmp_path / "originals").iterdir()} == {"fine.jpg", "busy.jpg", "short.jpg"}
    assert (tmp_path / "originals/short.jpg").read_bytes() == b"photo /short.jpg"
    assert Handler.asked == {"/fine.jpg": 1, "/busy.jpg": 3, "/short.jpg": 2, "/gone.jpg": 1, "/other.jpg": 1}
    assert coverage.to_dict()["missing"] == {"HTTP 404": 1, "another file": 1, "no web address": 1, "no answer": 1}


def test_a_second_run_fetches_only_what_is_missing_or_bad(server: str, tmp_path: Path) -> None:
    photos = [make_photo_of(server, name) for name in ("a", "b", "c")]
    download_photos(photos[:2], tmp_path, OPTIONS)
    (tmp_path / photos[1].path).write_bytes(b"cut")
    # As a run that was killed leaves it.
    (tmp_path / "originals" / ".tmp-1-c.jpg").write_bytes(b"half")

    shown: list[str] = []
    coverage = download_photos(photos, tmp_path, OPTIONS, shown.append)

    assert (coverage.kept, coverage.fetched, coverage.removed) == (1, 2, 1)
    assert Handler.asked == {"/a.jpg": 1, "/b.jpg": 2, "/c.jpg": 1}
    assert (tmp_path / photos[1].path).read_bytes() == b"photo /b.jpg"
    assert len(list((tmp_path / "originals").iterdir())) == 3
    assert sorted(shown) == sorted(photo.path for photo in photos)


def test_a_bad_file_whose_address_is_dead_is_removed(server: str, tmp_path: Path) -> None:
    photo = make_photo_of(server, "gone")
    touch(tmp_path / photo.path)
    coverage = download_photos([photo], tmp_path, OPTIONS)
    assert coverage.removed == 1 and not (tmp_path / photo.path).exists()
    assert json.loads(json.dumps(coverage.to_dict()))["percent"] == 0


@pytest.mark.parametrize(
    "url", ["http://[half/a.jpg", "http://127.0.0.1:port/a.jpg", "ftp://127.0.0.1/a.jpg", "", "a b"]
)
def test_an_address_that_is_none_is_one_photo_s_failure(url: str, server: str, tmp_path: Path) -> None:
    photos = [PSBattlesPhoto("bad", None, url, SHA, "originals/bad.jpg"), make_photo_of(server, "fine")]
    coverage = download_photos(photos, tmp_path, OPTIONS)
    assert coverage.fetched == 1
    assert coverage.to_dict()["missing"] == {"no web address": 1}


def test_an_address_is_quoted(server: str, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(b"photo /a%20%C3%BC.jpg?1").hexdigest()
    photo = PSBattlesPhoto("a", None, f"{server}/a ü.jpg?1", sha256, "originals/a.jpg")
    assert download_photos([photo], tmp_path, OPTIONS).fetched == 1


class BrokenLine:
    """An answer whose line breaks with an error that is neither a timeout nor a reset, as TLS has them."""

    headers: ClassVar[dict[str, str]] = {}

    def __enter__(self) -> BrokenLine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, size: int) -> bytes:
        raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF occurred in violation of protocol")


def test_a_line_that_breaks_is_one_photo_s_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: BrokenLine())
    photo = make_photo_of("http://x", "a")
    coverage = download_photos([photo], tmp_path, OPTIONS)
    assert coverage.to_dict()["missing"] == {"no answer": 1}
    assert "http://x/a.jpg: " in coverage.failures[photo.path] and "EOF occurred" in coverage.failures[photo.path]


def test_a_full_disk_ends_the_run_and_is_named(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*originals/\.tmp-.*a.jpg'"):
        download_photos([make_photo_of(server, "a")], tmp_path, OPTIONS)
    assert not list((tmp_path / "originals").iterdir())
