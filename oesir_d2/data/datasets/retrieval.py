"""What a retrieval set is: queries and database in one data set, told apart by a role.

A registered retrieval set gives dataset dicts, the queries and then the database, each with

    file_name: path of the photo;
    image_id: text, unique among the dicts of its role;
    role: "query" or "database";
    query_box: of some queries: XYXY in pixels of the file after its EXIF rotation. The photo is cropped to it;
    ground_truth: of queries: database image ids by label. Labels by the set's ``evaluator_type``:
        "revisited": easy, hard, junk;
        "splice_retrieval": host (one or none), donor;
        "copy_detection": positive (none for a distractor query).

The set's metadata have ``evaluator_type``, which says what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from oesir_d2.data.datasets.catalog import register_dataset
from oesir_d2.data.images import ImageFile, list_images

QUERY, DATABASE = "query", "database"

LABELS = {
    "revisited": ("easy", "hard", "junk"),
    "splice_retrieval": ("host", "donor"),
    "copy_detection": ("positive",),
}
"""The labels of a query's ground truth by the type of evaluator."""


def register_retrieval(
    name: str, load: Callable[[], list[dict[str, Any]]], evaluator_type: str, **metadata: Any
) -> None:
    """Register a retrieval set.

    Args:
        name: for DATASETS.TEST.
        load: gives the dataset dicts; what it gives is checked.
        evaluator_type: one of ``LABELS``.
        **metadata: for detectron2's MetadataCatalog.

    Raises:
        ValueError: the name is taken.
    """
    assert evaluator_type in LABELS, f"evaluator_type is {evaluator_type!r}, expected one of {sorted(LABELS)}"
    register_dataset(name, lambda: _check(name, load(), evaluator_type), evaluator_type=evaluator_type, **metadata)


def make_query(
    file: ImageFile, ground_truth: dict[str, list[str]], query_box: Sequence[float] | None = None
) -> dict[str, Any]:
    """The dataset dict of a query."""
    query = {"file_name": str(file.path), "image_id": file.image_id, "role": QUERY, "ground_truth": ground_truth}
    return query if query_box is None else query | {"query_box": tuple(map(float, query_box))}


def make_database(files: Iterable[ImageFile]) -> list[dict[str, Any]]:
    """The dataset dicts of a database."""
    return [{"file_name": str(file.path), "image_id": file.image_id, "role": DATABASE} for file in files]


def add_distractors(database: list[dict[str, Any]], files: Iterable[ImageFile]) -> list[dict[str, Any]]:
    """A database with photos that no query looks for; their ids get the prefix ``distractors/``."""
    return database + make_database(ImageFile(f"distractors/{file.image_id}", file.path) for file in files)


def list_distractors(sources: Sequence[str]) -> list[ImageFile]:
    """The photos of none or one folder or list."""
    return [file for source in sources for file in list_images(source)]


def check_arguments(
    key: str, name: str, files: Sequence[str] = (), folders: Sequence[str] = (), distractors: Sequence[str] = ()
) -> None:
    """See that what an entry of ``DATASETS.OESIR.KEY`` names is there.

    Raises:
        FileNotFoundError: a file, a folder or the distractors do not exist.
        ValueError: more than one collection of distractors.
    """
    for folder in folders:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"DATASETS.OESIR.{key}: {folder!r} of {name!r} is no folder")
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(f"DATASETS.OESIR.{key}: {file!r} of {name!r} is no file")
    if len(distractors) > 1:
        raise ValueError(
            f"DATASETS.OESIR.{key}: {name!r} has {len(distractors)} distractors; allowed: none or one path"
        )
    for source in distractors:
        if not Path(source).exists():
            raise FileNotFoundError(f"DATASETS.OESIR.{key}: the distractors {source!r} of {name!r} do not exist")


def split_roles(dataset_dicts: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The queries and the database of a retrieval set, each in its order."""
    items = list(dataset_dicts)
    return [item for item in items if item["role"] == QUERY], [item for item in items if item["role"] == DATABASE]


def _check(name: str, dataset_dicts: list[dict[str, Any]], evaluator_type: str) -> list[dict[str, Any]]:
    queries, database = split_roles(dataset_dicts)
    if not queries or not database:
        raise ValueError(f"{name!r} has {len(queries)} queries and {len(database)} photos to search, expected some")
    for items in (queries, database):
        seen: set[str] = set()
        for item in items:
            if item["image_id"] in seen:
                raise ValueError(f"{name!r} has the {item['role']} {item['image_id']!r} twice, expected each id once")
            seen.add(item["image_id"])
    for query in queries:
        labels = tuple(query["ground_truth"])
        assert labels == LABELS[evaluator_type], f"{query['image_id']!r} has the labels {labels}"
    return dataset_dicts
