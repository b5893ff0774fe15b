"""Pooled vectors of many photos on disk, in chunks that are whole or not there, so that a killed job goes on.

A chunk is a safetensors file with one array for each kind of vector, such as "conv5_3/GeM": (photos, dimensions). Its
photos are named by keys, which the caller makes of their contents. Shape shorthand: n photos, D dimensions of a kind.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from oesir_d2.files import remove_temporaries, replace_file

logger = logging.getLogger(__name__)

FILE_FORMAT = "oesir_d2.vectors.v1"


class VectorStore:
    """The vectors of one model in a folder. One process writes it at a time.

    Args:
        folder: created if missing; what a killed process left unfinished in it is deleted.

    Attributes:
        places: by photo key, the chunk that holds it and its row there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(folder)
        self._folder = folder
        self.places: dict[str, tuple[Path, int]] = {}
        self._next = 0
        for path in sorted(folder.glob("*.safetensors")):
            self._next = int(path.stem) + 1
            self._take(path)

    def _take(self, path: Path) -> None:
        try:
            with safe_open(path, framework="numpy") as file:
                header = file.metadata() or {}
            if header.get("format") != FILE_FORMAT:
                raise ValueError(f"its format is {header.get('format')!r}, expected {FILE_FORMAT!r}")
            keys = json.loads(header["photos"])
        except (SafetensorError, ValueError, KeyError) as error:
            logger.warning("Vectors in %s are computed again: %s", path, error)
            path.unlink()
            return
        self.places.update({key: (path, row) for row, key in enumerate(keys)})

    def add(self, keys: Sequence[str], vectors: Mapping[str, np.ndarray]) -> None:
        """Write a chunk.

        Args:
            keys: n photos, none of which is there already.
            vectors: by kind, (n, D) float32.
        """
        assert not any(key in self.places for key in keys), "a photo is there already"
        assert all(len(rows) == len(keys) for rows in vectors.values()), "a row for each photo"
        path = self._folder / f"{self._next:06d}.safetensors"
        replace_file(path, save(dict(vectors), {"format": FILE_FORMAT, "photos": json.dumps(list(keys))}))
        self._next += 1
        self.places.update({key: (path, row) for row, key in enumerate(keys)})

    def load(self, kind: str, keys: Sequence[str]) -> np.ndarray:
        """The vectors of one kind: (n, D) float32, in the order of the keys, all of which must be there."""
        positions: dict[Path, list[int]] = {}
        for position, key in enumerate(keys):
            positions.setdefault(self.places[key][0], []).append(position)
        vectors: np.ndarray | None = None
        for path, of_chunk in positions.items():
            with safe_open(path, framework="numpy") as file:
                chunk = file.get_tensor(kind)
            if vectors is None:
                vectors = np.empty((len(keys), chunk.shape[1]), dtype=np.float32)
            vectors[of_chunk] = chunk[[self.places[keys[position]][1] for position in of_chunk]]
        assert vectors is not None, "no photo was asked for"
        return vectors
