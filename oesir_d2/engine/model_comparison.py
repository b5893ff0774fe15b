"""Several models side by side on the same photos and splices: one row of a table each."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from oesir_d2.data.images import ImageFile
from oesir_d2.data.splicing import SpliceSet
from oesir_d2.engine.comparison_list import Variant
from oesir_d2.engine.comparison_table import write_comparison
from oesir_d2.engine.variant_run import (
    ComparisonData,
    ComparisonOptions,
    Photos,
    PreparedVariant,
    hash_photos,
    hash_splices,
    prepare_variant,
    run_variant,
)
from oesir_d2.evaluation import match_database
from oesir_d2.index.lock import WriterLock

logger = logging.getLogger(__name__)

VARIANTS_FOLDER = "variants"


@dataclass
class Comparison:
    """What a comparison found.

    Attributes:
        rows: by variant, what :func:`run_variant` gives and its ``title``, in the order of the list.
        skipped: by variant, why it could not be measured: weights that are not there.
        facts: what all rows were measured on.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def compare_models(
    variants: Sequence[Variant],
    images: Sequence[ImageFile],
    whitening_images: Sequence[ImageFile],
    splices: Mapping[str, SpliceSet],
    output: Path,
    options: ComparisonOptions,
    weights_dir: Path | None = None,
    strict: bool = False,
) -> Comparison:
    """Measure every variant, and write ``comparison.md`` and ``comparison.json`` into the output folder.

    What a variant took is kept in ``variants/NAME``. Called again with the same folder, also after a crash, it repeats
    only what depends on something that has changed: a config, weights, photos, splices, options.

    Args:
        variants: the models.
        images: the database.
        whitening_images: what whitenings are fitted on; photos that no evaluation should use.
        splices: sets of splices of the database, by name.
        output: folder, created if missing.
        options: how to measure.
        weights_dir: what stands for ``${WEIGHTS_DIR}`` in the variants' overrides.
        strict: refuse a variant whose weights are not there, instead of skipping it.

    Raises:
        ValueError: a variant that cannot be built, a database without the sources of the splices, or an output folder
            that another process works in; found before the work begins.
        FileNotFoundError: in strict mode, weights that are not there.
    """
    for name, splice_set in splices.items():
        _check_sources(name, splice_set, images, whitening_images)
    comparison = Comparison()
    prepared = []
    for variant in tqdm(variants, desc="Building models", unit="model"):
        built = _prepare(variant, weights_dir)
        if isinstance(built, PreparedVariant):
            prepared.append(built)
            continue
        if strict:
            raise FileNotFoundError(f"variant {variant.name!r}: {built}")
        logger.warning("variant %r is left out: %s", variant.name, built)
        comparison.skipped[variant.name] = built
    data = ComparisonData(
        images=Photos(list(images), hash_photos(images)),
        whitening_images=Photos(list(whitening_images), hash_photos(whitening_images)),
        splices={name: (splice_set, hash_splices(splice_set)) for name, splice_set in splices.items()},
    )
    comparison.facts = {
        "images": len(images),
        "whitening_images": len(whitening_images),
        "queries": {name: len(splice_set.queries) for name, splice_set in splices.items()},
        "options": asdict(options),
    }
    progress = tqdm(prepared, desc="Variants", unit="variant")
    for item in progress:
        name = item.variant.name
        progress.set_postfix_str(name)
        measured = _run(item, data, options, output / VARIANTS_FOLDER / name)
        comparison.rows[name] = {"title": item.variant.title} | measured
        # After every variant: a long comparison may be looked at while it runs.
        write_comparison(output, comparison.rows, comparison.skipped, comparison.facts)
    write_comparison(output, comparison.rows, comparison.skipped, comparison.facts)
    return comparison


def _prepare(variant: Variant, weights_dir: Path | None) -> PreparedVariant | str:
    """A variant that is ready to run, or why its weights are not there."""
    try:
        cfg = variant.load_config(weights_dir)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"variant {variant.name!r}: {error}") from error
    if weights_dir is None and variant.needs_weights_dir:
        return "its weights are in ${WEIGHTS_DIR}; name that folder by --weights-dir"
    try:
        return prepare_variant(variant, cfg)
    except FileNotFoundError as error:
        return str(error)
    except ValueError as error:
        raise ValueError(f"variant {variant.name!r}: {error}") from error


def _run(item: PreparedVariant, data: ComparisonData, options: ComparisonOptions, folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = WriterLock(folder)
    except ValueError as error:
        raise ValueError(f"variant {item.variant.name!r}: another comparison works in {folder}") from error
    try:
        return run_variant(item, data, options, folder)
    except ValueError as error:
        raise ValueError(f"variant {item.variant.name!r}: {error}") from error
    finally:
        lock.release()


def _check_sources(
    name: str, splices: SpliceSet, images: Sequence[ImageFile], whitening_images: Sequence[ImageFile]
) -> None:
    """Refuse a database without the sources of the splices; warn of whitenings that would know them.

    Raises:
        ValueError: sources that the database lacks.
    """
    try:
        match_database(splices, [(file.image_id, file.path) for file in images])
    except ValueError as error:
        raise ValueError(f"splices {name!r}: {error}") from error
    sources = {source.image_id for query in splices.queries for source in query.sources}
    paths = {splices.resolve(image.file_name).resolve() for image in splices.database if image.image_id in sources}
    known = sum(file.path.resolve() in paths for file in whitening_images)
    if known:
        logger.warning("%d of the whitening photos are sources of the splices %r: its figures flatter", known, name)
