"""``splices.json``: round trip, and refusals that name the file and the key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oesir_d2.data.splicing import DatabaseImage, SpliceQuery, SpliceSet, SpliceSource, read_splices, write_splices


def make_content() -> dict[str, Any]:
    return {
        "version": 1,
        "database": [
            {"image_id": "Straße 1.jpg", "file_name": "photos/Straße 1.jpg"},
            {"image_id": "cat.jpg", "file_name": "photos/cat.jpg"},
        ],
        "queries": [
            {
                "file_name": "queries/0.jpg",
                "sources": [
                    {"image_id": "Straße 1.jpg", "role": "host", "query_box": None, "mask": None},
                    {"image_id": "cat.jpg", "role": "donor", "query_box": [1, 2, 30.5, 40], "mask": "masks/0.png"},
                ],
            }
        ],
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    """Writes a content beside the files that it names."""
    for name in ("photos/Straße 1.jpg", "photos/cat.jpg", "queries/0.jpg", "masks/0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def write(content: Any) -> Path:
        path = tmp_path / "splices.json"
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return path

    return write


def test_reading_gives_what_the_file_says(write: Callable[[Any], Path]) -> None:
    path = write(make_content())
    splices = read_splices(path, check_files=("queries", "masks", "database"))

    assert splices.folder == path.parent
    assert splices.database[0] == DatabaseImage("Straße 1.jpg", "photos/Straße 1.jpg")
    host, donor = splices.queries[0].sources
    assert host == SpliceSource("Straße 1.jpg", "host", None, None)
    assert donor == SpliceSource("cat.jpg", "donor", (1.0, 2.0, 30.5, 40.0), "masks/0.png")
    assert splices.resolve(splices.queries[0].file_name).is_file()


def test_a_round_trip_keeps_everything(write: Callable[[Any], Path], tmp_path: Path) -> None:
    splices = read_splices(write(make_content()))
    write_splices(splices, tmp_path / "again.json")

    assert read_splices(tmp_path / "again.json") == splices
    assert json.loads((tmp_path / "again.json").read_text(encoding="utf-8")) == make_content()
    assert [path.name for path in tmp_path.glob(".tmp-*")] == []


def test_a_file_name_that_is_no_unicode_survives(tmp_path: Path) -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    query = SpliceQuery(name, (SpliceSource("a", "host"),))
    splices = SpliceSet(tmp_path, (DatabaseImage("a", "a.jpg"),), (query,))
    write_splices(splices, tmp_path / "splices.json")

    assert read_splices(tmp_path / "splices.json", check_files=()) == splices


def test_unknown_keys_and_left_out_nulls_are_fine(write: Callable[[Any], Path]) -> None:
    content = make_content()
    content["licence"] = "CC0"
    del content["queries"][0]["sources"][0]["query_box"], content["queries"][0]["sources"][0]["mask"]

    assert read_splices(write(content)).queries[0].sources[0] == SpliceSource("Straße 1.jpg", "host", None, None)


def change(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Replace what a key such as ``queries.0.file_name`` names; ``...`` deletes it."""
    *parents, last = (int(part) if part.isdigit() else part for part in key.split("."))
    item: Any = content
    for parent in parents:
        item = item[parent]
    if value is ...:
        del item[last]
    else:
        item[last] = value
    return content


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("version", ..., "version is missing"),
        ("version", 2, "version is 2, expected 1"),
        ("version", True, "version is True"),
        ("version", "1", "version is '1', expected a whole number"),
        ("database", ..., "database is missing"),
        ("database", {}, "database is {}, expected a list"),
        ("database.1", "cat.jpg", "database[1] is 'cat.jpg', expected an object"),
        ("database.1.image_id", ..., "database[1].image_id is missing"),
        ("database.1.image_id", 7, "database[1].image_id is 7, expected a string"),
        ("database.1.image_id", "", "database[1].image_id is empty"),
        ("database.1.image_id", "Straße 1.jpg", "database[1].image_id is 'Straße 1.jpg', which database[0] has"),
        ("database.1.file_name", ..., "database[1].file_name is missing"),
        ("database.1.file_name", "photos/Straße 1.jpg", "database[1].file_name is 'photos/Straße 1.jpg', which"),
        ("queries", ..., "queries is missing"),
        ("queries.0.file_name", ..., "queries[0].file_name is missing"),
        ("queries.0.sources", ..., "queries[0].sources is missing"),
        ("queries.0.sources", [], "queries[0].sources is empty"),
        ("queries.0.sources.0", None, "queries[0].sources[0] is None, expected an object"),
        ("queries.0.sources.1.image_id", ..., "queries[0].sources[1].image_id is missing"),
        ("queries.0.sources.1.image_id", "dog.jpg", "queries[0].sources[1].image_id is 'dog.jpg', which the database"),
        ("queries.0.sources.1.role", ..., "queries[0].sources[1].role is missing"),
        ("queries.0.sources.1.role", "guest", "queries[0].sources[1].role is 'guest', expected one of host, donor"),
        ("queries.0.sources.1.role", "host", "queries[0].sources has 2 sources of role 'host', expected at most one"),
        ("queries.0.sources.1.query_box", [1, 2, 3], "queries[0].sources[1].query_box is [1, 2, 3]"),
        ("queries.0.sources.1.query_box", [5, 0, 5, 9], "queries[0].sources[1].query_box is [5, 0, 5, 9]"),
        ("queries.0.sources.1.query_box", [-1, 0, 5, 9], "queries[0].sources[1].query_box is [-1, 0, 5, 9]"),
        ("queries.0.sources.1.query_box", [0, 0, float("nan"), 9], "queries[0].sources[1].query_box is [0, 0, nan"),
        ("queries.0.sources.1.query_box", [0, 0, "5", 9], "queries[0].sources[1].query_box is [0, 0, '5', 9]"),
        ("queries.0.sources.1.mask", 3, "queries[0].sources[1].mask is 3, expected a string"),
    ],
)
def test_what_is_wrong_is_named(write: Callable[[Any], Path], key: str, value: Any, named: str) -> None:
    path = write(change(make_content(), key, value))
    with pytest.raises(ValueError) as caught:
        read_splices(path)
    assert named in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "key", "file_name"),
    [
        ("queries", "queries[0].file_name", "queries/0.jpg"),
        ("masks", "queries[0].sources[1].mask", "masks/0.png"),
        ("database", "database[1].file_name", "photos/cat.jpg"),
    ],
)
def test_files_that_do_not_exist_are_named(
    write: Callable[[Any], Path], tmp_path: Path, kind: str, key: str, file_name: str
) -> None:
    path = write(make_content())
    (tmp_path / file_name).unlink()

    with pytest.raises(FileNotFoundError) as caught:
        read_splices(path, check_files=(kind,))
    assert key in str(caught.value)
    assert file_name in str(caught.value)
    read_splices(path, check_files=())


