"""Results that are kept beside the key of what they were computed from: a JSON file each, whole or not there."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from oesir_d2.engine.command_line import replace_nan
from oesir_d2.engine.indexing import FileFingerprint
from oesir_d2.files import replace_file
from oesir_d2.index import EmbeddingModelInfo


def read_kept(path: Path, key: str) -> dict[str, Any] | None:
    """What was kept under a key; None if nothing was, or the file is damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("key") != key or not isinstance(content.get("kept"), dict):
        return None
    return content["kept"]


def write_kept(path: Path, key: str, value: dict[str, Any]) -> dict[str, Any]:
    """Keep a result under a key, in the place of what was kept before; returns it as it will be read, NaN as None."""
    content = {"key": key, "kept": replace_nan(value)}
    # With ASCII alone: a file name need not be valid Unicode.
    replace_file(path, (json.dumps(content, indent=1) + "\n").encode("ascii"))
    return content["kept"]


def hash_json(value: Any) -> str:
    """The SHA-256 of what JSON can hold, the order of keys left out."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's content; "unreadable" for what is no regular file or cannot be read."""
    fingerprint = FileFingerprint.take(path)
    return "unreadable" if fingerprint is None else fingerprint.sha256


def hash_model(info: EmbeddingModelInfo) -> str:
    """The hash of a model, without the places where its weights lie: their hashes tell."""
    return hash_json({name: value for name, value in asdict(info).items() if name != "references"})
