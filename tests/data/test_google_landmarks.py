"""Google Landmarks: the forms of its files and folders, and what is left out of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog

from oesir_d2.data.datasets.google_landmarks import load_landmarks, read_landmark_list
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.training_data import register_datasets

IDS = ["97c0a12e07ae8dd5", "650c989dd3493748", "05e63ca9b2cde1f4", "08672eddcb2b7c93", "fc49cb32ef7f1e89"]
LANDMARKS = [6347, 12519, 6347, 264, 6347]
V2 = ["id,url,landmark_id", *(f"{i},http://photos.test/{i}.jpg,{n}" for i, n in zip(IDS, LANDMARKS, strict=True))]
V1 = [
    '"id","url","landmark_id"',
    *(f'"{i}","http://photos.test/{i}.jpg?a=1,b=2","{n}"' for i, n in zip(IDS, LANDMARKS, strict=True)),
]
WITHOUT_URL = ["id,landmark_id", *(f"{i},{n}" for i, n in zip(IDS, LANDMARKS, strict=True))]
CLEAN = ["landmark_id,images", f"6347,{IDS[0]} {IDS[2]} {IDS[4]}", f"12519,{IDS[1]}", f"264,{IDS[3]}"]


def write_csv(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_photo(folder: Path, photo_id: str, nested: bool = True) -> Path:
    path = folder.joinpath(*(photo_id[:3] if nested else ""), f"{photo_id}.jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"never opened")
    return path


@pytest.mark.parametrize(("form", "lines"), [("v1", V1), ("v2", V2), ("without URL", WITHOUT_URL), ("v2-clean", CLEAN)])
@pytest.mark.parametrize("nested", [True, False])
def test_every_form_gives_the_same_photos(form: str, lines: list[str], nested: bool, tmp_path: Path) -> None:
    paths = {photo_id: str(write_photo(tmp_path / "train", photo_id, nested)) for photo_id in IDS}
    dataset_dicts = load_landmarks(write_csv(tmp_path / "train.csv", lines), tmp_path / "train")

    class_by_landmark = {264: 0, 6347: 1, 12519: 2}
    expected = [
        {"file_name": paths[i], "image_id": i, "landmark_id": n, "class_id": class_by_landmark[n]}
        for i, n in zip(IDS, LANDMARKS, strict=True)
    ]
    assert sorted(dataset_dicts, key=lambda x: IDS.index(x["image_id"])) == expected
    if form != "v2-clean":
        assert dataset_dicts == expected


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*V2[:3], "", *V2[3:]]).encode())
    listed = read_landmark_list(path)
    assert listed.landmarks == dict(zip(IDS, LANDMARKS, strict=True))
    assert (listed.num_broken, listed.broken) == (0, ())


def test_a_landmark_of_more_photos_than_a_csv_field_may_have_is_read_whole(tmp_path: Path) -> None:
    ids = [f"{i:016x}" for i in range(12_000)]
    listed = read_landmark_list(write_csv(tmp_path / "clean.csv", ["landmark_id,images", f"7,{' '.join(ids)}"]))
    assert listed.landmarks == dict.fromkeys(ids, 7)


def test_broken_lines_are_counted_and_the_first_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [
        *V2[:2],
        "no comma at all",
        f"{IDS[1]},http://photos.test/x.jpg,None",
        '05e63ca9b2cde1f4,"http://photos.test/unclosed.jpg,17',
        f"../../{IDS[3]},http://photos.test/x.jpg,5",
        f"{IDS[0]},http://photos.test/again.jpg,9",
        f"{IDS[4]},6347",
        "short,",
        *V2[4:],
    ]
    path = write_csv(tmp_path / "train.csv", lines)
    path.write_bytes(path.read_bytes().replace(b"at all", b"\xff\xfe"))
    for photo_id in IDS:
        write_photo(tmp_path / "train", photo_id)
    with caplog.at_level(logging.INFO, logger="oesir_d2"):
        dataset_dicts = load_landmarks(path, tmp_path / "train")

    # The unclosed quote is no reason to leave out that line, nor those after it.
    assert {x["image_id"]: x["landmark_id"] for x in dataset_dicts} == {
        IDS[0]: 6347,
        "05e63ca9b2cde1f4": 17,
        IDS[3]: 264,
        IDS[4]: 6347,
    }
    listed = read_landmark_list(path)
    assert listed.num_broken == 6
    assert listed.broken == (
        "line 3: it has no comma: 'no comma \ufffd\ufffd'",
        "line 4: the landmark's number is 'None'",
        f"line 6: the photo's id is '../../{IDS[3]}'",
    )
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith(f"{path}: 6 entries left out: line 3: it has no comma")
    assert warning.endswith("; …")
    assert f"{path}: 4 photos of 3 landmarks" in caplog.text


def test_a_broken_id_of_a_landmarks_photos_leaves_the_others(tmp_path: Path) -> None:
    lines = ["landmark_id,images", "5,aaa1 b/b2 aaa3", "6,", "x,aaa4", "7,aaa3 aaa5"]
    listed = read_landmark_list(write_csv(tmp_path / "clean.csv", lines))
    assert listed.landmarks == {"aaa1": 5, "aaa3": 5, "aaa5": 7}
    assert listed.num_broken == 4


def test_photos_that_are_not_there_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for photo_id in IDS[:2]:
        write_photo(tmp_path, photo_id)
    # Neither a folder of that name is a photo, nor the file of another id.
    (tmp_path / f"{IDS[2]}.jpg").mkdir()
    write_photo(tmp_path, IDS[3] + "0")
    dataset_dicts = load_landmarks(write_csv(tmp_path / "train.csv", V2), tmp_path)

    assert [x["image_id"] for x in dataset_dicts] == IDS[:2]
    assert [x["class_id"] for x in dataset_dicts] == [0, 1]
    assert f"3 of 5 photos are not in {tmp_path}: {IDS[2]}; {IDS[3]}; {IDS[4]}" in caplog.text


def test_landmarks_of_few_photos_on_disk_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [*V2, "aaaa,http://photos.test/aaaa.jpg,12519", "bbbb,http://photos.test/bbbb.jpg,264"]
    for photo_id in [*IDS, "aaaa"]:
        write_photo(tmp_path, photo_id)
    with caplog.at_level(logging.INFO, logger="oesir_d2"):
        dataset_dicts = load_landmarks(write_csv(tmp_path / "train.csv", lines), tmp_path, min_photos=2)

    # Landmark 264 has two photos, but only one is there.
    assert [(x["landmark_id"], x["class_id"]) for x in dataset_dicts] == [
        *((6347, 0), (12519, 1), (6347, 0), (6347, 0), (12519, 1))
    ]
    assert "1 landmarks of fewer than 2 photos left out" in caplog.text


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "\x00\xff", "landmark_id,images,more\n"])
def test_a_file_of_another_form_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text(content)
    with pytest.raises(
        ValueError, match=r"other\.csv is no file of Google Landmarks: it begins with '.*'; allowed: id,"
    ):
        read_landmark_list(tmp_path / "other.csv")


def test_nothing_left_is_one_line(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.csv", V2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"train\.csv leaves no photo: it lists 5, of which 0 are in .*empty"):
        load_landmarks(path, tmp_path / "empty")
    write_photo(tmp_path, IDS[0])
    with pytest.raises(ValueError, match="of which 1 are in .*, of 1 landmarks, none of which has 2 or more"):
        load_landmarks(path, tmp_path, min_photos=2)


def register(*opts: object) -> Any:
    cfg = load_config("landmarks/finetune_lite0.yaml", [str(word) for word in opts])
    register_datasets(cfg)
    return cfg


def test_a_config_registers_it(tmp_path: Path) -> None:
    for photo_id in IDS:
        write_photo(tmp_path, photo_id)
    path = write_csv(tmp_path / "train.csv", V2)
    register(
        *("DATASETS.OESIR.LANDMARKS", [["landmarks", str(path), str(tmp_path)]]),
        *("DATASETS.OESIR.LANDMARK_MIN_PHOTOS", 3),
    )
    assert [x["image_id"] for x in DatasetCatalog.get("landmarks")] == [IDS[0], IDS[2], IDS[4]]


@pytest.mark.parametrize(
    ("opts", "error", "message"),
    [
        (
            ["LANDMARKS", "[['landmarks', 'nowhere.csv', '.']]"],
            FileNotFoundError,
            "'nowhere.csv' of 'landmarks' is no file",
        ),
        (
            ["LANDMARKS", f"[['landmarks', {__file__!r}, 'nowhere']]"],
            FileNotFoundError,
            "'nowhere' of 'landmarks' is no folder",
        ),
        (["LANDMARKS", "[['landmarks', '.']]"], ValueError, r"allowed: \[NAME, CSV, DIR\]"),
        (
            ["LANDMARK_MIN_PHOTOS", "0", "DATASETS.OESIR.LANDMARKS", f"[['landmarks', {__file__!r}, '.']]"],
            ValueError,
            "LANDMARK_MIN_PHOTOS is 0; allowed: at least 1",
        ),
        (["LANDMARKS", "[]"], ValueError, "DATASETS.TRAIN names 'landmarks', which is no data set"),
    ],
)
def test_mistakes_in_a_config_are_named(opts: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        register(f"DATASETS.OESIR.{opts[0]}", *opts[1:])
