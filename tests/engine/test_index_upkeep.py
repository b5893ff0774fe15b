"""Upkeep of an index beside other processes that work on it, and of what is no index yet."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from oesir_d2.engine import index_upkeep
from oesir_d2.engine.synthetic_index import build_synthetic_index, describe_world
from oesir_d2.evaluation.synthetic_embeddings import SyntheticWorld
from oesir_d2.index import IndexWriter

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


@pytest.mark.parametrize(("name", "value"), [("images", 21), ("objects", 59)])
def test_counts_of_the_manifest_are_verified(index_path: Path, name: str, value: int) -> None:
    assert index_upkeep.verify_index(index_path)["images"] == 20
    with IndexWriter(index_path, describe_world(WORLD), "Flat", 4) as writer:
        writer.remove(["photo000000003"])
    assert index_upkeep.verify_index(index_path)["objects"] == 57
    file = index_path / "manifest.json"
    content = json.loads(file.read_text())
    content["counts"][name] = value
    file.write_text(json.dumps(content))
    counts = {"images": 19, "objects": 57, name: value}
    words = f"says {counts['images']} images and {counts['objects']} objects, its segments hold 19 and 57"
    with pytest.raises(
        ValueError, match=f"1 of 2 parts of index .* are damaged: .*manifest.json is damaged: it {words}"
    ):
        index_upkeep.verify_index(index_path)


def test_indexes_are_merged_where_the_making_of_one_was_interrupted(index_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    for name in (".lock", ".readers", ".tmp-manifest.json"):
        (target / name).touch()
    assert index_upkeep.merge_indexes(target, [index_path])["added"] == 20
    assert index_upkeep.verify_index(target)["images"] == 20
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="mine is neither an index nor an empty folder: it holds 'thesis.txt'"):
        index_upkeep.merge_indexes(tmp_path / "mine", [index_path])


def count_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
