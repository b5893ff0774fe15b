"""Indexes of made-up photos, of any size, to measure building and searching with."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from tqdm import tqdm

from oesir_d2.evaluation.synthetic_embeddings import SyntheticWorld
from oesir_d2.index import EmbeddingIndex, EmbeddingModelInfo, ImageRecord, IndexWriter
from oesir_d2.structures import ImageEmbeddings

SEGMENT_IMAGES = 4096


def describe_world(world: SyntheticWorld) -> EmbeddingModelInfo:
    """The "model" that made the embeddings of a synthetic world."""
    settings = {"SYNTHETIC.SEED": world.seed, "SYNTHETIC.ZIPF": world.zipf, "SYNTHETIC.LIGHT": world.light}
    return EmbeddingModelInfo(settings, {}, "0" * 64, "", {}, world.dimension)


def make_record(number: int, image_id: str) -> ImageRecord:
    """The record of a photo that there is no file of."""
    return ImageRecord(image_id, f"/photos/{image_id}.jpg", 1024, 768, 1, 1, f"{number:064x}")


def build_synthetic_index(path: Path, world: SyntheticWorld, photos: int, regions: int) -> None:
    """Build an index of ``photos`` photos of ``regions`` regions each; one that is complete is left as it is."""
    if path.exists():
        try:
            if len(EmbeddingIndex.open(path).images) == photos:
                return
        except ValueError:
            pass
        shutil.rmtree(path)
    images = tqdm(world.make_photos(photos, regions), total=photos, desc="Making up an index", unit="photo")
    with IndexWriter(path, describe_world(world), "Flat", SEGMENT_IMAGES) as writer:
        for number, image in enumerate(images):
            writer.add(image, make_record(number, image.image_id))


def make_queries(index: EmbeddingIndex, world: SyntheticWorld, count: int, regions: int) -> list[ImageEmbeddings]:
    """Splices of photos of an index, of ``regions`` regions each; host and donor are drawn evenly."""
    rng = np.random.default_rng([world.seed, 3])
    queries = []
    for number in range(count):
        host, donor = rng.choice(len(index.images), size=2, replace=False).tolist()
        query = world.make_query(number, index.embeddings_of(host), index.embeddings_of(donor), regions)
        queries.append(query)
    return queries
