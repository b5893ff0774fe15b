"""``milvus.json`` in an index folder: what tells the index from others, and which collection holds its objects."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..files import replace_file, temporary_beside
from .milvus_connection import MilvusSettings, stop_lite
from .milvus_ledger import ledger_name

MILVUS_FILE = "milvus.json"
"""In the index folder. The token is not in it."""


def stored_settings(index_path: str | os.PathLike[str]) -> MilvusSettings | None:
    """What the collection of an index was opened with last, without the token; None if it has none.

    Raises:
        ValueError: if the file that says so is damaged.
    """
    content = _read_note(Path(index_path))
    if "uri" not in content:
        return None
    try:
        fields = {name: str(content[name]) for name in ("uri", "collection", "index_type")}
        params = {name: tuple((str(n), v) for n, v in content[name]) for name in ("index_params", "search_params")}
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(Path(index_path), error) from error
    settings = MilvusSettings(**fields, **params)  # type: ignore[arg-type]
    return settings if settings.is_server else replace(settings, uri=str(Path(index_path, settings.uri)))


def note_database(index_path: Path, settings: MilvusSettings) -> None:
    """Note that a database of milvus-lite within the index folder is the index's own, if it is about to be made."""
    content, name = _read_note(index_path), _within(index_path, settings)
    if name is not None and not Path(settings.uri).exists() and content.get("made") != name:
        _write_note(index_path, content | {"made": name})


def delete_own_database(index_path: Path, settings: MilvusSettings) -> bool:
    """Delete a database of milvus-lite, if it was made for the index and holds nothing else.

    Returns:
        Whether it did.
    """
    name, database = _within(index_path, settings), Path(settings.uri)
    if name is None or _read_note(index_path).get("made") != name or database.is_symlink() or not database.is_dir():
        return False
    found = {path.name for folder in ("collections", "databases") for path in database.glob(f"{folder}/*")}
    if found - {settings.collection, ledger_name(settings.collection)}:
        return False
    stop_lite(database)
    # A name that the next writer of the index cleans up, should this be killed.
    gone = temporary_beside(index_path / Path(name).name)
    os.rename(database, gone)
    shutil.rmtree(gone)
    return True


def identify(index_path: Path) -> str:
    """What tells an index from others, made up when it is first asked for."""
    content = _read_note(index_path)
    if not re.fullmatch("[0-9a-f]{32}", str(content.get("index"))):
        content["index"] = uuid.uuid4().hex
        _write_note(index_path, content)
    return str(content["index"])


def note_settings(index_path: Path, settings: MilvusSettings) -> None:
    known = _read_note(index_path)
    content = {name: known[name] for name in ("index", "made") if name in known} | vars(settings)
    del content["token"]
    if not settings.is_server:
        # A database within the index folder goes with it when it moves.
        content["uri"] = _within(index_path, settings) or str(Path(settings.uri).absolute())
    if json.loads(json.dumps(content)) != known:
        _write_note(index_path, content)


def _within(index_path: Path, settings: MilvusSettings) -> str | None:
    """The path of a database of milvus-lite in the index folder; None if it is another one, or a server."""
    if settings.is_server:
        return None
    database, folder = Path(settings.uri).absolute(), index_path.absolute()
    return str(database.relative_to(folder)) if database.is_relative_to(folder) else None


def _read_note(index_path: Path) -> dict[str, Any]:
    try:
        content = json.loads((index_path / MILVUS_FILE).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _damaged(index_path, error) from error
    if not isinstance(content, dict):
        raise _damaged(index_path, "it holds no object")
    return content


def _write_note(index_path: Path, content: dict[str, Any]) -> None:
    path = index_path / MILVUS_FILE
    try:
        replace_file(path, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from error


def _damaged(index_path: Path, reason: object) -> ValueError:
    return ValueError(f"{index_path / MILVUS_FILE} is damaged ({reason}); delete it and name another collection")
