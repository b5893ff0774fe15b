"""A split of a collection into photos to learn from and photos to evaluate on, by nothing but their ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from oesir_d2.data.images import ImageFile

HELD_OUT_SHARE = 0.4
"""Share of the photos that is evaluated on, where nobody says otherwise."""


def is_held_out(image_id: str, share: float) -> bool:
    """Whether a photo falls on the evaluation's side; ``share`` of all ids do."""
    digest = hashlib.sha256(image_id.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def link_photos(files: Iterable[ImageFile], folder: Path) -> None:
    """Make links to photos below a folder, by their ids; links that are there already stay."""
    for file in files:
        link = folder / file.image_id
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            # One that points nowhere is of a photo that has moved since.
            link.unlink(missing_ok=True)
            link.symlink_to(file.path.resolve())
