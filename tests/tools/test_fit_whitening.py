"""tools/fit_whitening.py: a whitening that an index can be built with, and photos that are too few for one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from oesir_d2.index import EmbeddingIndex
from oesir_d2.layers import load_whitening

from .conftest import PHOTO_NAMES, Finished, RunTool

DIMENSION = 32
CHANNELS = 1824


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whitening")


@pytest.fixture(scope="module")
def fitted(run_tool: RunTool, photos: Path, folder: Path) -> Finished:
    """The run that wrote small.safetensors into the folder."""
    words = ("--output", "small.safetensors", "--dimension", str(DIMENSION), "--source", "ten photos")
    return run_tool("fit_whitening", "--images", photos, *words, cwd=folder)


@pytest.fixture(scope="module")
def unwhitened(run_tool: RunTool, photos: Path, folder: Path) -> Path:
    """An index of the pooled vectors themselves."""
    pairs = ("MODEL.OESIR.EMBEDDING.WHITENING", "", "MODEL.OESIR.EMBEDDING.WHITENING_DIM", "0")
    run_tool("build_index", "--images", photos, "--output", folder / "unwhitened", *pairs)
    return folder / "unwhitened"


def read_vectors(path: Path) -> np.ndarray:
    index = EmbeddingIndex.open(path)
    return index.vectors_of(np.arange(len(index.images)))[0]


def test_the_file_says_what_it_was_fitted_on(
    run_tool: RunTool, photos: Path, index: Path, folder: Path, fitted: Finished
) -> None:
    regions = EmbeddingIndex.open(index).num_objects
    assert fitted.json == {
        "output": "small.safetensors",
        "dimension": DIMENSION,
        "photos": len(PHOTO_NAMES),
        "regions": regions,
        "skipped": 0,
    }
    assert fitted.messages == []
    whitening, metadata = load_whitening(folder / "small.safetensors")
    assert (whitening.input_dim, whitening.output_dim) == (CHANNELS, DIMENSION)
    assert (metadata["source"], metadata["count"], metadata["config"]) == (
        "ten photos",
        regions,
        "oesir_lite0.yaml",
    )


def test_an_index_is_built_with_it_and_found_from_elsewhere(
    run_tool: RunTool, photos: Path, folder: Path, fitted: Finished, unwhitened: Path, tmp_path: Path
) -> None:
    pairs = (
        *("MODEL.OESIR.EMBEDDING.WHITENING", "small.safetensors"),
        *("MODEL.OESIR.EMBEDDING.WHITENING_DIM", str(DIMENSION)),
    )
    built = run_tool("build_index", "--images", photos, "--output", tmp_path / "index", *pairs, cwd=folder)
    assert built.json["bytes_per_object"] == 4 * DIMENSION
    whitening, _ = load_whitening(folder / "small.safetensors")
    pooled = read_vectors(unwhitened)
    expected = (pooled - whitening.mean.numpy()) @ whitening.projection.numpy().T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(read_vectors(tmp_path / "index"), expected, atol=1e-4)

    searched = run_tool("search", "--index", "index", "--query", photos / "ihc.png", "--top-k", "1", cwd=tmp_path)
    assert searched.json["results"][0]["image_id"] == "ihc.png"
    # Other photos, another whitening: the index is not theirs.
    run_tool(
        *("fit_whitening", "--images", photos, "--max-images", "6", "--dimension", str(DIMENSION)),
        *("--output", tmp_path / "other.safetensors"),
    )
    pairs = ("MODEL.OESIR.EMBEDDING.WHITENING", "other.safetensors")
    refused = run_tool("search", "--index", "index", "--query", photos / "ihc.png", *pairs, cwd=tmp_path)
    assert "built with another model: whitening (index: " in refused.error


def test_the_seed_draws_the_photos(run_tool: RunTool, photos: Path, tmp_path: Path) -> None:
    pairs = ("--config-file", "oesir_lite0_grid.yaml", "MODEL.OESIR.REGIONS.GRID_LEVELS", "[1, 2]")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        words = ("--max-images", "4", "--seed", str(seed), "--dimension", "8", "--output", f"{name}.safetensors")
        finished = run_tool("fit_whitening", "--images", photos, *words, *pairs, cwd=tmp_path)
        assert finished.json["photos"] == 4
        assert finished.json["regions"] < 4 * 12  # two levels of the grid and the whole photo
    first, again, other = (load_whitening(tmp_path / f"{name}.safetensors")[0].mean for name in "abc")
    assert (first == again).all() and not (first == other).all()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--output", "w.pt"], "--output is 'w.pt'; its name must end in .safetensors"),
        (["--dimension", "0"], "argument --dimension: '0'"),
        (["--dimension", "1825"], "dimension 1825 is not possible; allowed: 1 to 1824"),
        (["--dimension", "1000"], "PCA whitening to 1000 dimensions needs more than 1000 vectors, got"),
        (["--max-images", "0"], "argument --max-images: '0'"),
        (["--shrinkage", "-1"], "--shrinkage is -1.0; allowed: a finite number of at least 0"),
        (["--shrinkage", "nan"], "--shrinkage is nan"),
        (["--seed", "-1"], "argument --seed: '-1'"),
        (["--output", "/proc/w.safetensors"], "/proc"),
        (["--output", "file/w.safetensors"], "file: expected a folder, this is a file"),
        (["--output", "folder.safetensors"], "folder.safetensors: expected the name of a file to write"),
        (["--images", "nowhere"], "nowhere does not exist"),
        (["--images", "broken"], "none of the 1 photos could be read"),
    ],
)
def test_mistakes_are_named(run_tool: RunTool, photos: Path, tmp_path: Path, words: list[str], named: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "empty.jpg").touch()
    # Of an option that is given twice, the last one counts.
    finished = run_tool("fit_whitening", "--images", photos, "--output", "w.safetensors", *words, cwd=tmp_path)

    assert named in finished.error
    assert not list(tmp_path.glob("w.*"))


def test_unreadable_photos_are_counted(run_tool: RunTool, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n".join(["gone.jpg", *(str(path) for path in sorted(photos.iterdir()))]))
    words = ("--dimension", "4", "--output", "w.safetensors")
    finished = run_tool("fit_whitening", "--images", "list.txt", *words, cwd=tmp_path)

    assert (finished.json["skipped"], finished.json["photos"]) == (1, len(PHOTO_NAMES))
    assert json.loads(json.dumps(load_whitening(tmp_path / "w.safetensors")[1]))["source"] == "list.txt"
