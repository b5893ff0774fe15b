"""How the web app is served: uvicorn with bounds for connections, in number and in time."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 256
KEEP_ALIVE_SECONDS = 5


class HeadTimeoutProtocol(H11Protocol):
    """uvicorn's HTTP protocol, which by itself waits for ever for the head of a request.

    Clients that open connections and send nothing, or a byte now and then, would soon hold as many as there may be.

    Attributes:
        head_seconds: time from the opening of a connection, or from the first byte of a later request, to the end of
            the request's headers; then the connection is closed. What comes after them is for the gate to bound.
    """

    head_seconds = 10.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()

    def _watch_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self._close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close(self) -> None:
        # After an upgrade the connection is another protocol's.
        if self.transport.get_protocol() is self:
            self.transport.close()


def configure_server(app: ASGIApp) -> uvicorn.Config:
    """The settings of the server of an app."""
    return uvicorn.Config(
        app,
        http=HeadTimeoutProtocol,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=KEEP_ALIVE_SECONDS,
    )
