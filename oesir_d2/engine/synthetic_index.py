"""Indexes of made-up photos, of any size, to measure building and searching with."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from oesir_d2.evaluation.synthetic_embeddings import SyntheticWorld
from oesir_d2.index import EmbeddingIndex, EmbeddingModelInfo, ImageRecord, IndexWriter, Manifest
from oesir_d2.index.manifest import MANIFEST_FILE
from oesir_d2.structures import ImageEmbeddings

SEGMENT_IMAGES = 4096

# No other model has a setting of this name.
_SEED = "SYNTHETIC.SEED"


def describe_world(world: SyntheticWorld) -> EmbeddingModelInfo:
    """The "model" that made the embeddings of a synthetic world."""
    settings = {_SEED: world.seed, "SYNTHETIC.ZIPF": world.zipf, "SYNTHETIC.LIGHT": world.light}
    return EmbeddingModelInfo(settings, {}, "0" * 64, "", {}, world.dimension)


def make_record(number: int, image_id: str) -> ImageRecord:
    """The record of a photo that there is no file of."""
    return ImageRecord(image_id, f"/photos/{image_id}.jpg", 1024, 768, 1, 1, f"{number:064x}")


def check_sizes(sizes: Sequence[int], regions: int) -> None:
    """Raise ``ValueError`` unless indexes of so many objects have two photos of ``regions`` regions at least."""
    too_small = [size for size in sizes if size < 2 * regions]
    if too_small:
        raise ValueError(f"sizes has {too_small[0]}, expected at least {2 * regions}: two photos of {regions} regions")


def is_synthetic_index(path: Path, world: SyntheticWorld, photos: int, regions: int) -> bool:
    """Whether there is an index of ``photos`` photos of ``regions`` regions each of this world, complete and sound."""
    if not (path / MANIFEST_FILE).exists():
        return False
    try:
        index = EmbeddingIndex.open(path, describe_world(world))
    except ValueError:
        return False
    return (len(index.images), index.num_objects) == (photos, photos * regions)


def build_synthetic_index(path: Path, world: SyntheticWorld, photos: int, regions: int) -> bool:
    """Build an index of ``photos`` photos of ``regions`` regions each; one that is complete is left as it is.

    Returns:
        Whether it was built, and was not there before.

    Raises:
        ValueError: as ``remove_synthetic_index``, of what lies in its place.
    """
    if is_synthetic_index(path, world, photos, regions):
        return False
    remove_synthetic_index(path)
    images = tqdm(world.make_photos(photos, regions), total=photos, desc="Making up an index", unit="photo")
    with IndexWriter(path, describe_world(world), "Flat", SEGMENT_IMAGES) as writer:
        for number, image in enumerate(images):
            writer.add(image, make_record(number, image.image_id))
    return True


def remove_synthetic_index(path: Path) -> None:
    """Delete a made-up index, whole or not, if there is one.

    Raises:
        ValueError: if there is something else, or somebody tuned it: that is not made anew in seconds.
    """
    if not (path / MANIFEST_FILE).exists():
        return  # whoever writes an index there refuses what is none
    manifest = Manifest.load(path)
    if _SEED not in manifest.model.config or manifest.object_index is not None:
        kind = "was tuned" if _SEED in manifest.model.config else "is no made-up one"
        raise ValueError(f"index {path} is in the way and stays, since it {kind}; move it, or name another output")
    shutil.rmtree(path)


def make_queries(index: EmbeddingIndex, world: SyntheticWorld, count: int, regions: int) -> list[ImageEmbeddings]:
    """Splices of photos of an index, of ``regions`` regions each; host and donor are drawn evenly."""
    rng = np.random.default_rng([world.seed, 3])
    queries = []
    for number in range(count):
        host, donor = rng.choice(len(index.images), size=2, replace=False).tolist()
        query = world.make_query(number, index.embeddings_of(host), index.embeddings_of(donor), regions)
        queries.append(query)
    return queries
