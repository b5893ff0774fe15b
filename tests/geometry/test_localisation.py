"""Where a splice lies: composed splices of real photos, changed as a whole and recompressed."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from oesir_d2.geometry import (
    FeatureOptions,
    GeometricMatch,
    QueryFeatures,
    compare,
    detect_features,
    express_within_query,
    find_regions,
    find_shown_part,
    make_part,
    refine_with_donor,
    tight_box,
    verify_match,
)
from oesir_d2.geometry.difference import compute_difference, warp_source
from oesir_d2.geometry.regions import fill_holes, trace_polygons

ELLIPSE = (140, 75, 50, 60)  # the face of the astronaut at 320 pixels


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.count_nonzero(one & other) / np.count_nonzero(one | other))


def verify(query: np.ndarray, source: np.ndarray, part: np.ndarray | None = None) -> GeometricMatch:
    mask = None if part is None else part.astype(np.uint8)
    features = detect_features(query, FeatureOptions(), mask)
    match = verify_match(QueryFeatures(features, query.shape[1]), detect_features(source, FeatureOptions()))
    assert match is not None
    return match


@pytest.fixture
def splice(
    read_photo: Callable[..., np.ndarray],
    recompress: Callable[..., np.ndarray],
    make_similarity: Callable[..., np.ndarray],
    paste: Callable[..., tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """The astronaut's face in a photo of a temple, and where it lies."""
    spliced, mask = paste(read_photo("china"), read_photo("astronaut"), make_similarity(0.8, 10, 60, 20), ELLIPSE)
    return recompress(spliced, 75), mask


def test_pasted_object_is_located(splice: tuple[np.ndarray, np.ndarray], read_photo: Callable[..., np.ndarray]) -> None:
    query, truth = splice
    host = read_photo("china")
    comparison = compare(query, host, verify(query, host))
    (region,) = comparison.find_edits()
    assert iou(region, truth) > 0.9
    assert comparison.explained == pytest.approx(1 - truth.mean(), abs=0.05)


def test_changes_of_the_whole_photo_are_no_edit(
    splice: tuple[np.ndarray, np.ndarray], read_photo: Callable[..., np.ndarray], recompress: Callable[..., np.ndarray]
) -> None:
    """Cropped, enlarged, brighter, of warmer colours, and recompressed."""
    query, truth = splice
    host = read_photo("china")
    crop = slice(8, 200), slice(20, 300)
    size = round(280 * 1.3), round(192 * 1.3)

    def change(pixels: np.ndarray) -> np.ndarray:
        enlarged = cv2.resize(pixels[crop], size, interpolation=cv2.INTER_CUBIC)
        return recompress(np.clip(enlarged * [1.1, 1.0, 0.9] + 8, 0, 255).astype(np.uint8), 75)

    authentic = change(host)
    comparison = compare(authentic, host, verify(authentic, host))
    assert comparison.find_edits() == [] and comparison.explained > 0.95
    edited = change(query)
    true = cv2.resize(truth[crop].astype(np.float32), size) > 0.5
    (region,) = compare(edited, host, verify(edited, host)).find_edits()
    assert iou(region, true) > 0.8  # enlarged and compressed twice, its outline is blurred


@pytest.mark.parametrize("quality", [65, 75])
def test_the_one_colourful_thing_of_a_recompressed_photo_is_no_edit(
    read_photo: Callable[..., np.ndarray], recompress: Callable[..., np.ndarray], rng: np.random.Generator, quality: int
) -> None:
    """All else has fine colours, which recompression flattens: no reason to take colour from the leaf."""
    grey = read_photo("china", 480).mean(axis=2, keepdims=True)
    speckled = grey + rng.normal(0, 9, (*grey.shape[:2], 3))
    leaf = np.zeros(grey.shape[:2], np.float32)
    cv2.ellipse(leaf, (400, 250), (50, 30), 20, 0, 360, 1, -1)
    leaf = cv2.GaussianBlur(leaf, (0, 0), 3)[..., None]
    photo = np.clip(speckled * (1 - leaf) + np.array([120, 220, 30]) * leaf, 0, 255).astype(np.uint8)
    copy = recompress(photo, quality)
    assert compare(copy, photo, verify(copy, photo)).find_edits() == []


