"""Batches of photos that the network sees at one size, from photos of many sizes and back in their order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from torch import nn

from oesir_d2.data.images import ImageFile, UnreadableImageError

WINDOW = 4
"""Batches' worth of photos that may wait for companions of their size."""

SOURCE_DIVISIBILITY = 32
"""To multiples of this teachers and students pad, whatever the backbone does."""

Result = TypeVar("Result")
Bucket = list[tuple[int, ImageFile, dict[str, Any]]]


def get_padding_step(backbone: nn.Module) -> int:
    """Photos whose sides, rounded up to multiples of this, are equal are padded alike in one batch and alone.

    Only then does no embedding depend on a photo's companions: a network sees what is behind a photo's border.
    """
    if backbone.size_divisibility:
        return math.gcd(backbone.size_divisibility, SOURCE_DIVISIBILITY)
    # A backbone that does not pad sees the size as it is; one without maps sees nothing.
    return 1 if backbone.output_shape() else SOURCE_DIVISIBILITY


def run_in_batches(
    decoded: Iterable[tuple[ImageFile, dict[str, Any] | UnreadableImageError]],
    run: Callable[[Sequence[ImageFile], Sequence[dict[str, Any]]], Sequence[Result]],
    batch_size: int,
    padding_step: int,
) -> Iterator[tuple[ImageFile, Result | UnreadableImageError]]:
    """Run a function on batches of photos of one padded size.

    A batch runs when it is full, or when its first photo has waited for ``WINDOW`` batches' worth of others; so the
    photos and the results that are held are bounded.

    Args:
        decoded: files with the model's inputs, or with the reason why they could not be read.
        run: gives the results of a batch, in its order.
        batch_size: photos a batch at most; 1 runs each photo as it comes.
        padding_step: see :func:`get_padding_step`.

    Yields:
        Each file with its result or the reason, in the order of ``decoded``.
    """
    buckets: dict[tuple[int, ...], Bucket] = {}
    finished: dict[int, tuple[ImageFile, Result | UnreadableImageError]] = {}
    next_out = 0

    def finish(size: tuple[int, ...]) -> None:
        positions, files, inputs = zip(*buckets.pop(size))
        for position, file, result in zip(positions, files, run(files, inputs), strict=True):
            finished[position] = (file, result)

    def oldest() -> tuple[int, ...]:
        # The next photo to give is the first of its bucket, and no bucket has an older one.
        return min(buckets, key=lambda size: buckets[size][0][0])

    for position, (file, mapped) in enumerate(decoded):
        if isinstance(mapped, UnreadableImageError):
            finished[position] = (file, mapped)
        else:
            size = tuple(-(-side // padding_step) for side in mapped["image"].shape[-2:])
            buckets.setdefault(size, []).append((position, file, mapped))
            del mapped
            if len(buckets[size]) == batch_size:
                finish(size)
        if position - next_out >= WINDOW * batch_size:
            finish(oldest())
        while next_out in finished:
            yield finished.pop(next_out)
            next_out += 1
    while buckets:
        finish(oldest())
    while next_out in finished:
        yield finished.pop(next_out)
        next_out += 1
