"""A source laid over a part must look like it: what photos undergo passes, other photos and other places do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest

from oesir_d2.geometry import (
    PART_OPTIONS,
    Appearance,
    FeatureOptions,
    GeometricMatch,
    PhotoFinding,
    QueryFeatures,
    compare_appearance,
    detect_features,
    verify_match,
    weigh_appearance,
)
from oesir_d2.geometry.confidence import donor_confidence, match_confidence

FACE = (110.0, 60.0, 45.0, 55.0)
SURE = 0.95

Photos = Callable[..., np.ndarray]


@pytest.fixture
def look(
    read_photo: Photos, recompress: Photos, make_similarity: Photos, paste: Callable[..., tuple[np.ndarray, np.ndarray]]
) -> Callable[..., Appearance]:
    """``look(scale, degrees, ...)`` pastes a face by a similarity and lays a source over it by the same or another."""

    def compare(
        scale: float = 1.0,
        degrees: float = 0.0,
        mirrored: bool = False,
        gains: tuple[float, float, float] = (1, 1, 1),
        quality: int = 75,
        off: np.ndarray | None = None,
        source: str = "astronaut",
    ) -> Appearance:
        host, donor = read_photo("china", 640), read_photo("astronaut", 320 if scale > 0.5 else 640)
        ellipse = tuple(value * donor.shape[0] / 320 for value in FACE)
        transform = make_similarity(scale, degrees, 0, 0, donor.shape[1] if mirrored else None)
        middle = transform @ [*ellipse[:2], 1]
        transform = np.array([[1, 0, 320 - middle[0]], [0, 1, 210 - middle[1]], [0, 0, 1]]) @ transform
        splice, part = paste(host, np.clip(donor * np.array(gains), 0, 255).astype(np.uint8), transform, ellipse)
        laid = cv2.resize(read_photo(source, 640), donor.shape[1::-1])
        return compare_appearance(
            recompress(splice, quality), laid, transform if off is None else off @ transform, part
        )

    return compare


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"scale": 0.2},
        {"scale": 2.5},
        {"scale": 5.0},
        {"degrees": 168},
        {"mirrored": True, "degrees": -15},
        {"gains": (0.9, 1.1, 1.0)},
        {"gains": (0.6, 0.6, 0.6)},
        {"quality": 40},
        {"scale": 0.4, "gains": (1.1, 0.9, 1.1), "quality": 60},
    ],
)
def test_what_a_pasted_object_undergoes_leaves_it_alike(look: Callable[..., Appearance], changed: dict) -> None:
    appearance = look(**changed)
    assert appearance.correlation > 0.8 and appearance.overlap == 1
    assert not appearance.is_too_small and not appearance.is_different


@pytest.mark.parametrize("source", ["coffee", "chelsea", "china", "flower"])
@pytest.mark.parametrize("degrees", [0, 168])
def test_another_photo_looks_different(look: Callable[..., Appearance], source: str, degrees: float) -> None:
    assert look(degrees=degrees, source=source).correlation < 0.4


def test_the_right_photo_at_a_wrong_place_looks_different(
    look: Callable[..., Appearance], make_similarity: Photos
) -> None:
    moved = np.array([[1.0, 0, 25], [0, 1, -20], [0, 0, 1]])
    turned = np.array([[1, 0, 320], [0, 1, 210], [0, 0, 1]]) @ make_similarity(1, 168, -320, -210)
    turned[:2, 2] = [320, 210] - turned[:2, :2] @ [320, 210]
    assert look(off=moved).is_different and look(off=turned).is_different


def test_a_pixel_beside_the_true_place_and_a_strange_rim_are_forgiven(
    look: Callable[..., Appearance], read_photo: Photos, rng: np.random.Generator
) -> None:
    assert look(off=np.array([[1.0, 0, 1], [0, 1, -1], [0, 0, 1]])).correlation > 0.7
    photo = read_photo("coffee").copy()
    part = np.zeros(photo.shape[:2], bool)
    part[40:160, 60:220] = True
    query = photo.copy()
    query[40:160, 60:100] = rng.integers(0, 255, (120, 40, 3))  # a quarter of it shows something else
    assert compare_appearance(query, photo, np.eye(3), part).correlation > 0.9


def test_what_cannot_be_seen_is_said_to_be_too_small(read_photo: Photos) -> None:
    photo = read_photo("coffee")
    height, width = photo.shape[:2]
    part = np.zeros((height, width), bool)
    part[20:100, 20:120] = True
    beside = np.array([[1.0, 0, 90], [0, 1, 0], [0, 0, 1]])
    half = compare_appearance(photo, photo, beside, part)
    assert half.overlap == pytest.approx(0.3, abs=0.02) and half.is_too_small
    nothing = compare_appearance(photo, photo, beside @ beside @ beside, part)
    assert nothing == Appearance(0.0, 0, 0.0, 0.0) and nothing.is_too_small
    plain = np.full_like(photo, 128)
    assert compare_appearance(plain, plain, np.eye(3), part) == Appearance(1.0, 0, 0.0, 0.0)
    speck = np.zeros((height, width), bool)
    speck[60:64, 50:56] = True
    assert compare_appearance(photo, photo, np.eye(3), speck).is_too_small


def test_correlation_decides_where_few_points_agree(read_photo: Photos) -> None:
    photo, other = read_photo("coffee"), read_photo("chelsea")
    part = np.zeros(photo.shape[:2], bool)
    part[40:160, 60:220] = True
    points = np.array([[70, 50], [150, 60], [200, 150], [80, 140]], np.float32)
    four = GeometricMatch(np.eye(3), False, 1.0, 0.0, points, points, match_confidence(4))
    six = replace(four, query_points=np.repeat(points, 2, 0)[:6], source_points=np.repeat(points, 2, 0)[:6])
    assert weigh_appearance(photo, photo, four, part).confidence > SURE > four.confidence
    wrong = weigh_appearance(photo, other, replace(six, confidence=match_confidence(6)), part)
    assert wrong.confidence < 0.5 and wrong.appearance is not None
    assert PhotoFinding("other", match=wrong).doubt == "looks different"
    unseen = weigh_appearance(photo, photo, six, part & (np.arange(photo.shape[1]) < 62))
    assert unseen.confidence < SURE and PhotoFinding("it", match=unseen).doubt == "too little to see"


def test_another_photo_of_the_same_thing_is_no_source(read_photo: Photos, see_from_elsewhere: Photos) -> None:
    photo = read_photo("astronaut", 480)
    moved = see_from_elsewhere(photo, light=3)
    part = np.zeros(photo.shape[:2], bool)
    part[120:360, 120:360] = True
    options = FeatureOptions()
    query = QueryFeatures(detect_features(photo, options, part.astype(np.uint8)), photo.shape[1])
    other = verify_match(query, detect_features(moved, options), PART_OPTIONS)
    assert other is not None and other.inliers > 10 and other.confidence > SURE
    weighed = weigh_appearance(photo, moved, other, part)
    assert weighed.confidence < SURE and PhotoFinding("view", match=weighed).doubt == "other pixels"
    # A part of the very photo that repeats itself is another matter.
    assert weigh_appearance(photo, moved, other, part, is_known=True).confidence > SURE
    source = verify_match(query, detect_features(photo, options), PART_OPTIONS)
    assert source is not None and weigh_appearance(photo, photo, source, part).confidence > SURE


def test_lightness_alone_tells_the_source_of_a_part_that_lost_its_colours(
    look: Callable[..., Appearance], read_photo: Photos
) -> None:
    photo = read_photo("coffee")
    part = np.zeros(photo.shape[:2], bool)
    part[40:160, 60:220] = True
    grey = np.repeat(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    faded = compare_appearance(grey, photo, np.eye(3), part)
    assert faded.lightness > 0.98 > 0.9 > faded.correlation and faded.likeness == faded.lightness
    other = look(source="chelsea")
    assert other.likeness == max(other.correlation, other.lightness) < 0.5


def test_confidence_weighs_all_evidence() -> None:
    large = 5000
    assert donor_confidence(3, 0.9, 0.95, large) > SURE > donor_confidence(3, 0.72, 0.95, large)
    assert donor_confidence(6, 0.7, 0.9, large) > SURE > donor_confidence(6, 0.7, 0.85, large)
    assert SURE > donor_confidence(90, 0.8, 0.85, large)  # so many points agree in another photo of the same thing
    rising = [(4, 0.2, 0.2), (4, 0.2, 0.7), (5, 0.5, 0.7), (5, 0.5, 0.9), (5, 0.9, 0.9), (6, 0.9, 0.9)]
    assert [donor_confidence(*evidence, large) for evidence in rising] == sorted(
        donor_confidence(*evidence, large) for evidence in rising
    )
    assert 0 <= donor_confidence(3, -1.0, -1.0, 200) < donor_confidence(300, 1.0, 1.0, 10**6) <= 1


def test_a_small_part_must_look_the_more_alike() -> None:
    """Over few pixels anything correlates by chance."""
    assert donor_confidence(3, 0.88, 0.95, 5000) > SURE > donor_confidence(3, 0.88, 0.95, 500)
    assert donor_confidence(4, 0.9, 0.95, 500) > SURE
    assert donor_confidence(4, 1.0, 1.0, 0) < 0.5
