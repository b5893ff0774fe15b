"""A whole set of splices: drawn, composed and written with its ``splices.json``.

The output folder holds ``splices.json``, ``queries/000000.jpg`` and on, ``masks/000000_0.png`` and on (query and
donor, both counted from 0) and the log that lets an interrupted run go on.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from oesir_d2.data.images import ImageFile, UnreadableImageError, read_image
from oesir_d2.data.splicing.composed_log import ComposedLog
from oesir_d2.data.splicing.compositor import HostPhoto, Splice, SpliceOptions, UncomposableError, compose
from oesir_d2.data.splicing.cutouts import CutOut, CutOutSource
from oesir_d2.data.splicing.database import PhotoDatabase
from oesir_d2.data.splicing.splices_file import SpliceQuery, SpliceSet, SpliceSource, write_splices
from oesir_d2.files import replace_file

logger = logging.getLogger(__name__)

SPLICES_NAME = "splices.json"

TRIES_A_HOST = 5
"""How many drawings of donors a host gets; one that is too small for any object is given up early."""

MAX_HOSTS = 20
"""How many hosts a query gets before its options are called impossible."""

CACHED_PHOTOS = 128
"""Photos whose cut-outs stay in memory, since GrabCut takes about a second a photo."""


def make_splice_set(
    hosts: Sequence[ImageFile],
    source: CutOutSource,
    distractors: Sequence[ImageFile],
    output: str | Path,
    *,
    count: int,
    donors: int = 1,
    options: SpliceOptions | None = None,
    seed: int = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> SpliceSet:
    """Compose splices, or copy-moves if the options say so, and write them with their sources.

    Query i depends on the seed and on i, but not on ``count``: a larger count only adds queries. No photo is its own
    donor, and no photo gives a splice two objects. The database is all photos that are given. Called again with the
    same arguments, the function composes only what is missing.

    Args:
        hosts: the photos to paste into.
        source: the photos to cut objects from; they may be the same. Those of copy-moves must be, so that the hosts'
            own objects can be cut.
        distractors: photos that are in the database only.
        output: the folder to write to.
        count: number of splices, at least 1.
        donors: number of objects a splice, at least 1.
        options: ranges that the look of the objects is drawn from.
        seed: not negative.
        progress: wraps the numbers of the queries that are composed, for a progress bar.

    Returns:
        The set, as written to ``splices.json`` in the output folder.

    Raises:
        FileExistsError: if the output folder holds something else, or splices of other settings.
        ValueError: if a number is out of range, or no splice can be composed.
    """
    for name, value, least in (("count", count, 1), ("donors", donors, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    options = options or SpliceOptions()
    output = Path(output)
    database = PhotoDatabase({"hosts": hosts, "donors": source.photos, "distractors": distractors})
    composer = _Composer(hosts, source, database, donors, options)
    settings = {
        "seed": seed,
        "donors": donors,
        "options": {name: value for name, value in asdict(options).items() if value is not None},
        "hosts": _hash_ids(hosts),
        "donor photos": _hash_ids(source.photos),
        "cut-outs": source.settings,
    }
    log = ComposedLog(output, settings)
    for folder in ("queries", "masks"):
        (output / folder).mkdir(exist_ok=True)
    for i in progress([i for i in range(count) if i not in log.queries]):
        splice = composer.compose(np.random.default_rng([seed, i]))
        log.add(i, _write_splice(splice, output, f"{i:06d}"))
    splices = SpliceSet(output, database.list_images(output), tuple(log.queries[i] for i in range(count)))
    write_splices(splices, output / SPLICES_NAME)
    return splices


class _Composer:
    """Draws the photos of a splice and composes it."""

    def __init__(
        self,
        hosts: Sequence[ImageFile],
        source: CutOutSource,
        database: PhotoDatabase,
        donors: int,
        options: SpliceOptions,
    ) -> None:
        self._hosts = hosts
        self._source = source
        self._database = database
        self._donors = donors
        self._options = options
        self._without_object: set[int] = set()
        self._numbers = {database.get_id(photo): number for number, photo in enumerate(source.photos)}
        self._cut_cached = lru_cache(maxsize=CACHED_PHOTOS)(self._cut)

    def compose(self, rng: np.random.Generator) -> Splice:
        """Compose one splice; photos that cannot be read and objects that do not fit are drawn again."""
        num_tried = 0
        for host_number in rng.permutation(len(self._hosts)):
            host = self._read_host(self._hosts[host_number])
            if host is None:
                continue
            is_copy = self._options.copy_move is not None
            splice = self._copy_within(host, rng) if is_copy else self._compose_on(host, rng)
            if splice is not None:
                return splice
            num_tried += 1
            if num_tried == MAX_HOSTS:
                break
        if num_tried == 0:
            raise ValueError(f"none of the {len(self._hosts)} hosts can be read")
        if self._options.copy_move is not None:
            raise ValueError(
                f"no copy-move of {self._donors} objects could be composed, on {num_tried} hosts: their own objects "
                "are cut, so they must be among the photos that objects are cut from"
            )
        num_with_object = len(self._source.photos) - len(self._without_object)
        raise ValueError(
            f"no splice of {self._donors} objects could be composed, on {num_tried} hosts: {num_with_object} of "
            f"{len(self._source.photos)} donor photos have an object to cut out"
        )

    def _compose_on(self, host: HostPhoto, rng: np.random.Generator) -> Splice | None:
        picked: list[CutOut] = []
        num_tries = 0
        # All photos are permuted, those without object too: what is drawn must not depend on earlier queries.
        for number in rng.permutation(len(self._source.photos)):
            if self._database.get_id(self._source.photos[number]) == host.image_id:
                continue
            cutouts = self._cut_cached(number) if number not in self._without_object else ()
            if not cutouts:
                self._without_object.add(number)
                continue
            picked.append(cutouts[rng.integers(len(cutouts))])
            if len(picked) < self._donors:
                continue
            try:
                return compose(host, picked, self._options, rng)
            except UncomposableError as error:
                logger.info("Drawn again: %s", error)
            picked = []
            num_tries += 1
            if num_tries == TRIES_A_HOST:
                break
        return None

    def _copy_within(self, host: HostPhoto, rng: np.random.Generator) -> Splice | None:
        number = self._numbers.get(host.image_id)
        cutouts = self._cut_cached(number) if number is not None else ()
        if len(cutouts) < self._donors:
            return None
        for _ in range(TRIES_A_HOST):
            picked = [cutouts[i] for i in rng.choice(len(cutouts), self._donors, replace=False)]
            try:
                return compose(host, picked, self._options, rng)
            except UncomposableError as error:
                logger.info("Drawn again: %s", error)
        return None

    def _cut(self, number: int) -> tuple[CutOut, ...]:
        photo = self._source.photos[number]
        image_id = self._database.get_id(photo)
        return tuple(replace(cutout, image_id=image_id) for cutout in self._source.cut(photo))

    def _read_host(self, photo: ImageFile) -> HostPhoto | None:
        try:
            return HostPhoto(self._database.get_id(photo), read_image(photo.path).pixels)
        except UnreadableImageError as error:
            logger.warning("Not used as a host: %s", error)
            return None


def _write_splice(splice: Splice, output: Path, name: str) -> SpliceQuery:
    """Write the image and the masks of a splice and say where they are."""
    file_name = f"queries/{name}.jpg"
    replace_file(output / file_name, _encode(splice.pixels, "JPEG", quality=splice.jpeg_quality))
    sources = []
    for j, source in enumerate(splice.sources, start=-1):  # the host comes first, so donors count from 0
        mask_name = None
        if source.mask is not None:
            mask_name = f"masks/{name}_{max(j, 0)}.png"
            replace_file(output / mask_name, _encode(source.mask, "PNG"))
        sources.append(SpliceSource(source.image_id, source.role, source.query_box, mask_name))
    return SpliceQuery(file_name, tuple(sources))


def _encode(pixels: np.ndarray, format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def _hash_ids(photos: Sequence[ImageFile]) -> str:
    return hashlib.sha256("\n".join(photo.image_id for photo in photos).encode("utf-8", "backslashreplace")).hexdigest()
