"""Batches of objects: no photo twice, a share of one class, every photo in turn, the same for all processes."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import pytest
from detectron2.utils import comm

from oesir_d2.data.class_sampler import SameClassSampler


def make_objects(num_photos: int = 20, each: int = 3) -> list[dict[str, Any]]:
    """Photos with objects of the classes a, b and c, then some photos without any outlined object."""
    objects = [
        {"file_name": f"{photo}.jpg", "cutout": {"category": "abc"[(photo + i) % 3]}}
        for photo in range(num_photos)
        for i in range(each)
    ]
    return objects + [{"file_name": f"plain{photo}.jpg", "cutout": None} for photo in range(num_photos)]


def draw(sampler: SameClassSampler, batch_size: int, count: int) -> list[list[int]]:
    stream = iter(sampler)
    return [list(islice(stream, batch_size)) for _ in range(count)]


def test_no_photo_is_in_a_batch_twice() -> None:
    objects = make_objects()
    for batch in draw(SameClassSampler(objects, 40, 0.25, seed=0), 40, 20):
        assert len({objects[number]["file_name"] for number in batch}) == 40


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_a_batch_is_of_one_class(share: float) -> None:
    objects = make_objects(num_photos=30)
    most = []
    for batch in draw(SameClassSampler(objects, 16, share, seed=0), 16, 40):
        categories = Counter((objects[number]["cutout"] or {}).get("category") for number in batch)
        most.append(max(count for category, count in categories.items() if category))
    # By chance about half of a batch has a class, a third of it the same.
    assert min(most) >= round(share * 16)
    assert share > 0 or sum(most) / len(most) < 6


def test_every_photo_has_its_turn_and_every_object_comes() -> None:
    objects = make_objects()
    batches = draw(SameClassSampler(objects, 8, 0.0, seed=0), 8, 300)
    numbers = [number for batch in batches for number in batch]
    photos = Counter(objects[number]["file_name"] for number in numbers)
    assert len(photos) == 40
    assert max(photos.values()) - min(photos.values()) <= 8
    assert set(numbers) == set(range(len(objects)))


def test_classes_of_one_photo_alone_are_no_classes() -> None:
    objects = [{"file_name": f"{i}.jpg", "cutout": {"category": f"class{i}"}} for i in range(6)]
    assert all(len(set(batch)) == 4 for batch in draw(SameClassSampler(objects, 4, 1.0, seed=0), 4, 10))


def test_processes_share_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = make_objects()
    whole = draw(SameClassSampler(objects, 8, 0.5, seed=3), 8, 10)
    parts = []
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(draw(SameClassSampler(objects, 8, 0.5, seed=3), 4, 10))
    for batch, first, second in zip(whole, *parts, strict=True):
        assert sorted(first + second) == sorted(batch)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"PAIR_SAME_CLASS is 1\.5; allowed: 0 to 1"):
        SameClassSampler(make_objects(), 8, 1.5)
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 41, but DATASETS.TRAIN has 40 photos; allowed: at most"):
        SameClassSampler(make_objects(), 41)