@pytest.mark.parametrize("quality", [40, 65])
def test_noise_of_a_thing_before_plain_white_is_no_edit(
    read_photo: Callable[..., np.ndarray], recompress: Callable[..., np.ndarray], quality: int
) -> None:
    """Three quarters are white, in which recompression leaves no noise at all."""
    photo = np.full((400, 600, 3), 255, np.uint8)
    thing = read_photo("coffee", 240)
    photo[100 : 100 + thing.shape[0], 180 : 180 + thing.shape[1]] = thing
    copy = recompress(photo, quality)
    assert compare(copy, photo, verify(copy, photo)).find_edits() == []


def test_difference_is_nothing_for_a_photo_and_itself(read_photo: Callable[..., np.ndarray]) -> None:
    photo = read_photo("coffee")
    difference = compute_difference(photo, photo, np.eye(3))
    assert difference.valid[1:-1, 1:-1].all()
    assert difference.deviation.max() < 0.01 and difference.distance.max() < 0.01


def test_what_a_source_does_not_reach_is_not_compared(read_photo: Callable[..., np.ndarray]) -> None:
    photo = read_photo("coffee")
    shifted = np.array([[1.0, 0, 100], [0, 1, 0], [0, 0, 1]])
    warped, valid = warp_source(photo, shifted, photo.shape[:2])
    np.testing.assert_array_equal(warped[:, 105:], photo[:, 5:-100])
    assert not valid[:, :100].any() and valid[2:-2, 102:].all()
    difference = compute_difference(photo, photo, np.array([[1.0, 0, 5000], [0, 1, 0], [0, 0, 1]]))
    assert not difference.valid.any() and difference.deviation.max() == 0


