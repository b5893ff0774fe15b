"""Uploads that somebody sends who means harm, or has no luck: each a whole HTTP request but for its address."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

NAMES = (
    "../../../../etc/passwd",
    "..\\..\\..\\windows\\win.ini",
    "/etc/passwd",
    "C:\\boot.ini",
    "a" * 5000 + ".png",
    "\u202egnp.exe",
    "photo.png\r\nSet-Cookie: a=b",
    "photo.png%00.exe",
    "$(touch pwned).png",
    "'; DROP TABLE photos; --.png",
    "<img src=x onerror=alert(1)>.png",
    "",
    ".",
    "..",
    "CON",
    "photo.php",
    "\ud83d\ude00.png".encode("utf-16", "surrogatepass").decode("utf-16"),
)


@dataclass(frozen=True)
class HostileUpload:
    """Arguments of ``httpx.Client.post`` and what they are."""

    kind: str
    arguments: dict[str, Any] = field(default_factory=dict)


def make_hostile_uploads(count: int, rng: np.random.Generator, max_bytes: int) -> Iterator[HostileUpload]:
    """``count`` uploads, all kinds in turn, no two alike.

    Args:
        max_bytes: what the app takes; some are larger.
    """
    makers: list[Callable[[np.random.Generator], dict[str, Any]]] = [
        lambda rng: send(rng.bytes(int(rng.integers(1, 5000)))),
        lambda rng: send(truncate(encode(make_pixels(rng), "JPEG"), rng)),
        lambda rng: send(encode(make_pixels(rng)), str(rng.choice(NAMES))),
        lambda rng: send(make_bomb(int(rng.integers(20_000, 60_000)))),
        lambda rng: send(bytes(max_bytes + int(rng.integers(1, max_bytes)))),
        lambda rng: send(damage(encode(make_pixels(rng)), rng)),
        lambda rng: send(truncate(encode(make_pixels(rng), str(rng.choice(["GIF", "TIFF", "WEBP", "BMP"]))), rng)),
        lambda rng: send(make_lying_png(int(rng.integers(1000, 2**31 - 1)), int(rng.integers(1, 2**31 - 1)))),
        lambda rng: send(str(rng.choice(OTHER_FILES)).encode() * int(rng.integers(1, 50)), "photo.jpg"),
        lambda rng: send(encode(make_pixels(rng)), box=str(rng.choice(BOXES)), top_k=str(rng.choice(COUNTS))),
        lambda rng: send(b"", str(rng.choice(NAMES))),
        lambda rng: send(make_text_bomb(rng)),
        lambda rng: {"data": {"file": str(rng.choice(NAMES)), "box": str(rng.choice(BOXES))}},
        lambda rng: {"json": {"file": "/etc/passwd", "path": str(rng.choice(NAMES))}},
        lambda rng: {
            "content": rng.bytes(2000),
            "headers": {"content-type": f"multipart/form-data; boundary={'x' * int(rng.integers(1, 300))}"},
        },
        lambda rng: {"files": [("file", (f"{i}.png", rng.bytes(100))) for i in range(int(rng.integers(2, 30)))]},
        lambda rng: send(encode(make_pixels(rng)), **{f"f{i}": rng.bytes(3000).hex() for i in range(20)}),
        lambda rng: send(encode_frames(rng)),
        lambda rng: send(damage(encode(make_pixels(rng), "JPEG"), rng)),
        lambda rng: send(b"P6\n99999999 99999999\n255\n" + rng.bytes(100), "photo.ppm"),
    ]
    for number in range(count):
        maker = makers[number % len(makers)]
        yield HostileUpload(f"{number}: maker {number % len(makers)}", maker(rng))


OTHER_FILES = (
    "<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "<!DOCTYPE html><script>alert(1)</script>",
    "%PDF-1.7\n1 0 obj <</Type /Catalog>>",
    "%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file\n",
    "PK\x03\x04",
    "\x80\x04\x95cos\nsystem\n(S'true'\ntR.",
    "#!/bin/sh\nexit 1\n",
    "push graphic-context\nviewbox 0 0 640 480\nfill 'url(file:///etc/passwd)'\n",
)
BOXES = (
    "nan,nan,nan,nan",
    "0,0,inf,inf",
    "-1,-1,5,5",
    "5,5,1,1",
    "1,2,3",
    "1e400,0,1,1",
    "../,a,b,c",
    "0x1,0,9,9",
    "," * 500,
)
COUNTS = ("-1", "0", "1e9", "9" * 400, "all", "\u0665", "1;2", " ")


def send(content: bytes, name: str = "photo.png", **fields: str) -> dict[str, Any]:
    return {"files": {"file": (name, content, "image/png")}, "data": fields}


def make_pixels(rng: np.random.Generator) -> np.ndarray:
    height, width = rng.integers(8, 64, size=2)
    return rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8)


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def encode_frames(rng: np.random.Generator) -> bytes:
    """An animation; its first frame is a photo like any other."""
    frames = [Image.fromarray(make_pixels(rng)).resize((40, 40)) for _ in range(20)]
    buffer = io.BytesIO()
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def truncate(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(1, len(content)))]


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """The file with a few of its bytes replaced."""
    damaged = bytearray(content)
    for position in rng.integers(0, len(damaged), size=8):
        damaged[position] = int(rng.integers(0, 256))
    return bytes(damaged)


def make_bomb(side: int) -> bytes:
    """A small PNG file of very many pixels, each row the same."""
    header = make_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    compressor = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    rows = b"".join(compressor.compress(row) for _ in range(side // 8)) + compressor.flush()
    return b"\x89PNG\r\n\x1a\n" + header + make_chunk(b"IDAT", rows) + make_chunk(b"IEND", b"")


def make_lying_png(width: int, height: int) -> bytes:
    """A PNG file whose header promises pixels that are not there."""
    header = make_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + make_chunk(b"IDAT", zlib.compress(b"\0")) + make_chunk(b"IEND", b"")


def make_text_bomb(rng: np.random.Generator) -> bytes:
    """A PNG file with a compressed text of thirty megabytes."""
    information = PngImagePlugin.PngInfo()
    information.add_text("comment", "a" * 30_000_000, zip=True)
    buffer = io.BytesIO()
    Image.fromarray(make_pixels(rng)).save(buffer, format="PNG", pnginfo=information)
    return buffer.getvalue()


def make_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
