"""The manifest: what an index folder holds, which model made it, and which of its images still count.

A manifest is replaced as a whole, by one rename. Whatever it does not name is not part of the index.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..files import replace_file
from .compatibility import EmbeddingModelInfo, describe_differences

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
METRIC = "inner_product"

T = TypeVar("T")


@dataclass(frozen=True)
class SegmentInfo:
    """What the manifest says of one segment.

    Attributes:
        name: the segment's folder under ``segments/``, six digits or more.
        images: images stored in it, superseded ones included.
        objects: region embeddings stored in it, those of superseded images included.
        checksums: SHA-256 of each of its files, by name.
        superseded: positions of the images in it that were replaced by newer ones, or removed, ascending.
    """

    name: str
    images: int
    objects: int
    checksums: dict[str, str]
    superseded: tuple[int, ...] = ()


@dataclass(frozen=True)
class StoredObjectIndex:
    """What the manifest says of the FAISS index over the objects that is kept on disk.

    Attributes:
        name: number of its file, of the same series as the segments' names.
        factory: FAISS factory string.
        parameters: what FAISS's ParameterSpace takes at search time, such as "nprobe=16"; "" for none.
        first_fetch: objects a query region that a search begins with.
        score_error: by how much a score lies below the inner product at most, for 995 of 1,000 objects.
        covers: ``Manifest.coverage`` of the images that it holds.
        objects: region embeddings of these images.
        trained_on: region embeddings that there were when it was trained.
        bytes: size of its file.
        sha256: of its file.
        measured: figures of its tuning by name, e.g. its recall.
    """

    name: str
    factory: str
    parameters: str
    first_fetch: int
    score_error: float
    covers: str
    objects: int
    trained_on: int
    bytes: int
    sha256: str
    measured: dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``.

    Attributes:
        model: what made the embeddings.
        factory: FAISS factory string of the object index that searches them.
        segments: the segments, in the order of their images.
        images: images that count, that is, without the superseded ones.
        objects: region embeddings of these images.
        object_index: the object index on disk, if there is one; it may be out of date.
        last_number: the highest number that a segment or object index was ever named by, or higher; 0 for none.
    """

    model: EmbeddingModelInfo
    factory: str
    segments: tuple[SegmentInfo, ...] = ()
    images: int = 0
    objects: int = 0
    object_index: StoredObjectIndex | None = None
    last_number: int = 0

    @classmethod
    def load(cls, index_path: Path) -> Manifest:
        """Read the manifest of an index folder.

        Raises:
            FileNotFoundError: if the folder does not exist.
            ValueError: if it is no index, if its manifest is damaged, or if a newer version wrote it.
        """
        if not index_path.exists():
            raise FileNotFoundError(f"index {index_path} does not exist")
        path = index_path / MANIFEST_FILE
        if not path.exists():
            raise ValueError(f"{index_path} is not an index: there is no {MANIFEST_FILE} in it")
        try:
            content = json.loads(path.read_bytes())
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{path} is damaged: it is not valid JSON ({error})") from error
        try:
            return cls._from_json(content)
        except ValueError as error:
            raise ValueError(f"{path} is not a manifest that this version can read: {error}") from error

    def save(self, index_path: Path) -> None:
        """Replace the manifest of an index folder, atomically."""
        replace_file(index_path / MANIFEST_FILE, (json.dumps(self._to_json(), indent=1) + "\n").encode())

    def with_changes(
        self,
        added: Iterable[SegmentInfo],
        superseded: Mapping[str, Iterable[int]],
        dropped: Collection[str],
        images: int,
        objects: int,
    ) -> Manifest:
        """The manifest after a commit.

        Args:
            added: the new segments; they take the place of those dropped, or come last.
            superseded: by segment name, the positions of images that do not count any more.
            dropped: names of the segments that do not count any more.
            images: images that count from now on.
            objects: region embeddings of these images.
        """
        segments = [
            replace(info, superseded=tuple(sorted({*info.superseded, *superseded[info.name]})))
            if info.name in superseded
            else info
            for info in self.segments
        ]
        place = next((place for place, info in enumerate(segments) if info.name in dropped), len(segments))
        segments[place:place] = added = list(added)
        kept = tuple(info for info in segments if info.name not in dropped)
        last_number = max([self.last_number, *(int(info.name) for info in added)])
        return replace(self, segments=kept, images=images, objects=objects, last_number=last_number)

    def with_object_index(self, stored: StoredObjectIndex | None) -> Manifest:
        """The manifest with another object index, whose factory string becomes its own; None takes it out."""
        if stored is None:
            return replace(self, object_index=None)
        last_number = max(self.last_number, int(stored.name))
        return replace(self, object_index=stored, factory=stored.factory, last_number=last_number)

    def names(self) -> list[str]:
        """The names of everything that it names: the segments, and the object index."""
        names = [info.name for info in self.segments]
        return names if self.object_index is None else [*names, self.object_index.name]

    def coverage(self) -> list[str]:
        """What the first 0, 1, 2 ... segments hold, as hashes: equal ones stand for the same objects in one order."""
        hashes = [hashlib.sha256(str(self.model.dimension).encode()).hexdigest()]
        for info in self.segments:
            files = [info.checksums.get(name) for name in ("vectors.npy", "offsets.npy")]
            content = json.dumps([hashes[-1], info.name, files, info.superseded])
            hashes.append(hashlib.sha256(content.encode()).hexdigest())
        return hashes

    def fresh_object_index(self) -> StoredObjectIndex | None:
        """The object index on disk, if it holds exactly the objects that count."""
        stored = self.object_index
        return stored if stored and stored.covers == self.coverage()[-1] else None

    def _to_json(self) -> dict[str, Any]:
        object_index = None if self.object_index is None else {"object_index": vars(self.object_index)}
        return {
            "format_version": FORMAT_VERSION,
            "metric": METRIC,
            "factory": self.factory,
            "model": asdict(self.model),
            "counts": {"images": self.images, "objects": self.objects},
            "segments": [vars(info) for info in self.segments],
            # Older versions read past these.
            "last_number": self.last_number,
            **(object_index or {}),
        }

    @classmethod
    def _from_json(cls, content: Any) -> Manifest:
        version = _field(content, "format_version", int)
        if version > FORMAT_VERSION:
            raise ValueError(f"format_version is {version}, written by a newer oesir_d2; expected {FORMAT_VERSION}")
        if version != FORMAT_VERSION:
            raise ValueError(f"format_version is {version}, expected {FORMAT_VERSION}")
        metric = _field(content, "metric", str)
        if metric != METRIC:
            raise ValueError(f"metric is {metric!r}, expected {METRIC!r}")
        model = _field(content, "model", dict)
        counts = _field(content, "counts", dict)
        manifest = cls(
            model=EmbeddingModelInfo(
                config=_field(model, "config", dict),
                references=_field(model, "references", dict),
                weights_sha256=_field(model, "weights_sha256", str),
                whitening_sha256=_field(model, "whitening_sha256", str),
                preprocessing=_field(model, "preprocessing", dict),
                dimension=_count(model, "dimension"),
            ),
            factory=_field(content, "factory", str),
            segments=tuple(_segment_from_json(segment) for segment in _field(content, "segments", list)),
            images=_count(counts, "images"),
            objects=_count(counts, "objects"),
            object_index=_object_index_from_json(content["object_index"]) if "object_index" in content else None,
            last_number=_count(content, "last_number") if "last_number" in content else 0,
        )
        # An older version kept no such number, or wrote since.
        last_number = max([manifest.last_number, *map(int, manifest.names())])
        return replace(manifest, last_number=last_number)


