"""Upkeep of an index beside other processes that work on it, and of what is no index yet."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from oesir_d2.engine import index_upkeep
from oesir_d2.engine.synthetic_index import build_synthetic_index
from oesir_d2.evaluation.synthetic_embeddings import SyntheticWorld

WORLD = SyntheticWorld(dimension=16)


@pytest.fixture
def index_path(tmp_path: Path) -> Path:
    build_synthetic_index(tmp_path / "index", WORLD, 20, 3)
    return tmp_path / "index"


def test_an_index_is_described_while_its_files_vanish(index_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer deletes a file and a folder before any of the steps of reading the folder."""
    whole = count_bytes(index_path)
    file, folder = index_path / "segments" / ".tmp-file", index_path / "segments" / ".tmp-folder"
    stat, scandir = os.stat, os.scandir
    for step in range(1, 200):
        folder.mkdir()
        file.write_bytes(bytes(1000))
        calls = 0

        def delete_at_step(step: int = step) -> None:
            nonlocal calls
            calls += 1
            if calls == step:
                file.unlink()
                folder.rmdir()

        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", lambda *a, **k: (delete_at_step(), stat(*a, **k))[1])
            patch.setattr(os, "scandir", lambda *a: (delete_at_step(), scandir(*a))[1])
            assert index_upkeep.describe_index(index_path)["bytes"] in (whole, whole + 1000)
        if calls < step:
            assert calls > 5
            return
    pytest.fail("more than 200 steps")


def count_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
