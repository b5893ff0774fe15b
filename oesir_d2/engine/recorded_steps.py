"""Steps of a long job, each with a folder and a record of what it was made from, so that a killed job goes on.

The record of the step NAME is NAME.json beside the folder NAME. A step whose record says that it is finished is not
repeated. One that was made from something else is never overwritten: it may have taken hours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from oesir_d2.engine.command_line import replace_nan
from oesir_d2.engine.kept_results import hash_json
from oesir_d2.files import replace_file


class RecordedSteps:
    """The steps of one job, in a folder.

    Args:
        folder: of the job; created if missing.
        settings: by the name of each step, what decides its outcome, as JSON has it; in the order of the steps.

    Raises:
        FileExistsError: steps that were made from something else, named with what differs.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
        self._folder = folder
        # By hashes: what differs is worth a word, not a page.
        self._settings = {
            name: {key: hash_json(value) for key, value in of_step.items()} for name, of_step in settings.items()
        }
        folder.mkdir(parents=True, exist_ok=True)
        stale = {name: keys for name in self._settings if (keys := self._find_differences(name))}
        if stale:
            told = "; ".join(f"{name} ({', '.join(keys)})" for name, keys in stale.items())
            raise FileExistsError(
                f"{folder} holds steps that were made from something else: {told}; delete their folders, or name "
                "another output"
            )

    def locate(self, name: str) -> Path:
        """The folder of a step."""
        return self._folder / name

    def run(self, name: str, output: str, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Do a step unless it is finished.

        Args:
            name: of the step.
            output: the file or folder in its folder that is there when it is finished.
            work: called with the step's folder, which holds what an interrupted run has left; gives what to record.

        Returns:
            What the step gave, now or when it was done.
        """
        folder = self.locate(name)
        record = self._read(name)
        if record is not None and record["report"] is not None and (folder / output).exists():
            return record["report"]
        folder.mkdir(exist_ok=True)
        self._write(name, None)
        report = work(folder)
        assert (folder / output).exists(), f"step {name} did not write {folder / output}"
        self._write(name, report)
        return replace_nan(report)

    def _find_differences(self, name: str) -> list[str]:
        """In what the settings of a step differ from those that it was begun with."""
        folder = self.locate(name)
        if not folder.is_dir() or not any(folder.iterdir()):
            return []
        record = self._read(name)
        if record is None:
            return ["not made by this tool"]
        now, then = self._settings[name], record["settings"]
        return sorted(key for key in {*now, *then} if now.get(key) != then.get(key))

    def _read(self, name: str) -> dict[str, Any] | None:
        """The record of a step; None if there is none, or it is damaged."""
        try:
            record = json.loads(self._get_path(name).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        is_record = isinstance(record, dict) and isinstance(record.get("settings"), dict) and "report" in record
        return record if is_record else None

    def _write(self, name: str, report: dict[str, Any] | None) -> None:
        record = {"settings": self._settings[name], "report": replace_nan(report)}
        replace_file(self._get_path(name), (json.dumps(record, indent=1) + "\n").encode("ascii"))

    def _get_path(self, name: str) -> Path:
        return self._folder / f"{name}.json"
