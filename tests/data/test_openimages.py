"""OpenImages as a data set: the forms of its files, what is left out of them, what the options make of boxes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import ExifTags, Image

from oesir_d2.data.datasets.openimages import OpenImagesOptions, load_openimages
from oesir_d2.data.datasets.openimages_boxes import read_boxes
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.training_data import register_datasets

V4 = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
CLASSES = {"/m/0199g": "Bicycle", "/m/01dws": "Bear", "/m/0kmg4": "Teddy bear", "/m/0138tl": "Toy"}
BICYCLE, BEAR, TEDDY, TOY = CLASSES
A, B, C = "000002b66c9c498e", "000002b97e5471a0", "0abc-_XYZ"
ROOT = "/m/0bl9f"


def make_line(photo: str, label: str, box: str = "0.25,0.75,0.5,1", flags: str = "0,0,0,0,0") -> str:
    """A line of version 4: the box is XMin, XMax, YMin, YMax; group and depiction are the third and fourth flag."""
    return f"{photo},xclick,{label},1,{box},{flags}"


LINES = [
    make_line(A, TEDDY),
    make_line(A, BICYCLE, "0.0125,0.195312,0.148438,0.5875", "0,1,1,0,0"),
    make_line(B, BEAR, "0,1,0,1", "0,0,0,1,0"),
    make_line(B, BEAR, "0.5,0.6,0.1,0.2", "-1,-1,-1,-1,-1"),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The files of a small set: photo A is 80 x 60 pixels, B is 50 x 40 as stored and 40 x 50 upright."""
    write_lines(tmp_path / "boxes.csv", [V4, *LINES])
    write_lines(tmp_path / "classes.csv", [f"{label},{name}" for label, name in CLASSES.items()])
    bear = {"LabelName": BEAR, "Subcategory": [{"LabelName": TEDDY}]}
    toy = {"LabelName": TOY, "Subcategory": [{"LabelName": TEDDY}]}
    tree = {"LabelName": ROOT, "Subcategory": [bear, toy, {"LabelName": BICYCLE}]}
    (tmp_path / "hierarchy.json").write_text(json.dumps(tree))
    write_photo(tmp_path / "photos" / f"{A}.jpg", 80, 60)
    write_photo(tmp_path / "photos" / f"{B}.jpg", 50, 40, orientation=6)
    return tmp_path


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_photo(path: Path, width: int, height: int, orientation: int = 1) -> None:
    path.parent.mkdir(exist_ok=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (width, height), (90, 120, 60)).save(path, exif=exif)


def load(root: Path, **options: Any) -> list[dict[str, Any]]:
    if options.pop("hierarchy", False):
        options["hierarchy_file"] = str(root / "hierarchy.json")
    dataset = load_openimages(root / "boxes.csv", root / "classes.csv", root / "photos", OpenImagesOptions(**options))
    dataset_dicts = list(dataset)
    assert len(dataset) == len(dataset_dicts)
    return dataset_dicts


