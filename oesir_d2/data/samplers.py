"""Batches of photos of one shape.

Which photos a process draws, and in what order, is detectron2's TrainingSampler's to say: an endless shuffle that all
processes share, of which each takes its own part.

Shape shorthand: B photos a batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any


class ShapeGroupedBatches:
    """Regroups the photos of an endless loader into batches of one shape, as detectron2's AspectRatioGroupedDataset
    does for two.

    The shape is that of the mapped photo, and known without a look at millions of headers before the first batch; a
    photo that takes the place of one that cannot be read may have another shape and is still put where it belongs. No
    photo is dropped or drawn twice: each waits for B of its shape. The same order of photos gives the same batches.

    Args:
        loader: gives lists of mapped dataset dicts, each with ``image`` (3, H, W), of whatever shapes and lengths.
        batch_size: B, > 0; that of this process.

    >>> from types import SimpleNamespace
    >>> photos = [{"image": SimpleNamespace(shape=(3, *size))} for size in [(4, 3), (3, 4), (4, 3), (3, 4)]]
    >>> [[x["image"].shape for x in batch] for batch in ShapeGroupedBatches([photos], batch_size=2)]
    [[(3, 4, 3), (3, 4, 3)], [(3, 3, 4), (3, 3, 4)]]
    """

    def __init__(self, loader: Iterable[list[dict[str, Any]]], batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        self._loader = loader
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        waiting: defaultdict[tuple[int, ...], list[dict[str, Any]]] = defaultdict(list)
        for batch in self._loader:
            for item in batch:
                shape = tuple(item["image"].shape)
                waiting[shape].append(item)
                if len(waiting[shape]) == self._batch_size:
                    yield waiting.pop(shape)
