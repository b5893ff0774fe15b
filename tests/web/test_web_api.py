"""The HTTP API of a running app: its answers, what it takes, what it never gives away."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from oesir_d2.data import ImageFile
from oesir_d2.engine.retrieval import Retriever

Post = Callable[..., httpx.Response]


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def test_answer_is_that_of_the_search_tool(app: Any, post: Post, photos: Path, index: Path) -> None:
    path = photos / "coffee.png"
    answer = post("search", path.read_bytes(), "my coffee.png", top_k="3")
    assert answer.status_code == 200
    content = answer.json()
    expected = Retriever(index).search(ImageFile("q", path), top_k=3).to_dict()
    assert content["query"] == "my coffee.png" and content["objects"] == expected["objects"]
    for result, expected_result in zip(content["results"], expected["results"], strict=True):
        thumbnail = httpx.get(app.url.rstrip("/") + result.pop("thumbnail"))
        assert thumbnail.headers["content-type"] == "image/jpeg"
        with Image.open(io.BytesIO(thumbnail.content)) as image:
            assert max(image.size) <= 360
        assert result == expected_result
    assert content["results"][0]["image_id"] == "coffee.png"


def test_search_with_a_box_uses_that_box_alone(post: Post, photos: Path) -> None:
    answer = post("search", (photos / "coffee.png").read_bytes(), box="10, 20,100,150", top_k="1").json()
    assert answer["objects"] == [{"box": [10, 20, 100, 150], "score": 1.0, "class": -1}]
    assert len(answer["results"]) == 1


def test_boxes_and_sizes_are_those_after_the_exif_rotation(post: Post, photos: Path) -> None:
    with Image.open(photos / "coffee.png") as image:
        exif = Image.Exif()
        exif[274] = 6
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", exif=exif)
        width, height = image.height, image.width
    shown = post("preview", buffer.getvalue())
    assert (shown.headers["x-photo-width"], shown.headers["x-photo-height"]) == (str(width), str(height))
    assert post("search", buffer.getvalue(), box=f"0,0,{width},{height}").status_code == 200
    refused = post("search", buffer.getvalue(), box=f"0,0,{height},{width}")
    assert refused.status_code == 400 and f"X1 <= {width}" in refused.json()["error"]


@pytest.mark.parametrize("kind", ["TIFF", "JPEG2000", "PCX"])
def test_photos_that_browsers_do_not_show_have_a_preview(kind: str, post: Post, make_photo: Any) -> None:
    pixels = make_photo(60, 90)
    answer = post("preview", encode(pixels, kind))
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.format == "JPEG" and image.size == (90, 60)
        assert np.abs(np.asarray(image).astype(int) - pixels).mean() < 10


def test_report_is_a_page_of_its_own_and_names_the_query_by_its_label(post: Post, photos: Path) -> None:
    answer = post("report", (photos / "coins.png").read_bytes(), "../<b>coins</b>.png", top_k="2")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert "Rank 2" in answer.text and "&lt;b&gt;" not in answer.text and "b&gt;.png" in answer.text
    assert "oesir_d2-web-" not in answer.text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"box": "1,2,3"}, "'1,2,3' is not X0,Y0,X1,Y1"),
        ({"box": "nan,0,10,10"}, "is not X0,Y0,X1,Y1"),
        ({"box": "50,0,40,10"}, "box 50,0,40,10 does not lie in the photo"),
        ({"box": "0,0,1e308,10"}, "does not lie in the photo"),
        ({"top_k": "0"}, "'0' is not allowed, expected 1 to 100"),
        ({"top_k": "9" * 500}, "is not allowed"),
        ({"top_k": "²"}, "is not allowed"),
    ],
)
def test_wrong_fields_are_refused_with_the_reason(fields: dict[str, str], words: str, post: Post, photos: Path) -> None:
    answer = post("search", (photos / "coins.png").read_bytes(), **fields)
    assert answer.status_code == 400
    assert words in answer.json()["error"] and "/" not in answer.json()["error"]


def test_files_that_are_no_photos_are_refused_with_the_reason(post: Post, photos: Path) -> None:
    whole = (photos / "coins.png").read_bytes()
    for content, words in ((b"", "empty"), (b"hello", "not an image"), (whole[: len(whole) // 2], "")):
        for route in ("search", "report", "preview"):
            answer = post(route, content, "a.png")
            assert answer.status_code == 415
            assert answer.json()["error"].startswith("a.png cannot be read: ") and words in answer.json()["error"]


def test_bomb_is_refused_before_it_is_decoded(app: Any, post: Post) -> None:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, format="PNG")
    before = app.measure_memory()
    answer = post("search", buffer.getvalue())
    assert answer.status_code == 415 and "decompression bomb" in answer.json()["error"]
    assert app.measure_memory() - before < 100 * 2**20


def test_too_large_and_endless_uploads_are_refused(app: Any, post: Post) -> None:
    assert post("search", bytes(3 * 2**20)).status_code == 413

    def endless() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        for _ in range(64):
            yield b"x" * 2**17

    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = httpx.post(app.url + "api/search", content=endless(), headers=headers)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file/etc/passwd",
        "gradio_api/proxy=http://localhost/",
        "gradio_api/stream/a/b/c/playlist.m3u8",
        "file=/etc/passwd",
        "static/../../../../etc/passwd",
        "static/%2e%2e/%2e%2e/config",
        "assets/..%2f..%2f..%2fetc/passwd",
        "api/thumbnails/..%2f..%2fetc%2fpasswd",
        "api/thumbnails/coffee.png",
        "gradio_api/runs",
        "monitoring",
        "docs",
        "openapi.json",
    ],
)
def test_no_route_serves_a_file_by_its_path(path: str, app: Any) -> None:
    answer = httpx.get(app.url + path)
    assert answer.status_code == 404 and "root:" not in answer.text


@pytest.mark.parametrize(
    "path", ["gradio_api/upload", "gradio_api/run/predict", "gradio_api/call/search", "gradio_api/vibe-code/", "login"]
)
def test_routes_of_gradio_that_take_files_do_not_exist(path: str, app: Any) -> None:
    before = set(app.list_uploads())
    answer = httpx.post(app.url + path, files={"files": ("a.png", b"x")})
    assert answer.status_code == 404
    assert set(app.list_uploads()) <= before


def test_page_needs_no_other_machine(app: Any) -> None:
    page = httpx.get(app.url)
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "connect-src 'self'" in policy
    assert "fonts.googleapis.com" not in page.text


def test_a_path_in_the_pages_own_request_is_not_opened(app: Any) -> None:
    """What the page's script sends is a number and an id; somebody else may send anything."""
    before = set(app.list_uploads())
    config = httpx.get(app.url + "config").json()
    function = next(d["id"] for d in config["dependencies"] if len(d["inputs"]) == 3)
    hostile = [
        json.dumps({"upload": "/etc/passwd", "box": None}),
        json.dumps({"upload": "../../../etc/passwd", "box": [0, 0, 1, 1]}),
        {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
        {"path": "http://localhost:1/", "url": "http://localhost:1/", "meta": {"_type": "gradio.FileData"}},
        [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}],
        "[" * 10_000,
        None,
    ]
    for number, data in enumerate(hostile):
        session = f"hostile{number}"
        body = {"data": [data, 5, False], "fn_index": function, "session_hash": session, "event_data": None}
        joined = httpx.post(app.url + "gradio_api/queue/join", json=body)
        if joined.status_code != 200:
            assert 400 <= joined.status_code < 500
            continue
        with httpx.stream("GET", app.url + "gradio_api/queue/data", params={"session_hash": session}) as events:
            text = "".join(events.iter_text())
        assert '"success":false' in text and "root:" not in text
    assert set(app.list_uploads()) <= before, "Gradio has copied a file that the client named"


def test_other_sites_and_other_names_are_refused(app: Any, photos: Path) -> None:
    files = {"file": ("a.png", (photos / "coins.png").read_bytes())}
    assert httpx.post(app.url + "api/search", files=files, headers={"origin": "http://evil.example"}).status_code == 403
    assert httpx.post(app.url + "api/search", files=files, headers={"origin": "null"}).status_code == 403
    assert httpx.get(app.url, headers={"host": "evil.example"}).status_code == 400
    own = app.url.rstrip("/")
    assert httpx.post(app.url + "api/preview", files=files, headers={"origin": own}).status_code == 200


def test_photos_are_added_only_where_the_app_was_started_for_it(app: Any, post: Post, photos: Path) -> None:
    assert post("photos", (photos / "coins.png").read_bytes()).status_code == 403
    assert httpx.get(app.url + "api/status").json()["may_add"] is False
