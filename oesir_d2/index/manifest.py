"""The manifest: what an index folder holds, which model made it, and which of its images still count.

A manifest is replaced as a whole, by one rename. Whatever it does not name is not part of the index.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable, Mapping
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
        superseded: positions of the images in it that a later segment replaced, ascending.
    """

    name: str
    images: int
    objects: int
    checksums: dict[str, str]
    superseded: tuple[int, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``.

    Attributes:
        model: what made the embeddings.
        factory: FAISS factory string of the object index that searches them.
        segments: the segments, oldest first.
        images: images that count, that is, without the superseded ones.
        objects: region embeddings of these images.
    """

    model: EmbeddingModelInfo
    factory: str
    segments: tuple[SegmentInfo, ...] = ()
    images: int = 0
    objects: int = 0

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

    def with_segment(
        self, segment: SegmentInfo, superseded: Mapping[str, Iterable[int]], images: int, objects: int
    ) -> Manifest:
        """The manifest after one more segment.

        Args:
            segment: the new segment.
            superseded: by segment name, the positions of the images that the new segment replaces.
            images: images that count from now on.
            objects: region embeddings of these images.
        """
        older = tuple(
            replace(info, superseded=tuple(sorted({*info.superseded, *superseded.get(info.name, ())})))
            for info in self.segments
        )
        return replace(self, segments=(*older, segment), images=images, objects=objects)

    def next_segment_name(self) -> str:
        """A segment name that this manifest has not used, higher than all before."""
        return f"{max((int(info.name) for info in self.segments), default=0) + 1:06d}"

    def _to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "metric": METRIC,
            "factory": self.factory,
            "model": asdict(self.model),
            "counts": {"images": self.images, "objects": self.objects},
            "segments": [vars(info) for info in self.segments],
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
        return cls(
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
        )


def check_compatible(manifest: Manifest, model_info: EmbeddingModelInfo) -> None:
    """Raise ``ValueError``, naming all that differs, unless the model at hand is the one that made the index."""
    differences = describe_differences(manifest.model, model_info)
    if differences:
        raise ValueError(f"the index was built with another model: {'; '.join(differences)}")


def _segment_from_json(content: Any) -> SegmentInfo:
    name = _field(content, "name", str)
    # The name becomes a path: a manifest from elsewhere must not lead out of the index.
    if not re.fullmatch(r"[0-9]{6,}", name):
        raise ValueError(f"segment name is {name!r}, expected six digits or more")
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
