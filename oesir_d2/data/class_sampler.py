"""Batches of objects for the contrastive stage: one object a photo, and some of them of one class.

Shape shorthand: B objects a batch.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.utils import comm
from torch.utils.data import Sampler


class SameClassSampler(Sampler[int]):
    """An endless stream of numbers of objects, of which each B that follow each other make a batch.

    No photo is in a batch twice. A share of a batch are objects of one class, drawn anew for each batch: to tell them
    apart is harder than to tell a cup from a horse. The others come from an endless shuffle in which every photo has
    its turn, with any one of its objects. All processes draw the same stream and each takes its part of each batch.

    Args:
        dataset_dicts: with ``file_name`` and ``cutout``, whose ``category`` may be None; see
            :mod:`oesir_d2.data.datasets.cutouts`.
        batch_size: B, that of all processes together.
        same_class: the share of a batch, in [0, 1]; classes of one photo alone are left out.
        seed: the same in all processes; default: a random one that they agree on.

    Raises:
        ValueError: if the share is out of its range, or a batch would need more photos than there are.
    """

    def __init__(
        self,
        dataset_dicts: Sequence[dict[str, Any]],
        batch_size: int,
        same_class: float = 0.25,
        seed: int | None = None,
    ) -> None:
        if not 0 <= same_class <= 1:
            raise ValueError(f"INPUT.OESIR.PAIR_SAME_CLASS is {same_class}; allowed: 0 to 1")
        by_photo: defaultdict[str, list[int]] = defaultdict(list)
        by_class: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for number, item in enumerate(dataset_dicts):
            by_photo[item["file_name"]].append(number)
            category = (item["cutout"] or {}).get("category")
            if category is not None:
                by_class[category][item["file_name"]].append(number)
        if len(by_photo) < batch_size:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {batch_size}, but DATASETS.TRAIN has {len(by_photo)} photos; allowed: at "
                "most as many, since no photo is in a batch twice"
            )
        self._objects = by_photo
        self._classes = [photos for photos in by_class.values() if len(photos) > 1]
        self._batch_size = batch_size
        self._num_same = round(same_class * batch_size)
        self._seed = comm.shared_random_seed() if seed is None else seed

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._draw(), comm.get_rank(), None, comm.get_world_size())

    def _draw(self) -> Iterator[int]:
        rng = np.random.default_rng(self._seed)
        shuffled = self._shuffle(rng)
        sizes = np.array([len(photos) for photos in self._classes], dtype=float)
        while True:
            batch: dict[str, int] = {}  # by photo
            if self._num_same > 1 and len(sizes):
                photos = self._classes[rng.choice(len(sizes), p=sizes / sizes.sum())]
                names = list(photos)
                chosen = [names[i] for i in rng.permutation(len(names))[: self._num_same]]
                batch = {name: int(rng.choice(photos[name])) for name in chosen}
            # A photo that is in the batch already has had its turn.
            while len(batch) < self._batch_size:
                name = next(shuffled)
                if name not in batch:
                    batch[name] = int(rng.choice(self._objects[name]))
            yield from batch.values()

    def _shuffle(self, rng: np.random.Generator) -> Iterator[str]:
        photos = list(self._objects)
        while True:
            for i in rng.permutation(len(photos)):
                yield photos[i]
