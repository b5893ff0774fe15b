"""Verification against known warps, and photos that have nothing in common."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from oesir_d2.geometry import (
    FeatureOptions,
    GeometricMatch,
    LocalFeatures,
    QueryFeatures,
    detect_features,
    detect_features_in_box,
    verify_match,
)
from oesir_d2.geometry.confidence import difference_confidence, match_confidence
from oesir_d2.geometry.hypotheses import find_consensus
from oesir_d2.geometry.matching import match_descriptors
from oesir_d2.geometry.transforms import (
    PlausibleRange,
    apply_transform,
    describe_transform,
    fit_similarity,
    is_plausible,
)

PHOTOS = ("astronaut", "china", "coffee", "chelsea", "flower", "rocket", "motorcycle_left")


def verify(query: np.ndarray, source: np.ndarray) -> GeometricMatch | None:
    features = QueryFeatures(detect_features(query, FeatureOptions(max_features=1000)), query.shape[1])
    return verify_match(features, detect_features(source, FeatureOptions()))


def corner_error(found: np.ndarray, true: np.ndarray, source: np.ndarray) -> float:
    height, width = source.shape[:2]
    corners = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]])
    return float(np.abs(apply_transform(found, corners) - apply_transform(true, corners)).max())


@pytest.mark.parametrize(
    ("scale", "degrees", "mirrored"),
    [(1, 0, False), (0.4, 7, False), (1.6, -25, True), (0.25, 100, True), (3, 4, False)],
)
def test_known_warp_is_found(
    read_photo: Callable[..., np.ndarray],
    recompress: Callable[..., np.ndarray],
    make_similarity: Callable[..., np.ndarray],
    scale: float,
    degrees: float,
    mirrored: bool,
) -> None:
    source = read_photo("china", 480)
    true = make_similarity(scale, degrees, 0, 0, source.shape[1] if mirrored else None)
    centre = np.array([[source.shape[1] / 2, source.shape[0] / 2]])
    shift = np.array([200, 160]) - apply_transform(true, centre)[0]
    true = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]]) @ true
    reduced = cv2.GaussianBlur(source, (0, 0), 0.4 / scale) if scale < 1 else source
    query = recompress(np.clip(cv2.warpPerspective(reduced, true, (400, 320)) * [0.9, 1.0, 1.1], 0, 255), 70)
    match = verify(query, source)
    assert match is not None and match.flipped == mirrored and match.confidence > 0.99
    assert match.scale == pytest.approx(scale, rel=0.03)
    assert (match.rotation - degrees + 180) % 360 - 180 == pytest.approx(0, abs=2)
    visible = apply_transform(np.linalg.inv(true), np.array([[100.0, 80], [300, 80], [100, 240], [300, 240]]))
    np.testing.assert_allclose(apply_transform(match.transform, visible), apply_transform(true, visible), atol=3)
    np.testing.assert_allclose(apply_transform(match.transform, match.source_points), match.query_points, atol=3.1)


def test_perspective_is_found(read_photo: Callable[..., np.ndarray], recompress: Callable[..., np.ndarray]) -> None:
    source = read_photo("astronaut")
    true = np.array([[0.9, 0.1, 10], [-0.05, 0.95, 20], [4e-4, 2e-4, 1]])
    match = verify(recompress(cv2.warpPerspective(source, true, (320, 320))), source)
    assert match is not None
    assert corner_error(match.transform, true, source) < 4


@pytest.mark.parametrize("mirrored", [False, True])
def test_small_object_is_found_by_its_own_keypoints(
    read_photo: Callable[..., np.ndarray],
    recompress: Callable[..., np.ndarray],
    make_similarity: Callable[..., np.ndarray],
    paste: Callable[..., tuple[np.ndarray, np.ndarray]],
    mirrored: bool,
) -> None:
    """An object of 80 pixels, a sixth of the photo's long side."""
    host, donor = read_photo("chelsea", 480), read_photo("astronaut", 480)
    true = make_similarity(0.45, 12, 60, 40, donor.shape[1] if mirrored else None)
    splice, mask = paste(host, donor, true, (210, 110, 90, 90))
    splice = recompress(splice, 70)
    rows, columns = np.nonzero(mask)
    box = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
    assert max(box[2] - box[0], box[3] - box[1]) < 90
    part = detect_features_in_box(splice, box, FeatureOptions(), 384, mask.astype(np.uint8))
    match = verify_match(QueryFeatures(part, splice.shape[1]), detect_features(donor, FeatureOptions()))
    assert match is not None and match.inliers >= 8 and match.flipped == mirrored
    assert match.scale == pytest.approx(0.45, rel=0.05)


def test_other_photos_are_not_confirmed(read_photo: Callable[..., np.ndarray]) -> None:
    for query in PHOTOS:
        for source in PHOTOS:
            match = verify(read_photo(query), read_photo(source))
            if query == source:
                assert match is not None and match.inliers > 100 and match.confidence > 0.999
            else:
                assert match is None or match.confidence < 0.95, (query, source)


