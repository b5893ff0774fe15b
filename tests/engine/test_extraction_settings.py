"""What MODEL.OESIR.EXTRACTION changes: how fast photos are embedded, and not what an index takes their model for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode

from oesir_d2.data import ImageFile, UnreadableImageError
from oesir_d2.engine import inference
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.embedder import Embedder
from oesir_d2.engine.extraction_benchmark import measure_extraction
from oesir_d2.engine.model_info import describe_model
from oesir_d2.engine.model_loading import load_model
from oesir_d2.engine.network_work import Work, bound_milliseconds, count_convolutions

from .conftest import TINY_OPTS

WritePhoto = Callable[..., ImageFile]
SIZES = ((60, 90), (33, 70), (90, 60), (64, 96), (61, 95), (20, 20), (130, 64), (64, 65), (33, 96), (40, 66))


def make_embedder(config: str, *opts: Any) -> Embedder:
    common = TINY_OPTS if config == "oesir_lite0_grid.yaml" else ["MODEL.DEVICE", "cpu"]
    settings = [f"MODEL.OESIR.EXTRACTION.{word}" if n % 2 == 0 else word for n, word in enumerate(opts)]
    return Embedder(load_config(config, [*common, *settings]))


@pytest.fixture
def many_sizes(write_photo: WritePhoto) -> list[ImageFile]:
    return [write_photo(f"{number}.png", *size) for number, size in enumerate(SIZES)]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that models run while a test lasts."""
    sizes: list[int] = []
    run_model = Embedder._run_model

    def note(self: Embedder, files: Any, mapped: Any) -> Any:
        sizes.append(len(files))
        return run_model(self, files, mapped)

    monkeypatch.setattr(Embedder, "_run_model", note)
    return sizes


def assert_same_embeddings(actual: Any, expected: Any) -> None:
    assert len(actual.embeddings) == len(expected.embeddings)
    assert (actual.file, actual.width, actual.height) == (expected.file, expected.width, expected.height)
    for field in ("boxes", "scores", "classes", "vectors"):
        values = getattr(actual.embeddings, field), getattr(expected.embeddings, field)
        np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-3 if field == "boxes" else 1e-4)


