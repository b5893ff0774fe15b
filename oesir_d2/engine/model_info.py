"""Which model made an embedding: the description that an index keeps and checks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from torch import nn

from oesir_d2.config import add_oesir_config
from oesir_d2.index import EmbeddingModelInfo
from oesir_d2.modeling.weights import WHITENING_PREFIX

WEIGHT_REFERENCES = (
    "MODEL.WEIGHTS",
    "MODEL.OESIR.EMBEDDING.WHITENING",
    "MODEL.OESIR.TEACHER.WEIGHTS",
    "MODEL.OESIR.EFFICIENTNET.WEIGHTS",
)
"""Config keys that say where weights lie. What lies there is known by its hash, so a file may move."""


def describe_model(cfg: CfgNode, model: nn.Module) -> EmbeddingModelInfo:
    """Describe a built model with loaded weights, for the manifest of an index.

    Args:
        cfg: the config that the model was built from.
        model: an OESIR model.
    """
    state = model.state_dict()
    whitening = {name: value for name, value in state.items() if name.startswith(WHITENING_PREFIX)}
    weights = {name: value for name, value in state.items() if name not in whitening}
    return EmbeddingModelInfo(
        config=describe_config(cfg),
        references={key: _anchor(_lookup(cfg, key)) for key in WEIGHT_REFERENCES},
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
    try:
        for key, value in info.config.items():
            # A text is evaluated as a literal.
            cfg.merge_from_list([key, repr(value) if isinstance(value, str) else value])
        for key in WEIGHT_REFERENCES:
            _assign(cfg, key, info.references[key])
    except (KeyError, AssertionError, TypeError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the index's manifest has a config that this version cannot use: {reason}") from error
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    return cfg


def hash_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bytes of tensors, whatever order they come in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def describe_config(cfg: CfgNode) -> dict[str, Any]:
    """The keys that decide what an embedding is, without what depends on the machine."""
    options = cfg.INPUT.OESIR
    sections = {
        "MODEL": cfg.MODEL,
        # What else is there concerns training alone: to change it is no reason to refuse an index.
        "INPUT": {
            "FORMAT": cfg.INPUT.FORMAT,
            "OESIR": {"MAX_LONG_SIDE": options.MAX_LONG_SIDE, "MAX_PIXELS": options.MAX_PIXELS},
        },
        "TEST": {"DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE},
    }
    flat = _flatten(sections)
    # How a student, a projection or a teacher was trained shows in its weights.
    training = ("MODEL.OESIR.DISTILLATION.", "MODEL.OESIR.CONTRASTIVE.", "MODEL.OESIR.LANDMARKS.")
    # How the model is run, its precision included: what that changes is less than another processor may change.
    extraction = ("MODEL.OESIR.EXTRACTION.",)
    left_out = {"MODEL.DEVICE", *WEIGHT_REFERENCES}
    return {k: v for k, v in flat.items() if k not in left_out and not k.startswith(training + extraction)}


def _flatten(sections: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one dict by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in sections.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.loads(json.dumps(value))  # tuples become lists, as in the manifest
    return flat


def _anchor(reference: str) -> str:
    """A file's path as an absolute one: the index may be searched from another working directory."""
    name, separator, digest = reference.partition("#sha256=")
    path = Path(name)
    return f"{path.resolve()}{separator}{digest}" if path.is_file() else reference


def _assign(cfg: CfgNode, key: str, value: str) -> None:
    """Set a key to a text as it is; ``merge_from_list`` would take a file that is called 2024 for a number."""
    if not isinstance(value, str):
        raise TypeError(f"{key} is {value!r}, expected a text")
    section, _, name = key.rpartition(".")
    _lookup(cfg, section)[name] = value


def _lookup(cfg: CfgNode, key: str) -> Any:
    node = cfg
    for part in key.split("."):
        node = node[part]
    return node
