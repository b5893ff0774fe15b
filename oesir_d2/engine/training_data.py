"""The data of a training run: the data sets that its config names, and the loader of its batches."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.utils import comm

from oesir_d2.data.datasets.coco import register_coco
from oesir_d2.data.datasets.photos import register_photos
from oesir_d2.data.skipping import SkipUnreadable
from oesir_d2.data.training_mappers import TRAINING_MAPPER_REGISTRY


def register_datasets(cfg: CfgNode) -> None:
    """Register the data sets of ``DATASETS.OESIR``, and check that those to train and test on exist.

    Raises:
        FileNotFoundError: a folder or a file of a data set does not exist.
        ValueError: an entry has not the right form, or DATASETS.TRAIN or TEST names a data set that does not exist.
    """
    options = cfg.DATASETS.OESIR
    for name, source in _check_entries(options.PHOTOS, "PHOTOS", ("NAME", "DIR_OR_LIST")):
        register_photos(name, source)
    for name, annotation_file, image_folder in _check_entries(options.COCO, "COCO", ("NAME", "JSON", "DIR")):
        register_coco(name, annotation_file, image_folder, options.CLASS_AGNOSTIC)
    own = [entry[0] for entry in (*options.PHOTOS, *options.COCO)]
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog:
                raise ValueError(
                    f"DATASETS.{key} names {name!r}, which is no data set; allowed: those of DATASETS.OESIR, now "
                    f"{own}, and those that detectron2 registers"
                )


def _check_entries(entries: Iterable[Any], key: str, fields: tuple[str, ...]) -> list[tuple[str, ...]]:
    for entry in entries:
        is_texts = isinstance(entry, (list, tuple)) and all(isinstance(item, str) for item in entry)
        if not is_texts or len(entry) != len(fields):
            raise ValueError(f"DATASETS.OESIR.{key} has the entry {entry!r}; allowed: [{', '.join(fields)}], each text")
    return [tuple(entry) for entry in entries]


def build_train_loader(cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
    """Endless batches of ``DATASETS.TRAIN``, through the mapper that ``INPUT.OESIR.TRAINING_MAPPER`` names.

    A photo that cannot be read is replaced by another and noted in ``OUTPUT_DIR/skipped.jsonl``.

    Raises:
        ValueError: no data, a mapper that is unknown, a batch that the processes cannot share evenly, or classes that
            the detector does not have.
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
    dataset_dicts = _load_training_set(cfg)
    mapper = SkipUnreadable(
        TRAINING_MAPPER_REGISTRY.get(name)(cfg),
        Path(cfg.OUTPUT_DIR),
        num_files=len({item["file_name"] for item in dataset_dicts}),
    )
    return build_detection_train_loader(cfg, dataset=dataset_dicts, mapper=mapper)


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
        _check_annotations(dataset_dicts, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    return dataset_dicts


def _check_annotations(dataset_dicts: list[dict[str, Any]], num_classes: int) -> None:
    for item in dataset_dicts:
        if "annotations" not in item:
            raise ValueError(
                f"{item['file_name']} of DATASETS.TRAIN has no annotations, which DetectionMapper needs; for photos "
                "alone set INPUT.OESIR.TRAINING_MAPPER to 'CropMapper'"
            )
    largest = max((a["category_id"] for item in dataset_dicts for a in item["annotations"]), default=0)
    if largest >= num_classes:
        raise ValueError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}, but DATASETS.TRAIN has {largest + 1} classes; set it to "
            "that, or DATASETS.OESIR.CLASS_AGNOSTIC True and 1 class"
        )
