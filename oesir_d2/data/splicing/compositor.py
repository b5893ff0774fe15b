"""The compositor: pastes cut-outs into a host photo and knows exactly where they lie.

Shape shorthand: H, W of the host and of the splice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from oesir_d2.data.splicing.cutouts import OPAQUE, CutOut, find_tight_box
from oesir_d2.data.splicing.rendering import Look, RenderedObject, render_object

MIN_OBJECT_SIDE = 8
"""Longer side in pixels below which a pasted object is nothing that anybody could find."""

MIN_VISIBLE = 0.5
"""Share of an object's pixels that later objects must leave uncovered."""

PLACEMENT_TRIES = 20
"""How many places are drawn for an object that covers others, before the one that covers least is taken."""

MAX_COPY_SCALE = 5.0
"""By how much the object of a copy-move can be enlarged."""


class UncomposableError(ValueError):
    """These objects do not fit this host by these options; others may."""


@dataclass(frozen=True)
class SpliceOptions:
    """The ranges that the compositor draws from, uniformly.

    Attributes:
        scale: smallest and largest longer side of a pasted object's tight box, as fractions of the host's longer side.
        rotation: largest rotation to either side, in degrees.
        flip: probability that an object is mirrored left and right.
        colour: largest relative change of red, green and blue, drawn for each of them apart.
        softness: width of the objects' edges as the sigma of a Gaussian, in pixels of the host; 0 makes hard edges.
        quality: smallest and largest JPEG quality.
        copy_move: if given, the objects are the host's own and are pasted elsewhere in it, so many to so many times
            as large as they were; ``scale`` is not used then.

    Raises:
        ValueError: if a value is out of range.
    """

    scale: tuple[float, float] = (0.25, 0.5)
    rotation: float = 15.0
    flip: float = 0.5
    colour: float = 0.1
    softness: float = 1.0
    quality: tuple[int, int] = (65, 90)
    copy_move: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        # Comparisons with NaN are false, so each test asks for what is allowed.
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}, expected two ascending fractions in (0, 1]")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation is {self.rotation}, expected 0 to 180 degrees")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is {self.flip}, expected a probability in [0, 1]")
        if not 0 <= self.colour < 1:
            raise ValueError(f"colour is {self.colour}, expected a relative change in [0, 1)")
        if not 0 <= self.softness <= 20:
            raise ValueError(f"softness is {self.softness}, expected 0 to 20 pixels")
        if not 1 <= self.quality[0] <= self.quality[1] <= 100:
            raise ValueError(f"quality is {self.quality}, expected two ascending JPEG qualities in 1 to 100")
        if self.copy_move is not None and not 0 < self.copy_move[0] <= self.copy_move[1] <= MAX_COPY_SCALE:
            raise ValueError(
                f"copy_move is {self.copy_move}, expected two ascending factors in (0, {MAX_COPY_SCALE:g}]"
            )


@dataclass(frozen=True)
class HostPhoto:
    """The photo that is pasted into: its id and its pixels, (H, W, 3) uint8 RGB."""

    image_id: str
    pixels: np.ndarray


@dataclass(frozen=True)
class ComposedSource:
    """What a splice shows of one photo.

    Attributes:
        image_id: the photo.
        role: "host" or "donor".
        query_box: XYXY in pixels of the splice, tight around the mask; None for a host that is everywhere else.
        mask: (H, W) uint8, 255 where the object has an alpha above one half and no later object covers it, else 0;
            None for a host, but for that of a copy-move, whose mask is all that was pasted.
    """

    image_id: str
    role: str
    query_box: tuple[float, float, float, float] | None
    mask: np.ndarray | None


@dataclass(frozen=True)
class Splice:
    """A spliced image.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, not compressed yet.
        sources: the host, then the donors in the order of pasting; of a copy-move the host alone.
        jpeg_quality: the quality to save the pixels with, 1 to 100.
    """

    pixels: np.ndarray
    sources: tuple[ComposedSource, ...]
    jpeg_quality: int


