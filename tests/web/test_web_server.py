"""Connections of the web app: those that never finish their headers are closed, slow answers and uploads are not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from oesir_d2.web import server
from oesir_d2.web.server import HeadTimeoutProtocol, configure_server

HEAD_SECONDS = 0.4
MAX_CONNECTIONS = 6
HEAD = b"GET / HTTP/1.1\r\nHost: app\r\n"


async def answer_slowly(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body, takes three times as long as a head may take for /slow, and answers with the body's length."""
    if scope["type"] == "lifespan":
        return
    length, has_more = 0, True
    while has_more:
        message = await receive()
        length, has_more = length + len(message.get("body", b"")), message.get("more_body", False)
    if scope["path"] == "/slow":
        await asyncio.sleep(3 * HEAD_SECONDS)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
    await send({"type": "http.response.body", "body": b"%03d" % length})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(HeadTimeoutProtocol, "head_seconds", HEAD_SECONDS)
    monkeypatch.setattr(server, "MAX_CONNECTIONS", MAX_CONNECTIONS)
    running = uvicorn.Server(configure_server(answer_slowly))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1]
        running.should_exit = True
        thread.join()


@pytest.fixture
def connect(port: int) -> Iterator[Callable[..., socket.socket]]:
    """``connect(data)`` opens a connection and sends data."""
    with contextlib.ExitStack() as stack:

        def connect(data: bytes = b"") -> socket.socket:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            connection.sendall(data)
            return connection

        yield connect


def read_until(connection: socket.socket, end: bytes) -> None:
    content = b""
    while not content.endswith(end):
        part = connection.recv(4096)
        assert part, content
        content += part
    return content


def read_to_the_end(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    content = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(4096):
            content += part
    return content


def test_connections_without_a_whole_head_do_not_keep_others_out(
    port: int, connect: Callable[..., socket.socket]
) -> None:
    stuck = [connect(HEAD if number % 2 else b"") for number in range(MAX_CONNECTIONS)]
    assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 503
    for connection in stuck:
        assert read_to_the_end(connection) == b""
    assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200


def drip(connection: socket.socket) -> None:
    """Send a header a byte at a time, until nobody takes it."""
    with contextlib.suppress(OSError):
        for number in range(10_000):
            connection.sendall(b"X: y\r\n"[number % 6 :][:1])
            time.sleep(HEAD_SECONDS / 20)


def test_a_head_that_trickles_in_ends_on_a_used_connection_too(connect: Callable[..., socket.socket]) -> None:
    for first in (b"", HEAD + b"\r\n"):
        connection = connect(first)
        if first:
            read_until(connection, b"\r\n\r\n000")
        connection.sendall(HEAD)
        sender = threading.Thread(target=drip, args=(connection,))
        sender.start()
        assert read_to_the_end(connection) == b""
        connection.close()
        sender.join()


def test_slow_answers_and_slow_bodies_come_through(port: int, connect: Callable[..., socket.socket]) -> None:
    assert httpx.get(f"http://127.0.0.1:{port}/slow").text == "000"
    connection = connect(b"POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 30\r\n\r\n")
    for _ in range(30):
        connection.sendall(b"x")
        time.sleep(HEAD_SECONDS / 10)
    read_until(connection, b"\r\n\r\n030")