@pytest.mark.parametrize("config", ["oesir_lite0.yaml", "oesir_lite0_grid.yaml"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_is_embedded_in_company_as_alone(
    config: str, workers: int, many_sizes: list[ImageFile], batches: list[int], tmp_path: Path
) -> None:
    alone = make_embedder(config)
    expected = {file.image_id: alone.embed(file) for file in many_sizes}
    batches.clear()
    embedder = make_embedder(config, "BATCH_SIZE", 4, "DECODE_WORKERS", workers)
    files = [*many_sizes, ImageFile("gone", tmp_path / "gone.png"), *reversed(many_sizes)]
    results = list(embedder.embed_all(files))
    assert [file for file, _ in results] == files
    for file, result in results:
        if file.image_id == "gone":
            assert isinstance(result, UnreadableImageError)
        else:
            assert_same_embeddings(result, expected[file.image_id])
    assert sum(batches) == 20 and max(batches) == 4 and len(batches) < 12


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("oesir_lite0.yaml", ()),
        ("oesir_lite0.yaml", ("CHANNELS_LAST", False)),
        ("oesir_lite0_grid.yaml", ("COMPILE", "eager")),
    ],
)
def test_a_prepared_model_gives_what_the_plain_one_gives(
    config: str, settings: tuple[Any, ...], many_sizes: list[ImageFile]
) -> None:
    embedder = make_embedder(config, *settings)
    cfg = load_config(config, TINY_OPTS if config == "oesir_lite0_grid.yaml" else ["MODEL.DEVICE", "cpu"])
    plain = load_model(cfg)
    for file in many_sizes[:3]:
        embedded = embedder.embed(file)
        with torch.inference_mode():
            instances = plain([embedder.decode(file)])[0]["instances"]
        np.testing.assert_allclose(embedded.embeddings.vectors, instances.embeddings.numpy(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(embedded.embeddings.scores, instances.scores.numpy(), rtol=1e-4, atol=1e-4)
    # An index knows a model by its weights, however they are run.
    assert embedder.info == describe_model(cfg, plain) == describe_model(cfg, embedder.model)


def test_bfloat16_embeddings_are_near_and_of_the_same_model(
    many_sizes: list[ImageFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Elsewhere it is computed as well, only not faster.
    monkeypatch.setattr(inference, "has_bfloat16", lambda device: True)
    single = make_embedder("oesir_lite0_grid.yaml")
    half = make_embedder("oesir_lite0_grid.yaml", "PRECISION", "bfloat16")
    assert half.info == single.info
    for file in many_sizes:
        actual, expected = half.embed(file).embeddings, single.embed(file).embeddings
        assert actual.vectors.dtype == actual.boxes.dtype == np.float32
        assert np.array_equal(actual.boxes, expected.boxes)
        np.testing.assert_allclose(np.linalg.norm(actual.vectors, axis=1), 1, atol=1e-5)
        cosines = (actual.vectors * expected.vectors).sum(axis=1)
        assert cosines.min() > 0.99
        assert not np.array_equal(actual.vectors, expected.vectors)


def test_bfloat16_runs_in_every_part_of_a_detector(
    many_sizes: list[ImageFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "has_bfloat16", lambda device: True)
    half = make_embedder("oesir_lite0.yaml", "PRECISION", "bfloat16")
    box = [[10, 10, 50, 40]]
    for file in many_sizes[:1]:
        embedded = half.embed(file, box).embeddings.vectors
        expected = make_embedder("oesir_lite0.yaml").embed(file, box).embeddings.vectors
        assert (embedded * expected).sum() > 0.99
        assert np.isfinite(half.embed(file).embeddings.vectors).all()
    networks = inference.find_networks(half.model)
    assert len(networks) == 4
    for network in networks:
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                assert module.folded_weight.dtype == torch.bfloat16 and module.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("PRECISION", "float16", "allowed: ['bfloat16', 'float32']"),
        ("BATCH_SIZE", 0, "BATCH_SIZE is 0; allowed: at least 1"),
        ("DECODE_WORKERS", -1, "DECODE_WORKERS is -1; allowed: at least 0"),
        ("COMPILE", "fast", "COMPILE is 'fast'; allowed: '' for none, or one of"),
    ],
)
def test_settings_that_are_not_allowed(key: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError) as refusal:
        make_embedder("oesir_lite0_grid.yaml", key, value)
    assert allowed in str(refusal.value)


def test_bfloat16_is_refused_where_the_machine_has_it_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "has_bfloat16", lambda device: False)
    with pytest.raises(ValueError, match="'bfloat16', which cpu here does not compute; allowed: 'float32'"):
        make_embedder("oesir_lite0_grid.yaml", "PRECISION", "bfloat16")


def test_figures_of_extraction_are_consistent(many_sizes: list[ImageFile], cfg: CfgNode) -> None:
    figures = measure_extraction(cfg, many_sizes[:2], rounds=1)
    assert set(figures.stages) == {"decode", "source", "pool", "model"}
    for name, milliseconds in figures.stages.items():
        product = 2 * 1024**3 / figures.product_gflops / 1e6
        assert figures.stages_in_products[name] == pytest.approx(milliseconds / product)
        assert milliseconds > 0
    # The larger of two limits of every layer is at least either of their sums.
    assert figures.bound_share >= max(figures.network_share, figures.bandwidth_share) * (1 - 1e-6)
    assert figures.end_to_end > 0 and (figures.photos, figures.batch_size) == (2, 1)


def test_work_of_convolutions_by_hand() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3, padding=1, bias=False), torch.nn.Conv2d(8, 8, 1, groups=4))
    work = count_convolutions(network, lambda: network(torch.zeros(1, 4, 10, 10)))
    first = Work(2 * 100 * 8 * 4 * 9, 4 * (400 + 8 * 4 * 9 + 800))
    second = Work(2 * 100 * 8 * 2, 4 * (800 + 8 * 2 + 800))
    assert work == [first, second]
    # The first is bound by arithmetic, the second by memory.
    assert bound_milliseconds(work, 100.0, 100.0) == pytest.approx(576 + 64.64)
