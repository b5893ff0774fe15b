"""Scores of provenance against values counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from oesir_d2.evaluation import score_mask, score_provenance, summarise_provenance
from oesir_d2.geometry import Findings, PhotoFinding, SplicePart


def make_mask(*columns: int) -> np.ndarray:
    mask = np.zeros((4, 10), np.uint8)
    mask[:, list(columns)] = 255
    return mask


def test_mask_scores() -> None:
    assert score_mask(make_mask(1, 2, 3), make_mask(2, 3, 4)) == pytest.approx((2 / 4, 4 / 6))
    assert score_mask(make_mask(1), make_mask(1)) == (1, 1)
    assert score_mask(None, make_mask(1)) == (0, 0)
    assert score_mask(None, make_mask()) == (1, 1)
    with pytest.raises(ValueError, match="shape"):
        score_mask(np.zeros((2, 2)), make_mask(1))


def test_roles_and_wrong_photos_are_counted() -> None:
    photos = (
        PhotoFinding("host", "host"),
        PhotoFinding("cat", "donor"),
        PhotoFinding("dog", "unverified"),
        PhotoFinding("other", "near-duplicate"),
    )
    row = score_provenance("q", Findings(photos, mask=make_mask(1)), "host", {"cat", "dog"}, make_mask(1, 2) > 0)
    assert (row.host_confirmed, row.donors_confirmed, row.wrong) == (True, 0.5, ("other",))
    assert (row.mask_iou, row.mask_f1) == pytest.approx((1 / 2, 2 / 3))
    swapped = score_provenance("q", Findings(photos), "cat", {"host"}, None)
    assert (swapped.host_confirmed, swapped.donors_confirmed, swapped.mask_iou) == (False, 0, None)
    # Of three donors two are not in the index at all.
    missing = score_provenance("q", Findings(photos), "", ["cat", "", ""], None)
    assert (missing.host_confirmed, missing.donors_confirmed) == (False, pytest.approx(1 / 3))
    unknown = score_provenance("q", Findings(photos), None, (), None)
    assert (unknown.host_confirmed, unknown.donors_confirmed) == (None, None)


def test_copy_moves_count_where_they_are_recognised() -> None:
    mask = make_mask(1) > 0
    kinds = ("copy-move", "unknown source")
    parts = {kind: SplicePart(kind, (0, 0, 1, 4), (), 0.1, None, None, 1.0) for kind in kinds}
    rows = [
        score_provenance("a", Findings((), (parts["copy-move"],), make_mask(1)), "host", (), mask, True),
        score_provenance("b", Findings((), (parts["unknown source"], parts["copy-move"])), "host", (), mask, True),
        score_provenance("c", Findings(), "host", (), mask, True),
        score_provenance("d", Findings((), (parts["copy-move"],)), "host", {"cat"}, mask),
    ]
    assert [row.copy_recognised for row in rows] == [True, False, False, None]
    assert summarise_provenance(rows)["copy_recognised"] == pytest.approx(100 / 3)


def test_summary() -> None:
    found = Findings((PhotoFinding("host", "host"),), mask=make_mask(1))
    nothing = Findings()
    rows = [
        score_provenance("a", found, "host", {"cat"}, make_mask(1) > 0),
        score_provenance("b", found, "host", {"cat"}, make_mask(1, 2) > 0),
        score_provenance("c", nothing, "host", {"cat"}, make_mask(1) > 0),
        score_provenance("d", found, "else", {"cat"}, None),
    ]
    metrics = summarise_provenance(rows)
    assert metrics["host_confirmed"] == 50 and metrics["donor_confirmed"] == 0
    assert metrics["false_accept"] == 25
    assert metrics["mask_iou"] == pytest.approx(75) and metrics["mask_iou_min"] == pytest.approx(50)
    assert metrics["mask_iou_all"] == pytest.approx(50) and metrics["mask_f1"] == pytest.approx((100 + 200 / 3) / 2)
    assert all(math.isnan(value) for value in summarise_provenance([]).values())
