"""Comparing models: the figures are those of the single steps, and only what has changed is done again."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from oesir_d2.data import ImageFile
from oesir_d2.data.splicing import read_splices
from oesir_d2.data.splicing.splices_file import SpliceSet
from oesir_d2.engine import model_cost, variant_run
from oesir_d2.engine.comparison_list import Variant
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.embedder import Embedder
from oesir_d2.engine.indexing import build_index
from oesir_d2.engine.model_comparison import Comparison, compare_models
from oesir_d2.engine.model_cost import Milliseconds, MultiplyAdds
from oesir_d2.engine.model_loading import load_model
from oesir_d2.engine.retrieval import Retriever
from oesir_d2.engine.splice_evaluation import evaluate_splices
from oesir_d2.engine.variant_run import ComparisonOptions
from oesir_d2.engine.whitening_fit import fit_whitening
from oesir_d2.index import EmbeddingIndex
from oesir_d2.index.lock import WriterLock
from oesir_d2.layers import save_whitening

GRID = "oesir_lite0_grid.yaml"
TINY = (
    *("MODEL.DEVICE", "cpu", "MODEL.OESIR.TEACHER.LAYER", "conv4_6", "MODEL.OESIR.REGIONS.GRID_LEVELS", "[1, 2]"),
    *("MODEL.OESIR.EMBEDDING.WHITENING_DIM", "0", "MODEL.OESIR.EMBEDDING.WHITENING", ""),
)
GEM = Variant("gem", "Grid, GeM", GRID, TINY, whitening_dim=6)
MAC = Variant("mac", "Grid, MAC", GRID, (*TINY, "MODEL.OESIR.EMBEDDING.POOLER", "MACPooler"))
OPTIONS = ComparisonOptions(cost_photos=1, repetitions=1, input_size=(64, 48))
PATCH = (10, 8, 40, 36)

Compare = Callable[..., Comparison]


@pytest.fixture
def others(write_photo: Callable[..., ImageFile]) -> list[ImageFile]:
    """Photos for whitenings, which no splice was made of."""
    return [write_photo(f"other-{index}.png", 60, 90) for index in range(3)]


@pytest.fixture
def splices(photos: list[ImageFile], tmp_path: Path) -> SpliceSet:
    """Three splices: in each the middle of the next photo is pasted into a photo."""
    folder = tmp_path / "splices"
    folder.mkdir()
    queries = []
    for index in range(3):
        host, donor = (np.array(Image.open(file.path)) for file in photos[index : index + 2])
        x0, y0, x1, y1 = PATCH
        host[y0:y1, x0:x1] = donor[y0:y1, x0:x1]
        Image.fromarray(host).save(folder / f"{index}.png")
        sources = [
            {"image_id": photos[index].image_id, "role": "host"},
            {"image_id": photos[index + 1].image_id, "role": "donor", "query_box": list(PATCH)},
        ]
        queries.append({"file_name": f"{index}.png", "sources": sources})
    database = [{"image_id": file.image_id, "file_name": str(file.path)} for file in photos]
    (folder / "splices.json").write_text(json.dumps({"version": 1, "database": database, "queries": queries}))
    return read_splices(folder / "splices.json")


@pytest.fixture
def compare(
    photos: list[ImageFile], others: list[ImageFile], splices: SpliceSet, tmp_path: Path
) -> Callable[..., Comparison]:
    """``compare(*variants, **changed)`` compares on these photos, always into the same folder."""

    def run(*variants: Variant, **changed: Any) -> Comparison:
        given = {
            "images": photos,
            "whitening_images": others,
            "splices": {"tiny": splices},
            "output": tmp_path / "out",
            "options": OPTIONS,
        }
        return compare_models(variants, **(given | changed))

    return run


@pytest.fixture(autouse=True)
def _quick_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs that take no time to measure; ``measure_truly`` brings the real ones back."""
    adds = MultiplyAdds(64, 48, 5, None, 1.5, 0.25, 1.75, 1.5, {"aten::pad": 3})
    times = Milliseconds(None, 40.0, None, 30.0, 30.0, 1, 1, 1, "cpu")
    monkeypatch.setattr(variant_run, "count_multiply_adds", lambda *_: adds)
    monkeypatch.setattr(variant_run, "time_model", lambda *_: times)


