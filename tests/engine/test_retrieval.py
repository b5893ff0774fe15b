"""Searching an index with photos: the model of the manifest, the form of the answers, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image

from oesir_d2.data import ImageFile, UnreadableImageError
from oesir_d2.engine.embedder import Embedder
from oesir_d2.engine.indexing import build_index
from oesir_d2.engine.retrieval import Retriever
from oesir_d2.index import Budget, EmbeddingIndex, stored_object_index, tune_object_index
from oesir_d2.layers import PCAWhitening, rmac_grid, save_whitening


@pytest.fixture
def index_path(cfg: CfgNode, photos: list[ImageFile], tmp_path: Path) -> Path:
    build_index(cfg, photos, tmp_path / "index")
    return tmp_path / "index"


def test_every_photo_finds_itself_first(index_path: Path, photos: list[ImageFile]) -> None:
    retriever = Retriever(index_path)
    for file in photos:
        best = retriever.search(file).results[0]
        assert (best.rank, best.image_id, best.path) == (1, file.image_id, str(file.path))
        assert best.score == pytest.approx(1, abs=1e-5)


def test_reencoded_copy_finds_its_original(index_path: Path, photos: list[ImageFile], tmp_path: Path) -> None:
    retriever = Retriever(index_path)
    for file in photos:
        with Image.open(file.path) as image:
            image.save(tmp_path / "copy.jpg", quality=80)
        result = retriever.search(ImageFile("copy.jpg", tmp_path / "copy.jpg"))
        assert result.results[0].image_id == file.image_id


def test_scores_are_the_best_pair_of_regions(index_path: Path, photos: list[ImageFile], embedder: Embedder) -> None:
    """Against all inner products, computed here; without explaining away, every score is one of them."""
    retriever = Retriever(index_path, ["RETRIEVAL.EXPLAIN_AWAY", "0.0"])
    query = embedder.embed(photos[2]).embeddings
    for aggregate, combine in (("max", np.max), ("sum_max", np.sum)):
        expected = {}
        for file in photos:
            other = embedder.embed(file).embeddings
            expected[file.image_id] = float(combine((query.vectors @ other.vectors.T).max(axis=1)))
        results = retriever.search(photos[2], aggregate=aggregate).results
        assert [result.image_id for result in results] == sorted(expected, key=lambda i: -round(expected[i], 6))
        for result in results:
            assert result.score == pytest.approx(expected[result.image_id], abs=1e-5)


def test_answer_has_the_form_of_the_contract(index_path: Path, photos: list[ImageFile]) -> None:
    answer = json.loads(json.dumps(Retriever(index_path).search(photos[0], top_k=3).to_dict()))
    assert list(answer) == ["query", "objects", "results"]
    assert answer["query"] == str(photos[0].path)
    assert len(answer["objects"]) == len(rmac_grid(48, 72, (1, 2), 0.4)) + 1 and len(answer["results"]) == 3
    for found in answer["objects"]:
        assert list(found) == ["box", "score", "class"]
        check_box(found["box"], 72, 48)
        assert found["score"] == 1 and found["class"] == -1
    assert answer["objects"][-1]["box"] == [0, 0, 72, 48]
    assert [result["rank"] for result in answer["results"]] == [1, 2, 3]
    for result in answer["results"]:
        assert list(result) == ["rank", "image_id", "path", "score", "matches"]
        assert isinstance(result["score"], float) and result["matches"]
        height = 48 + 8 * int(Path(result["image_id"]).stem)
        assert Path(result["path"]).name == result["image_id"]
        for match in result["matches"]:
            assert list(match) == ["query_box", "database_box", "score"]
            check_box(match["query_box"], 72, 48)
            check_box(match["database_box"], 72, height)
            assert match["query_box"] in [found["box"] for found in answer["objects"]]


def check_box(box: list[Any], width: int, height: int) -> None:
    x0, y0, x1, y1 = box
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height


def test_search_with_a_box_uses_that_box_alone(index_path: Path, photos: list[ImageFile]) -> None:
    retriever = Retriever(index_path)
    whole_grid = retriever.search(photos[1])
    box = whole_grid.query.embeddings.boxes[2].tolist()
    result = retriever.search(photos[1], box)
    answer = result.to_dict()
    assert answer["objects"] == [{"box": pytest.approx(box, abs=0.01), "score": 1.0, "class": -1}]
    best = result.results[0]
    assert best.image_id == "1.png" and best.score == pytest.approx(1, abs=1e-5)
    assert best.matches[0].database_box == pytest.approx(tuple(box), abs=0.01)
    with pytest.raises(ValueError, match=r"0 <= X0 < X1 <= 72"):
        retriever.search(photos[1], [0, 0, 500, 500])


def test_options_come_from_the_config_unless_given(index_path: Path, photos: list[ImageFile]) -> None:
    retriever = Retriever(index_path, ["RETRIEVAL.TOP_K", "2", "RETRIEVAL.AGGREGATE", "sum_max"])
    assert len(retriever.search(photos[0]).results) == 2
    assert len(retriever.search(photos[0], top_k=4).results) == 4
    result = retriever.search(photos[0])
    assert result.results[0].score == pytest.approx(len(result.query.embeddings), abs=1e-4)  # 1 a region
    assert retriever.search(photos[0], aggregate="max").results[0].score == pytest.approx(1, abs=1e-5)
    for arguments, words in (({"top_k": 0}, "top_k is 0"), ({"aggregate": "median"}, "'median'")):
        with pytest.raises(ValueError, match=words):
            retriever.search(photos[0], **arguments)


def test_many_queries_come_in_order_with_the_unreadable_ones(index_path: Path, photos: list[ImageFile]) -> None:
    missing = ImageFile("gone", index_path / "gone.png")
    found = list(Retriever(index_path).search_all([photos[4], missing, photos[0]], top_k=1))
    assert [file for file, _ in found] == [photos[4], missing, photos[0]]
    assert isinstance(found[1][1], UnreadableImageError)
    assert [result.results[0].image_id for _, result in found[::2]] == ["4.png", "0.png"]


@pytest.fixture
def whitened(cfg: CfgNode, embedder: Embedder, photos: list[ImageFile], tmp_path: Path) -> tuple[Path, Path]:
    """An index whose model has a whitening of its own, and the whitening's file."""
    pooled = torch.from_numpy(np.concatenate([embedder.embed(file).embeddings.vectors for file in photos]))
    path = tmp_path / "whitening.safetensors"
    save_whitening(path, PCAWhitening(112, 8).fit(pooled), {"source": "test", "count": len(pooled)})
    cfg.MODEL.OESIR.EMBEDDING.WHITENING_DIM = 8
    cfg.MODEL.OESIR.EMBEDDING.WHITENING = str(path)
    build_index(cfg, photos, tmp_path / "whitened")
    return tmp_path / "whitened", path


