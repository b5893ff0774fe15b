"""tools/search.py: queries, boxes, outputs and indexes that will not do, each named in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from .conftest import RunTool


def test_the_other_queries_are_answered(run_tool: RunTool, photos: Path, index: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    queries = [photos / "coins.png", tmp_path / "broken.jpg", "missing.jpg", photos, photos / "page.png", tmp_path]
    for words in ((), ("--box", "1,2,30,40")):
        finished = run_tool("search", "--index", index, "--query", *queries, "--top-k", "1", *words)

        found = [json.loads(line)["results"][0]["image_id"] for line in finished.stdout.splitlines()]
        assert found == ["coins.png", "page.png"]
        assert finished.error.startswith(
            f"search: error: 4 of 6 queries could not be read: cannot read the image {tmp_path}/broken.jpg: not an"
        )
        assert f"missing.jpg: the file does not exist; cannot read the image {photos}: it is a folder" in finished.error
        assert finished.error.endswith("; and 1 more")


@pytest.mark.parametrize(
    ("box", "named"),
    [
        ("0,0,193,10", "box 0,0,193,10 does not lie in"),
        ("-5,0,10,10", "box -5,0,10,10 does not lie in"),
        ("10,10,10,50", "0 <= X0 < X1 <= 192 and 0 <= Y0 < Y1 <= 152"),
        ("50,50,10,10", "box 50,50,10,10 does not lie in"),
        ("nan,0,10,10", "box nan,0,10,10 does not lie in"),
        ("0,0,inf,10", "box 0,0,inf,10 does not lie in"),
        ("1,2,3", "argument --box: '1,2,3' is not X0,Y0,X1,Y1, four numbers in pixels"),
        ("a,b,c,d", "'a,b,c,d' is not"),
        ("", "'' is not"),
    ],
)
def test_boxes_that_are_none(run_tool: RunTool, photos: Path, index: Path, box: str, named: str) -> None:
    finished = run_tool("search", "--index", index, "--query", photos / "coins.png", "--box", box)

    assert named in finished.error
    assert finished.stdout == ""


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--top-k", "0"], "argument --top-k: '0' is not allowed, expected a whole number of at least 1"),
        (["--top-k", "-1"], "argument --top-k: '-1'"),
        (["--top-k", "2.5"], "argument --top-k: '2.5'"),
        (["--aggregate", "mean"], "'mean' (choose from"),
        (["RETRIEVAL.TOP_K", "0"], "top_k is 0"),
        (["RETRIEVAL.AGGREGATE", "mean"], "'mean', expected one of max, mean_top_m, sum_max"),
        (["RETRIEVAL.EXPLAIN_AWAY", "2"], "2.0"),
        (["INDEX.FACTORY", "Falt"], "'Falt'"),
        (["--json", "."], "expected the name of a file to write, this is none"),
        (["--json", "/dev/null"], "/dev/null: expected the name of a file"),
        (["--json", "/proc/out.jsonl"], "/proc"),
        (["--json", "file/out.jsonl"], "file: expected a folder, this is a file"),
        (["--report", "file"], "file: expected a folder, this is a file"),
        (["--report", "/proc/report"], "/proc/report"),
    ],
)
def test_values_and_outputs_that_will_not_do(
    run_tool: RunTool, photos: Path, index: Path, tmp_path: Path, words: list[str], named: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    finished = run_tool("search", "--index", index, "--query", photos / "coins.png", *words, cwd=tmp_path)

    assert named in finished.error
    assert finished.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_indexes_that_are_none(run_tool: RunTool, photos: Path, index: Path, tmp_path: Path) -> None:
    def search(path: Path) -> str:
        return run_tool("search", "--index", path, "--query", photos / "coins.png").error

    assert f"index {tmp_path}/nowhere does not exist" in search(tmp_path / "nowhere")
    assert f"{photos} is not an index: there is no manifest.json in it" in search(photos)
    assert "coins.png" in search(photos / "coins.png")

    broken = tmp_path / "broken"
    shutil.copytree(index, broken)
    vectors = next(broken.glob("segments/*/vectors.npy"))
    vectors.write_bytes(vectors.read_bytes()[:-1])
    assert f"{vectors} is truncated or damaged" in search(broken)
    (broken / "manifest.json").write_text("{")
    assert f"{broken}/manifest.json is damaged: it is not valid JSON" in search(broken)


def test_the_index_of_another_model_is_refused_by_name(
    run_tool: RunTool, photos: Path, index: Path, tmp_path: Path
) -> None:
    def search(path: Path, *words: str) -> str:
        return run_tool("search", "--index", path, "--query", photos / "coins.png", *words).error

    other = tmp_path / "other"
    shutil.copytree(index, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["model"]["weights_sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert "built with another model: weights (index: 000000000000…, model: " in search(other)
    named = "built with another model: MODEL.OESIR.EMBEDDING.GEM_P (index: 3.0, model: 2.5)"
    assert named in search(index, "MODEL.OESIR.EMBEDDING.GEM_P", "2.5")
    # The weights are not where they were.
    manifest["model"]["references"]["MODEL.OESIR.EMBEDDING.WHITENING"] = "/gone/whitening.safetensors"
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert "/gone/whitening.safetensors" in search(other)


def test_an_index_without_photos_answers_with_nothing(run_tool: RunTool, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "broken.jpg").touch()
    run_tool("build_index", "--images", "photos", "--output", "index", cwd=tmp_path)
    finished = run_tool("search", "--index", "index", "--query", photos / "coins.png", "--report", "r", cwd=tmp_path)

    assert finished.code == 0, finished.stderr
    answer = json.loads(finished.stdout)
    assert answer["objects"] and answer["results"] == []
    assert "Nothing was found" in (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
