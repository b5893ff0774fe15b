"""What the tests of the index share: a model, images with random embeddings, and a way to store them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest

from oesir_d2.index import EmbeddingIndex, EmbeddingModelInfo, ImageRecord, IndexWriter, ranking, set_search
from oesir_d2.structures import ImageEmbeddings

DIMENSION = 8


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: only a loss of power would show the difference, a killed process does not."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take longer than these tiny searches."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a search of a small index go every way that a search of a large one can."""
    monkeypatch.setattr(set_search, "_FETCH_GROWTH", 2)
    monkeypatch.setattr(set_search, "_LARGEST_FETCH", 0.5)
    monkeypatch.setattr(ranking, "_BATCH_IMAGES", 3)


@pytest.fixture
def model_info() -> EmbeddingModelInfo:
    return EmbeddingModelInfo(
        config={"MODEL.META_ARCHITECTURE": "OESIR", "MODEL.SIZES": (3, 4)},
        references={"MODEL.WEIGHTS": "/weights/model.safetensors"},
        weights_sha256="a" * 64,
        whitening_sha256="b" * 64,
        preprocessing={"max_long_side": 1024, "input_format": "RGB", "size": (3, 4)},
        dimension=DIMENSION,
    )


@pytest.fixture
def make_image() -> Callable[..., ImageEmbeddings]:
    """``make_image(image_id, regions, seed)``: an image with random unit vectors, boxes, scores and classes."""

    def make(image_id: str, regions: int = 3, seed: int = 0) -> ImageEmbeddings:
        rng = np.random.default_rng([seed, *image_id.encode()])
        vectors = rng.standard_normal((regions, DIMENSION))
        return ImageEmbeddings(
            image_id=image_id,
            vectors=(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32),
            boxes=np.sort(rng.uniform(0, 500, (regions, 2, 2)), axis=1).reshape(regions, 4).astype(np.float32),
            scores=rng.uniform(0, 1, regions).astype(np.float32),
            classes=rng.integers(-1, 80, regions),
        )

    return make


@pytest.fixture
def make_record() -> Callable[..., ImageRecord]:
    """``make_record(image_id, version)``: the record of a file; another version has another content and time."""

    def make(image_id: str, version: int = 0) -> ImageRecord:
        return ImageRecord(
            image_id, f"/photos/{image_id}", 640, 480, 1000 + version, 10**18 + version, f"{version:064x}"
        )

    return make


@pytest.fixture
def store(
    model_info: EmbeddingModelInfo, make_record: Callable[..., ImageRecord]
) -> Callable[[Path, Iterable[ImageEmbeddings]], None]:
    """``store(path, images)``: add images to the index at ``path``, two a segment."""

    def store_images(path: Path, images: Iterable[ImageEmbeddings], segment_images: int = 2) -> None:
        with IndexWriter(path, model_info, "Flat", segment_images) as writer:
            for image in images:
                writer.add(image, make_record(image.image_id))

    return store_images


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """``snapshot(folder)``: every file below a folder with its content, for "nothing was touched"."""

    def take(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return take


@pytest.fixture
def versions_in(make_image: Callable[..., ImageEmbeddings]) -> Callable[..., dict[str, int]]:
    """``versions_in(path)``: {image_id: version} of a sound index; vectors and records must belong together."""

    def read(path: str | os.PathLike[str]) -> dict[str, int]:
        index = EmbeddingIndex.open(path)
        index.verify()
        versions: dict[str, int] = {}
        for number, record in enumerate(index.images):
            assert record.image_id not in versions, "an image is there twice"
            versions[record.image_id] = version = int(record.sha256, 16)
            expected = make_image(record.image_id, 3, seed=version)
            np.testing.assert_array_equal(index.embeddings_of(number).vectors, expected.vectors)
        return versions

    return read
