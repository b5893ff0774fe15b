"""Reaching Milvus: a cluster by its address, or milvus-lite, which runs within this process, by a path."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from weakref import WeakSet

if TYPE_CHECKING:
    from pymilvus import MilvusClient

CONNECT_SECONDS = 10.0
"""How long a server that does not answer is waited for."""

# milvus-lite is there, however long a busy machine takes to let it answer.
_LITE_CONNECT_SECONDS = 120.0

# milvus-lite takes pings more often than every five minutes for an attack; a long search is no attack.
_GRPC_OPTIONS = {"grpc.keepalive_time_ms": 600_000}


class UnreadableDatabaseError(ValueError):
    """A database of milvus-lite, open nowhere else, that it cannot read."""


@dataclass(frozen=True)
class MilvusSettings:
    """Where an index's objects lie in Milvus, and how they are searched there.

    Attributes:
        uri: "http://HOST:PORT" or "https://HOST:PORT" of a server or cluster, or a path for milvus-lite.
        collection: name of the collection of objects; another one, NAME_segments, goes with it.
        index_type: Milvus's name of the index over the vectors; "FLAT" is exact.
        index_params: how that index is built, by Milvus's names.
        search_params: how it is searched, by Milvus's names.
        token: what a server asks for, "USER:PASSWORD" or a key; never stored.
    """

    uri: str
    collection: str = "oesir_d2"
    index_type: str = "FLAT"
    index_params: tuple[tuple[str, float], ...] = ()
    search_params: tuple[tuple[str, float], ...] = ()
    token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not self.uri:
            raise ValueError("the address of Milvus is empty, expected http://HOST:PORT, or a path for milvus-lite")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,199}", self.collection):
            raise ValueError(
                f"the Milvus collection is called {self.collection!r}, expected letters, digits and _, no digit first"
            )
        if self.is_server and (urlsplit(self.uri).username or urlsplit(self.uri).password):
            raise ValueError("the address of Milvus holds a user or password; they belong into the token")

    @property
    def is_server(self) -> bool:
        """Whether a server or cluster is meant, and not a path."""
        return "://" in self.uri


def parse_params(text: str) -> tuple[tuple[str, float], ...]:
    """Parse parameters such as "M=16,efConstruction=200"; "" are none.

    Raises:
        ValueError: if the text is something else.
    """
    if not re.fullmatch(r"(\w+=\d+(\.\d+)?(,\w+=\d+(\.\d+)?)*)?", text):
        raise ValueError(f"Milvus parameters are {text!r}, expected such as 'M=16,efConstruction=200'")
    pairs = [pair.split("=") for pair in filter(None, text.split(","))]
    return tuple((name, float(value) if "." in value else int(value)) for name, value in pairs)


class MilvusConnection:
    """An open connection, a context manager.

    Args:
        settings: where to.

    Raises:
        ValueError: if the extra "scale" is missing, the server does not answer or refuses the token, or the path is
            something else than a database of milvus-lite, or another process has it open.
        UnreadableDatabaseError: if milvus-lite cannot read its database.
    """

    def __init__(self, settings: MilvusSettings) -> None:
        self.settings = settings
        self._path = None if settings.is_server else Path(os.path.abspath(settings.uri))
        client_class = _import_client()
        uri = settings.uri if self._path is None else self._start_lite(self._path)
        try:
            with self.naming_errors():
                self.client: MilvusClient = client_class(
                    uri,
                    token=settings.token,
                    timeout=_LITE_CONNECT_SECONDS if self.is_embedded else CONNECT_SECONDS,
                    dedicated=True,
                    grpc_options=_GRPC_OPTIONS,
                )
        except BaseException:
            self._stop_lite()
            raise

    def __enter__(self) -> MilvusConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_embedded(self) -> bool:
        """Whether milvus-lite runs within this process."""
        return self._path is not None

    def close(self) -> None:
        """Close the connection; with the last one to it, a database of milvus-lite is free for other processes."""
        self.client.close()
        self._stop_lite()

    @contextmanager
    def naming_errors(self) -> Iterator[None]:
        """Turn Milvus's errors into one line that names the address."""
        from grpc import RpcError
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except MilvusException as error:
            raise ValueError(f"Milvus at {self.settings.uri}: {_first_line(error.message)}") from error
        except RpcError as error:
            details: Any = getattr(error, "details", None)
            reason = details() if callable(details) else error
            raise ValueError(f"Milvus at {self.settings.uri}: {_first_line(reason)}") from error

    def load(self, collections: Iterable[str]) -> None:
        """Load those of some collections that are there.

        Raises:
            UnreadableDatabaseError: if it is milvus-lite's, and damaged.
            ValueError: if a server does not load it.
        """
        for name in collections:
            try:
                with self.naming_errors():
                    if self.client.has_collection(name):
                        self.client.load_collection(name)
            except ValueError as error:
                raise UnreadableDatabaseError(str(error)) if self.is_embedded else error from error

    def _start_lite(self, path: Path) -> str:
        with _lite_lock:
            uri = _start_lite(path)
            _lite_users.setdefault(path, WeakSet()).add(self)
        return uri

    def _stop_lite(self) -> None:
        if self._path is None:
            return
        with _lite_lock:
            users = _lite_users.get(self._path)
            if users is not None and self in users:
                users.discard(self)
                if not users:
                    _release_lite(self._path)


