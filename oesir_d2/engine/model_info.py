"""Which model made an embedding: the description that an index keeps and checks."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from torch import nn

from oesir_d2.config import add_oesir_config
from oesir_d2.index import EmbeddingModelInfo

WEIGHT_REFERENCES = (
    "MODEL.WEIGHTS",
    "MODEL.OESIR.EMBEDDING.WHITENING",
    "MODEL.OESIR.TEACHER.WEIGHTS",
    "MODEL.OESIR.EFFICIENTNET.WEIGHTS",
)
"""Config keys that say where weights lie. What lies there is known by its hash, so a file may move."""

_WHITENING = "roi_heads.embedding_head.whitening."


def describe_model(cfg: CfgNode, model: nn.Module) -> EmbeddingModelInfo:
    """Describe a built model with loaded weights, for the manifest of an index.

    Args:
        cfg: the config that the model was built from.
        model: an OESIR model.
    """
    state = model.state_dict()
    whitening = {name: value for name, value in state.items() if name.startswith(_WHITENING)}
    weights = {name: value for name, value in state.items() if name not in whitening}
    return EmbeddingModelInfo(
        config=_model_config(cfg),
        references={key: _lookup(cfg, key) for key in WEIGHT_REFERENCES},
        weights_sha256=hash_tensors(weights),
        whitening_sha256=hash_tensors(whitening) if whitening else "",
        preprocessing={
            "max_long_side": cfg.INPUT.OESIR.MAX_LONG_SIDE,
            "max_pixels": cfg.INPUT.OESIR.MAX_PIXELS,
            "input_format": cfg.INPUT.FORMAT,
        },
        dimension=model.roi_heads.embedding_head.dimension,
    )


def restore_config(info: EmbeddingModelInfo) -> CfgNode:
    """The config of the model that an index was built with, for this machine's device.

    Raises:
        ValueError: the config in the manifest cannot be read, or asks for keys that this version does not have.
    """
    cfg = get_cfg()
    add_oesir_config(cfg)
    device = cfg.MODEL.DEVICE
    try:
        cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(info.config)))
        cfg.merge_from_list([item for pair in info.references.items() for item in pair])
    except (KeyError, AssertionError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"the index's manifest has a config that this version cannot use: {error}") from error
    cfg.MODEL.DEVICE = device if torch.cuda.is_available() else "cpu"
    return cfg


def hash_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bytes of tensors, whatever order they come in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _model_config(cfg: CfgNode) -> str:
    """The sections that decide what an embedding is, as YAML, without what depends on the machine."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = ""
    for key in WEIGHT_REFERENCES:
        cfg.merge_from_list([key, ""])
    sections = {"MODEL": cfg.MODEL, "INPUT": cfg.INPUT, "TEST": {"DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE}}
    return yaml.dump(_to_plain(sections), Dumper=_PlainDumper, sort_keys=True)


def _to_plain(value: Any) -> Any:
    """Dicts and lists only, so that a config that has been through YAML is written as the one that has not."""
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]
    return value


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _lookup(cfg: CfgNode, key: str) -> str:
    node = cfg
    for part in key.split("."):
        node = node[part]
    return node
