"""Any ``splices.json`` as a retrieval set: splices of COCO objects, of a compositor, or of other people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oesir_d2.data.datasets.retrieval import (
    add_distractors,
    check_arguments,
    list_distractors,
    make_database,
    make_query,
    register_retrieval,
)
from oesir_d2.data.images import ImageFile
from oesir_d2.data.splicing.splices_file import SpliceQuery, read_splices


def register_splices(name: str, json_file: str, *distractors: str) -> None:
    """Register a set of splices.

    Args:
        name: for DATASETS.TEST.
        json_file: a ``splices.json``; read when the data set is first used.
        *distractors: none, or a folder or list of photos that join the database.

    Raises:
        FileNotFoundError: a file or a folder does not exist.
        ValueError: the name is taken, or there are more paths.
    """
    check_arguments("SPLICES", name, files=[json_file], distractors=distractors)
    register_retrieval(name, lambda: load_splices(json_file, *distractors), "splice_retrieval")


def load_splices(json_file: str | Path, *distractors: str) -> list[dict[str, Any]]:
    """Dataset dicts; no photo is decoded.

    Raises:
        FileNotFoundError: a photo that the file names does not exist.
        ValueError: the file is no valid set of splices.
    """
    splices = read_splices(json_file, check_files=("queries", "database"))
    queries = [
        make_query(ImageFile(query.file_name, splices.resolve(query.file_name)), _ground_truth(query))
        for query in splices.queries
    ]
    files = [ImageFile(image.image_id, splices.resolve(image.file_name)) for image in splices.database]
    return queries + add_distractors(make_database(files), list_distractors(distractors))


def _ground_truth(query: SpliceQuery) -> dict[str, list[str]]:
    return {role: [source.image_id for source in query.sources if source.role == role] for role in ("host", "donor")}
