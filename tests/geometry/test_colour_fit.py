"""Colour filters are no edits, and what was pasted is found under them."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from oesir_d2.geometry import find_regions
from oesir_d2.geometry.colour_fit import fit_colours, to_lab
from oesir_d2.geometry.difference import compute_difference

PHOTOS = ("coffee", "chelsea", "astronaut", "china")
ELLIPSE = (140, 75, 50, 60)  # the face of the astronaut at 320 pixels


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


def tint(pixels: np.ndarray, color: tuple[float, float, float]) -> np.ndarray:
    return (grey(pixels) * np.array(color)).astype(np.uint8)


Filter = Callable[[np.ndarray], np.ndarray]
FILTERS: dict[str, Filter] = {
    "none": lambda pixels: pixels,
    "grey": grey,
    "sepia": lambda pixels: tint(pixels, (1.0, 0.85, 0.65)),
    "cyanotype": lambda pixels: tint(pixels, (0.6, 0.85, 1.0)),
    "television grey": lambda pixels: np.repeat((pixels @ [0.2126, 0.7152, 0.0722]).astype(np.uint8)[..., None], 3, 2),
}


def find_edits(query: np.ndarray, source: np.ndarray) -> list[np.ndarray]:
    difference = compute_difference(query, source, np.eye(3))
    return find_regions(difference.deviation, difference.distance)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.count_nonzero(one & other) / np.count_nonzero(one | other))


@pytest.mark.parametrize("name", FILTERS)
def test_filter_of_the_whole_photo_is_no_edit(
    read_photo: Callable[..., np.ndarray], recompress: Callable[..., np.ndarray], name: str
) -> None:
    for photo in (read_photo(photo, 480) for photo in PHOTOS):
        assert find_edits(recompress(FILTERS[name](photo), 80), photo) == []


@pytest.mark.parametrize(
    "clip",
    [
        lambda pixels: (pixels.astype(float) - 128) * 1.3 + 128,
        lambda pixels: pixels * 1.2,
        lambda pixels: grey(pixels) * np.array([1.35, 1.1, 0.85]),
    ],
)
@pytest.mark.parametrize("is_pasted", [False, True])
def test_filter_that_clips_is_no_edit(
    read_photo: Callable[..., np.ndarray], recompress: Callable[..., np.ndarray], clip: Filter, is_pasted: bool
) -> None:
    """What becomes lighter than white is white; an object of another photo is found beside it."""
    for photo in (read_photo(photo, 480) for photo in ("coffee", "china")):
        query, truth = photo.copy(), np.zeros(photo.shape[:2], bool)
        if is_pasted:
            truth[80:200, 150:300] = True
            query[truth] = read_photo("chelsea", 480)[80:200, 150:300].reshape(-1, 3)
        filtered = np.clip(clip(query), 0, 255).astype(np.uint8)
        assert (filtered == 255).any()
        edits = find_edits(recompress(filtered, 90), photo)
        assert len(edits) == is_pasted
        assert all(iou(edit, truth) > 0.8 for edit in edits)


@pytest.mark.parametrize("name", FILTERS)
def test_photo_is_compared_with_a_source_that_was_filtered(
    read_photo: Callable[..., np.ndarray], recompress: Callable[..., np.ndarray], name: str
) -> None:
    """A grey photo is indexed, or a sepia one, and the query shows it in colour."""
    for photo in (read_photo(photo, 480) for photo in PHOTOS):
        assert find_edits(recompress(photo, 80), FILTERS[name](photo)) == []


def test_grey_photo_and_a_tinted_one_show_the_same(
    read_photo: Callable[..., np.ndarray], recompress: Callable[..., np.ndarray]
) -> None:
    for photo in (read_photo(photo, 480) for photo in PHOTOS):
        for one, other in (("grey", "sepia"), ("sepia", "grey"), ("cyanotype", "sepia"), ("grey", "grey")):
            assert find_edits(recompress(FILTERS[one](photo), 80), FILTERS[other](photo)) == []


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("is_query", [True, False])
def test_pasted_object_is_located_under_a_filter(
    read_photo: Callable[..., np.ndarray],
    recompress: Callable[..., np.ndarray],
    make_similarity: Callable[..., np.ndarray],
    paste: Callable[..., tuple[np.ndarray, np.ndarray]],
    name: str,
    is_query: bool,
) -> None:
    host = read_photo("china")
    spliced, truth = paste(host, read_photo("astronaut"), make_similarity(0.8, 10, 60, 20), ELLIPSE)
    query, source = (FILTERS[name](spliced), host) if is_query else (spliced, FILTERS[name](host))
    (region,) = find_edits(recompress(query, 80), source)
    assert iou(region, truth) > 0.85


@pytest.mark.parametrize("radius", [12, 40])
def test_colourful_thing_in_a_grey_copy_is_an_edit(
    read_photo: Callable[..., np.ndarray], recompress: Callable[..., np.ndarray], radius: int
) -> None:
    """It has the lightness of what it covers, so that its colour alone tells; the small one is 0.6 % of the photo."""
    photo = read_photo("china")
    thing = np.zeros(photo.shape[:2], np.uint8)
    cv2.circle(thing, (150, 100), radius, 1, -1)
    query = to_lab(grey(photo))
    query[thing > 0, 1:] = [40, -30]
    pixels = np.rint(255 * cv2.cvtColor(query, cv2.COLOR_Lab2RGB).clip(0, 1)).astype(np.uint8)
    for source in (photo, grey(photo)):
        (region,) = find_edits(recompress(pixels, 90), source)
        assert iou(region, thing > 0) > 0.7


def test_fit_undoes_a_change_of_saturation_and_hue(read_photo: Callable[..., np.ndarray]) -> None:
    """Against the true colours; a fifth of the query shows something else."""
    source = read_photo("coffee")
    lab = to_lab(source)
    mixing = np.array([[0.9, 0, 0], [0.05, 0.6, 0.2], [0, -0.2, 0.7]], np.float32)
    true = lab @ mixing.T + np.array([4, 2, -3], np.float32)
    query = np.rint(255 * cv2.cvtColor(true, cv2.COLOR_Lab2RGB).clip(0, 1)).astype(np.uint8)
    query[:, :64] = read_photo("china")[: len(query), 100:164]
    used = np.ones(query.shape[:2], bool)
    shown, fitted = fit_colours(query, source, used)
    np.testing.assert_array_equal(shown, to_lab(query))
    errors = np.abs(fitted - to_lab(query))[:, 64:]
    assert np.median(errors) < 0.5 and np.quantile(errors, 0.95) < 2


def test_source_of_one_colour_tells_its_offset_alone() -> None:
    plain = np.full((60, 80, 3), (90, 120, 200), np.uint8)
    shown, fitted = fit_colours(np.full_like(plain, 60), plain, np.ones((60, 80), bool))
    np.testing.assert_allclose(shown, fitted, atol=0.1)
    assert find_edits(np.full_like(plain, 60), plain) == []