@pytest.mark.parametrize("content", [b"", b'{"version": 1', b"\xff\xfe", b"[]", b"null"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "splices.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"splices\.json"):
        read_splices(path)


def test_other_mistakes_are_refused(tmp_path: Path, write: Callable[[Any], Path]) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.json does not exist"):
        read_splices(tmp_path / "nothing.json")
    path = write(make_content())
    with pytest.raises(ValueError, match="'query', expected some of queries, masks, database"):
        read_splices(path, check_files=("query",))
    with pytest.raises(ValueError, match="outside of"):
        write_splices(read_splices(path), tmp_path / "photos" / "splices.json")


def test_a_query_listed_twice_is_refused(write: Callable[[Any], Path]) -> None:
    content = make_content()
    content["queries"] *= 2
    with pytest.raises(
        ValueError, match=r"queries\[1\]\.file_name is 'queries/0\.jpg', which queries\[0\] has already"
    ):
        read_splices(write(content))


def test_an_invalid_set_is_not_written(tmp_path: Path) -> None:
    query = SpliceQuery("0.jpg", (SpliceSource("unknown", "donor"),))
    with pytest.raises(ValueError, match="'unknown', which the database does not have"):
        write_splices(SpliceSet(tmp_path, (DatabaseImage("a", "a.jpg"),), (query,)), tmp_path / "splices.json")
    assert list(tmp_path.iterdir()) == []