# A process runs one milvus-lite a database, whoever opens it; the last of these connections to be closed ends it.
_lite_users: dict[Path, WeakSet[MilvusConnection]] = {}
_lite_lock = threading.Lock()


def stop_lite(path: Path) -> None:
    """End the milvus-lite of a database in this process, whoever has it open."""
    with _lite_lock:
        _release_lite(Path(os.path.abspath(path)))


def _release_lite(path: Path) -> None:
    from milvus_lite.server_manager import server_manager_instance

    _lite_users.pop(path, None)
    server_manager_instance.release_server(str(path))


def _import_client() -> type[MilvusClient]:
    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        raise ValueError(
            f"INDEX.BACKEND milvus needs the extra 'scale': pip install 'oesir_d2[scale]' ({error})"
        ) from None
    # What goes wrong is raised, too; its log would put a traceback before our one line.
    for name in ("pymilvus", "milvus_lite"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MilvusClient


def _start_lite(path: Path) -> str:
    """Start milvus-lite on a database, or use the one that runs in this process, and return its address."""
    try:
        from milvus_lite.server_manager import server_manager_instance
    except ImportError as error:
        raise ValueError(f"the Milvus path {path} needs milvus-lite: pip install 'oesir_d2[scale]' ({error})") from None
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, expected a database of milvus-lite, which is a folder, or a new name")
    if path.is_dir() and any(path.iterdir()) and not (path / "LOCK").exists():
        raise ValueError(f"{path} is no database of milvus-lite, expected one or a new name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the Milvus path {path} cannot be created: {error.strerror}") from error
    # The reason why it does not start is logged and nowhere else.
    logger = logging.getLogger("milvus_lite.server_manager")
    reasons = _Reasons()
    propagate, logger.propagate = logger.propagate, False
    logger.setLevel(logging.ERROR)
    logger.addHandler(reasons)
    try:
        uri = server_manager_instance.start_and_get_uri(str(path))
    finally:
        logger.removeHandler(reasons)
        logger.propagate = propagate
    if uri is None:
        kind = ValueError if reasons.is_locked else UnreadableDatabaseError
        raise kind(f"milvus-lite cannot open {path}: {reasons.last}")
    return str(uri)


class _Reasons(logging.Handler):
    last = "no reason given"
    is_locked = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            from milvus_lite.exceptions import DataDirLockedError

            self.last = _first_line(record.exc_info[1])
            self.is_locked = isinstance(record.exc_info[1], DataDirLockedError)


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
