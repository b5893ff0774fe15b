"""OpenImages' classes: the list of names, the hierarchy, and which classes a box gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oesir_d2.data.datasets.openimages_classes import (
    ROOT_LABEL,
    ClassHierarchy,
    assign_classes,
    read_class_names,
    read_hierarchy,
    select_labels,
)

NAMES = {
    **{"/m/0cgh4": "Building", "/m/03jm5": "House", "/m/01fdzj": "Tower", "/m/0d4v4": "Window", "/m/0jbk": "Animal"},
    **{"/m/01dws": "Bear", "/m/0kmg4": "Teddy bear", "/m/0138tl": "Toy", "/m/020lf": "Computer mouse"},
}
LABELS = {name: label for label, name in NAMES.items()}


def make_node(name: str, below: tuple[Any, ...] = (), parts: tuple[Any, ...] = ()) -> dict[str, Any]:
    node: dict[str, Any] = {"LabelName": LABELS.get(name, ROOT_LABEL)}
    return node | ({"Subcategory": list(below)} if below else {}) | ({"Part": list(parts)} if parts else {})


# As in the official file: a teddy bear has two parents, a house stands in the tree as the part of something, too.
TREE = make_node(
    "Entity",
    (
        make_node("Toy", (make_node("Teddy bear"),)),
        make_node("Building", (make_node("Tower"),), (make_node("Computer mouse"), make_node("Window"))),
        make_node(
            "Animal", (make_node("Bear", (make_node("Teddy bear"),)),), (make_node("Building", (make_node("House"),)),)
        ),
        make_node("Window"),
        make_node("Computer mouse"),
    ),
)


@pytest.fixture
def hierarchy(tmp_path: Path) -> ClassHierarchy:
    (tmp_path / "hierarchy.json").write_text(json.dumps(TREE))
    return read_hierarchy(tmp_path / "hierarchy.json")


def to_names(labels: list[str]) -> list[str]:
    return [NAMES[label] for label in labels]


@pytest.mark.parametrize("header", ["", "label,class\n", "\ufeff", "\ufeffLabelName,DisplayName\n"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_list_is_read_with_or_without_column_names(header: str, line_end: str, tmp_path: Path) -> None:
    lines = [f"{label},{name}" for label, name in NAMES.items()]
    lines.insert(4, '/m/0h8n5zk,"Kitchen, dining room & table"')
    path = tmp_path / "classes.csv"
    path.write_bytes((header.replace("\n", line_end) + line_end.join([*lines, ""])).encode())
    names = read_class_names(path)
    assert list(names) == [*list(NAMES)[:4], "/m/0h8n5zk", *list(NAMES)[4:]]
    assert names == NAMES | {"/m/0h8n5zk": "Kitchen, dining room & table"}


def test_root_of_the_hierarchy_is_no_class(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("/m/0cgh4,Building\n/m/0bl9f,Entity\n/m/0jbk,Animal\n")
    assert list(read_class_names(tmp_path / "classes.csv")) == ["/m/0cgh4", "/m/0jbk"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no classes"),
        ("label,class\n", "has no classes"),
        ("/m/0cgh4,Building\n/m/0jbk\n", r"classes\.csv:2: '/m/0jbk' is no class: expected a label and a name"),
        ("/m/0cgh4,Building\nlabel,class\n", r"classes\.csv:2: 'label,class' is no class"),
        ("/m/0cgh4,Building\n/m/0jbk,\n", r"classes\.csv:2: '/m/0jbk,' is no class"),
        ("/m/0cgh4,Building\n/m/0cgh4,House\n", r"classes\.csv:2: '/m/0cgh4,House' is no class: named before"),
        ("ImageID,Source,LabelName\n", r"classes\.csv:1: 'ImageID,Source,LabelName' is no class"),
        ("\x00\xff,b\n\x01", r"classes\.csv:2"),
    ],
)
def test_broken_list_is_named_with_its_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        read_class_names(tmp_path / "classes.csv")


def test_hierarchy_says_what_is_a_kind_of_what(hierarchy: ClassHierarchy) -> None:
    assert to_names(hierarchy.list_ancestors(LABELS["Teddy bear"])) == ["Toy", "Bear", "Animal"]
    assert to_names(hierarchy.list_descendants(LABELS["Animal"])) == ["Bear", "Teddy bear"]
    assert to_names(hierarchy.list_descendants(LABELS["Building"])) == ["Tower", "House"]
    assert to_names(list(hierarchy.children[LABELS["Building"]])) == ["Tower", "House"]
    assert to_names(list(hierarchy.parents[LABELS["Teddy bear"]])) == ["Toy", "Bear"]
    for name in ("Toy", "Building", "Window"):
        assert hierarchy.list_ancestors(LABELS[name]) == [], "the root is above all and says nothing"
    assert hierarchy.list_descendants("/m/unknown") == []
    assert to_names(list(hierarchy.parts[LABELS["Building"]])) == ["Computer mouse", "Window"]


def test_hierarchy_that_runs_in_a_circle_ends() -> None:
    circle = ClassHierarchy({"/m/a": ("/m/b",), "/m/b": ("/m/a",)}, {}, {})
    assert circle.list_ancestors("/m/a") == ["/m/b"]


@pytest.mark.parametrize(
    "content",
    ["", "[1, 2]", "3", "{}", '{"LabelName": 3}', '{"LabelName": "/m/a", "Subcategory": [3]}', "[" * 100_000]
    + ['{"LabelName": "/m/a", "Subcategory": [{}]}', '{"LabelName": "/m/a", "Part": 3}', "\x00\x01"],
)
def test_file_that_is_no_hierarchy_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "hierarchy.json").write_text(content)
    with pytest.raises(ValueError, match=r"hierarchy\.json is no class hierarchy of OpenImages: ."):
        read_hierarchy(tmp_path / "hierarchy.json")


def test_chosen_classes_bring_their_kinds(hierarchy: ClassHierarchy) -> None:
    assert to_names(select_labels(NAMES, ["Building"])) == ["Building"]
    # In the order of the list, by name or label, and without the parts.
    assert to_names(select_labels(NAMES, ["/m/0jbk", "Building"], hierarchy)) == [
        *("Building", "House", "Tower", "Animal", "Bear", "Teddy bear")
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Biulding", "'Biulding' is unknown; allowed: the names and labels of the list of 9 classes, .*'Building'"),
        ("", "the class '' is unknown"),
        ("Bat", "'Bat' is ambiguous; .* '/m/01h44', '/m/x'"),
    ],
)
def test_class_that_does_not_exist_is_named(name: str, message: str) -> None:
    names = NAMES | ({"/m/01h44": "Bat", "/m/x": "Bat"} if name == "Bat" else {})
    with pytest.raises(ValueError, match=message):
        select_labels(names, [name])


def list_targets(hierarchy: ClassHierarchy | None, mode: str, *chosen: str) -> tuple[list[str], dict[str, list[str]]]:
    """The names of the classes, and for each annotated name those that a box of it gets, unless there are none."""
    kept, targets = assign_classes(NAMES, chosen, hierarchy, mode)
    by_name = {name: [NAMES[kept[i]] for i in indices] for name, indices in zip(NAMES.values(), targets, strict=True)}
    return to_names(kept), {name: classes for name, classes in by_name.items() if classes}


def test_annotated_classes_stay_as_they_are(hierarchy: ClassHierarchy) -> None:
    every = list(NAMES.values())
    assert list_targets(None, "annotated") == (every, {name: [name] for name in every})
    assert list_targets(hierarchy, "annotated") == (every, {name: [name] for name in every})
    assert list_targets(None, "annotated", "Toy", "Bear") == (["Bear", "Toy"], {"Bear": ["Bear"], "Toy": ["Toy"]})
    kinds = ["Bear", "Teddy bear"]
    assert list_targets(hierarchy, "annotated", "Bear") == (kinds, {name: [name] for name in kinds})


def test_expanded_classes_are_those_above_too(hierarchy: ClassHierarchy) -> None:
    kept, targets = list_targets(hierarchy, "expanded")
    assert kept == list(NAMES.values())
    assert targets["Teddy bear"] == ["Teddy bear", "Toy", "Bear", "Animal"]
    assert targets["House"] == ["House", "Building"]
    assert targets["Window"] == ["Window"]
    # Those above that are not kept are none.
    assert list_targets(hierarchy, "expanded", "Bear") == (
        ["Bear", "Teddy bear"],
        {"Bear": ["Bear"], "Teddy bear": ["Teddy bear", "Bear"]},
    )


def test_merged_classes_are_the_nearest_chosen_one(hierarchy: ClassHierarchy) -> None:
    assert list_targets(hierarchy, "merged", "Animal", "Building") == (
        ["Building", "Animal"],
        {
            **{name: ["Building"] for name in ("Building", "House", "Tower")},
            **{name: ["Animal"] for name in ("Animal", "Bear", "Teddy bear")},
        },
    )
    assert list_targets(hierarchy, "merged", "Animal", "Bear")[1]["Teddy bear"] == ["Bear"]
    assert list_targets(hierarchy, "merged", "Animal", "Toy")[1]["Teddy bear"] == ["Toy"]


def test_modes_that_cannot_be_are_refused(hierarchy: ClassHierarchy) -> None:
    with pytest.raises(ValueError, match="OPENIMAGES_LABELS is 'all'; allowed: 'annotated', 'expanded', 'merged'"):
        assign_classes(NAMES, [], hierarchy, "all")
    for mode in ("expanded", "merged"):
        with pytest.raises(ValueError, match=f"OPENIMAGES_LABELS '{mode}' needs the class hierarchy"):
            assign_classes(NAMES, [], None, mode)