def compose(host: HostPhoto, cutouts: Sequence[CutOut], options: SpliceOptions, rng: np.random.Generator) -> Splice:
    """Paste objects into a photo.

    The longer side of each object's tight box is the drawn fraction of the host's longer side, or shorter where the
    object would not fit into the host otherwise. Objects lie inside the host as a whole. A copy-move leaves what it
    copies uncovered.

    Args:
        host: the photo that is pasted into; it is not changed.
        cutouts: the objects, at least one; a later one may cover up to half of an earlier one. For a copy-move they are
            cut from the host.
        options: the ranges to draw from.
        rng: the only source of randomness.

    Returns:
        The splice, and where it shows what.

    Raises:
        UncomposableError: if an object would be shorter than 8 pixels, is so thin that nothing of it remains, or
            would cover too much of another or any of what a copy-move copies.
        ValueError: if there is no cut-out.
    """
    if not cutouts:
        raise ValueError("no cut-out is given, expected at least one")
    pixels = host.pixels.copy()
    copied = [_mark_original(cutout, pixels.shape) for cutout in cutouts] if options.copy_move is not None else []
    masks: list[np.ndarray] = []
    min_areas: list[float] = []
    for cutout in cutouts:
        rendered = _render_randomly(cutout, pixels.shape, options, rng)
        x, y = _draw_place(rendered, [*copied, *masks], pixels.shape, rng)
        _blend(pixels, rendered, x, y)
        covered = _place_mask(rendered, x, y, pixels.shape)
        if any((original & covered).any() for original in copied):
            raise UncomposableError(f"there is no room beside what is copied within {host.image_id!r}")
        masks = [mask & ~covered for mask in masks]
        masks.append(covered)
        min_areas.append(MIN_VISIBLE * np.count_nonzero(covered))
    for cutout, mask, min_area in zip(cutouts, masks, min_areas, strict=True):
        if np.count_nonzero(mask) < min_area:
            raise UncomposableError(f"the object of {cutout.image_id!r} would be hidden by others in {host.image_id!r}")
    if options.copy_move is not None:
        sources = [_describe_source(host.image_id, "host", np.logical_or.reduce(masks))]
    else:
        donors = zip(cutouts, masks, strict=True)
        sources = [ComposedSource(host.image_id, "host", None, None)]
        sources += [_describe_source(cutout.image_id, "donor", mask) for cutout, mask in donors]
    return Splice(
        pixels=pixels,
        sources=tuple(sources),
        jpeg_quality=int(rng.integers(*options.quality, endpoint=True)),
    )


def _render_randomly(
    cutout: CutOut, host_shape: tuple[int, ...], options: SpliceOptions, rng: np.random.Generator
) -> RenderedObject:
    height, width = host_shape[:2]
    own_size = cutout.pixels.shape[:2]
    factor = rng.uniform(*(options.scale if options.copy_move is None else options.copy_move))
    look = Look(
        long_side=factor * max((height, width) if options.copy_move is None else own_size),
        angle=rng.uniform(-options.rotation, options.rotation),
        flip=bool(rng.random() < options.flip),
        gains=tuple(rng.uniform(1 - options.colour, 1 + options.colour, size=3)),
        softness=options.softness,
    )
    rendered = render_object(cutout, look, max_size=(width, height))
    if rendered is None or max(rendered.size) < MIN_OBJECT_SIDE:
        raise UncomposableError(
            f"the object of {cutout.image_id!r} is too small or too thin at {look.long_side:.0f} pixels"
        )
    return rendered


def _draw_place(
    rendered: RenderedObject, masks: Sequence[np.ndarray], host_shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[int, int]:
    """Where in the host the upper left corner of the object's box lies, inside and covering little of the masks."""
    height, width = host_shape[:2]
    x0, y0, x1, y1 = rendered.box
    mask = rendered.mask[y0:y1, x0:x1]
    best_place, best_covered = (0, 0), float("inf")
    for _ in range(PLACEMENT_TRIES):
        x = int(rng.integers(0, width - (x1 - x0), endpoint=True))
        y = int(rng.integers(0, height - (y1 - y0), endpoint=True))
        window = (slice(y, y + y1 - y0), slice(x, x + x1 - x0))
        covered = sum(int(np.count_nonzero(other[window] & mask)) for other in masks)
        if covered < best_covered:
            best_place, best_covered = (x, y), covered
        if covered == 0:
            break
    return best_place


def _blend(pixels: np.ndarray, rendered: RenderedObject, x: int, y: int) -> None:
    """Blend an object into ``pixels``, in place, with the upper left corner of its box at (x, y)."""
    height, width = pixels.shape[:2]
    # The soft edge around the box may reach over the host's border, where it is cut off.
    left, top = x - rendered.box[0], y - rendered.box[1]
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + rendered.alpha.shape[1], width), min(top + rendered.alpha.shape[0], height)
    part = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    alpha = rendered.alpha[part][..., None]
    window = pixels[y0:y1, x0:x1]
    window[...] = np.rint(window * (1 - alpha) + rendered.pixels[part] * alpha)


def _place_mask(rendered: RenderedObject, x: int, y: int, host_shape: tuple[int, ...]) -> np.ndarray:
    """(H, W) bool: the object's mask with the upper left corner of its box at (x, y)."""
    x0, y0, x1, y1 = rendered.box
    mask = np.zeros(host_shape[:2], dtype=bool)
    mask[y : y + y1 - y0, x : x + x1 - x0] = rendered.mask[y0:y1, x0:x1]
    return mask


def _mark_original(cutout: CutOut, host_shape: tuple[int, ...]) -> np.ndarray:
    """(H, W) bool: where an object lies in the host that it was cut from."""
    x0, y0, x1, y1 = cutout.box
    mask = np.zeros(host_shape[:2], dtype=bool)
    mask[y0:y1, x0:x1] = cutout.pixels[..., 3] >= OPAQUE
    return mask


def _describe_source(image_id: str, role: str, mask: np.ndarray) -> ComposedSource:
    x0, y0, x1, y1 = (float(v) for v in find_tight_box(mask))
    return ComposedSource(image_id, role, (x0, y0, x1, y1), mask.astype(np.uint8) * 255)
