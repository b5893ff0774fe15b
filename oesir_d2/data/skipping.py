"""Training goes on over photos that cannot be read: each is left out, and noted once with the reason."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detectron2.data.detection_utils import SizeMismatchError

from oesir_d2.data.images import UnreadableImageError
from oesir_d2.data.training_mappers import TrainingMapper
from oesir_d2.index.skipped import SKIPPED_FILE, SkippedFile

logger = logging.getLogger(__name__)


class SkipUnreadable:
    """A mapper that gives None for a photo that cannot be read, for which detectron2's loader then takes another.

    The photo goes to ``skipped.jsonl`` with the reason. Several processes, the loader's workers, may write it at once;
    :func:`oesir_d2.index.read_skipped` reads it and counts a photo once.

    Args:
        mapper: raises UnreadableImageError, or SizeMismatchError where a photo does not fit its annotation.
        folder: where ``skipped.jsonl`` is written; it must exist when a photo is skipped.
        num_files: files of the training set, each counted once.
    """

    def __init__(self, mapper: TrainingMapper, folder: Path, num_files: int) -> None:
        self._mapper = mapper
        self._path = Path(folder) / SKIPPED_FILE
        self._num_files = num_files
        self._skipped: set[str] = set()

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """Map a dataset dict, or note why not.

        Raises:
            ValueError: if no photo of the training set is left.
        """
        try:
            return self._mapper(dataset_dict)
        except UnreadableImageError as error:
            self._skip(str(error.path), error.reason)
        except SizeMismatchError as error:
            self._skip(dataset_dict["file_name"], " ".join(str(error).split()))
        return None

    def _skip(self, file_name: str, reason: str) -> None:
        path = os.path.abspath(file_name)
        if path in self._skipped:
            return
        self._skipped.add(path)
        logger.warning("Training skips %s: %s", path, reason)
        line = json.dumps(asdict(SkippedFile(path, reason))) + "\n"
        # One write to a file opened for appending is not torn apart by those of other processes.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, line.encode("ascii"))
        finally:
            os.close(descriptor)
        if len(self._skipped) >= self._num_files:
            raise ValueError(f"none of the {self._num_files} training photos can be read; {self._path} says why")
