"""The door of the web app: the few routes that exist, who may call them, and how much they may send.

Gradio brings some fifty routes, among them ones that store uploads, serve files by their path and fetch addresses for
the caller. The page needs a dozen, and none of those: every photo comes in by our own API (oesir_d2/web/api.py). What
is not listed here does not exist for a client.
"""

from __future__ import annotations

import asyncio
import json
import re
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE_ROUTES = (
    ("GET", r"/"),
    ("GET", r"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)"),
    # Gradio's own scripts and fonts, which lie inside its package.
    ("GET", r"/(assets|static|svelte)(/[A-Za-z0-9_@-][A-Za-z0-9_.@-]*)+"),
    ("GET", r"/gradio_api/(info|startup-events|queue/data|heartbeat/[a-z0-9]+)"),
    ("POST", r"/gradio_api/(queue/join|cancel|reset)/?"),
)
API_ROUTES = (
    ("GET", r"/api/(status|thumbnails/[A-Za-z0-9_-]+)"),
    ("POST", r"/api/(search|report|preview|uploads|photos)"),
)
# What the page itself sends are a few numbers and ids.
MAX_PAGE_BODY = 64 * 1024
STARTED = "oesir_d2.started"
"""Key of a request's scope: ``time.monotonic()`` when it came."""

JOIN_ROUTE = r"/gradio_api/queue/join/?"
# Around a file of the largest size: the other fields and the boundaries.
MULTIPART_OVERHEAD = 64 * 1024
DRAINED_BODIES = 4

# Gradio's page builds its components with eval; what it must not do is ask another machine for anything.
CONTENT_POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; object-src 'none'; "
    "base-uri 'self'; form-action 'none'; frame-ancestors 'self'"
)
HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode("ascii")),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Gate:
    """ASGI middleware that lets through what the app expects and answers the rest itself, as ``{"error": …}``.

    Args:
        app: what lies behind.
        max_upload_bytes: largest file of the API.
        max_files: files that one request may bring.
        timeout: seconds in which a body must have arrived.
        hosts: names by which the app may be called, without ports; None for any. A page of another site that has its
            own name resolve to this machine would otherwise be taken for ours.
    """

    def __init__(
        self, app: ASGIApp, max_upload_bytes: int, max_files: int, timeout: float, hosts: tuple[str, ...] | None
    ) -> None:
        self.app = app
        self.max_upload_bytes = max_upload_bytes
        self.max_files = max_files
        self.timeout = timeout
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        # From here on the clock runs, for the body and for what is made of it.
        scope = {**scope, STARTED: time.monotonic()}
        limit = self._get_body_limit(scope["path"])
        body = _LimitedBody(receive, limit, self.timeout)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                if scope["method"] == "POST":
                    # Answered before its end: a client that is still sending would not see the answer.
                    await body.drain()
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        refusal = self._judge(scope, limit)
        if refusal is None:
            # The one query that Gradio's page takes names a file of state.
            clean = scope if scope["path"] != "/" else {**scope, "query_string": b""}
            receive_checked = body.receive
            if re.fullmatch(JOIN_ROUTE, scope["path"]):
                receive_checked = _CheckedBody(body).receive
            await self.app(clean, receive_checked, send_with_headers)
        else:
            await _answer(send_with_headers, *refusal)

    def _get_body_limit(self, path: str) -> int:
        if not path.startswith("/api/"):
            return MAX_PAGE_BODY
        files = self.max_files if path == "/api/photos" else 1
        return files * self.max_upload_bytes + MULTIPART_OVERHEAD

    def _judge(self, scope: Scope, limit: int) -> tuple[int, str] | None:
        """Status and message for what is refused by its head alone; None for what may come in."""
        path, method = scope["path"], scope["method"]
        routes = (*PAGE_ROUTES, *API_ROUTES)
        methods = {allowed for allowed, pattern in routes if re.fullmatch(pattern, path)}
        if not methods or "/.." in path:
            return 404, "there is nothing here"
        if method not in methods and not (method == "HEAD" and "GET" in methods):
            return 405, f"method {method[:20]} is not allowed here, expected {' or '.join(sorted(methods))}"
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts is not None and _get_name(host) not in self.hosts:
            return 400, f"host {host[:60]!r} is not a name of this app; it listens on this machine alone"
        origin = headers.get("origin")
        if origin is not None and origin.split("://")[-1].lower() != host.lower():
            return 403, f"a page of {origin[:60]!r} may not use this app"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            return 413, describe_limit(limit)
        return None


class _LimitedBody:
    """A request's body that ends with an answer of 413 or 408 where it is too long or too slow."""

    def __init__(self, receive: Receive, limit: int, timeout: float) -> None:
        self._receive = receive
        self._limit = limit
        self._deadline = time.monotonic() + timeout
        self._received = 0
        self._ended = False

    async def receive(self) -> Message:
        """The next message of the server, as ASGI has it.

        Raises:
            HTTPException: more than the limit has come, or not all of it in time.
        """
        if self._ended:
            # Whoever waits now waits for the client to go away, however long that takes.
            return await self._receive()
        message = await self._receive_in_time()
        if self._received > self._limit:
            raise HTTPException(413, describe_limit(self._limit))
        return message

    async def drain(self) -> None:
        """Read what is left, up to some times the limit."""
        try:
            while not self._ended and self._received < DRAINED_BODIES * self._limit:
                await self._receive_in_time()
        except HTTPException:
            pass

    async def _receive_in_time(self) -> Message:
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._deadline - time.monotonic()))
        except TimeoutError:
            self._ended = True
            raise HTTPException(408, "the upload took too long") from None
        self._received += len(message.get("body", b""))
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message


class _CheckedBody:
    """The body of an event of the page, read as a whole and let through if it holds plain values only.

    An object in it could be a file to Gradio. In an app that is mounted, as ours is, it would copy whatever path the
    object names to its cache (its check waits for a launch that never comes), and fetch any address.
    """

    def __init__(self, body: _LimitedBody) -> None:
        self._body = body
        self._is_read = False

    async def receive(self) -> Message:
        if self._is_read:
            return await self._body.receive()
        parts = []
        while True:
            message = await self._body.receive()
            if message["type"] != "http.request":
                return message
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        self._is_read = True
        content = b"".join(parts)
        if not is_plain_event(content):
            raise HTTPException(400, "this is not what the page sends")
        return {"type": "http.request", "body": content, "more_body": False}


def is_plain_event(content: bytes) -> bool:
    """Whether this is a JSON object whose values are strings, numbers, booleans, null, and lists of these."""
    try:
        event = json.loads(content)
    except (ValueError, RecursionError):
        return False
    if not isinstance(event, dict):
        return False
    values = [part for value in event.values() for part in (value if isinstance(value, list) else [value])]
    return all(value is None or isinstance(value, (str, int, float)) for value in values)


def describe_limit(limit: int) -> str:
    return f"too large: a request may have {limit / 2**20:.1f} MiB"


def _get_name(host: str) -> str:
    """The name in a Host header, without its port and an IPv6 address's brackets."""
    name = host.rsplit(":", 1)[0] if re.search(r":\d+$", host) else host
    return name.strip("[]").lower()


async def _answer(send: Send, status: int, message: str) -> None:
    body = json.dumps({"error": message}).encode("ascii")
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode("ascii")),
        # What is left of a body that was not read would be taken for the next request.
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
