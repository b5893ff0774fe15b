"""Which candidates of a part are compared: all, until one leaves no doubt."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from oesir_d2.engine import part_search
from oesir_d2.engine.part_search import PartSources, verify_candidates
from oesir_d2.geometry import GeometricMatch, LocalFeatures
from oesir_d2.geometry.findings import Appearance
from oesir_d2.index import RegionMatch, SearchResult


def make_match(inliers: int, confidence: float, correlation: float) -> GeometricMatch:
    points = np.zeros((inliers, 2), np.float32)
    look = Appearance(overlap=1.0, textured=5000, correlation=correlation, lightness=correlation)
    return GeometricMatch(np.eye(3), False, 1.0, 0.0, points, points, confidence, look)


@pytest.mark.parametrize(
    ("first", "source", "compared"),
    [
        # Another photo of the same building from nearly the same place. The true source comes later.
        (make_match(40, 0.97, 0.85), "true", ["view", "true", "other"]),
        (make_match(40, 0.999, 0.98), "view", ["view"]),
    ],
)
def test_photo_of_the_same_thing_does_not_end_the_search(monkeypatch, first, source, compared):
    matches = {"view": first, "true": make_match(9, 0.975, 0.86), "other": None}
    asked = []

    def find_best(image_id, candidates):
        if image_id not in asked:
            asked.append(image_id)
        return matches[image_id]

    photos = SimpleNamespace(
        expect=lambda results: None,
        features_of=lambda image_id: LocalFeatures.empty(),
        size_of=lambda image_id: SimpleNamespace(box_to_working=lambda box: np.array(box)),
    )
    monkeypatch.setattr(part_search, "verify_match", lambda *arguments: object())
    box = (0.0, 0.0, 10.0, 10.0)
    results = [
        SearchResult(rank, image_id, image_id, 0.5, [RegionMatch(box, box, 0.5)])
        for rank, image_id in enumerate(matches, start=1)
    ]
    found = verify_candidates(None, results, photos, SimpleNamespace(find_best=find_best), (), lambda share: None)
    best = PartSources(results, found).best()
    assert best is not None and best[0] == source
    assert asked == compared
