"""Photos of many sizes in batches of one size: their order, their companions, and how many are held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from oesir_d2.data import ImageFile, UnreadableImageError
from oesir_d2.engine.batching import WINDOW, get_padding_step, run_in_batches

STEP = 32


def make_file(number: int) -> ImageFile:
    return ImageFile(str(number), Path(f"{number}.jpg"))


def make_input(height: int, width: int) -> dict[str, Any]:
    return {"image": torch.zeros(3, height, width)}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batches_are_of_one_size_and_results_in_order(batch_size: int, rng: np.random.Generator) -> None:
    sizes = rng.choice([20, 32, 33, 64, 65, 100], size=(200, 2)).tolist()
    bad = set(rng.choice(200, 20, replace=False).tolist())
    batches: list[list[tuple[int, int]]] = []
    taken = 0

    def decode() -> Iterator[tuple[ImageFile, dict[str, Any] | UnreadableImageError]]:
        nonlocal taken
        for number, size in enumerate(sizes):
            taken += 1
            file = make_file(number)
            yield file, UnreadableImageError(file.path, "bad") if number in bad else make_input(*size)

    def run(files: Sequence[ImageFile], inputs: Sequence[dict[str, Any]]) -> list[str]:
        batches.append([tuple(-(-side // STEP) for side in x["image"].shape[-2:]) for x in inputs])
        return [f"of {file.image_id}" for file in files]

    given = 0
    for number, (file, result) in enumerate(run_in_batches(decode(), run, batch_size, STEP)):
        assert file == make_file(number)
        assert isinstance(result, UnreadableImageError) if number in bad else result == f"of {number}"
        assert taken - given <= WINDOW * batch_size + 1
        given += 1
    assert given == 200
    assert sum(map(len, batches)) == 180 and max(map(len, batches)) == batch_size
    assert all(len(set(batch)) == 1 for batch in batches)


def test_a_rare_size_does_not_hold_up_the_others() -> None:
    files = [(make_file(n), make_input(*((500, 500) if n == 0 else (32, 32)))) for n in range(100)]
    sizes: list[int] = []

    def run(files: Sequence[ImageFile], inputs: Sequence[dict[str, Any]]) -> list[int]:
        sizes.append(len(files))
        return [0] * len(files)

    results = run_in_batches(iter(files), run, 4, STEP)
    next(results)
    assert sum(sizes) <= WINDOW * 4 + 1
    assert len(list(results)) == 99
    assert sizes.count(4) >= 24


def make_backbone(size_divisibility: int, maps: dict[str, object]) -> nn.Module:
    backbone = nn.Module()
    backbone.size_divisibility = size_divisibility
    backbone.output_shape = lambda: maps
    return backbone


@pytest.mark.parametrize(
    ("size_divisibility", "maps", "step"),
    [
        (32, {"p2": 1}, 32),
        (64, {"p2": 1}, 32),
        (16, {"p2": 1}, 16),
        (48, {"p2": 1}, 16),
        (0, {"p2": 1}, 1),
        (0, {}, 32),
    ],
)
def test_photos_share_a_batch_only_if_every_part_pads_them_alike(
    size_divisibility: int, maps: dict[str, object], step: int
) -> None:
    assert get_padding_step(make_backbone(size_divisibility, maps)) == step
