"""Every config that ships builds a model that embeds, and every config key is described and used."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg

from oesir_d2 import add_oesir_config
from oesir_d2.engine.config_loading import CONFIGS_DIR, load_config
from oesir_d2.engine.model_loading import load_model
from oesir_d2.structures import NO_CLASS

PACKAGE_DIR = CONFIGS_DIR.parent / "oesir_d2"
# Lists of models to compare are no configs.
CONFIGS = sorted(
    path.relative_to(CONFIGS_DIR).as_posix()
    for path in CONFIGS_DIR.rglob("*.yaml")
    if path.parent.name != "comparisons"
)
DOWNLOADED = ("detectron2://", "torchvision://", "https://")
WEIGHT_KEYS = ("MODEL.WEIGHTS", "MODEL.OESIR.TEACHER.WEIGHTS", "MODEL.OESIR.EFFICIENTNET.WEIGHTS")


def list_keys(cfg: CfgNode, prefix: str = "") -> dict[str, object]:
    keys: dict[str, object] = {}
    for name, value in cfg.items():
        keys |= list_keys(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else {prefix + name: value}
    return keys


def load_offline(name: str) -> CfgNode:
    """A config as it ships, but for weights that it would download, or that a training stage is to bring."""
    # A random RPN finds objects everywhere.
    cfg = load_config(name, ["MODEL.DEVICE", "cpu", "MODEL.RPN.POST_NMS_TOPK_TEST", "30"])
    keys = list_keys(cfg)
    for key in WEIGHT_KEYS:
        if keys[key].startswith(DOWNLOADED) or not keys[key].partition("://")[1]:
            cfg.merge_from_list([key, ""])
    if not keys["MODEL.OESIR.DISTILLATION.WHITENING"]:
        cfg.merge_from_list(["MODEL.OESIR.DISTILLATION.LOSSES", ["FeatureMapL2Loss"]])
        cfg.merge_from_list(["MODEL.OESIR.DISTILLATION.LOSS_WEIGHTS", [1.0]])
    if not keys["MODEL.OESIR.EMBEDDING.WHITENING"] and not cfg.MODEL.WEIGHTS:
        cfg.merge_from_list(["MODEL.OESIR.EMBEDDING.WHITENING_DIM", 0])
    return cfg


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_every_config_builds_a_model_that_detects_and_embeds(name: str, make_photo: Callable[..., np.ndarray]) -> None:
    cfg = load_offline(name)
    model = load_model(cfg)
    photo = torch.from_numpy(make_photo(64, 96).transpose(2, 0, 1).copy())
    (output,) = model([{"image": photo, "height": 128, "width": 192}])
    assert set(output) == {"instances", "image_embedding"}
    regions = output["instances"]
    assert set(regions.get_fields()) == {"pred_boxes", "scores", "pred_classes", "embeddings"}
    dimension = model.roi_heads.embedding_head.dimension
    assert dimension == (cfg.MODEL.OESIR.EMBEDDING.WHITENING_DIM or dimension)
    embeddings = torch.cat([regions.embeddings, output["image_embedding"][None]])
    assert embeddings.dtype == torch.float32 and embeddings.shape == (len(regions) + 1, dimension)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(embeddings)))
    boxes = regions.pred_boxes.tensor
    assert (boxes >= 0).all() and (boxes <= torch.tensor([192.0, 128.0, 192.0, 128.0])).all()
    if cfg.MODEL.OESIR.REGIONS.WHOLE_IMAGE:
        assert boxes[-1].tolist() == [0, 0, 192, 128] and regions.pred_classes[-1] == NO_CLASS
        assert torch.equal(regions.embeddings[-1], output["image_embedding"])


def test_the_defaults_of_the_issue_are_there() -> None:
    lite0 = ("oesir_lite0.yaml", "oesir_lite0_grid.yaml")
    assert {"oesir_R50.yaml", *lite0, "Base-OESIR-RCNN-FPN.yaml"} <= set(CONFIGS)
    for name in lite0:
        keys = list_keys(load_config(name))
        references = [keys[key] for key in (*WEIGHT_KEYS, "MODEL.OESIR.EMBEDDING.WHITENING")]
        assert not any(reference.startswith(DOWNLOADED) for reference in references), "they need packages of PyPI only"


@pytest.fixture(scope="module")
def own_keys() -> list[str]:
    """The config keys that oesir_d2 adds to detectron2's."""
    cfg = get_cfg()
    before = set(list_keys(cfg))
    add_oesir_config(cfg)
    return sorted(set(list_keys(cfg)) - before)


def test_keys_live_in_their_sections(own_keys: list[str]) -> None:
    assert len(own_keys) > 20
    for key in own_keys:
        assert re.match(r"(INDEX|RETRIEVAL|[A-Z]+\.OESIR)\.[A-Z0-9_.]+$", key), key


def test_every_key_is_described(own_keys: list[str]) -> None:
    lines = (PACKAGE_DIR / "config.py").read_text(encoding="utf-8").splitlines()
    for key in own_keys:
        (number,) = (n for n, line in enumerate(lines) if line.strip().startswith(f"cfg.{key} = "))
        # A section may begin between the comment and its first key.
        while lines[number - 1].strip().endswith("= CN()"):
            number -= 1
        assert lines[number - 1].strip().startswith("# "), f"{key} has no comment above it"


def test_every_key_is_read_somewhere(own_keys: list[str]) -> None:
    sources = [path for path in PACKAGE_DIR.rglob("*.py") if path.name != "config.py"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    unused = [key for key in own_keys if not re.search(rf"\b{key.rpartition('.')[2]}\b", text)]
    assert not unused


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_begins_with_what_it_is(name: str) -> None:
    assert (CONFIGS_DIR / name).read_text(encoding="utf-8").startswith("# ")
