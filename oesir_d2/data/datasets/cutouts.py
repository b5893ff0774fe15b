"""Objects to cut out as a data set of the contrastive stage: one dataset dict an object, not a photo.

A dataset dict has ``file_name``, ``image_id`` and ``cutout``, which is None for a random region of the photo, drawn
anew each time, or has

    segmentation: polygons or a run-length encoding, as in COCO's format;
    size: [height, width] in pixels of the photo that the segmentation was drawn on;
    category: the name of the object's class, or None.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from pycocotools import mask as coco_mask
from tqdm import tqdm

from oesir_d2.data.datasets.catalog import register_dataset
from oesir_d2.data.datasets.coco import load_coco
from oesir_d2.data.images import ImageFile, list_images, read_image
from oesir_d2.data.splicing.cutouts import OPAQUE, CutOutFilter
from oesir_d2.data.splicing.photos import PhotoCutOuts
from oesir_d2.files import replace_file

logger = logging.getLogger(__name__)

MIN_LONG_SIDE = 48
"""Longer side of an object's box in pixels of its photo, below which there is not enough of it to tell it apart."""

KINDS = {"coco": ("JSON", "DIR"), "photos": ("DIR_OR_LIST", "CACHE_JSON"), "blobs": ("DIR_OR_LIST",)}
"""What an entry of DATASETS.OESIR.CUTOUTS has after its name and its kind."""


def register_cutouts(name: str, kind: str, *paths: str) -> None:
    """Register objects to cut out.

    Args:
        name: for DATASETS.TRAIN.
        kind: where the objects come from:
            "coco": the segmented objects of a COCO-format set; its JSON file and the folder of its photos;
            "photos": what GrabCut finds in plain photos, a second a photo; what :func:`oesir_d2.data.list_images`
            takes, and the file that keeps the outlines, in COCO's format, for the next run;
            "blobs": random regions of plain photos.
        *paths: those of the kind, see ``KINDS``.

    Raises:
        FileNotFoundError: if the source does not exist.
        ValueError: an unknown kind, another number of paths, or a name that is taken.
    """
    if kind not in KINDS or len(paths) != len(KINDS[kind]):
        allowed = ", ".join(f"[NAME, '{known}', {', '.join(fields)}]" for known, fields in KINDS.items())
        raise ValueError(f"DATASETS.OESIR.CUTOUTS has the entry {[name, kind, *paths]!r}; allowed: {allowed}")
    for path, is_there in _list_needed(kind, paths):
        if not is_there(path):
            raise FileNotFoundError(f"DATASETS.OESIR.CUTOUTS: {path!r} of {name!r} does not exist")
    load = {"coco": load_coco_cutouts, "photos": load_photo_cutouts, "blobs": load_blobs}[kind]
    register_dataset(name, lambda: load(*paths), evaluator_type="cutouts")


def _list_needed(kind: str, paths: Sequence[str]) -> list[tuple[str, Callable[[str], bool]]]:
    if kind == "coco":
        return [(paths[0], os.path.isfile), (paths[1], os.path.isdir)]
    return [(paths[0], os.path.exists)]


def load_blobs(photos: str | Path) -> list[dict[str, Any]]:
    """One dataset dict a photo; nothing is decoded.

    Raises:
        ValueError: if the source is no collection of photos, see :func:`oesir_d2.data.list_images`.
    """
    return [_make_dict(str(file.path), file.image_id, None) for file in list_images(photos)]


def load_coco_cutouts(annotation_file: str | Path, image_folder: str | Path) -> list[dict[str, Any]]:
    """One dataset dict for each segmented object, crowds and small ones left out, of the photos that are in the folder.

    Raises:
        ValueError: if the file has not COCO's form, or there is no such object.
    """
    # The data set is only a place for the names of the classes.
    with_names = f"names of {os.path.abspath(annotation_file)}"
    MetadataCatalog.pop(with_names, None)
    photos = load_coco(annotation_file, image_folder, with_names)
    categories = MetadataCatalog.pop(with_names).get("thing_classes", [])
    cutouts = []
    for photo in photos:
        objects = [item for item in photo["annotations"] if item.get("segmentation") and not item.get("iscrowd")]
        large = [item for item in objects if max(item["bbox"][2:]) >= MIN_LONG_SIDE]
        if not large or not os.path.isfile(photo["file_name"]):
            continue
        for item in large:
            cutout = {
                "segmentation": item["segmentation"],
                "size": [photo["height"], photo["width"]],
                "category": categories[item["category_id"]],
            }
            cutouts.append(_make_dict(photo["file_name"], str(photo["image_id"]), cutout))
    if not cutouts:
        raise ValueError(
            f"{annotation_file} has no segmented object of at least {MIN_LONG_SIDE} pixels in a photo of {image_folder}"
        )
    return cutouts


