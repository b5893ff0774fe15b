"""Drawing objects to paste from several weighted sources, and remembering which photos have none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from oesir_d2.data.images import ImageFile, UnreadableImageError, read_image
from oesir_d2.data.splicing.cutouts import CutOutSource
from oesir_d2.data.splicing.photos import PhotoCutOuts
from oesir_d2.data.splicing.stored_cutouts import StoredCutOut, StoredCutOuts

OBJECT_TRIES = 10
"""How many objects are drawn for one that is to fit."""


class ObjectDrawer:
    """Objects of several sources.

    Args:
        sources: each with its weight; an object's source is drawn by the weights, its photo uniformly.
        max_side: longer sides of the objects are shrunk to this, in pixels.
        cache: a folder that keeps what GrabCut cuts out.

    Raises:
        ValueError: if there is no source, or a weight is not above 0.
    """

    def __init__(self, sources: Sequence[tuple[CutOutSource, float]], max_side: int, cache: Path | None) -> None:
        self._shares = normalise([weight for _, weight in sources], "sources of objects")
        # Only GrabCut is slow enough to be worth the space on disk.
        self._sources = [
            StoredCutOuts(source, max_side, cache if isinstance(source, PhotoCutOuts) else None)
            for source, _ in sources
        ]
        self._without_object: set[tuple[int, ImageFile]] = set()
        self._resolved: dict[Path, Path] = {}
        self._places: dict[Path, list[tuple[int, ImageFile]]] = {}
        for i, photo in self._list_photos():
            self._places.setdefault(self._resolve(photo.path), []).append((i, photo))
        self.unreadable: set[str] = set()

    def draw(self, host: ImageFile, rng: np.random.Generator) -> Iterator[StoredCutOut]:
        """Some objects of other photos than the host, in random order.

        Raises:
            ValueError: if no source has an object at all.
        """
        num_drawn = 0
        own = self._resolve(host.path)
        for _ in range(OBJECT_TRIES):
            for i in draw_order(self._shares, rng):
                photos = self._sources[i].source.photos
                # All photos are permuted, those without object too: what is drawn must not depend on earlier photos.
                others = (photos[k] for k in rng.permutation(len(photos)) if self._resolve(photos[k].path) != own)
                cutouts = next(filter(None, (self._cut(i, photo) for photo in others)), ())
                if cutouts:
                    num_drawn += 1
                    yield cutouts[rng.integers(len(cutouts))]
                    break
        if num_drawn == 0 and not any(self._cut(i, photo) for i, photo in self._list_photos()):
            raise ValueError("none of the sources has an object to cut out")

    def find_objects(self, photo: ImageFile) -> tuple[StoredCutOut, ...]:
        """The objects that the first source that knows any cuts out of this very photo."""
        places = self._places.get(self._resolve(photo.path), [])
        return next(filter(None, (self._cut(i, donor) for i, donor in places)), ())

    def _list_photos(self) -> Iterator[tuple[int, ImageFile]]:
        return ((i, photo) for i, source in enumerate(self._sources) for photo in source.source.photos)

    def _cut(self, i: int, photo: ImageFile) -> tuple[StoredCutOut, ...]:
        """The objects of a photo of source ``i``."""
        if (i, photo) in self._without_object:
            return ()
        cutouts = self._sources[i].cut(photo)
        if not cutouts:
            self._without_object.add((i, photo))
            try:
                read_image(photo.path, reduce_to=1)
            except UnreadableImageError:  # which the source has logged
                self.unreadable.add(str(photo.path))
        return cutouts

    def _resolve(self, path: Path) -> Path:
        """The file itself: one photo may be reached by several links."""
        if path not in self._resolved:
            self._resolved[path] = path.resolve()
        return self._resolved[path]


def normalise(weights: Sequence[float], what: str) -> np.ndarray:
    """Weights as shares of 1.

    Raises:
        ValueError: if there is none, or one is not above 0; the message says of what.
    """
    if not weights:
        raise ValueError(f"no {what} are given, expected at least one set")
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"the weights of the {what} are {list(weights)}, expected numbers above 0")
    return np.array(weights) / sum(weights)


def draw_order(shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All numbers of the shares: the first is drawn by them, the others stand in for it."""
    return rng.choice(len(shares), size=len(shares), replace=False, p=shares)
