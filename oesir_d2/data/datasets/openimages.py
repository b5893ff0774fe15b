"""OpenImages, version 4 and later, as a data set of boxes: what is read, and what is left out of it.

The parts are in files of their own: ``openimages_classes``, ``openimages_boxes``, ``openimages_photos``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oesir_d2.data.datasets.catalog import register_dataset
from oesir_d2.data.datasets.coco import OBJECT_CLASS
from oesir_d2.data.datasets.openimages_boxes import BoxList, check_boxes_file, read_boxes
from oesir_d2.data.datasets.openimages_classes import assign_classes, read_class_names, read_hierarchy
from oesir_d2.data.datasets.openimages_photos import OpenImagesPhotos, PhotoList, PlacedBoxes, find_photos

GROUP_MODES = ("ignore", "keep", "drop")
DEPICTION_MODES = ("keep", "drop")
NUM_NAMED = 3
"""So many of the photos or classes that a message is about are named in it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenImagesOptions:
    """What is made of the files, for all sets of a config.

    Attributes:
        class_agnostic: all objects are of one class, ``OBJECT_CLASS``.
        group_of: boxes around five or more objects that touch: "ignore" marks them as detectron2's crowds, which are
            no objects to learn and, in evaluation, neither hits nor misses; "keep" has them as objects; "drop" not.
        depictions: boxes of drawings, toys or statues of an object: "keep" or "drop".
        hierarchy_file: ``bbox_labels_600_hierarchy.json``, or "" for none.
        labels: "annotated", "expanded" or "merged", see :func:`.openimages_classes.assign_classes`.
        classes: names or labels of the classes to keep; empty keeps all.

    Raises:
        ValueError: if a value is not allowed.
    """

    class_agnostic: bool = False
    group_of: str = "ignore"
    depictions: str = "keep"
    hierarchy_file: str = ""
    labels: str = "annotated"
    classes: Sequence[str] = ()

    def __post_init__(self) -> None:
        for key, value, allowed in (
            ("GROUP_OF", self.group_of, GROUP_MODES),
            ("DEPICTIONS", self.depictions, DEPICTION_MODES),
        ):
            if value not in allowed:
                raise ValueError(
                    f"DATASETS.OESIR.OPENIMAGES_{key} is {value!r}; allowed: {', '.join(map(repr, allowed))}"
                )


def register_openimages(
    name: str,
    boxes_csv: str | Path,
    classes_csv: str | Path,
    image_folder: str | Path,
    options: OpenImagesOptions = OpenImagesOptions(),
) -> None:
    """Register a set of OpenImages. Its classes are read now, its boxes when the data set is first used.

    Args:
        name: for DATASETS.TRAIN and DATASETS.TEST.
        boxes_csv, classes_csv, image_folder, options: see :func:`load_openimages`.

    Raises:
        FileNotFoundError: a file or the folder does not exist.
        ValueError: a file has another form, the options do not fit the classes, or the name is taken.
    """
    for path in (boxes_csv, classes_csv, *filter(None, [options.hierarchy_file])):
        if not Path(path).is_file():
            raise FileNotFoundError(f"DATASETS.OESIR.OPENIMAGES: {str(path)!r} of {name!r} is no file")
    if not Path(image_folder).is_dir():
        raise FileNotFoundError(f"DATASETS.OESIR.OPENIMAGES: {str(image_folder)!r} of {name!r} is no folder")
    check_boxes_file(boxes_csv)
    names = read_class_names(classes_csv)
    # Without json_file an evaluator takes the annotations from the data set.
    register_dataset(
        name,
        lambda: load_openimages(boxes_csv, classes_csv, image_folder, options),
        evaluator_type="coco",
        thing_classes=_assign_classes(names, options)[0],
    )


