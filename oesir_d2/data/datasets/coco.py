"""Any set of photos with boxes in COCO's format as a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.data.datasets import load_coco_json

from oesir_d2.data.datasets.catalog import register_dataset

OBJECT_CLASS = "object"


def register_coco(
    name: str, annotation_file: str | Path, image_folder: str | Path, class_agnostic: bool = False
) -> None:
    """Register a COCO-format set.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST.
        annotation_file: COCO JSON with "images", "annotations" and "categories".
        image_folder: the photos; each "file_name" is relative to it.
        class_agnostic: all objects are of one class, ``OBJECT_CLASS``.

    Raises:
        FileNotFoundError: if the file or the folder does not exist.
        ValueError: if the name is taken.
    """
    if not Path(annotation_file).is_file():
        raise FileNotFoundError(f"DATASETS.OESIR.COCO: {str(annotation_file)!r} of {name!r} is no file")
    if not Path(image_folder).is_dir():
        raise FileNotFoundError(f"DATASETS.OESIR.COCO: {str(image_folder)!r} of {name!r} is no folder")
    # Without json_file an evaluator takes the annotations from the data set, whose classes are not the file's.
    metadata = {"thing_classes": [OBJECT_CLASS]} if class_agnostic else {"json_file": str(annotation_file)}
    register_dataset(
        name,
        lambda: load_coco(annotation_file, image_folder, None if class_agnostic else name),
        evaluator_type="coco",
        **metadata,
    )


def load_coco(
    annotation_file: str | Path, image_folder: str | Path, dataset_name: str | None = None
) -> list[dict[str, Any]]:
    """Dataset dicts in detectron2's format; no photo is decoded.

    Args:
        annotation_file, image_folder: see :func:`register_coco`.
        dataset_name: the data set whose metadata get the names of the classes; None gives every object class 0.

    Raises:
        ValueError: if the file has not COCO's form.
    """
    try:
        dataset_dicts = load_coco_json(str(annotation_file), str(image_folder), dataset_name)
    except (KeyError, TypeError, ValueError, AssertionError, AttributeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{annotation_file} is no COCO-format annotation file: {reason}") from error
    if dataset_name is None:
        for annotation in (item for dataset_dict in dataset_dicts for item in dataset_dict["annotations"]):
            annotation["category_id"] = 0
    return dataset_dicts
