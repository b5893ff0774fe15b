"""The door of the app: what it lets through is what the app behind it sees."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from oesir_d2.web.gate import MULTIPART_OVERHEAD, Gate, is_plain_event

LIMIT = 1000


class Behind:
    """An app that reads the body and remembers what came."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        self.seen.append((scope["path"], scope["query_string"], body))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def behind() -> Behind:
    return Behind()


def ask(behind: Behind, method: str, path: str, timeout: float = 5, hosts: Any = ("app",), **rest: Any) -> Any:
    gate = Gate(behind, LIMIT, 2, timeout, hosts)

    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(gate, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://app:80") as client:
            return await client.request(method, path, **rest)

    return asyncio.run(request())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/assets/index-B1.js"),
        ("GET", "/static/fonts/a/b.woff2"),
        ("POST", "/gradio_api/cancel"),
        ("POST", "/api/search"),
        ("HEAD", "/"),
    ],
)
def test_what_the_page_needs_comes_in(method: str, path: str, behind: Behind) -> None:
    answer = ask(behind, method, path)
    assert answer.status_code == 200 and behind.seen[0][0] == path
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/assets/%2e%2e", 404),
        ("GET", "/assets/a/%2e%2e/b", 404),
        ("GET", "/assets/.hidden", 404),
        ("GET", "/assets//etc/passwd", 404),
        ("GET", "/gradio_api/file=/etc/passwd", 404),
        ("GET", "/api/thumbnails/", 404),
        ("GET", "/api/thumbnails/a/b", 404),
        ("POST", "/", 405),
        ("DELETE", "/api/search", 405),
        ("GET", "/api/search", 405),
        ("OPTIONS", "/api/search", 405),
    ],
)
def test_what_is_not_listed_does_not_reach_the_app(method: str, path: str, status: int, behind: Behind) -> None:
    assert ask(behind, method, path).status_code == status
    assert behind.seen == []


def test_query_of_the_page_is_dropped(behind: Behind) -> None:
    ask(behind, "GET", "/?deep_link=abc&__theme=dark")
    assert behind.seen == [("/", b"", b"")]


async def trickle() -> AsyncIterator[bytes]:
    while True:
        yield b"x"
        await asyncio.sleep(0.01)


async def flood() -> AsyncIterator[bytes]:
    while True:
        yield bytes(10_000)


def test_a_body_is_as_long_as_allowed_and_no_longer(behind: Behind) -> None:
    allowed = LIMIT + MULTIPART_OVERHEAD
    assert ask(behind, "POST", "/api/search", content=bytes(allowed)).status_code == 200
    assert ask(behind, "POST", "/api/search", content=bytes(allowed + 1)).status_code == 413
    # Two files are allowed there.
    assert ask(behind, "POST", "/api/photos", content=bytes(allowed + 1)).status_code == 200
    assert len(behind.seen) == 2


def test_endless_and_slow_bodies_end(behind: Behind) -> None:
    for body, message in ((flood, "too large"), (trickle, "too long")):
        gate = Gate(behind, LIMIT, 1, 0.3, None)
        sent: list[Any] = []
        chunks = body()

        async def receive(chunks: AsyncIterator[bytes] = chunks) -> Any:
            return {"type": "http.request", "body": await anext(chunks), "more_body": True}

        async def send(answer: Any, sent: list[Any] = sent) -> None:
            sent.append(answer)

        scope = {"type": "http", "method": "POST", "path": "/api/search", "query_string": b"", "headers": []}
        with pytest.raises(Exception, match=message):
            asyncio.run(asyncio.wait_for(gate(scope, receive, send), 20))  # type: ignore[arg-type]
    assert behind.seen == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "app:7860"}, 200),
        ({"host": "APP"}, 200),
        ({"host": "elsewhere"}, 400),
        ({"host": ""}, 400),
        ({"origin": "http://app:80"}, 200),
        ({"origin": "https://elsewhere"}, 403),
        ({"origin": "http://app:81"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
    ],
)
def test_only_the_apps_own_page_may_call_it(headers: dict[str, str], status: int, behind: Behind) -> None:
    headers = {"host": "app:80"} | headers
    assert ask(behind, "POST", "/api/photos", headers=headers).status_code == status


def test_any_name_will_do_where_the_app_serves_other_machines(behind: Behind) -> None:
    assert ask(behind, "GET", "/", hosts=None, headers={"host": "photos.example"}).status_code == 200


def test_events_hold_plain_values_only(behind: Behind) -> None:
    plain = {"data": ["text", 5, None, True], "fn_index": 0, "event_data": None, "session_hash": "a"}
    for event, allowed in (
        (plain, True),
        (plain | {"data": [{"path": "/etc/passwd"}]}, False),
        (plain | {"data": [[{"path": "/etc/passwd"}]]}, False),
        (plain | {"event_data": {"path": "/etc/passwd"}}, False),
        ([plain], False),
        ("text", False),
    ):
        content = json.dumps(event).encode()
        assert is_plain_event(content) is allowed
        answer = ask(behind, "POST", "/gradio_api/queue/join", content=content)
        assert (answer.status_code == 200) is allowed
    assert [seen[2] for seen in behind.seen] == [json.dumps(plain).encode()]
    assert not is_plain_event(b"[" * 100_000) and not is_plain_event(b"\xff")
