"""A photo that was edited, toned or recompressed stays the same photo; another photo of the same thing is not it."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from oesir_d2.geometry import FeatureOptions, QueryFeatures, compare, detect_features, is_same_photo, verify_match

Photos = Callable[..., np.ndarray]
Change = Callable[[np.ndarray], np.ndarray]


def judge(query: np.ndarray, source: np.ndarray) -> bool:
    """What the verdict is on a photo whose points agree with the query's."""
    features = QueryFeatures(detect_features(query, FeatureOptions()), query.shape[1])
    match = verify_match(features, detect_features(source, FeatureOptions()))
    assert match is not None and match.confidence > 0.95
    return is_same_photo(query, source, match, compare(query, source, match))


def turn_grey(photo: np.ndarray) -> np.ndarray:
    return np.repeat(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


def equalise_locally(photo: np.ndarray) -> np.ndarray:
    lab = cv2.cvtColor(photo, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(2.0, (8, 8)).apply(lab[..., 0])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


@pytest.mark.parametrize(
    "change",
    [
        turn_grey,
        equalise_locally,
        lambda photo: np.clip(255 * (photo / 255.0) ** 2, 0, 255).astype(np.uint8),
        lambda photo: cv2.resize(photo, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA),
        lambda photo: photo // 40 * 40,
    ],
)
@pytest.mark.parametrize("name", ["china", "coffee"])
def test_changed_copies_are_the_same_photo(name: str, change: Change, read_photo: Photos, recompress: Photos) -> None:
    photo = read_photo(name, 640)
    assert judge(recompress(change(photo), 60), photo)


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_host_is_the_same_photo_whatever_covers_it(share: float, read_photo: Photos, recompress: Photos) -> None:
    host, other = read_photo("china", 640), read_photo("astronaut", 640)
    columns = round(share * host.shape[1])
    query = host.copy()
    query[:, :columns] = cv2.resize(other, (columns, host.shape[0]))
    assert judge(recompress(query, 75), host)


@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_another_photo_of_the_same_thing_is_not(name: str, read_photo: Photos, see_from_elsewhere: Photos) -> None:
    photo = read_photo(name, 480)
    assert not judge(see_from_elsewhere(photo, light=4), photo)
