"""The photos of OpenImages with their boxes as a data set: B boxes in P photos.

The training set has 1.7 million photos and 14.6 million boxes. As a list of dicts they would take about 7 GB in each
process, so they stay in arrays, and a photo's dataset dict is made when it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from torch.utils.data import Dataset

from oesir_d2.data.datasets.photo_sizes import load_photo_sizes


@dataclass(frozen=True)
class PhotoList:
    """P photos, in the order of the file of boxes.

    Attributes:
        ids: (P,) ASCII bytes.
        folders: (P,) int32, the index in ``folder_names`` of the photo's folder; -1 if it is not there.
        folder_names: paths.
        sizes: (P, 2) int32, width and height after the EXIF rotation; 0 if it is not there or cannot be read.
        unreadable: for each photo that is there and cannot be read a line that says why.
    """

    ids: np.ndarray
    folders: np.ndarray
    folder_names: Sequence[str]
    sizes: np.ndarray
    unreadable: Sequence[str] = ()

    def get_path(self, index: int) -> str | None:
        folder = self.folders[index]
        return os.path.join(self.folder_names[folder], f"{self.ids[index].decode()}.jpg") if folder >= 0 else None


@dataclass(frozen=True)
class PlacedBoxes:
    """B boxes, those of a photo one after another.

    Attributes:
        photos: (B,) int32, indices of the photos.
        boxes: (B, 4) float32, XYXY in [0, 1].
        class_ids: (B,) int32.
        is_crowd: (B,) bool.
    """

    photos: np.ndarray
    boxes: np.ndarray
    class_ids: np.ndarray
    is_crowd: np.ndarray


class OpenImagesPhotos(Dataset):
    """The dataset dicts, in detectron2's format, of the photos that have a box.

    They have ``file_name``, ``image_id``, ``width`` and ``height`` of the photo after its EXIF rotation, and
    ``annotations``, each with ``bbox`` (XYXY in pixels of it), ``bbox_mode``, ``category_id`` and ``iscrowd``.
    """

    def __init__(self, photos: PhotoList, boxes: PlacedBoxes) -> None:
        self._photos = photos
        self._boxes = boxes
        self._indices, starts = np.unique(boxes.photos, return_index=True)
        self._bounds = np.append(starts, len(boxes.photos))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"photo {index} of {len(self)}")
        photo = int(self._indices[index])
        own = slice(self._bounds[index], self._bounds[index + 1])
        width, height = self._photos.sizes[photo].tolist()
        boxes = self._boxes.boxes[own] * np.array([width, height, width, height], np.float64)
        return {
            "file_name": self._photos.get_path(photo),
            "image_id": self._photos.ids[photo].decode(),
            "width": width,
            "height": height,
            "annotations": [
                {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": class_id, "iscrowd": is_crowd}
                for box, class_id, is_crowd in zip(
                    boxes.tolist(), self._boxes.class_ids[own].tolist(), self._boxes.is_crowd[own].astype(int).tolist()
                )
            ],
        }


def find_photos(index_by_photo: Mapping[str, int], image_folder: str | Path) -> PhotoList:
    """Look for photos in a folder and the folders in it, and for their sizes.

    Args:
        index_by_photo: the index of each photo by its id, in their order.
        image_folder: holds the photo of the id ``abcdef`` as ``abcdef.jpg``, in itself or in a folder of its own.

    Raises:
        OSError: a folder cannot be read.
        ValueError: beside the folder lies another file with the name of that for the sizes.
    """
    folders = np.full(len(index_by_photo), -1, np.int32)
    folder_names = _list_folders(image_folder)
    for number, folder in enumerate(folder_names):
        with os.scandir(folder) as entries:
            for entry in entries:
                photo_id, extension = os.path.splitext(entry.name)
                index = index_by_photo.get(photo_id) if extension == ".jpg" else None
                if index is not None and folders[index] < 0 and entry.is_file():
                    folders[index] = number
    ids = np.array(list(index_by_photo), np.bytes_)
    photos = PhotoList(ids, folders, folder_names, np.zeros((len(ids), 2), np.int32))
    sizes, unreadable = load_photo_sizes(image_folder, index_by_photo, photos.get_path)
    # The file of sizes may know photos that are there no longer.
    sizes[folders < 0] = 0
    return replace(photos, sizes=sizes, unreadable=unreadable)


def _list_folders(image_folder: str | Path) -> list[str]:
    """A folder and those in it, sorted, without hidden ones."""
    with os.scandir(image_folder) as entries:
        return [str(image_folder), *sorted(e.path for e in entries if e.is_dir() and not e.name.startswith("."))]