def list_objects(dataset_dicts: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """Photo, class id and whether it is a crowd, of each annotation."""
    return [(x["image_id"], a["category_id"], a["iscrowd"]) for x in dataset_dicts for a in x["annotations"]]


def test_dataset_dicts_are_detectron2s(root: Path) -> None:
    first, second = load(root)
    annotations = [first.pop("annotations"), second.pop("annotations")]
    assert first == {"file_name": str(root / "photos" / f"{A}.jpg"), "image_id": A, "width": 80, "height": 60}
    assert second == {"file_name": str(root / "photos" / f"{B}.jpg"), "image_id": B, "width": 40, "height": 50}
    # XYXY in pixels of the upright photo.
    expected = [
        ([20, 30, 60, 60], 2, 0),
        ([1, 8.90628, 15.62496, 35.25], 0, 1),
        ([0, 0, 40, 50], 1, 0),
        ([20, 5, 24, 10], 1, 0),
    ]
    found = [annotation for annotations_per_image in annotations for annotation in annotations_per_image]
    for annotation, (box, class_id, is_crowd) in zip(found, expected, strict=True):
        assert annotation.pop("bbox") == pytest.approx(box, abs=1e-4)
        assert annotation == {"bbox_mode": BoxMode.XYXY_ABS, "category_id": class_id, "iscrowd": is_crowd}
    json.dumps([first, second, found])  # as an evaluator writes them


def test_indices_that_are_none_end_an_iteration(root: Path) -> None:
    dataset = load_openimages(root / "boxes.csv", root / "classes.csv", root / "photos")
    for index in (2, -1):
        with pytest.raises(IndexError):
            dataset[index]


V4_COLUMNS = V4.split(",")
FORMS = {
    "version 4": V4_COLUMNS,
    "version 6": [*V4_COLUMNS, "XClick1X", "XClick2X"],
    "another order": ["IsDepiction", "YMax", "YMin", "XMax", "XMin", "LabelName", "IsGroupOf", "ImageID"],
    "challenge": ["ImageID", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax", "IsGroupOf"],
    "without flags": ["ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax"],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("mark", "line_end"), [("", "\n"), ("\ufeff", "\r\n")])
def test_every_form_of_the_file_gives_the_same_boxes(form: str, mark: str, line_end: str, root: Path) -> None:
    expected = load(root)
    rows = [dict(zip(V4_COLUMNS, line.split(","), strict=True)) for line in LINES]
    lines = [FORMS[form], *([row.get(column, "0.25") for column in FORMS[form]] for row in rows)]
    text = mark + line_end.join([",".join(line) for line in lines[:3]] + [""] + [",".join(line) for line in lines[3:]])
    (root / "boxes.csv").write_bytes(text.encode())
    if form == "without flags":
        for annotation in (a for x in expected for a in x["annotations"]):
            annotation["iscrowd"] = 0
    assert load(root) == expected


def test_boxes_of_a_photo_need_not_stand_together(root: Path) -> None:
    write_lines(root / "boxes.csv", [V4, *(LINES[i] for i in (2, 0, 3, 1))])
    assert list_objects(load(root)) == [(B, 1, 0), (B, 1, 0), (A, 2, 0), (A, 0, 1)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("what is this", "1 fields, expected 13"),
        (LINES[0] + ",0", "14 fields, expected 13"),
        (make_line(A, BEAR, "0.1,0.2,0.1,"), "XMin, XMax, YMin, YMax are 0.1, 0.2, 0.1, , expected numbers in"),
        (
            make_line(A, BEAR, "0.1,0.2,0.1,x"),
            "XMin, XMax, YMin, YMax are 0.1, 0.2, 0.1, x, expected numbers in [0, 1]",
        ),
        (make_line(A, BEAR, "0.1,nan,0.1,0.2"), "expected numbers in [0, 1]"),
        (make_line(A, BEAR, "0.1,inf,0.1,0.2"), "expected numbers in [0, 1]"),
        (make_line(A, BEAR, "0.1,1.002,0.1,0.2"), "expected numbers in [0, 1]"),
        (make_line(A, BEAR, "-0.002,0.2,0.1,0.2"), "expected numbers in [0, 1]"),
        (make_line(A, BEAR, "0.1,120,0.1,0.2"), "expected numbers in [0, 1]"),
        (make_line(A, BEAR, "0.2,0.2,0.1,0.2"), "0.2, 0.2, 0.1, 0.2, a box without area"),
        (make_line(A, BEAR, "0.1,0.2,0.3,0.2"), "a box without area"),
        (make_line(A, BEAR, "1.0001,1.0005,0.3,0.4"), "a box without area"),
        (make_line(A, "/m/nothing"), "the label '/m/nothing' is not in the list of classes"),
        (make_line(A, BEAR, flags="0,0,yes,0,0"), "a flag is 'yes', expected 1, 0 or -1"),
        (make_line(A, BEAR, flags="0,0,0,,0"), "a flag is '', expected 1, 0 or -1"),
        (make_line(f"../{A}", BEAR), f"the photo's id is '../{A}'"),
        (make_line("", BEAR), "the photo's id is ''"),
        (make_line("a" * 65, BEAR), "the photo's id is 'aaa"),
        ("\ufffd\x00" * 3, "1 fields"),
    ],
)
def test_broken_line_is_named_and_left_out(line: str, reason: str, root: Path) -> None:
    write_lines(root / "boxes.csv", [V4, *LINES[:2], line, *LINES[2:]])
    listed = read_boxes(root / "boxes.csv", CLASSES)
    assert len(listed.boxes) == 4
    assert list(listed.index_by_photo) == [A, B]
    assert listed.num_broken == 1
    (named,) = listed.broken
    assert named.startswith(f"{root / 'boxes.csv'}:4: ") and reason in named


def test_broken_lines_are_counted_and_the_first_are_logged(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_lines(root / "boxes.csv", [V4, "1", "2", *LINES, "3", '"unclosed,quote', *LINES])
    path.write_bytes(path.read_bytes().replace(b"3\n", b"\xff\xfe\n"))
    with caplog.at_level(logging.INFO, logger="oesir_d2"):
        dataset_dicts = load(root)
    # An unclosed quote does not swallow the lines after it.
    assert len(list_objects(dataset_dicts)) == 8
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning == f"{path}: 4 lines left out: " + "; ".join(
        [f"{path}:{n}: 1 fields, expected 13" for n in (2, 3, 8)] + ["…"]
    )
    assert (
        f"{path}: of 2 boxes it is not known whether they are groups or depictions; they count as neither"
        in caplog.text
    )
    assert f"{path}: 2 photos with 8 boxes, 2 of them groups to ignore" in caplog.text
    assert f"{path}: 1 of 4 classes have no box: Toy" in caplog.text


def test_rounded_coordinates_are_moved_to_the_border(root: Path) -> None:
    write_lines(root / "boxes.csv", [V4, make_line(A, BEAR, "-0.0005,1.0005,-0,1.000001")])
    (annotation,) = load(root)[0]["annotations"]
    assert annotation["bbox"] == [0, 0, 80, 60]


@pytest.mark.parametrize(
    ("options", "objects"),
    [
        ({}, [(A, 2, 0), (A, 0, 1), (B, 1, 0), (B, 1, 0)]),
        ({"group_of": "keep"}, [(A, 2, 0), (A, 0, 0), (B, 1, 0), (B, 1, 0)]),
        ({"group_of": "drop"}, [(A, 2, 0), (B, 1, 0), (B, 1, 0)]),
        ({"depictions": "drop"}, [(A, 2, 0), (A, 0, 1), (B, 1, 0)]),
        ({"class_agnostic": True}, [(A, 0, 0), (A, 0, 1), (B, 0, 0), (B, 0, 0)]),
        ({"classes": ["Bear"]}, [(B, 0, 0), (B, 0, 0)]),
        # Of photo A a group to ignore is left, and no object.
        ({"classes": ["Bear", "Bicycle"]}, [(B, 1, 0), (B, 1, 0)]),
        ({"classes": ["Bear"], "hierarchy": True}, [(A, 1, 0), (B, 0, 0), (B, 0, 0)]),
        ({"classes": ["Bear"], "hierarchy": True, "labels": "merged"}, [(A, 0, 0), (B, 0, 0), (B, 0, 0)]),
        (
            {"hierarchy": True, "labels": "expanded"},
            [(A, 2, 0), (A, 1, 0), (A, 3, 0), (A, 0, 1), (B, 1, 0), (B, 1, 0)],
        ),
        # One object is one box of the one class, whatever it is called.
        (
            {"hierarchy": True, "labels": "expanded", "class_agnostic": True, "classes": ["Bear", "Bicycle"]},
            [(A, 0, 0), (A, 0, 1), (B, 0, 0), (B, 0, 0)],
        ),
    ],
)
def test_options_decide_what_becomes_of_boxes(
    options: dict[str, Any], objects: list[tuple[str, int, int]], root: Path
) -> None:
    assert list_objects(load(root, **options)) == objects


def test_expanded_boxes_are_the_same_box(root: Path) -> None:
    write_lines(root / "boxes.csv", [V4, make_line(A, TEDDY, flags="0,0,1,0,0"), make_line(A, BICYCLE, "0,0.5,0,0.5")])
    (photo,) = load(root, labels="expanded", hierarchy=True)
    assert [a["bbox"] for a in photo["annotations"]] == [[20, 30, 60, 60]] * 3 + [[0, 0, 40, 30]]
    assert [a["iscrowd"] for a in photo["annotations"]] == [1, 1, 1, 0]


def test_photos_without_an_object_to_learn_are_left_out(root: Path) -> None:
    # What nobody annotated may be there: such a photo shows no background.
    write_lines(root / "boxes.csv", [V4, LINES[1], *LINES[2:]])
    assert [x["image_id"] for x in load(root)] == [B]
    assert [x["image_id"] for x in load(root, group_of="keep")] == [A, B]


def test_photos_that_are_not_there_or_damaged_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    others = [make_line(photo, BEAR) for photo in ("aa", "bb", "cc", "dd")]
    write_lines(root / "boxes.csv", [V4, *LINES, *others, make_line(C, BEAR)])
    # Neither a folder of that name is a photo, nor one of another extension or in a hidden folder.
    (root / "photos" / "aa.jpg").mkdir()
    (root / "photos" / "bb.txt").write_bytes((root / "photos" / f"{A}.jpg").read_bytes())
    write_photo_in(root / "photos" / ".hidden" / "cc.jpg")
    (root / "photos" / f"{C}.jpg").write_bytes(b"no photo")
    assert [x["image_id"] for x in load(root)] == [A, B]
    missing, damaged = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert missing == f"{root / 'boxes.csv'}: 4 of 7 photos are not in {root / 'photos'}: aa; bb; cc; …"
    assert f"1 of 7 photos left out: cannot read the image {root / 'photos' / C}.jpg: " in damaged

    # A photo whose size is known may be gone.
    (root / "photos" / f"{A}.jpg").unlink()
    assert [x["image_id"] for x in load(root)] == [B]


def write_photo_in(path: Path) -> None:
    path.parent.mkdir()
    write_photo(path, 30, 20)


def test_photos_may_lie_in_the_folders_of_the_archives(root: Path) -> None:
    (root / "photos" / "train_0").mkdir()
    (root / "photos" / f"{A}.jpg").rename(root / "photos" / "train_0" / f"{A}.jpg")
    first, second = load(root)
    assert first["file_name"] == str(root / "photos" / "train_0" / f"{A}.jpg")
    assert second["file_name"] == str(root / "photos" / f"{B}.jpg")
    assert (first["width"], first["height"]) == (80, 60)


@pytest.mark.parametrize("lines", [[], [make_line("aa", BEAR)], [make_line(A, TOY)], ["broken"]])
def test_nothing_left_is_one_line(lines: list[str], root: Path) -> None:
    write_lines(root / "boxes.csv", [V4, *lines])
    with pytest.raises(ValueError, match=r"boxes\.csv leaves no box: it has [01] in [01] photos, of which [01] are in"):
        load(root, classes=["Bear"])


def register(root: Path, *opts: object, entry: dict[str, str] | None = None) -> None:
    files = {"name": "openimages", "boxes": "boxes.csv", "classes": "classes.csv", "photos": "photos"} | (entry or {})
    paths = [files["name"], *(str(root / files[key]) for key in ("boxes", "classes", "photos"))]
    opts = ("DATASETS.OESIR.OPENIMAGES", [paths], *opts)
    register_datasets(load_config("detectors/openimages_R50_FPN.yaml", [str(word) for word in opts]))


def test_a_config_registers_it(root: Path) -> None:
    register(root)
    assert list_objects(list(DatasetCatalog.get("openimages"))) == [(A, 2, 0), (A, 0, 1), (B, 1, 0), (B, 1, 0)]
    metadata = MetadataCatalog.get("openimages")
    assert metadata.thing_classes == ["Bicycle", "Bear", "Teddy bear", "Toy"]
    assert metadata.evaluator_type == "coco"


def test_the_config_decides_on_the_options(root: Path) -> None:
    key = "DATASETS.OESIR.OPENIMAGES_"
    register(
        root,
        *(key + "GROUP_OF", "keep", key + "DEPICTIONS", "drop", key + "LABELS", "merged"),
        *(key + "HIERARCHY", root / "hierarchy.json", key + "CLASSES", ["Toy", "/m/0199g"]),
    )
    assert list_objects(list(DatasetCatalog.get("openimages"))) == [(A, 1, 0), (A, 0, 0)]
    assert MetadataCatalog.get("openimages").thing_classes == ["Bicycle", "Toy"]

    register(root, "DATASETS.OESIR.CLASS_AGNOSTIC", True)
    assert list_objects(list(DatasetCatalog.get("openimages"))) == [(A, 0, 0), (A, 0, 1), (B, 0, 0), (B, 0, 0)]
    assert MetadataCatalog.get("openimages").thing_classes == ["object"]


@pytest.mark.parametrize(
    ("entry", "opts", "error", "message"),
    [
        ({"boxes": "nowhere.csv"}, [], FileNotFoundError, "OPENIMAGES: '.*nowhere.csv' of 'openimages' is no file"),
        ({"classes": "nowhere.csv"}, [], FileNotFoundError, "OPENIMAGES: '.*nowhere.csv' of 'openimages' is no file"),
        ({"photos": "nowhere"}, [], FileNotFoundError, "OPENIMAGES: '.*nowhere' of 'openimages' is no folder"),
        ({}, ["HIERARCHY", "nowhere.json"], FileNotFoundError, "OPENIMAGES: 'nowhere.json' of 'openimages' is no file"),
        ({}, ["HIERARCHY", __file__], ValueError, r"test_openimages\.py is no class hierarchy of OpenImages"),
        (
            {"boxes": "classes.csv"},
            [],
            ValueError,
            r"classes\.csv is no file .*: its first line, '/m/.*', lacks ImageID",
        ),
        ({"classes": "boxes.csv"}, [], ValueError, r"boxes\.csv:1: 'ImageID,.*' is no class"),
        ({"name": "elsewhere"}, [], ValueError, "TRAIN names 'openimages', which is no data set; .*'elsewhere'"),
        ({}, ["GROUP_OF", "crowd"], ValueError, "OPENIMAGES_GROUP_OF is 'crowd'; allowed: 'ignore', 'keep', 'drop'"),
        ({}, ["DEPICTIONS", "ignore"], ValueError, "OPENIMAGES_DEPICTIONS is 'ignore'; allowed: 'keep', 'drop'"),
        ({}, ["LABELS", "leaf"], ValueError, "OPENIMAGES_LABELS is 'leaf'; allowed: 'annotated', 'expanded', 'merged'"),
        ({}, ["LABELS", "expanded"], ValueError, "OPENIMAGES_LABELS 'expanded' needs the class hierarchy"),
        ({}, ["CLASSES", "['Baer']"], ValueError, "the class 'Baer' is unknown; .* list of 4 classes, .* 'Bear'"),
    ],
)
def test_mistakes_in_a_config_are_named(
    entry: dict[str, str], opts: list[str], error: type[Exception], message: str, root: Path
) -> None:
    with pytest.raises(error, match=message) as caught:
        register(root, *(f"DATASETS.OESIR.OPENIMAGES_{opts[0]}", opts[1]) if opts else (), entry=entry)
    assert "\n" not in str(caught.value)


def test_entries_of_another_form_are_named() -> None:
    opts = ["DATASETS.OESIR.OPENIMAGES", "[['openimages', 'boxes.csv', 'photos']]"]
    cfg = load_config("detectors/openimages_R50_FPN.yaml", opts)
    with pytest.raises(
        ValueError, match=r"OPENIMAGES has the entry .*; allowed: \[NAME, BOXES_CSV, CLASSES_CSV, DIR\]"
    ):
        register_datasets(cfg)