@pytest.fixture
def measure_truly(_quick_cost: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("count_multiply_adds", "time_model"):
        monkeypatch.setattr(variant_run, name, getattr(model_cost, name))


@pytest.fixture
def counted(_quick_cost: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the steps that take long were run since it was emptied last."""
    counts: dict[str, int] = {}

    def count(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            counts[name] = counts.get(name, 0) + 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    count(Embedder, "_run_model")
    for name in ("fit_whitening", "evaluate_splices", "count_multiply_adds", "time_model"):
        count(variant_run, name)
    return counts


def test_figures_are_those_of_the_steps_one_by_one(
    compare: Compare, photos: list[ImageFile], others: list[ImageFile], splices: SpliceSet, tmp_path: Path
) -> None:
    row = compare(GEM).rows["gem"]

    cfg = load_config(GRID, TINY)
    whitening, counts = fit_whitening(cfg, others, 6)
    save_whitening(tmp_path / "w.safetensors", whitening, {"source": "test", "count": counts["regions"]})
    embedding = cfg.MODEL.OESIR.EMBEDDING
    embedding.WHITENING_DIM, embedding.WHITENING = 6, str(tmp_path / "w.safetensors")
    build_index(cfg, photos, tmp_path / "index")
    scored = evaluate_splices(Retriever(tmp_path / "index"), splices, OPTIONS.depth)
    assert row["splices"]["tiny"]["metrics"] == scored.evaluation.metrics["splice_retrieval"]
    assert (row["dimension"], row["whitening"], row["images"]) == (6, "fitted", 6)

    covered = regions = 0
    for query in splices.queries:
        boxes = Embedder(cfg).embed(ImageFile("q", splices.resolve(query.file_name))).embeddings.boxes[:-1]
        regions += len(boxes)
        covered += max(iou(box, PATCH) for box in boxes) >= 0.5
    coverage = row["splices"]["tiny"]["coverage"]
    assert (coverage["objects"], coverage["covered"]) == (3, covered)
    assert coverage["mean_regions"] == pytest.approx(regions / 3)


def iou(a: Any, b: Any) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def test_what_is_done_is_not_done_again(compare: Compare, counted: dict[str, int], tmp_path: Path) -> None:
    first = compare(GEM, MAC)
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["rows"] == json.loads(json.dumps(first.rows)) and list(content["rows"]) == ["gem", "mac"]
    assert content["rows"]["mac"]["whitening"] == "none" and content["rows"]["mac"]["dimension"] == 112
    markdown = (tmp_path / "out" / "comparison.md").read_text()
    assert markdown.count("| Grid, GeM |") == markdown.count("| Grid, MAC |") == 2
    assert counted["fit_whitening"] == 1 and counted["evaluate_splices"] == counted["time_model"] == 2
    assert counted["_run_model"] == 3 + 2 * (6 + 3)  # the whitening's photos, then each index and its queries
    counted.clear()
    assert compare(GEM, MAC) == first
    assert counted == {}


def test_an_interrupted_comparison_goes_on(
    compare: Compare, counted: dict[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(variant_run, "count_multiply_adds", interrupt)
        compare(GEM, MAC)
    counted.clear()
    comparison = compare(GEM, MAC)
    assert counted == {"count_multiply_adds": 2, "time_model": 2, "evaluate_splices": 1, "_run_model": 6 + 3}
    shutil.rmtree(tmp_path / "out")
    assert compare(GEM, MAC).rows == comparison.rows


def test_a_damaged_result_is_made_again(compare: Compare, counted: dict[str, int], tmp_path: Path) -> None:
    first = compare(MAC)
    folder = tmp_path / "out" / "variants" / "mac"
    (folder / "splices-tiny.json").write_text('{"key": ')
    (folder / "cost.json").write_text("[]")
    counted.clear()
    assert compare(MAC).rows == first.rows
    assert counted == {"evaluate_splices": 1, "_run_model": 3, "count_multiply_adds": 1, "time_model": 1}


def test_a_changed_whitening_photo_changes_all_that_comes_after(
    compare: Compare, counted: dict[str, int], others: list[ImageFile], make_photo: Callable[..., np.ndarray]
) -> None:
    compare(GEM, MAC)
    Image.fromarray(make_photo(50, 50)).save(others[0].path)
    counted.clear()
    comparison = compare(GEM, MAC)
    # MAC has no whitening, and stays.
    expected = {"fit_whitening": 1, "evaluate_splices": 1, "count_multiply_adds": 1, "time_model": 1}
    assert counted == expected | {"_run_model": 3 + 6 + 3}
    assert comparison.rows["gem"]["images"] == 6


@pytest.mark.parametrize("opts", [("MODEL.OESIR.EMBEDDING.GEM_P", "2.0"), ("MODEL.OESIR.REGIONS.MAX_REGIONS", "3")])
def test_a_changed_model_gets_an_index_of_its_own(
    opts: tuple[str, ...], compare: Compare, counted: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    compare(MAC)
    changed = replace(MAC, overrides=(*MAC.overrides, "MODEL.OESIR.EMBEDDING.POOLER", "GeMPooler", *opts))
    counted.clear()
    first = compare(changed)
    assert counted["_run_model"] == 6 + 3
    assert "built anew: the index was built with another model" in caplog.text
    assert first.rows["mac"]["objects"] == (24 if "MAX_REGIONS" in opts[0] else first.rows["mac"]["objects"])


def test_retrieval_s_options_change_the_scores_alone(compare: Compare, counted: dict[str, int]) -> None:
    compare(MAC)
    counted.clear()
    changed = replace(MAC, overrides=(*MAC.overrides, "RETRIEVAL.EXPLAIN_AWAY", "0.0"))
    compare(changed)
    assert counted == {"evaluate_splices": 1, "_run_model": 3}


def test_photos_that_left_the_collection_leave_the_index(
    compare: Compare, photos: list[ImageFile], counted: dict[str, int], tmp_path: Path
) -> None:
    compare(MAC)
    counted.clear()
    assert compare(MAC, images=photos[:5]).rows["mac"]["images"] == 5
    assert counted["_run_model"] == 5 + 3
    index = EmbeddingIndex.open(tmp_path / "out" / "variants" / "mac" / "index")
    assert {record.image_id for record in index.images} == {file.image_id for file in photos[:5]}
    # One more photo is one more to embed.
    counted.clear()
    assert compare(MAC).rows["mac"]["images"] == 6
    assert counted["_run_model"] == 1 + 3


def test_options_are_part_of_what_is_kept(compare: Compare, counted: dict[str, int]) -> None:
    compare(MAC)
    counted.clear()
    comparison = compare(MAC, options=replace(OPTIONS, repetitions=0))
    assert counted == {"count_multiply_adds": 1}
    assert comparison.rows["mac"]["cost"]["milliseconds"] is None


def test_a_whitening_that_the_model_brings_is_used(
    compare: Compare, others: list[ImageFile], counted: dict[str, int], tmp_path: Path
) -> None:
    whitening, _ = fit_whitening(load_config(GRID, TINY), others, 4)
    save_whitening(tmp_path / "own.safetensors", whitening, {"source": "test", "count": 1})
    words = ("MODEL.OESIR.EMBEDDING.WHITENING", str(tmp_path / "own.safetensors"))
    dimension = ("MODEL.OESIR.EMBEDDING.WHITENING_DIM", "4")
    counted.clear()
    row = compare(replace(GEM, overrides=(*TINY, *words, *dimension))).rows["gem"]
    assert (row["whitening"], row["dimension"]) == ("own", 4)
    assert "fit_whitening" not in counted


def test_a_model_without_its_weights_is_left_out(
    compare: Compare, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    lost = Variant("lost", "Lost", GRID, (*TINY, "MODEL.WEIGHTS", "${WEIGHTS_DIR}/detector.pth"))
    comparison = compare(lost, MAC, weights_dir=tmp_path)
    assert list(comparison.rows) == ["mac"]
    assert f"no file {tmp_path}/detector.pth" in comparison.skipped["lost"]
    assert "variant 'lost' is left out: weights" in caplog.text
    assert "- lost: weights" in (tmp_path / "out" / "comparison.md").read_text()

    assert "name that folder by --weights-dir" in compare(lost).skipped["lost"]
    with pytest.raises(FileNotFoundError, match=r"variant 'lost': weights .*detector\.pth' not found"):
        compare(lost, MAC, weights_dir=tmp_path, strict=True)


def test_weights_come_from_the_folder_that_is_named(compare: Compare, embedder: Embedder, tmp_path: Path) -> None:
    torch.save({"model": embedder.model.state_dict()}, tmp_path / "grid.pth")
    found = replace(MAC, overrides=(*MAC.overrides, "MODEL.WEIGHTS", "${WEIGHTS_DIR}/grid.pth"))
    row = compare(found, weights_dir=tmp_path, strict=True).rows["mac"]
    assert row["splices"] == compare(MAC).rows["mac"]["splices"]


@pytest.mark.usefixtures("measure_truly")
def test_rows_of_one_detector_share_its_regions(compare: Compare, tmp_path: Path) -> None:
    opts = ("MODEL.DEVICE", "cpu", "MODEL.RPN.POST_NMS_TOPK_TEST", "9", "MODEL.OESIR.REGIONS.SCORE_THRESH", "0.0")
    own_maps = ("MODEL.OESIR.EMBEDDING.SOURCE", "DetectorSource", "MODEL.OESIR.EMBEDDING.DETECTOR_FEATURES")
    variants = []
    for name, feature, weights in (("p4", "p4", "a"), ("p5", "p5", "a"), ("other", "p4", "b")):
        words = (*opts, *own_maps, f"['{feature}']")
        if not (tmp_path / f"{weights}.pth").exists():  # random, each time anew
            model = load_model(load_config("lite0/Base-lite0-RCNN-FPN.yaml", words))
            torch.save({"model": model.state_dict()}, tmp_path / f"{weights}.pth")
        words += ("MODEL.WEIGHTS", f"${{WEIGHTS_DIR}}/{weights}.pth")
        variants.append(Variant(name, name, "lite0/Base-lite0-RCNN-FPN.yaml", words))
    rows = compare(*variants, weights_dir=tmp_path).rows

    assert rows["p4"]["detector_sha256"] == rows["p5"]["detector_sha256"] != rows["other"]["detector_sha256"]
    assert rows["p4"]["splices"]["tiny"]["coverage"] == rows["p5"]["splices"]["tiny"]["coverage"]
    assert "there are 2 sets of detector weights" in (tmp_path / "out" / "comparison.md").read_text()
    cost = rows["p4"]["cost"]
    assert cost["multiply_adds"]["detection"] > 0 and cost["milliseconds"]["overhead_percent"] is not None
    assert cost["multiply_adds"]["total"] == pytest.approx(cost["multiply_adds"]["detection"], rel=0.05)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"whitening_dim": 113}, r"variant 'gem': whitening_dim is 113; allowed: 0 \(none\) to the map's 112"),
        ({"config": "nowhere.yaml"}, "variant 'gem': config file 'nowhere.yaml' not found"),
        ({"overrides": ("MODEL.NOBODY", "1")}, "variant 'gem': config key 'MODEL.NOBODY' does not exist"),
        ({"overrides": (*TINY, "MODEL.OESIR.EMBEDDING.POOLER", "Foo")}, "variant 'gem': .*'Foo' unknown"),
        (
            {"overrides": (*TINY, "MODEL.OESIR.EMBEDDING.WHITENING_DIM", "5"), "whitening_dim": 0},
            "variant 'gem': its whitening is not fitted, and whitening_dim is 0",
        ),
    ],
)
def test_a_model_that_cannot_be_built_is_named_before_the_work(
    changed: dict[str, Any], words: str, compare: Compare, counted: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match=words):
        compare(MAC, replace(GEM, **changed))
    assert counted == {}


def test_splices_of_other_photos_are_refused(compare: Compare, photos: list[ImageFile]) -> None:
    with pytest.raises(ValueError, match="splices 'tiny': the index lacks 1 of the 4 source photos"):
        compare(MAC, images=photos[1:])


def test_whitening_photos_that_are_sources_are_told(
    compare: Compare, photos: list[ImageFile], others: list[ImageFile], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        compare(MAC)
        assert "whitening photos are sources" not in caplog.text
        compare(MAC, whitening_images=[*others, *photos[2:]])
    assert "2 of the whitening photos are sources of the splices 'tiny'" in caplog.text


def test_two_comparisons_do_not_work_on_one_variant(compare: Compare, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "variants" / "mac"
    folder.mkdir(parents=True)
    lock = WriterLock(folder)
    with pytest.raises(ValueError, match="variant 'mac': another comparison works in"):
        compare(MAC)
    lock.release()
    compare(MAC)
