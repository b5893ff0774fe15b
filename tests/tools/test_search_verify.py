"""tools/search.py and tools/evaluate_splices.py with --verify, as processes on real photos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import RunTool


@pytest.fixture
def splice(photos: Path, tmp_path: Path) -> Path:
    """A part of the motorcycle in the photo of the coffee."""
    with Image.open(photos / "coffee.png") as host, Image.open(photos / "motorcycle_left.png") as donor:
        spliced = host.convert("RGB")
        spliced.paste(donor.convert("RGB").crop((40, 20, 140, 110)), (50, 20))
    spliced.save(tmp_path / "splice.png")
    return tmp_path / "splice.png"


def test_sources_are_proven_and_the_mask_is_written(
    run_tool: RunTool, index: Path, splice: Path, tmp_path: Path
) -> None:
    words = ("--index", index, "--query", splice, "--top-k", "3")
    finished = run_tool("search", *words, "--verify", "--json", tmp_path / "found.json")
    assert finished.code == 0, finished.stderr
    answer = json.loads((tmp_path / "found.json").read_text())
    roles = {Path(result["path"]).stem: result["role"] for result in answer["results"] if result["verified"]}
    assert roles == {"coffee": "host", "motorcycle_left": "donor"}
    assert [part["source"] for part in answer["parts"]] == [answer["results"][1]["image_id"]]
    assert Path(answer["splice_mask"]).parent == tmp_path / "found.masks"
    with Image.open(answer["splice_mask"]) as mask:
        marked = np.array(mask) > 0
    true = np.zeros_like(marked)
    true[20:110, 50:150] = True
    assert (marked & true).sum() / (marked | true).sum() > 0.9
    # Without --json no mask is written, and without --verify nothing is proven.
    assert run_tool("search", *words, "--verify").json["splice_mask"] is None
    assert "verified" not in run_tool("search", *words).json["results"][0]
    assert "--masks needs --verify" in run_tool("search", *words, "--masks", tmp_path / "m").error
    assert "--candidates needs --verify" in run_tool("search", *words, "--candidates", "5").error


def test_photo_with_the_longest_name_gets_its_mask(
    run_tool: RunTool, index: Path, splice: Path, tmp_path: Path
) -> None:
    for name in ("x" * 251 + ".png", "é" * 125 + ".png"):
        query = splice.rename(tmp_path / name)
        words = ("--index", index, "--query", query, "--verify", "--candidates", "4", "--json", "found.json")
        finished = run_tool("search", *words, cwd=tmp_path)
        assert finished.code == 0, finished.stderr
        answer = json.loads((tmp_path / "found.json").read_text())
        mask = tmp_path / answer["splice_mask"]
        assert mask.is_file() and mask.name.startswith(f"0000_{name[:50]}")
        splice = query


@pytest.mark.parametrize("words", [("--masks", "file"), ("--json", "file.json")])
def test_place_where_no_mask_can_be_written_is_told_before_the_search(
    run_tool: RunTool, index: Path, splice: Path, tmp_path: Path, words: tuple[str, str]
) -> None:
    for name in ("file", "file.masks"):
        (tmp_path / name).touch()
    finished = run_tool("search", "--index", index, "--query", splice, "--verify", *words, cwd=tmp_path)
    assert finished.stdout == "" and not (tmp_path / "file.json").exists()
    assert f"{words[1].replace('.json', '.masks')}: expected a folder, this is a file" in finished.error


def test_evaluation_scores_roles_and_masks(run_tool: RunTool, index: Path, photos: Path, tmp_path: Path) -> None:
    words = ("--hosts", photos, "--photos", photos, "--count", "2", "--output", tmp_path / "set")
    assert run_tool("make_splices", *words).code == 0
    splices = tmp_path / "set" / "splices.json"
    words = ("--index", index, "--splices", splices, "--json", tmp_path / "scores.json")
    figures = run_tool("evaluate_splices", *words, "--verify").json
    rows = json.loads((tmp_path / "scores.json").read_text())["provenance_rows"]
    assert len(rows) == 2
    provenance = figures["provenance"]
    assert provenance["host_confirmed"] == 100 * np.mean([row["host_confirmed"] for row in rows])
    assert provenance["false_accept"] == 100 * np.mean([bool(row["wrong"]) for row in rows])
    assert provenance["mask_iou_all"] == pytest.approx(100 * np.mean([row["mask_iou"] for row in rows]))
    assert 0 <= provenance["mask_iou_min"] or provenance["mask_iou_min"] is None

    content = json.loads(splices.read_text())
    (name,) = {source["mask"] for source in content["queries"][1]["sources"] if source["role"] == "donor"}
    mask = splices.parent / name
    for damage, told in (
        (lambda: Image.new("L", (7, 5)).save(mask), f"{mask} has 7 x 5 pixels, expected the "),
        (lambda: mask.write_bytes(mask.read_bytes()[:40]), f"cannot read the image {mask}"),
        (mask.unlink, f"names a file that does not exist: {name}"),
    ):
        damage()
        finished = run_tool("evaluate_splices", *words, "--verify")
        assert told in finished.error and "Searching" not in finished.stderr
        # The ranking alone needs no mask.
        assert run_tool("evaluate_splices", *words).code == 0


def test_donors_that_the_index_lacks_count_each(
    run_tool: RunTool, index: Path, photos: Path, splice: Path, tmp_path: Path
) -> None:
    """One of three donors is found: the other two are not in the index."""
    names = ("coffee.png", "motorcycle_left.png", "gone.png", "gone_too.png")
    roles = ("host", "donor", "donor", "donor")
    sources = [{"image_id": name, "role": role} for name, role in zip(names, roles, strict=True)]
    content = {
        "version": 1,
        "database": [{"image_id": name, "file_name": str(photos / name)} for name in names],
        "queries": [{"file_name": splice.name, "sources": sources}],
    }
    (tmp_path / "splices.json").write_text(json.dumps(content))
    words = ("--index", index, "--splices", "splices.json", "--verify", "--allow-missing")
    figures = run_tool("evaluate_splices", *words, cwd=tmp_path).json
    assert figures["provenance"]["host_confirmed"] == 100
    assert figures["provenance"]["donor_confirmed"] == pytest.approx(100 / 3)
