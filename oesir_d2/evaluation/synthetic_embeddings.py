"""Made-up embeddings in the shape of real ones, for measuring search at sizes that no collection at hand has.

A world of looks, sorted like a tree: families (faces, foliage, wheels), kinds in them, varieties, and breeds. The
look of a region is the sum of its way through the tree, what all regions of its photo share, and what is its own. The
lengths are such that similarities fall off as among 35,952 real regions: between photos, the nearest region has an
inner product of 0.53, the 10th 0.47, the 100th 0.39, the 1,000th 0.28 (medians). Branches are chosen by Zipf's law,
so some breeds fill dense clusters of thousands of photos and others have one member. A query is a splice: views of
most regions of one photo, the host, several views of one region of another, the donor, each moved as re-encoding and
resizing move it, and some regions that show something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from oesir_d2.structures import ImageEmbeddings

_DONOR_REGIONS = 4
_OWN_REGIONS = 3


# Branches at each level of the tree, and the share of a region's squared length that each level has.
_BRANCHES = (20, 15, 12, 10)
_SHARES = (0.28, 0.11, 0.08, 0.06)


@dataclass(frozen=True)
class SyntheticWorld:
    """What the photos and queries of one collection share.

    Attributes:
        dimension: D, the length of an embedding.
        zipf: exponent of the branches' popularity; 0 makes them equally frequent.
        light: share of a region's squared length that all regions of a photo have in common.
        view: length of the noise that a query's view adds to the region that it shows.
        seed: of everything.
    """

    dimension: int = 256
    zipf: float = 0.5
    light: float = 0.05
    view: float = 0.5
    seed: int = 0

    def make_photos(self, photos: int, regions: int = 10) -> Iterator[ImageEmbeddings]:
        """Photo after photo, each with ``regions`` embeddings; photo p is the same however many there are."""
        for number in range(photos):
            rng = np.random.default_rng([self.seed, 1, number])
            own = 1 - sum(_SHARES) - self.light
            shared, unshared = self._noise(rng, self.light**0.5, 1), self._noise(rng, own**0.5, regions)
            yield _make_image(f"photo{number:09d}", self._draw_looks(rng, regions) + shared + unshared, rng)

    def make_query(self, number: int, host: ImageEmbeddings, donor: ImageEmbeddings, regions: int) -> ImageEmbeddings:
        """Query ``number``: a splice of an object of ``donor`` into ``host``, as ``regions`` embeddings."""
        rng = np.random.default_rng([self.seed, 2, number])
        of_host = regions - _DONOR_REGIONS - _OWN_REGIONS
        assert of_host > 0, f"a query has {regions} regions, expected more than {_DONOR_REGIONS + _OWN_REGIONS}"
        looks = self._draw_looks(rng, _OWN_REGIONS)
        shown = [
            host.vectors[rng.integers(len(host), size=of_host)],
            np.tile(donor.vectors[rng.integers(len(donor))], (_DONOR_REGIONS, 1)),
            looks + self._noise(rng, (1 - sum(_SHARES)) ** 0.5, _OWN_REGIONS),
        ]
        return _make_image(f"query{number:06d}", np.concatenate(shown) + self._noise(rng, self.view, regions), rng)

    def _draw_looks(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """(count, D) sums of random ways through the tree."""
        looks = np.zeros((count, self.dimension), np.float32)
        branch = np.zeros(count, np.int64)
        for level, (branches, share) in enumerate(zip(_BRANCHES, _SHARES, strict=True)):
            popularity = np.cumsum(np.arange(1.0, branches + 1) ** -self.zipf)
            branch = branch * branches + np.searchsorted(popularity, rng.uniform(0, popularity[-1], count))
            looks += np.float32(share**0.5) * _make_tree(self.seed, self.dimension)[level][branch]
        return looks

    def _noise(self, rng: np.random.Generator, length: float, count: int) -> np.ndarray:
        noise = rng.standard_normal((count, self.dimension), dtype=np.float32)
        return noise * np.float32(length / np.sqrt(self.dimension))


@lru_cache(maxsize=1)
def _make_tree(seed: int, dimension: int) -> list[np.ndarray]:
    """The directions of all branches, level by level."""
    rng = np.random.default_rng([seed, 0])
    counts = np.cumprod(_BRANCHES)
    return [_normalise(rng.standard_normal((count, dimension), dtype=np.float32)) for count in counts]


def _make_image(image_id: str, vectors: np.ndarray, rng: np.random.Generator) -> ImageEmbeddings:
    corners = np.sort(rng.uniform(0, 1024, (len(vectors), 2, 2)), axis=1)
    return ImageEmbeddings(
        image_id=image_id,
        vectors=_normalise(vectors),
        boxes=corners.reshape(-1, 4).astype(np.float32),
        scores=rng.uniform(0, 1, len(vectors)).astype(np.float32),
        classes=rng.integers(0, 80, len(vectors)),
    )


def _normalise(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    normalised: np.ndarray = (vectors / lengths).astype(np.float32)
    return normalised