def load_photo_cutouts(photos: str | Path, cache: str | Path) -> list[dict[str, Any]]:
    """One dataset dict for each object that GrabCut finds in plain photos, at most one a photo.

    Args:
        photos: what :func:`oesir_d2.data.list_images` takes.
        cache: a COCO-format file; written if it is not there or is of other photos.

    Raises:
        ValueError: if no photo has an object, or the cache is some other file.
    """
    files = list_images(photos)
    digest = _digest(files)
    if _read_digest(Path(cache)) != digest:
        _write_outlines(photos, Path(cache), digest)
    cutouts = load_coco_cutouts(cache, "")
    # All have the one class that COCO's format asks for.
    return [item | {"cutout": item["cutout"] | {"category": None}} for item in cutouts]


def decode_mask(cutout: dict[str, Any]) -> np.ndarray:
    """The mask of an object over its photo, (H, W) uint8, 0 or 255.

    Raises:
        ValueError: if the segmentation is malformed.
    """
    segmentation, (height, width) = cutout["segmentation"], cutout["size"]
    try:
        if isinstance(segmentation, list):
            segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            segmentation = coco_mask.frPyObjects(segmentation, height, width)
        # A run-length encoding of another size would decode to a mask of that size.
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"its size is {segmentation['size']}, expected {[height, width]}")
        return coco_mask.decode(segmentation) * np.uint8(255)
    except Exception as error:  # which is what pycocotools itself raises
        raise ValueError(f"the segmentation is malformed: {error}") from error


def _make_dict(file_name: str, image_id: str, cutout: dict[str, Any] | None) -> dict[str, Any]:
    return {"file_name": file_name, "image_id": image_id, "cutout": cutout}


def _write_outlines(photos: str | Path, path: Path, digest: str) -> None:
    source = PhotoCutOuts(photos, cutout_filter=CutOutFilter(min_long_side=MIN_LONG_SIDE))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for file in tqdm(source.photos, desc="Cutting out objects", unit="photo"):
        cutouts = source.cut(file)
        if not cutouts:
            continue
        size = read_image(file.path, reduce_to=1)  # the header's, of the original
        images.append(
            {
                "id": len(images) + 1,
                "file_name": os.path.abspath(file.path),
                "height": size.height,
                "width": size.width,
            }
        )
        for cutout in cutouts:
            x0, y0, x1, y1 = cutout.box
            mask = np.zeros((size.height, size.width), dtype=np.uint8, order="F")
            mask[y0:y1, x0:x1] = cutout.pixels[..., 3] >= OPAQUE
            segmentation = {"size": list(mask.shape), "counts": coco_mask.encode(mask)["counts"].decode("ascii")}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": segmentation,
                }
            )
    content = {
        "info": {"photos": digest},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }
    logger.info("GrabCut found %d objects in %d photos; %s keeps them", len(annotations), len(source.photos), path)
    replace_file(path, json.dumps(content).encode())


def _digest(files: Sequence[ImageFile]) -> str:
    """What a cache was made from: the files with their sizes."""
    lines = [f"{os.path.abspath(file.path)} {file.path.stat().st_size if file.path.is_file() else 0}" for file in files]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "backslashreplace")).hexdigest()


def _read_digest(path: Path) -> str | None:
    """The digest of a cache, None if there is none.

    Raises:
        ValueError: if the file is something else, which must not be replaced.
    """
    if not path.exists():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["info"]["photos"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"DATASETS.OESIR.CUTOUTS: {path} is no cache of outlines; delete it or name another file"
        ) from error
