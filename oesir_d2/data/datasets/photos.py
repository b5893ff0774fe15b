"""Photos without labels: any folder, or any list of files, as a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oesir_d2.data.datasets.catalog import register_dataset
from oesir_d2.data.images import list_images


def register_photos(name: str, source: str | Path) -> None:
    """Register a folder or a list of photos.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST.
        source: what :func:`oesir_d2.data.list_images` takes. It is listed when the data set is first used.

    Raises:
        FileNotFoundError: if the source does not exist.
        ValueError: if the name is taken.
    """
    if not Path(source).exists():
        raise FileNotFoundError(f"DATASETS.OESIR.PHOTOS: {str(source)!r} of {name!r} does not exist")
    register_dataset(name, lambda: load_photos(source), evaluator_type="photos")


def load_photos(source: str | Path) -> list[dict[str, Any]]:
    """Dataset dicts with ``file_name`` and ``image_id``; nothing is decoded.

    Raises:
        ValueError: if the source is no collection of photos, see :func:`oesir_d2.data.list_images`.
    """
    return [{"file_name": str(file.path), "image_id": file.image_id} for file in list_images(source)]
