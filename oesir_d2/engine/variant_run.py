"""One model of a comparison: fit its whitening, build its index, score it on splices, measure its cost.

Every step keeps what it made in the variant's folder, with a key: the hash of all that it depends on. A step whose
key is found again is not repeated, so that a comparison that was killed goes on where it was.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn

from oesir_d2.data.images import ImageFile, UnreadableImageError
from oesir_d2.data.mappers import EmbeddingMapper
from oesir_d2.data.splicing import SpliceQuery, SpliceSet
from oesir_d2.engine.comparison_list import Variant
from oesir_d2.engine.indexing import build_index
from oesir_d2.engine.kept_results import hash_file, hash_json, hash_model, read_kept, write_kept
from oesir_d2.engine.model_cost import (
    build_random_teacher,
    count_multiply_adds,
    count_parameters,
    hash_detector,
    resize_photo,
    time_model,
)
from oesir_d2.engine.model_info import describe_model
from oesir_d2.engine.model_loading import load_model
from oesir_d2.engine.retrieval import QueryResult, Retriever
from oesir_d2.engine.splice_evaluation import evaluate_splices
from oesir_d2.engine.whitening_fit import choose_photos, fit_whitening
from oesir_d2.evaluation import measure_region_coverage
from oesir_d2.index import EmbeddingIndex, EmbeddingModelInfo, Manifest
from oesir_d2.layers import load_whitening, save_whitening

logger = logging.getLogger(__name__)

COVERING_IOU = 0.5


@dataclass(frozen=True)
class Photos:
    """Photos with the hash of their names and contents."""

    files: list[ImageFile]
    key: str


@dataclass(frozen=True)
class ComparisonData:
    """What all variants are compared on.

    Attributes:
        images: the database.
        whitening_images: what whitenings are fitted on.
        splices: sets of splices by the name that the table gives them, each with the hash of its file and its queries.
    """

    images: Photos
    whitening_images: Photos
    splices: dict[str, tuple[SpliceSet, str]]


@dataclass(frozen=True)
class ComparisonOptions:
    """How variants are measured.

    Attributes:
        depth: results a query; sources that lie deeper count as never found.
        cost_photos: photos of the database, drawn at random, that times are measured on.
        repetitions: timed rounds a photo; 0 measures no times.
        input_size: (width, height) that one of these photos is resized to for counting multiply-adds.
    """

    depth: int = 100
    cost_photos: int = 8
    repetitions: int = 5
    input_size: tuple[int, int] = (1024, 768)


@dataclass(frozen=True)
class PreparedVariant:
    """A variant whose model could be built.

    Attributes:
        variant: as it is listed.
        cfg: its config; without a whitening, if one is to be fitted.
        info: the model of that config.
        brings_whitening: whether its weights or its config have a fitted one.
    """

    variant: Variant
    cfg: CfgNode
    info: EmbeddingModelInfo
    brings_whitening: bool


def prepare_variant(variant: Variant, cfg: CfgNode) -> PreparedVariant:
    """Build a variant's model once, so that mistakes show before the work.

    Raises:
        ValueError, FileNotFoundError: as :func:`load_model`; or the whitening has more dimensions than the map.
    """
    model = load_model(cfg)
    whitening = model.roi_heads.embedding_head.whitening
    brings_whitening = whitening is not None and bool(whitening.fitted)
    if whitening is not None and not brings_whitening and not variant.whitening_dim:
        raise ValueError("its whitening is not fitted, and whitening_dim is 0; allowed: the dimensions to fit one to")
    if variant.whitening_dim and not brings_whitening:
        if whitening is not None:
            cfg = _set_whitening(cfg, 0, "")
            model = load_model(cfg)
        channels = model.roi_heads.embedding_head.dimension
        if variant.whitening_dim > channels:
            raise ValueError(f"whitening_dim is {variant.whitening_dim}; allowed: 0 (none) to the map's {channels}")
    return PreparedVariant(variant, cfg, describe_model(cfg, model), brings_whitening)


def run_variant(
    prepared: PreparedVariant, data: ComparisonData, options: ComparisonOptions, folder: Path
) -> dict[str, Any]:
    """Do for one variant what is not done yet.

    Args:
        prepared: the variant.
        data: what to compare on.
        options: how.
        folder: of this variant; created if missing.

    Returns:
        ``dimension``, ``whitening`` (``fitted``, ``own`` or ``none``), ``objects`` and ``images`` of the index,
        ``detector_sha256``, ``splices`` (by set: metrics and coverage) and ``cost``, as JSON has them.

    Raises:
        ValueError, OSError: as the steps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cfg, kind = prepared.cfg, "own" if prepared.brings_whitening else "none"
    if prepared.variant.whitening_dim and not prepared.brings_whitening:
        cfg, kind = _fit_whitening(prepared, data.whitening_images, folder / "whitening.safetensors"), "fitted"
    model = load_model(cfg)
    info = describe_model(cfg, model)
    index_path = folder / "index"
    _drop_stale_index(index_path, info, data.images.files)
    build_index(cfg, data.images.files, index_path)
    manifest = Manifest.load(index_path)
    return {
        "dimension": info.dimension,
        "whitening": kind,
        "images": manifest.images,
        "objects": manifest.objects,
        "detector_sha256": hash_detector(model),
        "splices": _score_splices(cfg, index_path, manifest, data, options, folder),
        "cost": _measure_cost(cfg, model, info, data.images, options, folder / "cost.json"),
    }


