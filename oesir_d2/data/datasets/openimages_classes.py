"""The classes of OpenImages: their names, which of them are kinds of others, and which of them a detector learns.

A label is the id of a class in the files ("/m/01g317"), a class id is its place among the classes of a data set, a name
is for people ("Person").

The published number of boxable classes is 600, but the official list has 601, each of them with a place in the official
hierarchy. Nothing in these files marks one that would be no class, so there are 601 here. The 602nd label of the
hierarchy is its root, ``ROOT_LABEL``, known as "Entity": the list does not have it, and should another list do so, it
is no class here.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT_LABEL = "/m/0bl9f"
"""The root of the official hierarchy."""

LABEL_MODES = ("annotated", "expanded", "merged")
"""What becomes of a box's label, see :func:`assign_classes`."""

_LABEL = re.compile(r"/[a-z]+/[0-9A-Za-z_]+")


def read_class_names(classes_csv: str | Path) -> dict[str, str]:
    """Read a list of classes: UTF-8, a label and a name a line, with or without a line of column names.

    Unlike a broken box, a broken line is an error: without it, all later classes would have other ids.

    Returns:
        The name by label, in the order of the file, without ``ROOT_LABEL``.

    Raises:
        ValueError: a line that is none, or names a label again; no classes at all.
        OSError: the file cannot be read.
    """
    names: dict[str, str] = {}
    with open(classes_csv, encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.reader(file)
        try:
            for row in rows:
                label, name = ([field.strip() for field in row] + ["", ""])[:2]
                is_label = _LABEL.fullmatch(label) is not None
                if not row or (rows.line_num == 1 and not is_label and len(row) == 2):
                    continue
                if not is_label or not name or len(row) != 2 or label in names:
                    reason = "named before" if label in names else "expected a label and a name: /m/01g317,Person"
                    raise ValueError(f"{classes_csv}:{rows.line_num}: {','.join(row)[:80]!r} is no class: {reason}")
                names[label] = name
        except csv.Error as error:
            raise ValueError(f"{classes_csv}:{rows.line_num}: no line of a CSV file: {error}") from error
    names.pop(ROOT_LABEL, None)
    if not names:
        raise ValueError(f"{classes_csv} has no classes; expected a label and a name a line: /m/01g317,Person")
    return names


@dataclass(frozen=True)
class ClassHierarchy:
    """Which classes are kinds of which others. A class may be of several kinds: a teddy bear is a bear and a toy.

    Attributes:
        parents: labels of the classes directly above, by label; the root is none of them.
        children: labels of the classes directly below, by label.
        parts: labels of what belongs to an object of a class but is no kind of it, by label. The official file has
            curious ones, such as computer mice as parts of buildings; nothing here follows them.
    """

    parents: Mapping[str, tuple[str, ...]]
    children: Mapping[str, tuple[str, ...]]
    parts: Mapping[str, tuple[str, ...]]

    def list_ancestors(self, label: str) -> list[str]:
        """The labels above one, each once, the nearest first; not itself."""
        return _walk(label, self.parents)

    def list_descendants(self, label: str) -> list[str]:
        """The labels below one, each once, the nearest first; not itself."""
        return _walk(label, self.children)


def _walk(label: str, neighbours: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Breadth first."""
    found = {label: None}
    pending = [label]
    while pending:
        pending = [n for known in pending for n in neighbours.get(known, ()) if n not in found]
        found |= dict.fromkeys(pending)
    return list(found)[1:]


def read_hierarchy(hierarchy_json: str | Path) -> ClassHierarchy:
    """Read ``bbox_labels_600_hierarchy.json``, a tree of {"LabelName", "Subcategory": […], "Part": […]}.

    Raises:
        ValueError: the file is no such tree.
        OSError: the file cannot be read.
    """
    below: dict[str, dict[str, dict[str, None]]] = {"Subcategory": {}, "Part": {}}
    parents: dict[str, dict[str, None]] = {}
    try:
        root = json.loads(Path(hierarchy_json).read_bytes())
        pending = [root]
        while pending:
            node = pending.pop(0)
            for relation, nodes in below.items():
                for child in node.get(relation, []):
                    nodes.setdefault(_get_label(node), {})[_get_label(child)] = None
                    if relation == "Subcategory" and node is not root:
                        parents.setdefault(_get_label(child), {})[_get_label(node)] = None
                    pending.append(child)
        below["Subcategory"].pop(_get_label(root), None)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{hierarchy_json} is no class hierarchy of OpenImages: {reason}") from error
    return ClassHierarchy(_freeze(parents), _freeze(below["Subcategory"]), _freeze(below["Part"]))


def _get_label(node: dict[str, Any]) -> str:
    label = node["LabelName"]
    if not isinstance(label, str):
        raise ValueError(f"a LabelName is {label!r}")
    return label


def _freeze(labels: dict[str, dict[str, None]]) -> dict[str, tuple[str, ...]]:
    return {label: tuple(others) for label, others in labels.items()}


def select_labels(
    names: Mapping[str, str], chosen: Iterable[str], hierarchy: ClassHierarchy | None = None
) -> list[str]:
    """The labels of chosen classes and, with a hierarchy, of all kinds of them: "Building" brings houses and towers.

    Args:
        names: what :func:`read_class_names` gave.
        chosen: names or labels.

    Returns:
        Labels in the order of ``names``; their places there are the class ids of a data set of all classes.

    Raises:
        ValueError: there is no such class, or several have that name.
    """
    labels: set[str] = set()
    for text in chosen:
        matching = [text] if text in names else [label for label, name in names.items() if name == text]
        if len(matching) != 1:
            close = matching or difflib.get_close_matches(text, names.values(), n=3, cutoff=0.5)
            raise ValueError(
                f"the class {text!r} is {'ambiguous' if matching else 'unknown'}; allowed: the names and labels of the "
                f"list of {len(names)} classes, for example {', '.join(map(repr, close or list(names.values())[:3]))}"
            )
        labels.update(matching)
        if hierarchy is not None:
            labels.update(hierarchy.list_descendants(matching[0]))
    return [label for label in names if label in labels]


def assign_classes(
    names: Mapping[str, str], chosen: Sequence[str], hierarchy: ClassHierarchy | None, mode: str
) -> tuple[list[str], list[list[int]]]:
    """Which classes a data set has, and which of them a box gets.

    Args:
        names: what :func:`read_class_names` gave.
        chosen: names or labels of the classes to keep; empty keeps all.
        hierarchy: needed for all modes but "annotated".
        mode: one of
            "annotated": the class it was annotated with, if that is a chosen one or a kind of it;
            "expanded": that and, as OpenImages' own evaluation has it, every class above it that is kept;
            "merged": the chosen class that it is or, else, is a kind of, the nearest first: with "Person" and "Vehicle"
            chosen, a taxi is a vehicle.

    Returns:
        The labels of the data set's classes, in the order of ``names``, and for each label of ``names`` the indices
        among them that a box of it gets: none, one, or several.

    Raises:
        ValueError: an unknown mode, a chosen class that does not exist, or no hierarchy where it is needed.
    """
    if mode not in LABEL_MODES:
        raise ValueError(f"DATASETS.OESIR.OPENIMAGES_LABELS is {mode!r}; allowed: {', '.join(map(repr, LABEL_MODES))}")
    if hierarchy is None and mode != "annotated":
        raise ValueError(
            f"DATASETS.OESIR.OPENIMAGES_LABELS {mode!r} needs the class hierarchy; set OPENIMAGES_HIERARCHY to it"
        )
    kept = select_labels(names, chosen or names, None if mode == "merged" else hierarchy)
    index_by_label = {label: index for index, label in enumerate(kept)}
    targets = []
    for label in names:
        candidates = [label]
        if hierarchy is not None and mode != "annotated":
            candidates += hierarchy.list_ancestors(label)
        indices = [index_by_label[candidate] for candidate in candidates if candidate in index_by_label]
        targets.append(indices[:1] if mode == "merged" else indices)
    return kept, targets
