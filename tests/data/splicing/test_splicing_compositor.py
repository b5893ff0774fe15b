"""The compositor: what it pastes is where it says, and nothing else of the host changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from oesir_d2.data.splicing import CutOut, HostPhoto, Splice, SpliceOptions, compose
from oesir_d2.data.splicing.compositor import UncomposableError

SEEDS = range(8)


@pytest.fixture
def host(make_photo: Callable[..., np.ndarray]) -> HostPhoto:
    return HostPhoto("host.jpg", make_photo(300, 420) // 2)  # dark, so that the bright objects differ from it


def compose_with(host: HostPhoto, *cutouts: CutOut, seed: int = 0, **options: Any) -> Splice:
    return compose(host, cutouts, SpliceOptions(**options), np.random.default_rng(seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_hard_edged_object_changes_its_mask_and_nothing_else(
    host: HostPhoto, make_cutout: Callable[..., CutOut], seed: int
) -> None:
    splice = compose_with(host, make_cutout(), seed=seed, softness=0)

    mask = splice.sources[1].mask
    changed = (splice.pixels != host.pixels).any(axis=2)
    np.testing.assert_array_equal(changed, mask == 255)
    assert set(np.unique(mask)) == {0, 255}


@pytest.mark.parametrize("softness", [1.0, 3.0])
def test_a_soft_edge_reaches_a_few_pixels_out_of_the_mask(
    host: HostPhoto, make_cutout: Callable[..., CutOut], softness: float
) -> None:
    splice = compose_with(host, make_cutout(), softness=softness)

    radius = int(np.ceil(1.5 * softness)) + 1
    nearby = cv2.dilate(splice.sources[1].mask, np.ones((2 * radius + 1, 2 * radius + 1), np.uint8))
    changed = (splice.pixels != host.pixels).any(axis=2)
    assert not changed[nearby == 0].any()
    assert changed[splice.sources[1].mask == 255].all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fraction", [0.12, 0.3, 0.5])
def test_the_box_is_tight_and_as_long_as_asked(
    host: HostPhoto, make_cutout: Callable[..., CutOut], seed: int, fraction: float
) -> None:
    splice = compose_with(host, make_cutout(), seed=seed, scale=(fraction, fraction))

    rows, columns = np.nonzero(splice.sources[1].mask)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert splice.sources[1].query_box == box
    assert all(type(value) is float for value in splice.sources[1].query_box)
    assert abs(max(box[2] - box[0], box[3] - box[1]) - fraction * 420) <= 2


def test_scales_are_drawn_from_the_whole_range(host: HostPhoto, make_cutout: Callable[..., CutOut]) -> None:
    boxes = [compose_with(host, make_cutout(), seed=s, scale=(0.2, 0.6)).sources[1].query_box for s in range(40)]

    fractions = np.array([max(x1 - x0, y1 - y0) / 420 for x0, y0, x1, y1 in boxes])
    assert 0.195 < fractions.min() < 0.25
    assert 0.55 < fractions.max() < 0.605


def test_an_object_too_high_for_a_low_host_is_made_to_fit(make_cutout: Callable[..., CutOut]) -> None:
    host = HostPhoto("panorama.jpg", np.zeros((60, 900, 3), dtype=np.uint8))
    splice = compose_with(host, make_cutout(height=120, width=90), scale=(0.5, 0.5))

    x0, y0, x1, y1 = splice.sources[1].query_box
    assert 57 <= max(x1 - x0, y1 - y0) <= 60


def test_options_switch_every_change_off(host: HostPhoto, make_cutout: Callable[..., CutOut]) -> None:
    cutout = make_cutout()
    height, width = cutout.pixels.shape[:2]
    options = {"rotation": 0, "flip": 0, "colour": 0, "softness": 0, "scale": (width / 420, width / 420)}
    splice = compose_with(host, cutout, **options)

    x0, y0, x1, y1 = (int(v) for v in splice.sources[1].query_box)
    assert (y1 - y0, x1 - x0) == (height, width)
    opaque = cutout.pixels[..., 3] == 255
    np.testing.assert_array_equal(splice.pixels[y0:y1, x0:x1][opaque], cutout.pixels[..., :3][opaque])


def test_flips_follow_their_probability(host: HostPhoto, make_cutout: Callable[..., CutOut]) -> None:
    cutout = make_cutout()
    opaque = cutout.pixels[..., 3] == 255
    options = {"rotation": 0, "softness": 0, "scale": (opaque.shape[1] / 420, opaque.shape[1] / 420)}

    def is_flipped(seed: int, flip: float) -> bool:
        source = compose_with(host, cutout, seed=seed, flip=flip, **options).sources[1]
        x0, y0, x1, y1 = (int(v) for v in source.query_box)
        mask = source.mask[y0:y1, x0:x1] == 255
        assert (mask == opaque).all() or (mask == opaque[:, ::-1]).all()
        return bool((mask == opaque[:, ::-1]).all())

    assert all(is_flipped(seed, 1.0) for seed in SEEDS)
    assert 0 < sum(is_flipped(seed, 0.5) for seed in range(16)) < 16


def test_colours_shift_within_their_strength(host: HostPhoto, make_cutout: Callable[..., CutOut]) -> None:
    shown = []
    for seed in SEEDS:
        splice = compose_with(host, make_cutout(color=(100, 100, 100)), seed=seed, colour=0.2, softness=0)
        shown.append(splice.pixels[splice.sources[1].mask == 255])
    colours = np.array([pixels[0] for pixels in shown])
    assert all(np.ptp(pixels, axis=0).max() <= 1 for pixels in shown)  # one tint for the whole object
    assert 80 <= colours.min() < 95
    assert 105 < colours.max() <= 120


@pytest.mark.parametrize("seed", SEEDS)
def test_of_several_donors_each_mask_shows_what_is_visible(
    host: HostPhoto, make_cutout: Callable[..., CutOut], seed: int
) -> None:
    colours = [(250, 20, 240), (240, 250, 20), (20, 240, 250)]
    cutouts = [make_cutout(color=c, image_id=f"{i}.jpg") for i, c in enumerate(colours)]
    splice = compose_with(host, *cutouts, seed=seed, softness=0, colour=0, scale=(0.3, 0.4))

    assert [source.role for source in splice.sources] == ["host", "donor", "donor", "donor"]
    assert [source.image_id for source in splice.sources] == ["host.jpg", "0.jpg", "1.jpg", "2.jpg"]
    for source, colour in zip(splice.sources[1:], colours, strict=True):
        shows_object = (abs(splice.pixels.astype(int) - colour) <= 1).all(axis=2)
        np.testing.assert_array_equal(source.mask == 255, shows_object)
        rows, columns = np.nonzero(source.mask)
        assert source.query_box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_an_object_that_hides_another_is_refused(host: HostPhoto) -> None:
    square = CutOut(np.full((80, 80, 4), 255, dtype=np.uint8), "square.png", (0, 0, 80, 80))
    with pytest.raises(UncomposableError, match=r"'square\.png' would be hidden"):
        compose_with(host, square, square, scale=(1, 1), rotation=0)


def test_the_same_seed_gives_the_same_splice(host: HostPhoto, make_cutout: Callable[..., CutOut]) -> None:
    first, again, other = (compose_with(host, make_cutout(), seed=seed) for seed in (3, 3, 4))

    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert first.jpeg_quality == again.jpeg_quality
    assert (first.pixels != other.pixels).any()


def test_what_was_given_is_not_changed(host: HostPhoto, make_cutout: Callable[..., CutOut]) -> None:
    cutout = make_cutout()
    host_before, cutout_before = host.pixels.copy(), cutout.pixels.copy()
    compose_with(host, cutout)

    np.testing.assert_array_equal(host.pixels, host_before)
    np.testing.assert_array_equal(cutout.pixels, cutout_before)


def test_the_quality_lies_in_its_range(host: HostPhoto, make_cutout: Callable[..., CutOut]) -> None:
    qualities = {compose_with(host, make_cutout(), seed=seed, quality=(70, 72)).jpeg_quality for seed in range(30)}
    assert qualities == {70, 71, 72}


def test_a_host_too_small_for_any_object_is_refused(make_cutout: Callable[..., CutOut]) -> None:
    for shape in ((1, 1, 3), (2, 3000, 3)):
        with pytest.raises(UncomposableError, match="too small or too thin"):
            compose_with(HostPhoto("tiny.png", np.zeros(shape, dtype=np.uint8)), make_cutout())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_copy_move_shows_the_hosts_own_object_beside_itself(host: HostPhoto, seed: int) -> None:
    own = np.dstack([host.pixels[40:100, 30:110], np.full((60, 80), 255, np.uint8)])
    cutout = CutOut(own, host.image_id, (30, 40, 110, 100))
    unchanged = {"rotation": 0, "flip": 0, "colour": 0, "softness": 0}
    splice = compose_with(host, cutout, seed=seed, copy_move=(1.0, 1.0), **unchanged)

    (source,) = splice.sources
    assert (source.image_id, source.role) == (host.image_id, "host")
    x0, y0, x1, y1 = (int(value) for value in source.query_box)
    np.testing.assert_array_equal(splice.pixels[y0:y1, x0:x1], host.pixels[40:100, 30:110])
    np.testing.assert_array_equal(splice.pixels[40:100, 30:110], host.pixels[40:100, 30:110])
    changed = (splice.pixels != host.pixels).any(axis=2)
    assert changed.any() and (source.mask[changed] == 255).all()


def test_copies_are_sized_by_the_object_not_by_the_host(host: HostPhoto, make_cutout: Callable[..., CutOut]) -> None:
    splice = compose_with(host, make_cutout(60, 80), copy_move=(1.5, 1.5), rotation=0, scale=(0.9, 0.9))

    x0, _, x1, _ = splice.sources[0].query_box
    assert x1 - x0 == pytest.approx(1.5 * make_cutout(60, 80).pixels.shape[1], abs=2)


def test_a_copy_that_finds_no_room_beside_its_original_is_refused(host: HostPhoto) -> None:
    whole = np.dstack([host.pixels[:290, :400], np.full((290, 400), 255, np.uint8)])
    with pytest.raises(UncomposableError, match="no room"):
        compose_with(host, CutOut(whole, host.image_id, (0, 0, 400, 290)), copy_move=(1.0, 1.0))


def test_no_cutout_is_refused(host: HostPhoto) -> None:
    with pytest.raises(ValueError, match="no cut-out"):
        compose_with(host)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": (0.0, 0.5)},
        {"scale": (0.5, 0.25)},
        {"scale": (0.5, 1.5)},
        {"scale": (float("nan"), 0.5)},
        {"rotation": -1},
        {"rotation": 181},
        {"flip": 1.01},
        {"colour": 1.0},
        {"softness": -0.1},
        {"softness": float("nan")},
        {"quality": (0, 50)},
        {"quality": (90, 80)},
        {"quality": (90, 101)},
        {"copy_move": (0.0, 1.0)},
        {"copy_move": (2.0, 1.0)},
        {"copy_move": (1.0, 5.5)},
    ],
)
def test_options_out_of_range_are_refused_by_name_and_value(change: dict[str, Any]) -> None:
    (name, value), *_ = change.items()
    with pytest.raises(ValueError) as caught:
        replace(SpliceOptions(), **change)
    assert name in str(caught.value)
    assert str(value) in str(caught.value)
