"""Local features: those of a mirror image without detecting, of enlarged parts, and of blank photos."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from oesir_d2.geometry import FeatureOptions, LocalFeatures, detect_features, detect_features_in_box

OPTIONS = FeatureOptions(max_features=400)


def test_descriptors_are_unit_vectors_that_tell_places_apart(read_photo: Callable[..., np.ndarray]) -> None:
    features = detect_features(read_photo("astronaut"), OPTIONS)
    assert 300 < len(features) <= 401  # SIFT may keep one more where two are equally strong
    norms = np.linalg.norm(features.unit_descriptors(), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-5)


def test_mirrored_features_are_those_of_the_mirrored_photo(read_photo: Callable[..., np.ndarray]) -> None:
    """Against detecting in the mirrored pixels."""
    photo = read_photo("china")
    computed = detect_features(photo, OPTIONS).mirrored(photo.shape[1])
    detected = detect_features(photo[:, ::-1], OPTIONS)
    distances = np.linalg.norm(computed.points[:, None] - detected.points, axis=2)
    turns = np.cos(computed.angles[:, None] - detected.angles)
    similarity = computed.unit_descriptors() @ detected.unit_descriptors().T
    found = ((distances < 1.5) & (turns > 0.97) & (similarity > 0.9)).any(axis=1)
    assert found.mean() > 0.8
    # Without the mirror there is next to nothing.
    plain = detect_features(photo, OPTIONS).unit_descriptors() @ detected.unit_descriptors().T
    assert ((distances < 1.5) & (plain > 0.9)).any(axis=1).mean() < 0.2


def test_part_is_enlarged_and_its_points_lie_where_the_photo_has_them(read_photo: Callable[..., np.ndarray]) -> None:
    photo = read_photo("coffee")
    box = (100, 60, 180, 120)
    plain = detect_features(photo, FeatureOptions()).inside(box)
    enlarged = detect_features_in_box(photo, box, FeatureOptions(), long_side=320)
    assert len(enlarged) > 2 * len(plain) > 20
    # Of the keypoints of the whole photo, those that the enlarged part has as well lie at the same places.
    cosines = plain.unit_descriptors() @ enlarged.unit_descriptors().T
    same = cosines.max(axis=1) > 0.93
    assert same.sum() >= 5
    offsets = enlarged.points[cosines.argmax(axis=1)][same] - plain.points[same]
    # OpenCV's SIFT itself doubles a photo with a shift of a quarter of a pixel.
    assert np.abs(np.median(offsets, axis=0)).max() < 0.5


def test_mask_and_box_keep_what_lies_inside(read_photo: Callable[..., np.ndarray]) -> None:
    photo = read_photo("coffee")
    mask = np.zeros(photo.shape[:2], np.uint8)
    mask[50:150, 80:200] = 1
    features = detect_features(photo, OPTIONS, mask)
    assert len(features) > 20
    assert (features.points >= [79, 49]).all() and (features.points <= [201, 151]).all()
    assert len(features.inside((80, 50, 200, 150), margin=0.1)) == len(features)
    assert len(features.inside((0, 0, 40, 40))) == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (7, 5), (64, 64)])
def test_blank_and_tiny_photos_have_no_features(shape: tuple[int, int]) -> None:
    features = detect_features(np.full((*shape, 3), 128, np.uint8), OPTIONS)
    assert len(features) == 0
    assert features.unit_descriptors().shape == (0, 128)
    assert len(features.mirrored(shape[1])) == 0
    assert len(LocalFeatures.empty().inside((0, 0, 1, 1))) == 0


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="contrast is 0"):
        FeatureOptions(contrast=0)