def load_openimages(
    boxes_csv: str | Path,
    classes_csv: str | Path,
    image_folder: str | Path,
    options: OpenImagesOptions = OpenImagesOptions(),
) -> OpenImagesPhotos:
    """Read the files and the sizes of the photos, which are looked up in the photos the first time.

    Photos that are not there or cannot be read, and those that have no box, or only groups to ignore, are left out:
    what OpenImages has no box of may still be in the photo. All that is left out is counted in the log.

    Args:
        boxes_csv: see :func:`.openimages_boxes.read_boxes`.
        classes_csv: see :func:`.openimages_classes.read_class_names`.
        image_folder: holds the photo of the id ``abcdef`` as ``abcdef.jpg``, itself or in a folder of its own, as the
            archives ``train_0`` to ``train_f`` unpack.

    Raises:
        ValueError: a file has another form, or no photo is left.
        OSError: a file or the folder cannot be read.
    """
    names = read_class_names(classes_csv)
    classes, targets = _assign_classes(names, options)
    listed = read_boxes(boxes_csv, names)
    photos = find_photos(listed.index_by_photo, image_folder)
    _log_left_out(boxes_csv, listed, photos)
    selected = _select_boxes(listed, photos.sizes[:, 0] > 0, targets, options)
    if not len(selected.photos):
        raise ValueError(
            f"{boxes_csv} leaves no box: it has {len(listed.photos)} in {len(photos.ids)} photos, of which "
            f"{np.count_nonzero(photos.sizes[:, 0])} are in {image_folder} (as IMAGE_ID.jpg) and can be read; of these "
            "DATASETS.OESIR.OPENIMAGES_… keeps none"
        )
    dataset = OpenImagesPhotos(photos, selected)
    logger.info(
        "%s: %d photos with %d boxes, %d of them groups to ignore",
        *(boxes_csv, len(dataset), len(selected.photos), np.count_nonzero(selected.is_crowd)),
    )
    counts = np.bincount(selected.class_ids, minlength=len(classes))
    empty = [name for name, count in zip(classes, counts) if not count]
    if empty:
        logger.info(
            "%s: %d of %d classes have no box: %s", boxes_csv, len(empty), len(classes), _name_first(empty, len(empty))
        )
    return dataset


def _assign_classes(names: Mapping[str, str], options: OpenImagesOptions) -> tuple[list[str], list[list[int]]]:
    """The names of the data set's classes, and for each class of the list the class ids that a box of it gets."""
    hierarchy = read_hierarchy(options.hierarchy_file) if options.hierarchy_file else None
    labels, targets = assign_classes(names, options.classes, hierarchy, options.labels)
    if options.class_agnostic:
        return [OBJECT_CLASS], [[0] if class_ids else [] for class_ids in targets]
    return [names[label] for label in labels], targets


def _select_boxes(
    listed: BoxList, is_usable: np.ndarray, targets: Sequence[Sequence[int]], options: OpenImagesOptions
) -> PlacedBoxes:
    """The boxes that the options keep, of usable photos; one that gets several classes stands there several times."""
    is_kept = is_usable[listed.photos]
    if options.group_of == "drop":
        is_kept &= ~listed.is_group
    if options.depictions == "drop":
        is_kept &= ~listed.is_depiction
    num_targets = np.array([len(ids) for ids in targets])
    is_kept &= num_targets[listed.labels] > 0
    is_crowd = listed.is_group & (options.group_of == "ignore")
    has_object = np.zeros(len(is_usable), bool)
    has_object[listed.photos[is_kept & ~is_crowd]] = True
    rows = np.flatnonzero(is_kept & has_object[listed.photos])
    # The photos of the official files are in order already, but need not be.
    rows = rows[np.argsort(listed.photos[rows], kind="stable")]

    class_ids = np.array([class_id for ids in targets for class_id in ids], np.int32)
    first_targets = np.cumsum(num_targets) - num_targets
    counts = num_targets[listed.labels[rows]]
    first_rows = np.cumsum(counts) - counts
    rows = np.repeat(rows, counts)
    within = np.arange(len(rows)) - np.repeat(first_rows, counts)
    return PlacedBoxes(
        photos=listed.photos[rows],
        boxes=listed.boxes[rows],
        class_ids=class_ids[first_targets[listed.labels[rows]] + within],
        is_crowd=is_crowd[rows],
    )


def _log_left_out(boxes_csv: str | Path, listed: BoxList, photos: PhotoList) -> None:
    num_photos = len(photos.ids)
    missing = np.flatnonzero(photos.folders < 0)
    first_missing = [photo_id.decode() for photo_id in photos.ids[missing[:NUM_NAMED]]]
    for what, count, first in (
        (f"{listed.num_broken} lines left out", listed.num_broken, listed.broken),
        (f"{len(missing)} of {num_photos} photos are not in {photos.folder_names[0]}", len(missing), first_missing),
        (f"{len(photos.unreadable)} of {num_photos} photos left out", len(photos.unreadable), photos.unreadable),
    ):
        if count:
            logger.warning("%s: %s: %s", boxes_csv, what, _name_first(first, count))
    if listed.num_unknown:
        unknown = "%s: of %d boxes it is not known whether they are groups or depictions; they count as neither"
        logger.info(unknown, boxes_csv, listed.num_unknown)


def _name_first(names: Sequence[str], count: int) -> str:
    """
    >>> _name_first(["a", "b", "c", "d"], 4)
    'a; b; c; …'
    """
    return "; ".join(names[:NUM_NAMED]) + ("; …" if count > NUM_NAMED else "")