def test_nothing_is_found_in_blank_and_tiny_photos(read_photo: Callable[..., np.ndarray]) -> None:
    photo = read_photo("coffee")
    for other in (np.zeros((200, 300, 3), np.uint8), photo[:6, :6], photo[:1, :1]):
        assert verify(other, photo) is None
        assert verify(photo, other) is None
    assert verify_match(QueryFeatures(LocalFeatures.empty(), 1), LocalFeatures.empty()) is None


def test_matches_are_mutual_and_clear(rng: np.random.Generator) -> None:
    """Against a comparison of all pairs, one by one."""
    query, source = (rng.normal(size=(n, 128)).astype(np.float32) for n in (40, 60))
    source[:25] = query[:25] + rng.normal(size=(25, 128)).astype(np.float32) * rng.uniform(0.1, 1.5, (25, 1))
    query, source = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, source))
    distances = np.linalg.norm(query[:, None] - source, axis=2)
    expected = []
    for i, row in enumerate(distances):
        first, second = np.sort(row)[:2]
        j = int(row.argmin())
        if first < 0.8 * second and distances[:, j].argmin() == i:
            expected.append([i, j])
    assert 5 < len(expected) < 40
    assert match_descriptors(query, source.astype(np.float32), 0.8).tolist() == expected
    assert match_descriptors(query[:0], source, 0.8).shape == (0, 2)
    assert match_descriptors(query, source[:1], 0.8).shape == (0, 2)


def test_consensus_is_found_among_many_wrong_pairs(
    rng: np.random.Generator, make_similarity: Callable[..., np.ndarray]
) -> None:
    """Eight right pairs of 60; none of the wrong ones is taken for right."""
    transform = make_similarity(0.5, 30, 40, -10)
    points = rng.uniform(0, 400, size=(60, 2)).astype(np.float32)
    sizes = rng.uniform(2, 10, 60).astype(np.float32)
    angles = rng.uniform(-np.pi, np.pi, 60).astype(np.float32)
    nothing = np.zeros((60, 128), np.uint8)
    query_points = apply_transform(transform, points).astype(np.float32)
    query_points[8:] = rng.uniform(0, 250, size=(52, 2))
    query = LocalFeatures(query_points, sizes * np.float32(0.5), angles + np.float32(np.deg2rad(30)), nothing)
    source = LocalFeatures(points, sizes, angles, nothing)
    pairs = np.stack([np.arange(60)] * 2, axis=1)
    agreeing = find_consensus(query, source, pairs, 5.0, (0.2, 5.0))
    assert agreeing.tolist() == list(range(8))
    assert len(find_consensus(query, source, pairs, 5.0, (0.8, 5.0))) < 4  # a scale of one half is not believed there
    fitted = fit_similarity(points[agreeing], query_points[agreeing])
    np.testing.assert_allclose(fitted, transform, atol=1e-4)


def test_transforms_that_no_photo_undergoes_are_refused(make_similarity: Callable[..., np.ndarray]) -> None:
    points = np.array([[0.0, 0], [200, 0], [0, 150], [200, 150]])
    allowed = PlausibleRange()

    def plausible(transform: np.ndarray, flipped: bool = False) -> bool:
        return is_plausible(transform, points, flipped, allowed)

    assert plausible(make_similarity(0.3, 170, 5, 5)) and plausible(make_similarity(4.9, 0, 0, 0))
    assert not plausible(make_similarity(0.19, 0, 0, 0)) and not plausible(make_similarity(5.1, 0, 0, 0))
    mirror = make_similarity(1, 20, 0, 0, mirror_width=200)
    assert plausible(mirror, flipped=True) and not plausible(mirror) and not plausible(np.eye(3), flipped=True)
    assert plausible(np.diag([1.5, 1, 1])) and not plausible(np.diag([1.8, 1, 1]))
    assert not plausible(np.array([[1, 1.0, 0], [0, 1, 0], [0, 0, 1]]))  # a shear of 45 degrees
    assert plausible(np.array([[1, 0, 0], [0, 1, 0], [5e-4, 0, 1]]))
    assert not plausible(np.array([[1, 0, 0], [0, 1, 0], [-6e-3, 0, 1]]))  # the horizon crosses the photo
    assert not plausible(np.full((3, 3), np.nan))


def test_description_of_a_transform(make_similarity: Callable[..., np.ndarray]) -> None:
    assert describe_transform(make_similarity(0.41, 7, 3, 4), np.zeros(2)) == pytest.approx((0.41, 7, False))
    scale, rotation, flipped = describe_transform(make_similarity(2, -30, 3, 4, mirror_width=100), np.ones(2))
    assert (scale, rotation, flipped) == (pytest.approx(2), pytest.approx(-30), True)


def test_confidence_rises_with_the_evidence() -> None:
    confidences = [match_confidence(inliers) for inliers in range(0, 200)]
    assert all(0 <= low <= high <= 1 for low, high in zip(confidences, confidences[1:], strict=False))
    assert match_confidence(4) == pytest.approx(2.3 / 3.3)  # by Bayes' rule from the counts in confidence.py
    assert match_confidence(5) == pytest.approx(2.3 * 5 / (2.3 * 5 + 1))
    assert difference_confidence(0) < 0.05 < 0.95 < difference_confidence(10)
