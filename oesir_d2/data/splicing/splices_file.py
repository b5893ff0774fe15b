"""The file ``splices.json``: which photos each spliced image was made from. Reader, writer and validator.

The compositor writes it, the evaluation reads it, and any splice set of other people can be put into it::

    {"version": 1,
     "database": [{"image_id": "cat.jpg", "file_name": "../photos/cat.jpg"}, ...],
     "queries": [{"file_name": "queries/000000.jpg",
                  "sources": [{"image_id": "street.jpg", "role": "host", "query_box": null, "mask": null},
                              {"image_id": "cat.jpg", "role": "donor", "query_box": [20, 31, 180, 240.5],
                               "mask": "masks/000000_0.png"}]}]}

File names are POSIX paths relative to the JSON file's folder; absolute paths are read as well. Boxes are XYXY in
pixels of the spliced image. A mask is a greyscale PNG of the spliced image's size, 255 where it shows the source. A
copy-move is a query whose only source is its host with a mask: 255 where the copy was pasted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from oesir_d2.files import replace_file

VERSION = 1
ROLES = ("host", "donor")
FILE_KINDS = ("queries", "masks", "database")


@dataclass(frozen=True)
class DatabaseImage:
    """A photo of the collection that is searched: its id, unique within the set, and its file."""

    image_id: str
    file_name: str


@dataclass(frozen=True)
class SpliceSource:
    """A photo that a splice was made from.

    Attributes:
        image_id: id of a photo of the set's database.
        role: "host" for the photo that was pasted into, "donor" for one that an object was cut from.
        query_box: XYXY in pixels of the spliced image, around what it shows of the source; None if not known or,
            for a host, if it is the whole image.
        mask: file of the mask of what the spliced image shows of the source, or None. Of a host that is the
            only source: of what was copied within it.
    """

    image_id: str
    role: str
    query_box: tuple[float, float, float, float] | None = None
    mask: str | None = None


@dataclass(frozen=True)
class SpliceQuery:
    """A spliced image and its sources, at least one of them and at most one of them the host."""

    file_name: str
    sources: tuple[SpliceSource, ...]

    @property
    def is_copy_move(self) -> bool:
        """Whether something was copied within the host: it is the only source and has a mask."""
        return len(self.sources) == 1 and self.sources[0].role == "host" and self.sources[0].mask is not None


@dataclass(frozen=True)
class SpliceSet:
    """The content of a ``splices.json``.

    Attributes:
        folder: folder of the JSON file; the file names are relative to it.
        database: the photos to search.
        queries: the spliced images.
    """

    folder: Path
    database: tuple[DatabaseImage, ...]
    queries: tuple[SpliceQuery, ...]

    def resolve(self, file_name: str) -> Path:
        """The path of a file that the set names."""
        return self.folder / file_name

    def to_dict(self) -> dict[str, Any]:
        """The set as plain lists and dicts, in the form of the JSON file."""
        return {
            "version": VERSION,
            "database": [asdict(image) for image in self.database],
            "queries": [asdict(query) for query in self.queries],
        }


def read_splices(path: str | Path, check_files: Collection[str] = ("queries",)) -> SpliceSet:
    """Read and validate a ``splices.json``.

    Keys that this version does not know are ignored; "query_box" and "mask" may be left out instead of null.

    Args:
        path: the JSON file.
        check_files: whose files must exist, out of "queries", "masks" and "database". The database's files need not
            be there for scoring an index, which knows its photos itself.

    Returns:
        The validated set.

    Raises:
        FileNotFoundError: if the JSON file or one of the files to check does not exist.
        ValueError: if the file is not a valid splice set; the message names the file, the key and the value.
    """
    path = Path(path)
    for kind in check_files:
        if kind not in FILE_KINDS:
            raise ValueError(f"check_files holds {kind!r}, expected some of {', '.join(FILE_KINDS)}")
    if not path.is_file():
        raise FileNotFoundError(f"splices file {path} does not exist")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError both are
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    try:
        splices = _parse_set(content, path.parent)
        _check_ids(splices)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for key, file_name in _list_files(splices, check_files):
        if not splices.resolve(file_name).is_file():
            raise FileNotFoundError(f"{path}: {key} names a file that does not exist: {file_name}")
    return splices


def write_splices(splices: SpliceSet, path: str | Path) -> None:
    """Write a splice set as JSON, aside first and then renamed into place.

    Args:
        splices: the set; its ``folder`` must be the folder of ``path``, which its file names are relative to.
        path: the JSON file.

    Raises:
        ValueError: if the set is not valid, or belongs to another folder.
    """
    path = Path(path)
    if path.parent.resolve() != splices.folder.resolve():
        raise ValueError(f"{path} is outside of {splices.folder}, which the file names of the splices are relative to")
    content = splices.to_dict()
    _check_ids(_parse_set(content, splices.folder))
    # Escaped to ASCII, since a file name need not be valid Unicode and would then have no UTF-8 form.
    replace_file(path, json.dumps(content, indent=1).encode())


def parse_query(value: Any, key: str = "query") -> SpliceQuery:
    """One query from its JSON form.

    Args:
        value: the parsed JSON.
        key: what error messages call it.

    Raises:
        ValueError: naming the key and the value that is wrong.
    """
    sources = tuple(
        _parse_source(source, f"{key}.sources[{i}]")
        for i, source in enumerate(_get(value, "sources", (list, tuple), key))
    )
    if not sources:
        raise ValueError(f"{key}.sources is empty, expected at least one source")
    num_hosts = sum(source.role == "host" for source in sources)
    if num_hosts > 1:
        raise ValueError(f"{key}.sources has {num_hosts} sources of role 'host', expected at most one")
    return SpliceQuery(_get_text(value, "file_name", key), sources)


def _parse_set(content: Any, folder: Path) -> SpliceSet:
    version = _get(content, "version", (int,), "")
    if version != VERSION:
        raise ValueError(f"version is {version}, expected {VERSION}")
    database = tuple(
        DatabaseImage(_get_text(image, "image_id", f"database[{i}]"), _get_text(image, "file_name", f"database[{i}]"))
        for i, image in enumerate(_get(content, "database", (list, tuple), ""))
    )
    queries = tuple(
        parse_query(query, f"queries[{i}]") for i, query in enumerate(_get(content, "queries", (list, tuple), ""))
    )
    return SpliceSet(folder, database, queries)


def _parse_source(value: Any, key: str) -> SpliceSource:
    role = _get_text(value, "role", key)
    if role not in ROLES:
        raise ValueError(f"{key}.role is {role!r}, expected one of {', '.join(ROLES)}")
    mask = None if value.get("mask") is None else _get_text(value, "mask", key)
    return SpliceSource(_get_text(value, "image_id", key), role, _parse_box(value.get("query_box"), key), mask)


def _parse_box(value: Any, key: str) -> tuple[float, float, float, float] | None:
    if value is None:
        return None
    problem = (
        f"{key}.query_box is {value!r}, expected null or [x0, y0, x1, y1] in pixels with 0 <= x0 < x1, 0 <= y0 < y1"
    )
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise ValueError(problem)
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value):
        raise ValueError(problem)
    x0, y0, x1, y1 = (float(v) for v in value)
    if not (0 <= x0 < x1 and 0 <= y0 < y1):
        raise ValueError(problem)
    return x0, y0, x1, y1


_JSON_NAMES = {(int,): "whole number", (str,): "string", (list, tuple): "list"}


def _get(value: Any, name: str, kinds: tuple[type, ...], key: str) -> Any:
    """``value[name]``, which must be there and be of one of the given types, not of a subclass (true is no number)."""
    if type(value) is not dict:
        raise ValueError(f"{key or 'the top level'} is {value!r:.80}, expected an object")
    name_in_full = f"{key}.{name}" if key else name
    if name not in value:
        raise ValueError(f"{name_in_full} is missing")
    if type(value[name]) not in kinds:
        raise ValueError(f"{name_in_full} is {value[name]!r:.80}, expected a {_JSON_NAMES[kinds]}")
    return value[name]


def _get_text(value: Any, name: str, key: str) -> str:
    text: str = _get(value, name, (str,), key)
    if not text:
        raise ValueError(f"{key}.{name} is empty, expected a string of at least one character")
    return text


def _check_ids(splices: SpliceSet) -> None:
    """Every photo and every query is listed once, and every source is a photo of the database."""
    image_ids = [image.image_id for image in splices.database]
    _check_unique(image_ids, "database", "image_id")
    _check_unique([image.file_name for image in splices.database], "database", "file_name")
    _check_unique([query.file_name for query in splices.queries], "queries", "file_name")
    known = set(image_ids)
    for i, query in enumerate(splices.queries):
        for j, source in enumerate(query.sources):
            if source.image_id not in known:
                key = f"queries[{i}].sources[{j}].image_id"
                raise ValueError(f"{key} is {source.image_id!r}, which the database does not have")


def _check_unique(values: Sequence[str], key: str, name: str) -> None:
    first: dict[str, int] = {}
    for i, value in enumerate(values):
        if value in first:
            raise ValueError(f"{key}[{i}].{name} is {value!r}, which {key}[{first[value]}] has already")
        first[value] = i


def _list_files(splices: SpliceSet, kinds: Collection[str]) -> list[tuple[str, str]]:
    """The key and the name of every file of the given kinds."""
    files = []
    if "queries" in kinds:
        files += [(f"queries[{i}].file_name", query.file_name) for i, query in enumerate(splices.queries)]
    if "masks" in kinds:
        files += [
            (f"queries[{i}].sources[{j}].mask", source.mask)
            for i, query in enumerate(splices.queries)
            for j, source in enumerate(query.sources)
            if source.mask is not None
        ]
    if "database" in kinds:
        files += [(f"database[{i}].file_name", image.file_name) for i, image in enumerate(splices.database)]
    return files