def extend(photo: np.ndarray, beside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A photo with something set beside it, and (H, W) bool where that lies."""
    query = np.concatenate([photo, beside], axis=1)
    return query, np.broadcast_to(np.arange(query.shape[1]) >= photo.shape[1], query.shape[:2])


def test_what_lies_beyond_the_host_is_an_edit(
    read_photo: Callable[..., np.ndarray], recompress: Callable[..., np.ndarray]
) -> None:
    host = read_photo("china")
    height, width = host.shape[:2]
    caption = np.full((height, 90, 3), 255, np.uint8)
    cv2.putText(caption, "NEWS", (5, 100), cv2.FONT_HERSHEY_SIMPLEX, 1, (0, 0, 0), 3)
    for beside in (read_photo("astronaut")[:height, :200], host[:, :100:-1], caption):
        query, truth = extend(host, beside)
        query = recompress(query, 75)
        comparison = compare(query, host, verify(query, host))
        (region,) = comparison.find_edits()
        assert iou(region, truth) > 0.95
        assert comparison.explained == pytest.approx(width / query.shape[1], abs=0.05)


def test_margins_and_slivers_are_no_edit(
    read_photo: Callable[..., np.ndarray], recompress: Callable[..., np.ndarray]
) -> None:
    """The bars of a film, a frame, the corners of a turned photo, and a copy that shows a line more."""
    whole = read_photo("china")
    host = whole[3:-2, 2:-3]
    turn = np.vstack([cv2.getRotationMatrix2D((160, 100), 7, 0.9), [0, 0, 1]])
    queries = [
        cv2.copyMakeBorder(host, 40, 40, 0, 0, cv2.BORDER_CONSTANT),
        cv2.copyMakeBorder(host, 15, 15, 15, 15, cv2.BORDER_CONSTANT, value=(200, 190, 60)),
        cv2.warpPerspective(host, turn, host.shape[1::-1], borderValue=(255, 255, 255)),
        whole,
    ]
    for query in (recompress(query, 75) for query in queries):
        assert compare(query, host, verify(query, host)).find_edits() == []


def test_object_across_the_hosts_border_is_two_regions_of_one_outline(
    read_photo: Callable[..., np.ndarray], recompress: Callable[..., np.ndarray]
) -> None:
    host = read_photo("china")
    query, beyond = extend(host, np.full((host.shape[0], 120, 3), 128, np.uint8))
    query = query.copy()
    query[50:130, 270:370] = read_photo("astronaut")[20:100, 90:190]
    regions = compare(recompress(query, 85), host, verify(query, host)).find_edits()
    assert len(regions) == 2 and not (regions[0] & regions[1]).any()
    truth = np.zeros(beyond.shape, bool)
    truth[50:130, 270:370] = True
    assert iou(regions[0] | regions[1], truth | beyond) > 0.9


def test_donor_redraws_the_outline(
    splice: tuple[np.ndarray, np.ndarray], read_photo: Callable[..., np.ndarray]
) -> None:
    query, truth = splice
    host, donor = read_photo("china"), read_photo("astronaut")
    comparison = compare(query, host, verify(query, host))
    # Half of the object was overlooked.
    found = truth.copy()
    x0, _, x1, _ = tight_box(truth)
    found[:, : x0 + 8] = False
    refined = refine_with_donor(found, comparison.difference, query, donor, verify(query, donor, truth))
    assert iou(refined, truth) > max(0.9, iou(found, truth))
    # A donor that lies wrong changes nothing.
    wrong = verify(query, donor, truth)
    moved = GeometricMatch(
        np.array([[1.0, 0, 70], [0, 1, 50], [0, 0, 1]]) @ wrong.transform,
        False,
        wrong.scale,
        wrong.rotation,
        wrong.query_points,
        wrong.source_points,
        wrong.confidence,
    )
    assert iou(refine_with_donor(found, comparison.difference, query, donor, moved), found) > 0.75


def test_donor_alone_shows_its_part(
    splice: tuple[np.ndarray, np.ndarray], read_photo: Callable[..., np.ndarray]
) -> None:
    query, truth = splice
    donor = read_photo("astronaut")
    assert iou(find_shown_part(query, donor, verify(query, donor, truth)), truth) > 0.7


def test_copy_within_the_photo_is_expressed_in_its_own_pixels(
    read_photo: Callable[..., np.ndarray],
    make_similarity: Callable[..., np.ndarray],
    paste: Callable[..., tuple[np.ndarray, np.ndarray]],
) -> None:
    """The query is its host at 1.25 times the size, so the two frames differ."""
    host = read_photo("china")
    moved = make_similarity(1, 0, 90, 20)
    spliced, mask = paste(host, host, moved, (100, 90, 35, 35))
    query = cv2.resize(spliced, None, fx=1.25, fy=1.25, interpolation=cv2.INTER_CUBIC)
    part = cv2.resize(mask.astype(np.uint8), query.shape[1::-1]) > 0
    host_match = verify(query, host)
    copied = express_within_query(verify(query, host, part), host_match)
    offsets = copied.query_points - copied.source_points
    np.testing.assert_allclose(np.median(offsets, axis=0), [1.25 * 90, 1.25 * 20], atol=0.7)
    assert copied.scale == pytest.approx(1, abs=0.03)
    np.testing.assert_allclose(copied.transform @ [125, 112, 1], [125 + 112.5, 112 + 25, 1], atol=2)


def test_regions_need_a_seed_and_some_area() -> None:
    deviation = np.zeros((200, 300), np.float32)
    deviation[20:60, 30:90] = 10
    deviation[35:45, 50:60] = 0  # a hole is filled
    deviation[100:140, 30:90] = 4  # no seed
    deviation[100:103, 200:203] = 50  # too small
    deviation[150:152, 100:250] = 50  # a line
    (region,) = find_regions(deviation, deviation)
    expected = np.zeros_like(region)
    expected[20:60, 30:90] = True
    assert iou(region, expected) > 0.97
    assert tight_box(region) == (30, 20, 90, 60)
    assert find_regions(np.zeros((50, 60), np.float32), np.zeros((50, 60), np.float32)) == []
    assert find_regions(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32)) == []


def test_polygons_enclose_the_region() -> None:
    """Against filling them again."""
    y, x = np.mgrid[0:120, 0:160]
    mask = ((x - 60) ** 2 / 40**2 + (y - 60) ** 2 / 25**2 < 1) | ((x - 140) ** 2 + (y - 100) ** 2 < 100)
    polygons = trace_polygons(mask)
    assert len(polygons) == 2
    painted = np.zeros(mask.shape, np.uint8)
    cv2.fillPoly(painted, [np.rint(polygon).astype(np.int32) for polygon in polygons], 1)
    assert iou(painted > 0, mask) > 0.97
    part = make_part(mask, "unknown source", 0.5)
    assert part.box == (21, 36, 150, 110) and part.area == pytest.approx(mask.mean())


def test_holes_are_filled_but_bays_are_not() -> None:
    mask = np.zeros((10, 12), np.uint8)
    mask[2:8, 2:9] = 1
    mask[4:6, 4:6] = 0
    mask[2:5, 7] = 0
    filled = fill_holes(mask)
    assert filled[4:6, 4:6].all() and not filled[2:5, 7].any() and not filled[0].any()