def hash_photos(files: Sequence[ImageFile]) -> str:
    """The hash of a collection's names and contents; files that cannot be read count by their names alone."""
    return hash_json([[file.image_id, hash_file(file.path)] for file in files])


def hash_splices(splices: SpliceSet) -> str:
    """The hash of a set of splices and of its spliced images."""
    queries = [hash_file(splices.resolve(query.file_name)) for query in splices.queries]
    return hash_json([splices.to_dict(), queries])


def _fit_whitening(prepared: PreparedVariant, photos: Photos, path: Path) -> CfgNode:
    """Fit the whitening of a variant on its own regions, unless the file has it; returns the config that uses it."""
    variant = prepared.variant
    key = hash_json([hash_model(prepared.info), variant.whitening_dim, variant.shrinkage, photos.key])
    if _read_whitening_key(path) != key:
        whitening, counts = fit_whitening(prepared.cfg, photos.files, variant.whitening_dim, variant.shrinkage)
        facts = {"source": f"comparison of models, variant {variant.name}", "count": counts["regions"], "key": key}
        save_whitening(path, whitening, facts | counts | {"shrinkage": variant.shrinkage})
    return _set_whitening(prepared.cfg, variant.whitening_dim, str(path.resolve()))


def _read_whitening_key(path: Path) -> str | None:
    try:
        return load_whitening(path)[1].get("key")
    except (FileNotFoundError, ValueError):
        return None


def _set_whitening(cfg: CfgNode, dimension: int, path: str) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.OESIR.EMBEDDING.WHITENING_DIM = dimension
    cfg.MODEL.OESIR.EMBEDDING.WHITENING = path
    return cfg


def _drop_stale_index(path: Path, info: EmbeddingModelInfo, files: Sequence[ImageFile]) -> None:
    """Delete an index of another model, or of photos that are in the collection no more."""
    if not path.exists():
        return
    try:
        index = EmbeddingIndex.open(path, info)
    except ValueError as error:
        logger.warning("Index %s is built anew: %s", path, error)
    else:
        if {record.image_id for record in index.images} <= {file.image_id for file in files}:
            return
    shutil.rmtree(path)


class _RecordingRetriever(Retriever):
    """A retriever that keeps the boxes of its queries."""

    def __init__(self, index_path: Path) -> None:
        super().__init__(index_path)
        self.boxes: dict[str, np.ndarray] = {}

    def search_all(
        self, files: Iterable[ImageFile], top_k: int | None = None, aggregate: str | None = None
    ) -> Iterator[tuple[ImageFile, QueryResult | UnreadableImageError]]:
        for file, result in super().search_all(files, top_k, aggregate):
            if isinstance(result, QueryResult):
                self.boxes[file.image_id] = result.query.embeddings.boxes
            yield file, result


