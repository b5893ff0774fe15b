"""The database of a splice set: all photos that were given, each once, under an id of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from oesir_d2.data.images import ImageFile
from oesir_d2.data.splicing.splices_file import DatabaseImage


class PhotoDatabase:
    """Photos of several collections as one.

    A photo keeps the id that it has in its collection, so that an index built from the same folder knows it by that id.
    A file that several collections hold is one photo, under its first id. If an id is taken by another file, the
    collection's name comes before it: a second ``cat.jpg``, from the donors, becomes ``donors/cat.jpg``.

    Args:
        collections: the photos by the collections' names; earlier collections keep their ids.
    """

    def __init__(self, collections: Mapping[str, Sequence[ImageFile]]) -> None:
        self._ids: dict[Path, str] = {}
        taken: set[str] = set()
        for name, photos in collections.items():
            for photo in photos:
                path = photo.path.resolve()
                if path in self._ids:
                    continue
                image_id, prefix = photo.image_id, name
                while image_id in taken:
                    image_id, prefix = f"{prefix}/{photo.image_id}", f"{prefix}_"
                self._ids[path] = image_id
                taken.add(image_id)

    def __len__(self) -> int:
        return len(self._ids)

    def get_id(self, photo: ImageFile) -> str:
        """The id of a photo of one of the collections. Two photos of the same id are the same file."""
        return self._ids[photo.path.resolve()]

    def list_images(self, folder: Path) -> tuple[DatabaseImage, ...]:
        """All photos, with file names relative to a folder."""
        folder = folder.resolve()
        return tuple(
            DatabaseImage(image_id, Path(os.path.relpath(path, folder)).as_posix())
            for path, image_id in self._ids.items()
        )
