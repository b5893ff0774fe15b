"""Photos of an index as a verification asks for them: those that a search found, and no others."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
from PIL import Image

from oesir_d2.data import ImageFile
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.indexing import build_index
from oesir_d2.engine.provenance import ProvenanceAnalyzer
from oesir_d2.engine.retrieval import Retriever
from oesir_d2.index.records import StoredRecords

from .conftest import TINY_OPTS

NAMES = ("astronaut", "coffee", "chelsea", "motorcycle_left")


@pytest.fixture
def photos(tmp_path: Path) -> list[ImageFile]:
    files = []
    for name in NAMES:
        photo = Image.open(str(resources.files("skimage.data") / f"{name}.png"))
        photo.thumbnail((200, 200))
        photo.save(tmp_path / f"{name}.png")
        files.append(ImageFile(name, tmp_path / f"{name}.png"))
    return files


@pytest.fixture
def retriever(photos: list[ImageFile], tmp_path: Path) -> Retriever:
    build_index(load_config("oesir_lite0_grid.yaml", TINY_OPTS), photos, tmp_path / "index")
    return Retriever(tmp_path / "index")


def test_records_of_photos_that_were_not_found_are_not_read(
    retriever: Retriever, photos: list[ImageFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection may have ten million of them."""
    read = []
    parse = StoredRecords._parse

    def note(records: StoredRecords, line: bytes) -> object:
        record = parse(records, line)
        read.append(record.image_id)
        return record

    monkeypatch.setattr(StoredRecords, "_parse", note)
    analyzer = ProvenanceAnalyzer(retriever, candidates=1)
    for file in photos[:2]:
        read.clear()
        answer = analyzer.analyze(file, box=(10, 10, 190, 120), top_k=1)
        assert answer.results[0].image_id == file.image_id and answer.findings.photos[0].verified
        assert set(read) == {file.image_id}


def test_photo_that_is_gone_is_reported_once(
    retriever: Retriever, photos: list[ImageFile], caplog: pytest.LogCaptureFixture
) -> None:
    photos[0].path.unlink()
    Image.new("RGB", (200, 200)).save(photos[1].path)
    analyzer = ProvenanceAnalyzer(retriever)
    for _ in range(2):
        for file in photos[2:]:
            analyzer.analyze(file)
    messages = [record.getMessage() for record in caplog.records if "left unverified" in record.getMessage()]
    assert len(messages) == 2, messages
    assert any(str(photos[0].path) in message for message in messages)
    assert any(str(photos[1].path) in message for message in messages)