def test_weights_may_move(whitened: tuple[Path, Path], photos: list[ImageFile], tmp_path: Path) -> None:
    index_path, whitening = whitened
    whitening.rename(tmp_path / "2024.safetensors")
    with pytest.raises(FileNotFoundError, match=r"whitening\.safetensors"):
        Retriever(index_path)
    moved = Retriever(index_path, ["MODEL.OESIR.EMBEDDING.WHITENING", str(tmp_path / "2024.safetensors")])
    assert moved.search(photos[3]).results[0].image_id == "3.png"


def test_other_whitening_is_refused_by_name(whitened: tuple[Path, Path], tmp_path: Path) -> None:
    index_path, whitening = whitened
    other = PCAWhitening(112, 8).fit(torch.randn(50, 112))
    save_whitening(whitening, other, {"source": "other", "count": 50})
    with pytest.raises(ValueError, match=r"whitening \(index: [0-9a-f]{12}…, model: [0-9a-f]{12}…\)"):
        Retriever(index_path)


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["MODEL.OESIR.REGIONS.GRID_LEVELS", "[1, 2, 3]"], r"GRID_LEVELS \(index: \[1, 2\], model: \[1, 2, 3\]\)"),
        (["MODEL.OESIR.EMBEDDING.POOLER", "SPoCPooler"], r"POOLER \(index: 'GeMPooler', model: 'SPoCPooler'\)"),
        (["MODEL.OESIR.TEACHER.LAYER", "conv4_3"], r"dimension \(index: 112, model: 80\)"),
        (["INPUT.OESIR.MAX_LONG_SIDE", "500"], r"preprocessing max_long_side \(index: 1024, model: 500\)"),
        (["MODEL.NOBODY", "1"], "'MODEL.NOBODY' does not exist"),
    ],
)
def test_other_model_is_refused_by_name(opts: list[str], words: str, index_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        Retriever(index_path, opts)


def test_missing_and_foreign_index_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        Retriever(tmp_path / "nowhere")
    (tmp_path / "foreign").mkdir()
    with pytest.raises(ValueError, match="foreign is not an index"):
        Retriever(tmp_path / "foreign")


def test_query_is_answered_alike_by_a_rebuilt_and_a_grown_index(
    cfg: CfgNode, index_path: Path, photos: list[ImageFile], tmp_path: Path
) -> None:
    for count in (2, 5, 6):
        build_index(cfg, photos[:count], tmp_path / "grown")
    assert EmbeddingIndex.open(tmp_path / "grown").num_objects == EmbeddingIndex.open(index_path).num_objects
    at_once, grown = Retriever(index_path), Retriever(tmp_path / "grown")
    for file in photos:
        assert at_once.search(file).results == grown.search(file).results


def test_embedder_of_the_manifest_is_that_of_the_build(
    index_path: Path, embedder: Embedder, make_photo: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    Image.fromarray(make_photo(50, 50)).save(tmp_path / "new.png")
    new = ImageFile("new.png", tmp_path / "new.png")
    query = Retriever(index_path).search(new).query
    assert np.array_equal(query.embeddings.vectors, embedder.embed(new).embeddings.vectors)


def test_reopened_index_has_what_was_added(cfg: CfgNode, photos: list[ImageFile], tmp_path: Path) -> None:
    build_index(cfg, photos[:3], tmp_path / "grown")
    retriever = Retriever(tmp_path / "grown")
    assert len(retriever.search(photos[5]).results) == 3
    build_index(cfg, photos, tmp_path / "grown")
    assert len(retriever.search(photos[5]).results) == 3
    retriever.reopen()
    assert retriever.search(photos[5]).results == Retriever(tmp_path / "grown").search(photos[5]).results
    (tmp_path / "grown" / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="manifest"):
        retriever.reopen()
    assert retriever.search(photos[5]).results[0].image_id == "5.png"


@pytest.mark.parametrize(("opts", "factory", "built"), [([], "SQ8", []), (["INDEX.FACTORY", "Flat"], "Flat", ["Flat"])])
def test_reopened_index_is_searched_as_it_was_tuned_unless_told_otherwise(
    index_path: Path, photos: list[ImageFile], monkeypatch: pytest.MonkeyPatch, opts: list[str], factory: str, built
) -> None:
    retriever = Retriever(index_path, opts)
    tune_object_index(index_path, Budget(min_recall=0.1), "SQ8")
    in_memory: list[str] = []
    build = stored_object_index.build_object_index
    monkeypatch.setattr(stored_object_index, "build_object_index", lambda *a: in_memory.append(a[0]) or build(*a))
    retriever.reopen()
    assert in_memory == built
    assert retriever.cfg.INDEX.FACTORY == factory
    assert retriever.search(photos[3]).results == Retriever(index_path, opts).search(photos[3]).results
