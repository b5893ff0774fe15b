"""Registering data sets that a config names, in detectron2's catalog."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

_registered: set[str] = set()


def register_dataset(name: str, load: Callable[[], list[dict[str, Any]]], **metadata: Any) -> None:
    """Register a data set; one that was registered here under the same name before is replaced.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST.
        load: gives the dataset dicts; called when they are needed.
        **metadata: for detectron2's MetadataCatalog.

    Raises:
        ValueError: if the name is empty or belongs to one of detectron2's own data sets.
    """
    if not name:
        raise ValueError("a data set of DATASETS.OESIR has an empty name; allowed: any other text")
    if name in DatasetCatalog:
        if name not in _registered:
            raise ValueError(f"the name {name!r} of a data set of DATASETS.OESIR is taken; allowed: any new name")
        DatasetCatalog.remove(name)
    # Metadata cannot be changed once set.
    MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)
    _registered.add(name)
