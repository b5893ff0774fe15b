"""The ground truth of revisited Oxford and Paris: converted without running anything, and loaded."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oesir_d2.data.datasets.retrieval import split_roles
from oesir_d2.data.datasets.revisited import convert_ground_truth, load_revisited, register_revisited
from oesir_d2.data.images import UnreadableImageError
from oesir_d2.data.mappers import EmbeddingMapper, MarkUnreadable

NAMES = ["radcliffe_1", "radcliffe_2", "magdalen_3"]


def make_published() -> dict[str, Any]:
    """As the published pickle is, with lists and arrays of indices."""
    truth = {"bbx": [10.0, 5.0, 40.0, 25.0], "easy": np.array([0]), "hard": [1], "junk": np.array([], dtype=np.int64)}
    return {"imlist": list(NAMES), "qimlist": ["query_1"], "gnd": [truth]}


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    path = tmp_path / "gnd_roxford5k.pkl"
    path.write_bytes(pickle.dumps(make_published(), protocol=2))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in [*NAMES, "query_1"]:
        path = tmp_path / "jpg" / name.split("_")[0] / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(path)
    return tmp_path / "jpg"


def test_ground_truth_becomes_dataset_dicts(pickled: Path, folder: Path, tmp_path: Path) -> None:
    assert convert_ground_truth(pickled, tmp_path / "gt.json") == {"queries": 1, "database": 3}
    Image.new("RGB", (8, 8)).save(tmp_path / "more.png")
    (tmp_path / "list.txt").write_text("more.png\n")

    queries, database = split_roles(load_revisited(tmp_path / "gt.json", folder, str(tmp_path / "list.txt")))

    (query,) = queries
    assert query["query_box"] == (10, 5, 40, 25)
    assert query["ground_truth"] == {"easy": ["radcliffe_1"], "hard": ["radcliffe_2"], "junk": []}
    assert [item["image_id"] for item in database] == [*NAMES, "distractors/more.png"]
    assert Path(database[2]["file_name"]) == folder / "magdalen" / "magdalen_3.jpg"


def test_a_photo_may_be_the_query_of_two_boxes(folder: Path, tmp_path: Path) -> None:
    published = make_published()
    published["qimlist"] *= 2
    published["gnd"] = [published["gnd"][0], published["gnd"][0] | {"bbx": [0, 0, 9, 9]}]
    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps(published))
    convert_ground_truth(tmp_path / "gnd.pkl", tmp_path / "gt.json")
    queries, _ = split_roles(load_revisited(tmp_path / "gt.json", folder))
    assert [(query["image_id"], query["query_box"][2]) for query in queries] == [("query_1", 40), ("query_1#2", 9)]


class Malicious:
    """Its pickle asks for a file to be made."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_with_code_is_refused_and_runs_nothing(protocol: int, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "gnd.pkl"
    path.write_bytes(pickle.dumps(make_published() | {"more": Malicious(trace)}, protocol))
    with pytest.raises(ValueError, match=r"gnd.pkl is no ground truth .*asks for posix.mkdir; only numpy arrays"):
        convert_ground_truth(path, tmp_path / "gt.json")
    assert not trace.exists() and not (tmp_path / "gt.json").exists()
    # It is a real one: an ordinary reader runs it.
    pickle.loads(path.read_bytes())
    assert trace.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p.pop("gnd"), "it lacks 'gnd'"),
        (lambda p: p["gnd"][0].update(easy=[7]), "its 'easy' has indices outside of the 3 photos"),
        (lambda p: p["gnd"][0].update(bbx=[5, 5, 5, 9]), "the box of 'query_1'"),
        (lambda p: p["imlist"].append("../../etc"), "'../../etc' is no photo's name"),
        (lambda p: p["qimlist"].append("two"), "2 queries but the truth of 1"),
    ],
)
def test_other_pickles_are_refused(change: Any, reason: str, tmp_path: Path) -> None:
    published = make_published()
    change(published)
    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps(published))
    with pytest.raises(ValueError, match=reason.replace(".", r"\.")):
        convert_ground_truth(tmp_path / "gnd.pkl", tmp_path / "gt.json")


def test_a_damaged_pickle_is_refused(pickled: Path, tmp_path: Path) -> None:
    pickled.write_bytes(pickled.read_bytes()[:40])
    with pytest.raises(ValueError, match="is no ground truth of the revisited protocol"):
        convert_ground_truth(pickled, tmp_path / "gt.json")


def test_what_is_missing_is_named(pickled: Path, folder: Path, tmp_path: Path) -> None:
    convert_ground_truth(pickled, tmp_path / "gt.json")
    with pytest.raises(FileNotFoundError, match=r"REVISITED: 'nowhere.json' of 'oxford' is no file"):
        register_revisited("oxford", "nowhere.json", str(folder))
    (folder / "magdalen" / "magdalen_3.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of 4 photos, 'magdalen_3.jpg' the first"):
        load_revisited(tmp_path / "gt.json", folder)
    content = json.loads((tmp_path / "gt.json").read_text())
    del content["queries"][0]["hard"]
    (tmp_path / "gt.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"gt.json is no ground truth .*it lacks 'hard'"):
        load_revisited(tmp_path / "gt.json", folder)


def test_a_query_is_cropped_to_its_box(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, size=(300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    mapper = EmbeddingMapper(image_format="RGB", max_long_side=1024, max_pixels=10**6)
    item = {"file_name": str(tmp_path / "photo.png"), "query_box": (20.4, 30.0, 119.6, 500.0)}
    mapped = mapper(item)
    # What lies outside of the photo is cut off.
    np.testing.assert_array_equal(mapped["image"].numpy().transpose(1, 2, 0), pixels[30:300, 20:120])
    assert (mapped["height"], mapped["width"]) == (270, 100)
    with pytest.raises(UnreadableImageError, match="the box 400,0,410,9 lies outside of its 400 x 300 pixels"):
        mapper(item | {"query_box": (400, 0, 410, 9)})


def test_an_unreadable_photo_is_marked(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    mapper = MarkUnreadable(EmbeddingMapper(image_format="RGB", max_long_side=1024, max_pixels=10**6))
    mapped = mapper({"file_name": str(tmp_path / "broken.jpg"), "image_id": "broken"})
    assert mapped["image_id"] == "broken" and mapped["image"].shape == (3, 64, 64)
    assert "header is damaged" in mapped["unreadable"]
