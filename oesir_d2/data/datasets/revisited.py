"""Revisited Oxford and Paris (ROxford5K, RParis6K): from the published ground truth to a retrieval set.

The ground truth is published as a pickle. :func:`convert_ground_truth` makes a JSON file of it, once::

    {"version": 1, "database": ["all_souls_000013", ...],
     "queries": [{"name": "all_souls_000026", "box": [x0, y0, x1, y1],
                  "easy": ["all_souls_000035", ...], "hard": [...], "junk": [...]}]}

Photos are known by their names without ending. A query's photo is cropped to its box, which is in pixels.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from oesir_d2.array_pickle import load_array_pickle
from oesir_d2.data.datasets.retrieval import (
    add_distractors,
    check_arguments,
    list_distractors,
    make_database,
    make_query,
    register_retrieval,
)
from oesir_d2.data.images import ImageFile, get_image_extensions
from oesir_d2.files import replace_file

VERSION = 1
LABELS = ("easy", "hard", "junk")


def register_revisited(name: str, json_file: str, image_folder: str, *distractors: str) -> None:
    """Register ROxford5K, RParis6K or a set of the same form.

    Args:
        name: for DATASETS.TEST.
        json_file: what :func:`convert_ground_truth` wrote; read when the data set is first used.
        image_folder: the photos, with or without subfolders.
        *distractors: none, or a folder or list of photos that join the database, such as those of R1M.

    Raises:
        FileNotFoundError: a file or a folder does not exist.
        ValueError: the name is taken, or there are more paths.
    """
    check_arguments("REVISITED", name, files=[json_file], folders=[image_folder], distractors=distractors)
    register_retrieval(name, lambda: load_revisited(json_file, image_folder, *distractors), "revisited")


def load_revisited(json_file: str | Path, image_folder: str | Path, *distractors: str) -> list[dict[str, Any]]:
    """Dataset dicts; no photo is decoded.

    Raises:
        FileNotFoundError: photos that are not in the folder: without them the figures would be of another set.
        ValueError: the file has another form.
    """
    try:
        content = json.loads(Path(json_file).read_text(encoding="utf-8"))
        _check_content(content)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{json_file} is no ground truth of datasets/prepare_revisited.py: {reason}") from error
    names = [query["name"] for query in content["queries"]]
    paths = _find_photos(Path(image_folder), [*names, *content["database"]])
    queries = []
    times: Counter[str] = Counter()
    for query in content["queries"]:
        name = query["name"]
        times[name] += 1
        # A photo may be the query of two boxes.
        query_id = name if times[name] == 1 else f"{name}#{times[name]}"
        ground_truth = {label: query[label] for label in LABELS}
        queries.append(make_query(ImageFile(query_id, paths[name]), ground_truth, query["box"]))
    database = make_database(ImageFile(name, paths[name]) for name in content["database"])
    return queries + add_distractors(database, list_distractors(distractors))


def _find_photos(folder: Path, names: list[str]) -> dict[str, Path]:
    """The path of each photo, looked for in all subfolders: the archives of Paris have one a landmark."""
    found: dict[str, Path] = {}
    for parent, _, files in sorted(os.walk(folder)):
        for file in sorted(files):
            stem, ending = os.path.splitext(file)
            if ending.lower() in get_image_extensions():
                found.setdefault(stem, Path(parent, file))
    missing = [name for name in names if name not in found]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of {len(set(names))} photos, {missing[0] + '.jpg'!r} the first"
        )
    return found


def convert_ground_truth(pickle_file: str | Path, json_file: str | Path) -> dict[str, int]:
    """Make the JSON file of a published ground truth, gnd_roxford5k.pkl or gnd_rparis6k.pkl. Nothing in it is run.

    Args:
        pickle_file: a dict with "imlist", "qimlist" and "gnd": one dict a query, with "bbx" and, as indices into
            "imlist", "easy", "hard" and "junk".
        json_file: an existing one is replaced.

    Returns:
        The number of ``queries`` and of photos in the ``database``.

    Raises:
        FileNotFoundError: there is no pickle.
        ValueError: the pickle asks for code to be run, is damaged, or holds something else.
    """
    try:
        with open(pickle_file, "rb") as file:
            published = load_array_pickle(file)
        content = _arrange(published)
        _check_content(content)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises almost any type
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(
            f"{pickle_file} is no ground truth of the revisited protocol: {reason or type(error).__name__}"
        ) from error
    replace_file(json_file, (json.dumps(content, indent=1) + "\n").encode())
    return {"queries": len(content["queries"]), "database": len(content["database"])}


def _arrange(published: Any) -> dict[str, Any]:
    names = [str(name) for name in published["imlist"]]
    if len(published["qimlist"]) != len(published["gnd"]):
        raise ValueError(f"it has {len(published['qimlist'])} queries but the truth of {len(published['gnd'])}")

    def name_images(query: dict[str, Any], label: str) -> list[str]:
        indices = np.asarray(query[label]).reshape(-1)
        if len(indices) and not (
            np.issubdtype(indices.dtype, np.integer) and 0 <= indices.min() <= indices.max() < len(names)
        ):
            raise ValueError(f"its {label!r} has indices outside of the {len(names)} photos")
        return [names[index] for index in indices.tolist()]

    return {
        "version": VERSION,
        "database": names,
        "queries": [
            {"name": str(name), "box": [float(value) for value in query["bbx"]]}
            | {label: name_images(query, label) for label in LABELS}
            for name, query in zip(published["qimlist"], published["gnd"], strict=True)
        ],
    }


def _check_content(content: Any) -> None:
    """Hold a ground truth, from the pickle or from its JSON file, against its form.

    Raises:
        ValueError, KeyError, TypeError: what is wrong.
    """
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError(f"its version is not {VERSION}")
    for name in [*content["database"], *(query["name"] for query in content["queries"])]:
        # A name becomes a path's last part.
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(f"{name!r} is no photo's name")
    known = set(content["database"])
    for query in content["queries"]:
        box = query["box"]
        if len(box) != 4 or not all(math.isfinite(value) for value in box) or not (box[0] < box[2] and box[1] < box[3]):
            raise ValueError(f"the box of {query['name']!r} is {box}, expected [x0, y0, x1, y1]")
        for label in LABELS:
            unknown = [name for name in query[label] if name not in known]
            if unknown:
                raise ValueError(f"{query['name']!r} has {unknown[0]!r} as {label}, which is not in the database")