def _score_splices(
    cfg: CfgNode, index_path: Path, manifest: Manifest, data: ComparisonData, options: ComparisonOptions, folder: Path
) -> dict[str, Any]:
    """Metrics and coverage by set, in percent; those that are kept are not computed again."""
    index_key = hash_json([hash_model(manifest.model), manifest.factory, [vars(info) for info in manifest.segments]])
    retriever: _RecordingRetriever | None = None
    scores = {}
    for name, (splices, splices_key) in data.splices.items():
        path = folder / f"splices-{name}.json"
        key = hash_json([index_key, splices_key, cfg.RETRIEVAL, options.depth, COVERING_IOU])
        kept = read_kept(path, key)
        if kept is None:
            retriever = retriever or _RecordingRetriever(index_path)
            scored = _score_set(retriever, splices, options.depth, cfg.MODEL.OESIR.REGIONS.WHOLE_IMAGE)
            kept = write_kept(path, key, scored)
        scores[name] = {name: value for name, value in kept.items() if name != "rows"}
    return scores


def _score_set(retriever: _RecordingRetriever, splices: SpliceSet, depth: int, has_whole_image: bool) -> dict[str, Any]:
    retriever.boxes.clear()
    scored = evaluate_splices(retriever, splices, depth)
    regions = [retriever.boxes.get(query.file_name) for query in splices.queries]
    if has_whole_image:  # it is the last one, and covers nothing in particular
        regions = [None if boxes is None else boxes[:-1] for boxes in regions]
    coverage = measure_region_coverage(regions, [_list_pasted(query) for query in splices.queries], COVERING_IOU)
    return {
        "queries": len(splices.queries),
        "unreadable_queries": len(scored.unreadable),
        "metrics": scored.evaluation.metrics["splice_retrieval"],
        "coverage": asdict(coverage),
        "rows": [asdict(row) for row in scored.evaluation.rows],
    }


def _list_pasted(query: SpliceQuery) -> np.ndarray:
    """The boxes of a query's pasted objects, as far as its set gives them: (O, 4)."""
    boxes = [source.query_box for source in query.sources if source.role == "donor" and source.query_box is not None]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _measure_cost(
    cfg: CfgNode, model: nn.Module, info: EmbeddingModelInfo, photos: Photos, options: ComparisonOptions, path: Path
) -> dict[str, Any]:
    """Parameters, multiply-adds and milliseconds; kept for the same model, photos, options and device."""
    machine = [cfg.MODEL.DEVICE, torch.get_num_threads()]
    measured = [photos.key, options.cost_photos, options.repetitions, options.input_size]
    key = hash_json([hash_model(info), measured, machine])
    kept = read_kept(path, key)
    if kept is not None:
        return kept
    mapped = _map_readable(cfg, choose_photos(photos.files, options.cost_photos, seed=0))
    teacher = build_random_teacher(cfg)
    cost: dict[str, Any] = {"parameters": count_parameters(model), "multiply_adds": None, "milliseconds": None}
    if mapped:
        photo = resize_photo(mapped[0]["image"].to(cfg.MODEL.DEVICE), *options.input_size)
        cost["multiply_adds"] = asdict(count_multiply_adds(model, teacher, photo))
        if options.repetitions:
            cost["milliseconds"] = asdict(time_model(model, teacher, mapped, options.repetitions, cfg.MODEL.DEVICE))
    return write_kept(path, key, cost)


def _map_readable(cfg: CfgNode, files: Sequence[ImageFile]) -> list[dict[str, Any]]:
    mapper = EmbeddingMapper(cfg)
    mapped = []
    for file in files:
        try:
            mapped.append(mapper({"file_name": str(file.path), "image_id": file.image_id}))
        except UnreadableImageError as error:
            logger.warning("%s", error)
    return mapped
