"""Contrastive losses against their definitions in NumPy, and which pairs of regions they are asked to compare."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg

from oesir_d2 import add_oesir_config
from oesir_d2.modeling.contrastive import RegionMemory, choose_pairs
from oesir_d2.modeling.contrastive_losses import (
    ContrastiveLoss,
    InfoNCELoss,
    MultiSimilarityLoss,
    TripletMarginLoss,
    build_contrastive_loss,
)

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture
def batch(rng: np.random.Generator) -> Arrays:
    """Six anchors and nine references, the first six the anchors themselves: each has a positive, most are negatives,
    and some pairs are neither."""
    vectors = rng.normal(size=(9, 5))
    vectors[3:6] = vectors[:3] + rng.normal(0, 0.4, size=(3, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    objects = np.array([0, 1, 2, 0, 1, 2, 6, 7, 8])
    photos = np.array([0, 1, 2, 0, 1, 2, 0, 3, 4])
    is_positive = (objects[:6, None] == objects) & ~np.eye(6, 9, dtype=bool)
    return vectors[:6], vectors, is_positive, photos[:6, None] != photos


def compute(loss: ContrastiveLoss, batch: Arrays, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    anchors, references, is_positive, is_negative = map(torch.from_numpy, batch)
    return loss(anchors.to(dtype), references.to(dtype), is_positive, is_negative)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_info_nce(temperature: float, batch: Arrays) -> None:
    anchors, references, is_positive, is_negative = batch
    losses = []
    for anchor, positive, negative in zip(anchors, is_positive, is_negative, strict=True):
        exponentials = np.exp(references @ anchor / temperature)
        (own,) = exponentials[positive]
        losses.append(-np.log(own / (own + exponentials[negative].sum())))
    loss = compute(InfoNCELoss(temperature=temperature), batch)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_multi_similarity(batch: Arrays) -> None:
    anchors, references, is_positive, is_negative = batch
    cosines = anchors @ references.T
    positive = np.log1p((np.exp(-2 * (cosines - 0.5)) * is_positive).sum(axis=1)) / 2
    negative = np.log1p((np.exp(50 * (cosines - 0.5)) * is_negative).sum(axis=1)) / 50
    assert compute(MultiSimilarityLoss(), batch).item() == pytest.approx((positive + negative).mean(), rel=1e-5)


@pytest.mark.parametrize("margin", [0.1, 0.6])
def test_triplet_margin(margin: float, batch: Arrays) -> None:
    anchors, references, is_positive, is_negative = batch
    violations = [
        references[n] @ anchor - references[p] @ anchor + margin
        for anchor, positive, negative in zip(anchors, is_positive, is_negative, strict=True)
        for p in np.flatnonzero(positive)
        for n in np.flatnonzero(negative)
    ]
    expected = np.mean([violation for violation in violations if violation > 0])
    assert compute(TripletMarginLoss(margin=margin), batch).item() == pytest.approx(expected, rel=1e-5)


ALL = [InfoNCELoss, MultiSimilarityLoss, TripletMarginLoss]


@pytest.mark.parametrize("loss", ALL)
def test_pairs_that_are_neither_have_no_part(loss: Callable[[], ContrastiveLoss], batch: Arrays) -> None:
    anchors, references, is_positive, is_negative = batch
    neither = ~is_positive[0] & ~is_negative[0]
    assert neither.tolist() == [True, False, False, False, False, False, True, False, False]
    # A piece of the first anchor's photo that looks like the anchor, first as it is and then left out.
    references = references.copy()
    references[6] = anchors[0]
    is_first = np.arange(6) == 0
    left_out = (anchors[is_first], np.delete(references, 6, 0), *(np.delete(m[is_first], 6, 1) for m in batch[2:]))
    with_it = (anchors[is_first], references, is_positive[is_first], is_negative[is_first])
    assert compute(loss(), with_it) == pytest.approx(compute(loss(), left_out).item(), rel=1e-6)


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_type_gives_float32_and_a_gradient(
    loss: Callable[[], ContrastiveLoss], dtype: torch.dtype, batch: Arrays
) -> None:
    anchors, references, is_positive, is_negative = map(torch.from_numpy, batch)
    anchors = anchors.to(dtype).requires_grad_()
    value = loss()(anchors, references.to(dtype), is_positive, is_negative)
    assert value.dtype == torch.float32 and value.ndim == 0 and value > 0
    value.backward()
    assert anchors.grad.isfinite().all() and anchors.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", ALL)
def test_one_embedding_that_is_no_number_is_not_hidden(loss: Callable[[], ContrastiveLoss], batch: Arrays) -> None:
    batch[0][2, 0] = np.nan
    assert compute(loss(), batch).isnan()


@pytest.mark.parametrize("loss", ALL)
def test_a_batch_without_a_positive_gives_zero(loss: Callable[[], ContrastiveLoss], batch: Arrays) -> None:
    empty = (batch[0][:0], batch[1], batch[2][:0], batch[3][:0])
    assert compute(loss(), empty) == 0


def test_low_temperatures_do_not_overflow(batch: Arrays) -> None:
    assert compute(InfoNCELoss(temperature=0.001), batch, torch.float32).isfinite()


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["LOSS", "NPairs"], r"CONTRASTIVE\.LOSS.*'NPairs'.*InfoNCELoss"),
        (["TEMPERATURE", 0.0], r"TEMPERATURE is 0\.0; allowed: over 0"),
        (["LOSS", "TripletMarginLoss", "MARGIN", 2.0], r"MARGIN is 2\.0; allowed: over 0 and less than 2"),
    ],
)
def test_mistakes_in_the_config_are_named(opts: list[object], message: str) -> None:
    cfg = get_cfg()
    add_oesir_config(cfg)
    cfg.merge_from_list([f"MODEL.OESIR.CONTRASTIVE.{x}" if i % 2 == 0 else x for i, x in enumerate(opts)])
    with pytest.raises(ValueError, match=message):
        build_contrastive_loss(cfg)


def test_losses_of_the_config_have_its_numbers(batch: Arrays) -> None:
    cfg = get_cfg()
    add_oesir_config(cfg)
    cfg.MODEL.OESIR.CONTRASTIVE.TEMPERATURE = 0.3
    assert compute(build_contrastive_loss(cfg), batch) == compute(InfoNCELoss(temperature=0.3), batch)
    cfg.MODEL.OESIR.CONTRASTIVE.LOSS, cfg.MODEL.OESIR.CONTRASTIVE.MARGIN = "TripletMarginLoss", 0.7
    assert compute(build_contrastive_loss(cfg), batch) == compute(TripletMarginLoss(margin=0.7), batch)


def test_regions_of_one_photo_are_neither_positive_nor_negative() -> None:
    #                        two views of an object, a piece of its photo, another object of it, another photo's
    objects, photos = torch.tensor([5, 5, 6, 7, 8]), torch.tensor([1, 1, 1, 1, 2])
    is_positive, is_negative = choose_pairs(objects, photos, torch.tensor([1, 2, 3]))

    assert is_positive.nonzero().tolist() == [[0, 1], [1, 0]]
    expected = [[0, 0, 0, 0, 1, 0, 1, 1]] * 4 + [[1, 1, 1, 1, 0, 1, 0, 1]]
    assert is_negative.int().tolist() == expected


def test_memory_keeps_the_last_regions() -> None:
    memory = RegionMemory(5, 2)
    assert [len(part) for part in memory.read()] == [0, 0]
    for first in range(0, 9, 3):
        numbers = torch.arange(first, first + 3)
        memory.add(numbers[:, None].expand(3, 2).float().requires_grad_(), numbers)
        vectors, photos = memory.read()
        assert sorted(photos.tolist()) == list(range(max(0, first - 2), first + 3))
        assert torch.equal(vectors[:, 0].long(), photos) and not vectors.requires_grad
    memory.add(torch.arange(8.0)[:, None].expand(8, 2), torch.arange(8))  # more than there is room for
    assert sorted(memory.read()[1].tolist()) == [3, 4, 5, 6, 7]
    assert not memory.state_dict()

    empty = RegionMemory(0, 2)
    empty.add(torch.ones(3, 2), torch.arange(3))
    assert len(empty.read()[0]) == 0
