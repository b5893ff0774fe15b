"""Whole sets of splices: independence of the queries, continuation, ids, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oesir_d2.data import ImageFile, list_images
from oesir_d2.data.splicing import CutOut, SpliceOptions, SpliceSet, make_splice_set, read_splices
from oesir_d2.data.splicing.database import PhotoDatabase

BRIGHT = (250, 20, 240)


class OneObjectEach:
    """A source whose photos have the same object each, but for some that have none."""

    def __init__(self, photos: Sequence[ImageFile], cutout: CutOut, without: Sequence[str] = ()) -> None:
        self.photos = photos
        self.settings = {"kind": "test"}
        self._cutout = cutout
        self._without = without

    def cut(self, photo: ImageFile) -> list[CutOut]:
        if photo.image_id in self._without:
            return []
        return [CutOut(self._cutout.pixels, photo.image_id, self._cutout.box)]


@pytest.fixture
def photos(tmp_path: Path, make_photo: Callable[..., np.ndarray]) -> list[ImageFile]:
    """Five dark photos of different sizes, one of them in a subfolder."""
    folder = tmp_path / "photos of Öland"
    (folder / "sub").mkdir(parents=True)
    for i, name in enumerate(("1.png", "2.png", "3.png", "sub/4.png", "5.png")):
        Image.fromarray(make_photo(120 + 10 * i, 200 - 10 * i) // 2).save(folder / name)
    return list_images(folder)


@pytest.fixture
def make_set(
    tmp_path: Path, photos: list[ImageFile], make_cutout: Callable[..., CutOut]
) -> Callable[..., tuple[SpliceSet, list[int]]]:
    """``make_set(name, ...)`` composes into a folder, and gives the set and the numbers of the composed queries."""

    def make(name: str, without: Sequence[str] = (), **changes: Any) -> tuple[SpliceSet, list[int]]:
        composed: list[int] = []

        def note(numbers: Iterable[int]) -> Iterable[int]:
            for number in numbers:
                yield number
                composed.append(number)

        source = OneObjectEach(changes.pop("donor_photos", photos), make_cutout(color=BRIGHT), without)
        arguments: dict[str, Any] = {"count": 4, "options": SpliceOptions(colour=0, quality=(90, 95)), "progress": note}
        hosts, distractors = changes.pop("hosts", photos), changes.pop("distractors", [])
        return make_splice_set(hosts, source, distractors, tmp_path / name, **(arguments | changes)), composed

    return make


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_masks_and_boxes_belong_together(make_set: Callable[..., Any], tmp_path: Path) -> None:
    made, _ = make_set("out", count=6, donors=2)

    splices = read_splices(tmp_path / "out" / "splices.json", check_files=("queries", "masks", "database"))
    assert splices == made
    for query in splices.queries:
        pixels = np.array(Image.open(splices.resolve(query.file_name))).astype(int)
        assert Image.open(splices.resolve(query.file_name)).format == "JPEG"
        for source in query.sources[1:]:
            mask = np.array(Image.open(splices.resolve(source.mask)))
            assert mask.shape == pixels.shape[:2]
            assert set(np.unique(mask)) == {0, 255}
            rows, columns = np.nonzero(mask)
            assert source.query_box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert abs(np.median(pixels[mask == 255], axis=0) - BRIGHT).max() < 25


def test_outside_of_the_masks_the_host_shows(make_set: Callable[..., Any], photos: list[ImageFile]) -> None:
    splices, _ = make_set("out")

    paths = {photo.image_id: photo.path for photo in photos}
    for query in splices.queries:
        host, donor = query.sources
        splice = np.array(Image.open(splices.resolve(query.file_name))).astype(int)
        pixels = np.array(Image.open(paths[host.image_id])).astype(int)
        outside = np.array(Image.open(splices.resolve(donor.mask))) == 0
        assert splice.shape == pixels.shape
        assert np.median(abs(splice - pixels)[outside]) <= 3


def test_copy_moves_have_their_host_as_the_only_source(
    make_set: Callable[..., Any], tmp_path: Path, make_cutout: Callable[..., CutOut], photos: list[ImageFile]
) -> None:
    options = SpliceOptions(colour=0, quality=(95, 95), copy_move=(0.4, 0.5))
    made, _ = make_set("out", options=options, without=["2.png"], count=12)

    splices = read_splices(tmp_path / "out" / "splices.json", check_files=("queries", "masks", "database"))
    assert splices == made
    paths = {photo.image_id: photo.path for photo in photos}
    for query in splices.queries:
        (host,) = query.sources
        assert query.is_copy_move and host.role == "host" and host.image_id != "2.png"
        mask = np.array(Image.open(splices.resolve(host.mask))) > 0
        splice = np.array(Image.open(splices.resolve(query.file_name))).astype(int)
        original = np.array(Image.open(paths[host.image_id])).astype(int)
        assert np.median(abs(splice - original)[~mask]) <= 3
        assert abs(np.median(splice[mask], axis=0) - BRIGHT).max() < 25
    assert not any(query.is_copy_move for query in make_set("splices")[0].queries)


def test_hosts_that_nothing_is_cut_from_make_no_copy_move(
    make_set: Callable[..., Any], photos: list[ImageFile]
) -> None:
    options = SpliceOptions(copy_move=(0.4, 0.5))
    with pytest.raises(ValueError, match="no copy-move of 1 objects"):
        make_set("out", options=options, hosts=photos[:2], donor_photos=photos[2:])


def test_no_photo_is_used_twice_in_a_splice(make_set: Callable[..., Any]) -> None:
    splices, _ = make_set("out", count=25, donors=3)

    used = [[source.image_id for source in query.sources] for query in splices.queries]
    assert all(len(set(ids)) == 4 for ids in used)
    assert len({ids[0] for ids in used}) == 5  # every photo is a host some time


def test_the_same_seed_gives_the_same_bytes(make_set: Callable[..., Any], tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        make_set(name, seed=seed)

    assert read_all(tmp_path / "one") == read_all(tmp_path / "two")
    assert read_all(tmp_path / "one")["queries/000000.jpg"] != read_all(tmp_path / "three")["queries/000000.jpg"]


def test_a_query_does_not_depend_on_the_count_or_on_earlier_ones(make_set: Callable[..., Any], tmp_path: Path) -> None:
    few, _ = make_set("few", count=2, without=["1.png", "3.png"])
    many, _ = make_set("many", count=5, without=["1.png", "3.png"])
    # Composing 2 to 4 alone, as if 0 and 1 had been made by an earlier run.
    grown, composed = make_set("few", count=5, without=["1.png", "3.png"])

    assert composed == [2, 3, 4]
    assert few.queries == many.queries[:2]
    assert grown.queries == many.queries
    files, expected = read_all(tmp_path / "few"), read_all(tmp_path / "many")
    assert files == expected


def test_a_killed_run_goes_on(make_set: Callable[..., Any], tmp_path: Path) -> None:
    make_set("whole")

    def stop_at_the_third(numbers: Iterable[int]) -> Iterable[int]:
        for number in numbers:
            if number == 2:
                raise KeyboardInterrupt
            yield number

    with pytest.raises(KeyboardInterrupt):
        make_set("killed", progress=stop_at_the_third)
    folder = tmp_path / "killed"
    assert not (folder / "splices.json").exists()
    with open(folder / "composed.jsonl", "a") as file:
        file.write('{"i": 2, "query": {"file_na')  # killed while it wrote
    (folder / "queries" / "000001.jpg").unlink()

    _, composed = make_set("killed")

    assert composed == [1, 2, 3]
    whole = read_all(tmp_path / "whole")
    killed = read_all(folder)
    assert sorted((folder / "composed.jsonl").read_text().splitlines()) == sorted(
        (tmp_path / "whole" / "composed.jsonl").read_text().splitlines()
    )
    del whole["composed.jsonl"], killed["composed.jsonl"]
    assert killed == whole


def test_a_finished_run_composes_nothing_again(make_set: Callable[..., Any]) -> None:
    first, _ = make_set("out")
    again, composed = make_set("out")
    fewer, _ = make_set("out", count=2)

    assert composed == []
    assert again == first
    assert fewer.queries == first.queries[:2]


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"seed": 1}, "seed"), ({"donors": 2}, "donors"), ({"options": SpliceOptions(flip=0)}, "options")],
)
def test_splices_of_other_settings_are_not_mixed(
    make_set: Callable[..., Any], tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    make_set("out")
    before = read_all(tmp_path / "out")

    with pytest.raises(FileExistsError, match=rf"other settings \({named}\)"):
        make_set("out", **changes)
    assert read_all(tmp_path / "out") == before


def test_other_photos_are_other_settings(make_set: Callable[..., Any], photos: list[ImageFile]) -> None:
    make_set("out")
    with pytest.raises(FileExistsError, match="hosts"):
        make_set("out", hosts=photos[:3])


@pytest.mark.parametrize("name", ["notes.txt", "composed.jsonl"])
def test_a_foreign_folder_is_left_alone(make_set: Callable[..., Any], tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("important")

    with pytest.raises(FileExistsError, match="mine"):
        make_set("mine")
    assert read_all(tmp_path / "mine") == {name: b"important"}
    with pytest.raises(FileExistsError, match="mine"):
        make_set(f"mine/{name}")


def test_the_database_has_every_photo_once(
    make_set: Callable[..., Any], photos: list[ImageFile], tmp_path: Path, make_photo: Callable[..., np.ndarray]
) -> None:
    folder = tmp_path / "distractors"
    folder.mkdir()
    for name in ("1.png", "9.png"):
        Image.fromarray(make_photo(90, 90)).save(folder / name)
    same_again = [ImageFile("another id", photos[0].path)]

    splices, _ = make_set("out", distractors=list_images(folder) + same_again)

    ids = {image.image_id: splices.resolve(image.file_name).resolve() for image in splices.database}
    expected = {photo.image_id: photo.path.resolve() for photo in photos}
    assert ids == expected | {"distractors/1.png": folder / "1.png", "9.png": folder / "9.png"}
    assert "sub/4.png" in ids


def test_ids_that_collide_get_their_collections_name() -> None:
    collections = {
        "hosts": [ImageFile("a.jpg", Path("/h/a.jpg")), ImageFile("donors/a.jpg", Path("/h/donors/a.jpg"))],
        "donors": [ImageFile("a.jpg", Path("/d/a.jpg")), ImageFile("x.jpg", Path("/h/a.jpg"))],
    }
    database = PhotoDatabase(collections)

    assert [image.image_id for image in database.list_images(Path("/"))] == ["a.jpg", "donors/a.jpg", "donors_/a.jpg"]
    assert database.get_id(collections["donors"][1]) == "a.jpg"
    assert len(database) == 3


def test_hosts_that_cannot_be_used_are_drawn_again(
    make_set: Callable[..., Any], photos: list[ImageFile], tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    Image.new("RGB", (1, 1)).save(tmp_path / "tiny.png")
    bad = [ImageFile(name, tmp_path / name) for name in ("broken.jpg", "missing.jpg", "tiny.png")]

    splices, _ = make_set("out", hosts=bad + photos[:1], count=6)
    assert {query.sources[0].image_id for query in splices.queries} == {photos[0].image_id}

    with pytest.raises(ValueError, match="none of the 2 hosts can be read"):
        make_set("none", hosts=bad[:2])


def test_too_few_donors_are_refused_with_their_number(make_set: Callable[..., Any], photos: list[ImageFile]) -> None:
    ids = [photo.image_id for photo in photos]
    with pytest.raises(ValueError, match="0 of 5 donor photos have an object"):
        make_set("none", without=ids)
    with pytest.raises(ValueError, match=r"no splice of 2 objects .* 1 of 5 donor photos"):
        make_set("one", without=ids[1:], donors=2)
    # One photo with an object is enough, on the other hosts.
    splices, _ = make_set("enough", without=ids[1:])
    assert {query.sources[1].image_id for query in splices.queries} == {ids[0]}


@pytest.mark.parametrize(("name", "value"), [("count", 0), ("donors", 0), ("seed", -1)])
def test_numbers_out_of_range_are_refused_by_name(make_set: Callable[..., Any], name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        make_set("out", **{name: value})


def test_splices_json_has_the_form_of_the_design(make_set: Callable[..., Any], tmp_path: Path) -> None:
    make_set("out", count=1)

    content = json.loads((tmp_path / "out" / "splices.json").read_text(encoding="utf-8"))
    assert set(content) == {"version", "database", "queries"}
    assert set(content["database"][0]) == {"image_id", "file_name"}
    assert set(content["queries"][0]) == {"file_name", "sources"}
    host, donor = content["queries"][0]["sources"]
    assert set(host) == set(donor) == {"image_id", "role", "query_box", "mask"}
    assert (host["role"], host["query_box"], host["mask"], donor["role"]) == ("host", None, None, "donor")
