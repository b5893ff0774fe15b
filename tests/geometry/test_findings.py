"""Findings as JSON, and from working size to the original files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from oesir_d2.geometry import (
    Findings,
    GeometricMatch,
    PhotoFinding,
    PhotoSize,
    SplicePart,
    rescale_findings,
    working_size,
)

POINTS = np.array([[10, 20], [110, 20], [10, 90], [110, 90], [60, 50]], np.float32)
TRANSFORM = np.array([[0.5, 0, 10], [0, 0.5, 20], [0, 0, 1.0]])


@pytest.fixture
def findings() -> Findings:
    match = GeometricMatch(TRANSFORM, False, 0.5, 0.0, POINTS * np.float32(0.5) + [10, 20], POINTS, 0.97)
    polygon = np.array([[10, 20], [30, 20], [30, 40]], np.float32)
    part = SplicePart("donor", (10, 20, 31, 41), (polygon,), 0.04, "cat.jpg", match, 0.97)
    mask = np.zeros((60, 80), np.uint8)
    mask[20:41, 10:31] = 255
    return Findings((PhotoFinding("cat.jpg", "donor", match, (0,)), PhotoFinding("dog.jpg")), (part,), mask)


def test_json_has_the_form_of_the_contract(findings: Findings) -> None:
    donor, other = json.loads(json.dumps([photo.to_dict() for photo in findings.photos]))
    assert (donor["verified"], donor["role"], donor["inliers"], donor["parts"]) == (True, "donor", 5, [0])
    assert donor["transform"] == TRANSFORM.tolist()
    assert donor["correspondences"][0] == {"query": [15, 30], "source": [10, 20]}
    assert list(other) == list(donor)
    assert (other["verified"], other["role"], other["inliers"], other["transform"]) == (False, "unverified", 0, None)
    part = json.loads(json.dumps(findings.parts[0].to_dict()))
    assert (part["kind"], part["source"], part["box"]) == ("donor", "cat.jpg", [10, 20, 31, 41])
    assert part["polygons"] == [[[10, 20], [30, 20], [30, 40]]] and part["copied_from"] is None
    assert findings.host is None


def test_findings_are_brought_to_the_size_of_the_files(findings: Findings) -> None:
    """The query was worked on at half its size, the source at a third."""
    query, source = PhotoSize((60, 80), (120, 160)), PhotoSize((100, 120), (300, 360))
    scaled = rescale_findings(findings, query, {"cat.jpg": source})
    match = scaled.photos[0].match
    assert match is not None and match.scale == pytest.approx(0.5 * 2 / 3)
    # A pixel's edge stays where it is: the first pixel of three becomes the middle of the three.
    np.testing.assert_allclose(match.source_points, POINTS * 3 + 1, atol=1e-4)
    np.testing.assert_allclose(match.query_points, (POINTS * 0.5 + [10, 20]) * 2 + 0.5, atol=1e-4)
    mapped = match.transform @ np.vstack([match.source_points.T, np.ones(len(POINTS))])
    np.testing.assert_allclose((mapped[:2] / mapped[2]).T, match.query_points, atol=1e-3)
    assert scaled.parts[0].box == (20, 40, 62, 82)
    assert scaled.mask is not None and scaled.mask.shape == (120, 160)
    assert set(np.unique(scaled.mask)) == {0, 255}
    assert scaled.mask[40:82, 20:62].mean() > 250
    assert scaled.photos[1] == findings.photos[1]


def test_sizes_and_boxes() -> None:
    assert working_size(3000, 4000, 1024) == (768, 1024)
    assert working_size(30, 40, 1024) == (30, 40)
    assert working_size(1, 100_000, 1024) == (1, 1024)
    size = PhotoSize((768, 1024), (3000, 4000))
    assert size.box_to_original((0, 0, 1024, 768)) == (0, 0, 4000, 3000)
    assert size.box_to_working(size.box_to_original((10, 20, 30, 40))) == pytest.approx((10, 20, 30, 40))
