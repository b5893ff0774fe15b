"""A folder as the world has it: a photo that can be read is indexed, every other file is skipped with its reason."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oesir_d2.index import EmbeddingIndex

from .conftest import Finished, RunTool

NOT_UTF8 = os.fsdecode(b"caf\xe9.png")


@dataclass(frozen=True)
class TroubledFolder:
    """A folder with the files that must be readable, by name with their size, and the reasons for the others."""

    path: Path
    readable: dict[str, tuple[int, int]]
    unreadable: dict[str, str]


def make_bomb(side: int) -> bytes:
    """A sound PNG file of a few hundred kilobytes that unpacks to side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    # One bit a pixel.
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    pixels = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> TroubledFolder:
    folder = tmp_path_factory.mktemp("troubled") / "photos & more"
    folder.mkdir()
    photo = Image.open(photos / "coffee.png")  # 192 x 128
    gray = photo.convert("L")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    readable = {}

    def save(name: str, image: Image.Image, **options: object) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        image.save(folder / name, **options)
        readable[name] = image.size

    save("plain.png", photo)
    save("cmyk.jpg", photo.convert("CMYK"))
    save("16 bit.png", deep)
    save("16 bit.tif", deep)
    save("palette.png", photo.quantize(16))
    save("palette transparent.gif", photo.quantize(16), transparency=3)
    save("alpha.webp", photo.convert("RGBA"))
    save("bits.png", photo.convert("1"))
    save("animated.gif", photo.quantize(16), save_all=True, append_images=[gray, photo.quantize(8)])
    save("one pixel.png", photo.crop((0, 0, 1, 1)))
    save("line.png", photo.resize((30_000, 2)))
    save("straße/猫 – noël.jpg", photo)
    save("percent%20{0}\n.png", photo)
    save(NOT_UTF8, photo)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    save("turned.jpg", photo, exif=exif)
    readable["turned.jpg"] = photo.size[::-1]

    whole = io.BytesIO()
    photo.save(whole, "JPEG")
    files = {
        "truncated.jpg": (whole.getvalue()[: len(whole.getvalue()) // 2], "truncated"),
        "empty.png": (b"", "the file is empty"),
        "zeros.jpg": (bytes(5000), "not an image"),
        "text.jpg": (b"this is no photo\n", "not an image"),
        "bomb.png": (make_bomb(30_000), "decompression bomb: "),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    unreadable = {name: reason for name, (_, reason) in files.items()}
    (folder / "folder.jpg").mkdir()
    (folder / "link to nothing.jpg").symlink_to("nothing")
    unreadable["link to nothing.jpg"] = "the file does not exist"
    (folder / "link to a folder.png").symlink_to("folder.jpg")
    os.mkfifo(folder / "pipe.jpg")
    unreadable["pipe.jpg"] = "it is not a regular file"
    if os.geteuid() != 0:
        (folder / "secret.jpg").write_bytes(whole.getvalue())
        (folder / "secret.jpg").chmod(0)
        unreadable["secret.jpg"] = "permission denied"
    (folder / "notes.txt").write_text("not even an image by its name")
    (folder / ".hidden.jpg").write_bytes(b"nor is this")
    return TroubledFolder(folder, readable, unreadable)


@pytest.fixture(scope="module")
def built(troubled: TroubledFolder, run_tool: RunTool) -> tuple[Finished, Path]:
    """The build of an index of that folder, and the index."""
    path = troubled.path.parent / "index"
    return run_tool("build_index", "--images", troubled.path, "--output", path), path


def read_skipped(index: Path) -> dict[str, str]:
    entries = [json.loads(line) for line in (index / "skipped.jsonl").read_text(encoding="ascii").splitlines()]
    return {Path(entry["path"]).name: entry["reason"] for entry in entries}


def test_what_can_be_read_is_indexed(troubled: TroubledFolder, built: tuple[Finished, Path]) -> None:
    finished, path = built
    records = {os.path.relpath(record.path, troubled.path): record for record in EmbeddingIndex.open(path).images}

    assert {name: (record.width, record.height) for name, record in records.items()} == troubled.readable
    assert finished.json["images"] == len(troubled.readable)
    assert finished.messages == []
    # An id is valid text; that of a name that is not says its bytes.
    assert records["straße/猫 – noël.jpg"].image_id == "straße/猫 – noël.jpg"
    assert records[NOT_UTF8].image_id == r"caf\xe9.png"


def test_what_cannot_be_read_is_listed_with_the_reason(troubled: TroubledFolder, built: tuple[Finished, Path]) -> None:
    finished, path = built
    skipped = read_skipped(path)

    assert skipped.keys() == troubled.unreadable.keys()
    assert {name: reason for name, reason in skipped.items() if troubled.unreadable[name] not in reason} == {}
    assert finished.json["skipped"] == len(skipped)


def test_boxes_lie_in_their_photos(built: tuple[Finished, Path]) -> None:
    index = EmbeddingIndex.open(built[1])
    for number, record in enumerate(index.images):
        boxes = index.embeddings_of(number).boxes
        assert len(boxes) > 0, record.image_id
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (record.width, record.height)).all(), record.image_id
        assert (boxes[:, 2:] > boxes[:, :2]).all(), record.image_id
        assert boxes[-1].tolist() == [0, 0, record.width, record.height], record.image_id


def test_every_kind_of_photo_finds_itself_first(
    troubled: TroubledFolder, built: tuple[Finished, Path], run_tool: RunTool
) -> None:
    names = sorted(troubled.readable)
    words = ("--top-k", "20", "RETRIEVAL.EXPLAIN_AWAY", "0")
    finished = run_tool("search", "--index", built[1], "--query", *names, *words, cwd=troubled.path)

    assert finished.code == 0, finished.stderr
    found = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [answer["query"] for answer in found] == names
    for answer in found:
        # Some of the files show the same pixels.
        first = [result["path"] for result in answer["results"] if result["score"] == answer["results"][0]["score"]]
        assert str(troubled.path / answer["query"]) in first, answer["query"]


def test_mended_files_are_indexed_by_the_next_run(troubled: TroubledFolder, photos: Path, run_tool: RunTool) -> None:
    images, index = troubled.path.parent / "few", troubled.path.parent / "few.index"
    images.mkdir()
    for name in ("bad.png", "worse.png"):
        (images / name).write_bytes(b"")
    first = run_tool("build_index", "--images", images, "--output", index).json
    assert (first["images"], first["embedded"], first["skipped"]) == (0, 0, 2)
    (images / "bad.png").write_bytes((photos / "moon.png").read_bytes())
    (images / "worse.png").unlink()
    second = run_tool("build_index", "--images", images, "--output", index).json
    assert (second["images"], second["embedded"], second["skipped"]) == (1, 1, 0)
    assert read_skipped(index) == {}


def test_strict_stops_at_the_first_one(troubled: TroubledFolder, photos: Path, run_tool: RunTool) -> None:
    listed = [photos / "coins.png", troubled.path / "text.jpg", photos / "page.png"]
    (troubled.path.parent / "list.txt").write_text("\n".join(map(str, listed)))
    index = troubled.path.parent / "strict"
    finished = run_tool("build_index", "--images", troubled.path.parent / "list.txt", "--output", index, "--strict")

    assert finished.error.startswith(f"build_index: error: cannot read the image {troubled.path / 'text.jpg'}: not an")
    assert finished.stdout == ""
    # What was embedded before is kept.
    assert [record.path for record in EmbeddingIndex.open(index).images] == [str(photos / "coins.png")]
