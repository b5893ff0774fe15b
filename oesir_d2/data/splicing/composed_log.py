"""The log of a splice set in the making: its settings and its finished queries, so that a run can be continued."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from oesir_d2.data.splicing.splices_file import SpliceQuery, parse_query
from oesir_d2.files import replace_file

LOG_NAME = "composed.jsonl"


class ComposedLog:
    """The file ``composed.jsonl`` of an output folder: the settings, then one line a finished query.

    Opening it makes the folder if need be, and takes up what an earlier run with the same settings has finished.

    Args:
        folder: the output folder.
        settings: all that decides what the queries look like, as JSON values.

    Raises:
        FileExistsError: if the folder holds something else, or splices of other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._path = folder / LOG_NAME
        self._folder = folder
        self.queries: dict[int, SpliceQuery] = {}
        if self._path.exists():
            self._take_up(settings)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} is not a folder of splices, expected an empty or a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        # Written anew, since a run that was killed may have left half a line at the end.
        lines = [{"settings": settings}, *(self._to_line(i, query) for i, query in self.queries.items())]
        replace_file(self._path, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def add(self, i: int, query: SpliceQuery) -> None:
        """Note that query ``i`` is finished, with all of its files."""
        self.queries[i] = query
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(self._to_line(i, query)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _to_line(self, i: int, query: SpliceQuery) -> dict[str, Any]:
        return {"i": i, "query": asdict(query)}

    def _take_up(self, settings: dict[str, Any]) -> None:
        first, *others = self._path.read_text(encoding="utf-8").splitlines() or [""]
        try:
            earlier = json.loads(first)["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise FileExistsError(
                f"{self._path} is not a log of splices; delete {self._folder} or name another"
            ) from error
        # Compared as JSON, in which tuples are lists.
        settings = json.loads(json.dumps(settings))
        different = sorted(name for name in {*settings, *earlier} if settings.get(name) != earlier.get(name))
        if different:
            raise FileExistsError(
                f"{self._folder} holds splices of other settings ({', '.join(different)}); delete it or name another"
            )
        for line in others:
            try:
                entry = json.loads(line)
                query = parse_query(entry["query"])
            except (ValueError, KeyError, TypeError):  # the line that a killed run was writing
                continue
            files = [query.file_name, *(source.mask for source in query.sources if source.mask is not None)]
            if all((self._folder / file).is_file() for file in files):
                self.queries[entry["i"]] = query
