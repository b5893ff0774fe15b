"""The log of a detection set in the making: its settings and its finished photos, so that a run can be continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oesir_d2.files import replace_file

LOG_NAME = "composed.jsonl"
KEYS = {"file_name", "width", "height", "host", "objects"}


class DetectionLog:
    """The file ``composed.jsonl`` of an output folder: the settings, then one line a finished photo.

    Opening it makes the folder if need be, and takes up what an earlier run with the same settings has finished.

    Args:
        folder: the output folder.
        settings: all that decides what the photos look like, as JSON values.

    Raises:
        FileExistsError: if the folder holds something else, or photos of other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._path = folder / LOG_NAME
        self.photos: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            self._take_up(settings)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} is not a folder of a detection set, expected an empty or a new folder")
        (folder / "images").mkdir(parents=True, exist_ok=True)
        # Written anew, since a run that was killed may have left half a line at the end.
        lines = [{"settings": settings}, *self.photos.values()]
        replace_file(self._path, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def add(self, photo: dict[str, Any]) -> None:
        """Note that a photo is finished and its file written."""
        self.photos[photo["file_name"]] = photo
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(photo) + "\n")

    def _take_up(self, settings: dict[str, Any]) -> None:
        first, *others = self._path.read_text(encoding="utf-8").splitlines() or [""]
        try:
            earlier = dict(json.loads(first)["settings"])
        except (ValueError, KeyError, TypeError) as error:
            folder = self._path.parent
            raise FileExistsError(
                f"{self._path} is no log of a detection set; delete {folder} or name another"
            ) from error
        # Compared as JSON, in which tuples are lists.
        settings = json.loads(json.dumps(settings))
        different = sorted(name for name in {*settings, *earlier} if settings.get(name) != earlier.get(name))
        if different:
            raise FileExistsError(
                f"{self._path.parent} holds photos of other settings ({', '.join(different)}); "
                "delete it or name another"
            )
        for line in others:
            try:
                photo = json.loads(line)
            except ValueError:  # the line that a killed run was writing
                continue
            if isinstance(photo, dict) and photo.keys() == KEYS:
                if (self._path.parent / "images" / photo["file_name"]).is_file():
                    self.photos[photo["file_name"]] = photo
