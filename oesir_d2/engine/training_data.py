"""The data of a training run: the data sets that its config names, and the loader of its batches."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.utils import comm

from oesir_d2.data.class_sampler import SameClassSampler
from oesir_d2.data.datasets.coco import register_coco
from oesir_d2.data.datasets.cutouts import register_cutouts
from oesir_d2.data.datasets.google_landmarks import register_landmarks
from oesir_d2.data.datasets.openimages import OpenImagesOptions, register_openimages
from oesir_d2.data.datasets.photos import register_photos
from oesir_d2.data.datasets.psbattles import register_pir, register_psbattles
from oesir_d2.data.datasets.revisited import register_revisited
from oesir_d2.data.datasets.splices import register_splices
from oesir_d2.data.landmark_mapper import LandmarkMapper
from oesir_d2.data.object_pairs import DrawHost, ObjectPairMapper
from oesir_d2.data.samplers import ShapeGroupedBatches
from oesir_d2.data.skipping import SkipUnreadable
from oesir_d2.data.training_mappers import TRAINING_MAPPER_REGISTRY

logger = logging.getLogger(__name__)


def register_datasets(cfg: CfgNode) -> None:
    """Register the data sets of ``DATASETS.OESIR``, and check that those to train and test on exist.

    Raises:
        FileNotFoundError: a folder or a file of a data set does not exist.
        ValueError: an entry has not the right form, or DATASETS.TRAIN or TEST names a data set that does not exist.
    """
    options = cfg.DATASETS.OESIR
    # What an entry of each key has, and the function that takes it.
    kinds: dict[str, tuple[tuple[str, ...], Callable[..., None]]] = {
        "PHOTOS": (("NAME", "DIR_OR_LIST"), register_photos),
        "COCO": (("NAME", "JSON", "DIR"), partial(register_coco, class_agnostic=options.CLASS_AGNOSTIC)),
        "OPENIMAGES": (
            ("NAME", "BOXES_CSV", "CLASSES_CSV", "DIR"),
            partial(register_openimages, options=_get_openimages_options(cfg)),
        ),
        "LANDMARKS": (("NAME", "CSV", "DIR"), partial(register_landmarks, min_photos=options.LANDMARK_MIN_PHOTOS)),
        "CUTOUTS": (("NAME", "KIND", "PATH", "…"), register_cutouts),
        "REVISITED": (("NAME", "JSON", "DIR", "…"), register_revisited),
        "SPLICES": (("NAME", "JSON", "…"), register_splices),
        "PSBATTLES": (("NAME", "DIR", "…"), register_psbattles),
        "PIR": (("NAME", "DIR", "…"), register_pir),
    }
    own = []
    for key, (fields, register) in kinds.items():
        for entry in _check_entries(options[key], key, fields):
            register(*entry)
            own.append(entry[0])
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog:
                raise ValueError(
                    f"DATASETS.{key} names {name!r}, which is no data set; allowed: those of DATASETS.OESIR, now "
                    f"{own}, and those that detectron2 registers"
                )


def _get_openimages_options(cfg: CfgNode) -> OpenImagesOptions:
    options = cfg.DATASETS.OESIR
    return OpenImagesOptions(
        class_agnostic=options.CLASS_AGNOSTIC,
        group_of=options.OPENIMAGES_GROUP_OF,
        depictions=options.OPENIMAGES_DEPICTIONS,
        hierarchy_file=options.OPENIMAGES_HIERARCHY,
        labels=options.OPENIMAGES_LABELS,
        classes=tuple(options.OPENIMAGES_CLASSES),
    )


def _check_entries(entries: Iterable[Any], key: str, fields: tuple[str, ...]) -> list[tuple[str, ...]]:
    for entry in entries:
        is_texts = isinstance(entry, (list, tuple)) and all(isinstance(item, str) for item in entry)
        has_all = len(entry) >= len(fields) - 1 if fields[-1] == "…" else len(entry) == len(fields)
        if not is_texts or not has_all:
            raise ValueError(f"DATASETS.OESIR.{key} has the entry {entry!r}; allowed: [{', '.join(fields)}], each text")
    return [tuple(entry) for entry in entries]


def load_training_set(cfg: CfgNode) -> list[dict[str, Any]]:
    """The dataset dicts of ``DATASETS.TRAIN``, for the mapper that ``INPUT.OESIR.TRAINING_MAPPER`` names.

    Raises:
        ValueError: no data, a mapper that is unknown, a batch that the processes cannot share evenly, data that the
            mapper cannot use, or classes that the detector does not have.
    """
    name = cfg.INPUT.OESIR.TRAINING_MAPPER
    if name not in TRAINING_MAPPER_REGISTRY:
        allowed = sorted(registered for registered, _ in TRAINING_MAPPER_REGISTRY)
        raise ValueError(f"INPUT.OESIR.TRAINING_MAPPER {name!r} unknown; allowed: {allowed}")
    processes = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH < 1 or cfg.SOLVER.IMS_PER_BATCH % processes:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}; allowed: multiples of the {processes} process(es)"
        )
    return _load_training_set(cfg)


def fit_to_training_set(cfg: CfgNode, dataset_dicts: list[dict[str, Any]]) -> CfgNode:
    """A copy of the config in which the keys that the training set decides have their values.

    ``SOLVER.MAX_ITER`` are the iterations of ``SOLVER.OESIR.EPOCHS`` rounds over the set, unless these are 0;
    ``MODEL.OESIR.LANDMARKS.NUM_CLASSES``, where it is 0, are the landmarks of the set.

    Raises:
        ValueError: a negative number of epochs, or more landmarks than classes.
    """
    cfg = cfg.clone()
    cfg.defrost()
    epochs = cfg.SOLVER.OESIR.EPOCHS
    if epochs < 0:
        raise ValueError(f"SOLVER.OESIR.EPOCHS is {epochs}; allowed: 0 (SOLVER.MAX_ITER holds) or more")
    if epochs:
        cfg.SOLVER.MAX_ITER = math.ceil(epochs * len(dataset_dicts) / cfg.SOLVER.IMS_PER_BATCH)
        logger.info("%d rounds over %d photos: %d iterations", epochs, len(dataset_dicts), cfg.SOLVER.MAX_ITER)
    if cfg.INPUT.OESIR.TRAINING_MAPPER == LandmarkMapper.__name__:
        num_classes = 1 + max(item["class_id"] for item in dataset_dicts)
        asked = cfg.MODEL.OESIR.LANDMARKS.NUM_CLASSES
        if num_classes < 2 or 0 != asked < num_classes:
            raise ValueError(
                f"DATASETS.TRAIN has {num_classes} landmark(s) and MODEL.OESIR.LANDMARKS.NUM_CLASSES is {asked}; "
                "allowed: at least 2 landmarks, and as many classes or 0"
            )
        cfg.MODEL.OESIR.LANDMARKS.NUM_CLASSES = asked or num_classes
    cfg.freeze()
    return cfg


def build_train_loader(
    cfg: CfgNode, dataset_dicts: list[dict[str, Any]] | None = None
) -> Iterable[list[dict[str, Any]]]:
    """Endless batches of ``DATASETS.TRAIN``, through the mapper that ``INPUT.OESIR.TRAINING_MAPPER`` names.

    A photo that cannot be read is replaced by another and noted in ``OUTPUT_DIR/skipped.jsonl``.

    Args:
        dataset_dicts: what :func:`load_training_set` gave; None to load them here.

    Raises:
        ValueError: as :func:`load_training_set`.
    """
    if dataset_dicts is None:
        dataset_dicts = load_training_set(cfg)
    name = cfg.INPUT.OESIR.TRAINING_MAPPER
    mapper = build_training_mapper(cfg, dataset_dicts)
    if name == LandmarkMapper.__name__:
        loader = build_detection_train_loader(cfg, dataset=dataset_dicts, mapper=mapper, aspect_ratio_grouping=False)
        return ShapeGroupedBatches(loader, cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size())
    if name == ObjectPairMapper.__name__:
        sampler = SameClassSampler(dataset_dicts, cfg.SOLVER.IMS_PER_BATCH, cfg.INPUT.OESIR.PAIR_SAME_CLASS)
        return build_detection_train_loader(
            cfg, dataset=dataset_dicts, mapper=mapper, sampler=sampler, aspect_ratio_grouping=False
        )
    return build_detection_train_loader(cfg, dataset=dataset_dicts, mapper=mapper)


def build_training_mapper(cfg: CfgNode, dataset_dicts: list[dict[str, Any]]) -> SkipUnreadable:
    """The mapper of ``INPUT.OESIR.TRAINING_MAPPER``, which gives None for a photo that cannot be read."""
    name = cfg.INPUT.OESIR.TRAINING_MAPPER
    mapper = TRAINING_MAPPER_REGISTRY.get(name)(cfg)
    files = dict.fromkeys(item["file_name"] for item in dataset_dicts)
    if name == ObjectPairMapper.__name__:
        mapper = DrawHost(mapper, list(files))
    return SkipUnreadable(mapper, Path(cfg.OUTPUT_DIR), num_files=len(files))


def _load_training_set(cfg: CfgNode) -> list[dict[str, Any]]:
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty; allowed: one or more names of data sets")
    try:
        dataset_dicts = get_detection_dataset_dicts(
            list(cfg.DATASETS.TRAIN), filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
    except AssertionError as error:  # what detectron2 raises for data sets that are empty or do not fit together
        raise ValueError(f"DATASETS.TRAIN {list(cfg.DATASETS.TRAIN)} cannot be used: {error}") from error
    if cfg.INPUT.OESIR.TRAINING_MAPPER == "DetectionMapper":
        _check_annotations(dataset_dicts, cfg.DATASETS.TRAIN[0], cfg.MODEL.ROI_HEADS.NUM_CLASSES)
        _check_same_classes(cfg.DATASETS.TRAIN)
    if cfg.INPUT.OESIR.TRAINING_MAPPER == LandmarkMapper.__name__:
        _check_landmarks(dataset_dicts, cfg.DATASETS.TRAIN)
    if cfg.INPUT.OESIR.TRAINING_MAPPER == ObjectPairMapper.__name__:
        _check_cutouts(dataset_dicts)
    return dataset_dicts


def _check_annotations(dataset_dicts: list[dict[str, Any]], name: str, num_classes: int) -> None:
    for item in dataset_dicts:
        if "annotations" not in item:
            raise ValueError(
                f"{item['file_name']} of DATASETS.TRAIN has no annotations, which DetectionMapper needs; for photos "
                "alone set INPUT.OESIR.TRAINING_MAPPER to 'CropMapper'"
            )
    largest = max((a["category_id"] for item in dataset_dicts for a in item["annotations"]), default=0)
    if largest >= num_classes:
        # Not every class of a set need have an object.
        count = max(largest + 1, len(MetadataCatalog.get(name).get("thing_classes", ())))
        raise ValueError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}, but DATASETS.TRAIN has {count} classes; set it to "
            "that, or DATASETS.OESIR.CLASS_AGNOSTIC True and 1 class"
        )


def _check_same_classes(names: Sequence[str]) -> None:
    """detectron2 itself checks lists of dataset dicts only."""
    classes = {name: MetadataCatalog.get(name).get("thing_classes") for name in names}
    different = [name for name in names if classes[name] != classes[names[0]]]
    if different:
        raise ValueError(
            f"DATASETS.TRAIN: the classes of {different[0]!r} are not those of {names[0]!r}; allowed: the same for "
            "all, or DATASETS.OESIR.CLASS_AGNOSTIC True and 1 class"
        )


def _check_landmarks(dataset_dicts: list[dict[str, Any]], names: Sequence[str]) -> None:
    for item in dataset_dicts:
        if "class_id" not in item:
            raise ValueError(
                f"{item['file_name']} of DATASETS.TRAIN has no landmark, which LandmarkMapper needs; allowed: the data "
                "sets of DATASETS.OESIR.LANDMARKS"
            )
    if len(names) > 1:
        # Each has classes from 0 on.
        raise ValueError(f"DATASETS.TRAIN has {len(names)} sets of landmarks, {list(names)}; allowed: one at a time")


def _check_cutouts(dataset_dicts: list[dict[str, Any]]) -> None:
    for item in dataset_dicts:
        if "cutout" not in item:
            raise ValueError(
                f"{item['file_name']} of DATASETS.TRAIN is no object to cut out, which ObjectPairMapper needs; "
                "allowed: the data sets of DATASETS.OESIR.CUTOUTS"
            )
