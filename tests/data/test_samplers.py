"""Batches of one shape: of what a loader gives, and of a training set that processes and workers share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from PIL import Image

from oesir_d2.data.samplers import ShapeGroupedBatches
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.training_data import build_train_loader, register_datasets

SIZES = [(60, 80), (80, 60), (64, 64)]
MakeLoader = Callable[..., Any]


@pytest.fixture
def photos(tmp_path: Path, make_photo: Callable[..., np.ndarray]) -> Path:
    """24 photos of three shapes and of two landmarks."""
    lines = ["id,landmark_id"]
    for i in range(24):
        # Of the first shape there are twice as many as of each other.
        Image.fromarray(make_photo(*SIZES[max(0, i % 4 - 1)])).save(tmp_path / f"photo{i}.jpg")
        lines.append(f"photo{i},{i % 2}")
    (tmp_path / "train.csv").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture
def make_loader(photos: Path) -> MakeLoader:
    def make(*opts: str) -> Any:
        sets = str([["landmarks", str(photos / "train.csv"), str(photos)]])
        cfg = load_config(
            "landmarks/finetune_lite0.yaml",
            [
                *("DATASETS.OESIR.LANDMARKS", sets, "INPUT.OESIR.SHAPES", "[[24, 32], [32, 24], [28, 28]]"),
                *("SOLVER.IMS_PER_BATCH", "4", "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(photos)),
                *opts,
            ],
        )
        register_datasets(cfg)
        return build_train_loader(cfg)

    return make


def take_names(loader: Any, count: int) -> list[list[str]]:
    return [[item["image_id"] for item in batch] for batch in islice(loader, count)]


def test_no_photo_is_lost_and_each_waits_for_its_shape() -> None:
    shapes = [(3, 4, 6)] * 5 + [(3, 6, 4)] * 4 + [(3, 5, 5)]
    order = np.random.default_rng(0).permutation(len(shapes)).tolist()
    items = [{"image": torch.zeros(shapes[i]), "number": i} for i in order]
    batches = list(ShapeGroupedBatches([items[:3], items[3:4], items[4:]], batch_size=2))

    assert [len(batch) for batch in batches] == [2, 2, 2, 2]
    for batch in batches:
        assert len({item["image"].shape for item in batch}) == 1
    numbers = [item["number"] for batch in batches for item in batch]
    assert len(set(numbers)) == 8 and 9 not in numbers
    # Of one shape, photos keep their order.
    first_shape = [number for number in numbers if number < 5]
    assert first_shape == [number for number in order if number < 5][:4]


def test_a_batch_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        ShapeGroupedBatches([], batch_size=0)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_batches_are_of_one_shape_whatever_the_workers(workers: str, make_loader: MakeLoader) -> None:
    batches = list(islice(make_loader("DATALOADER.NUM_WORKERS", workers), 18))
    shapes = [{tuple(item["image"].shape) for item in batch} for batch in batches]

    assert all(len(batch) == 4 and len(shape) == 1 for batch, shape in zip(batches, shapes, strict=True))
    assert set.union(*shapes) == {(3, 24, 32), (3, 32, 24), (3, 28, 28)}
    # 72 photos, three rounds over 24: at most three of each shape wait for a batch, of the round after them.
    counts = Counter(item["image_id"] for batch in batches for item in batch)
    assert len(counts) == 24 and set(counts.values()) <= {2, 3, 4}


def test_processes_share_the_photos(make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "get_world_size", lambda *_: 2)
    monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "shared_random_seed", lambda: 5)
    names = []
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda *_, rank=rank: rank)
        loader = make_loader()
        batches = list(islice(loader, 30))
        assert all(len(batch) == 2 and len({item["image"].shape for item in batch}) == 1 for batch in batches)
        names.append([item["image_id"] for batch in batches for item in batch])
    # Of a round each draws its 12, of which at most three wait for their shape.
    assert len(set(names[0][:9] + names[1][:9])) == 18, "no photo is drawn twice in a round"
    assert len(set(names[0] + names[1])) == 24


def test_one_seed_gives_one_order(make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []
    for seed in (5, 5, 6):
        monkeypatch.setattr(comm, "shared_random_seed", lambda seed=seed: seed)
        orders.append(take_names(make_loader(), 6))
    assert orders[0] == orders[1] != orders[2]


def test_what_takes_the_place_of_an_unreadable_photo_joins_those_of_its_shape(
    make_loader: MakeLoader, photos: Path
) -> None:
    for i in range(0, 24, 4):
        (photos / f"photo{i}.jpg").write_bytes(b"no photo")
    batches = list(islice(make_loader(), 12))
    assert all(len({item["image"].shape for item in batch}) == 1 for batch in batches)
    assert len({item["image_id"] for batch in batches for item in batch}) == 18
    assert len((photos / "skipped.jsonl").read_text().splitlines()) == 6