def check_compatible(manifest: Manifest, model_info: EmbeddingModelInfo) -> None:
    """Raise ``ValueError``, naming all that differs, unless the model at hand is the one that made the index."""
    differences = describe_differences(manifest.model, model_info)
    if differences:
        raise ValueError(f"the index was built with another model: {'; '.join(differences)}")


def _object_index_from_json(content: Any) -> StoredObjectIndex:
    parameters = _field(content, "parameters", str)
    if not re.fullmatch(r"(\w+=[\d.]+(,\w+=[\d.]+)*)?", parameters):
        raise ValueError(f"parameters of the object index are {parameters!r}, expected such as 'nprobe=16'")
    first_fetch = _count(content, "first_fetch")
    if first_fetch == 0:
        raise ValueError("'first_fetch' is 0, must be positive")
    return StoredObjectIndex(
        name=_name(content),
        factory=_field(content, "factory", str),
        parameters=parameters,
        first_fetch=first_fetch,
        score_error=_field(content, "score_error", float),
        covers=_field(content, "covers", str),
        objects=_count(content, "objects"),
        trained_on=_count(content, "trained_on"),
        bytes=_count(content, "bytes"),
        sha256=_field(content, "sha256", str),
        measured=_field(content, "measured", dict),
    )


def _name(content: Any) -> str:
    name = _field(content, "name", str)
    # The name becomes a path: a manifest from elsewhere must not lead out of the index.
    if not re.fullmatch(r"[0-9]{6,}", name):
        raise ValueError(f"segment name is {name!r}, expected six digits or more")
    return name


def _segment_from_json(content: Any) -> SegmentInfo:
    name = _name(content)
    images = _count(content, "images")
    superseded = _field(content, "superseded", list)
    if not all(type(row) is int and 0 <= row < images for row in superseded):
        raise ValueError(f"superseded images of segment {name} are not all positions below {images}")
    checksums = _field(content, "checksums", dict)
    return SegmentInfo(name, images, _count(content, "objects"), checksums, tuple(superseded))


def _field(content: Any, key: str, expected: type[T]) -> T:
    if not isinstance(content, dict) or key not in content:
        raise ValueError(f"{key!r} is missing")
    value = content[key]
    # A bool is an int to Python, and not to us.
    if not isinstance(value, expected) or isinstance(value, bool):
        raise ValueError(f"{key!r} is {reprlib.repr(value)}, expected {expected.__name__}")
    return value


def _count(content: Any, key: str) -> int:
    value = _field(content, key, int)
    if value < 0:
        raise ValueError(f"{key!r} is {value}, must not be negative")
    return value
