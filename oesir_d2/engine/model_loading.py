"""A model from its config: built, its weights loaded and checked."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    build_model,
)
from torch import nn

from oesir_d2.modeling.registry import get_registered
from oesir_d2.modeling.weights import TEACHER_PREFIX, TRUNK_PREFIX, WHITENING_PREFIX, SafeCheckpointer


def load_model(cfg: CfgNode) -> nn.Module:
    """Build the model of a config, load ``MODEL.WEIGHTS`` and put it into eval mode.

    A checkpoint of a plain detectron2 detector will do: what it lacks may come from the references of the config to
    the weights of the teacher, of an EfficientNet-Lite trunk and to the whitening.

    Raises:
        ValueError: a component that is not registered, a device that is not there, or weights that do not fit.
        FileNotFoundError: weights that are not there.
    """
    _check_device(cfg.MODEL.DEVICE)
    # detectron2 itself would raise KeyError for one that is not there.
    get_registered(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    get_registered(BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
    get_registered(ROI_HEADS_REGISTRY, cfg.MODEL.ROI_HEADS.NAME, "MODEL.ROI_HEADS.NAME")
    # PrecomputedProposals stands for none, and is in no registry.
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME != "PrecomputedProposals":
        name = cfg.MODEL.PROPOSAL_GENERATOR.NAME
        get_registered(PROPOSAL_GENERATOR_REGISTRY, name, "MODEL.PROPOSAL_GENERATOR.NAME")
    model = build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        checkpointer = SafeCheckpointer(model)
        if cfg.MODEL.OESIR.EMBEDDING.WHITENING or not cfg.MODEL.OESIR.EMBEDDING.WHITENING_DIM:
            # Somebody named another, or wants none.
            checkpointer.left_out = (WHITENING_PREFIX,)
        checkpointer.load(cfg.MODEL.WEIGHTS)
        _check_loaded(cfg, checkpointer.incompatible)
    return model.eval()


def _check_device(device: str) -> None:
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise ValueError(f"MODEL.DEVICE is {device!r}; allowed: 'cpu', 'cuda' and 'cuda:N'")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"MODEL.DEVICE is {device!r}, but torch finds no GPU here; allowed: 'cpu'")


def _check_loaded(cfg: CfgNode, incompatible: Any) -> None:
    """Refuse a checkpoint that leaves a part of the model random: detectron2 itself only logs that."""
    # An unfitted whitening refuses to run, so it cannot go unnoticed.
    elsewhere = (WHITENING_PREFIX,)
    if cfg.MODEL.OESIR.TEACHER.WEIGHTS:
        elsewhere += (TEACHER_PREFIX,)
    if cfg.MODEL.OESIR.EFFICIENTNET.WEIGHTS:
        elsewhere += (TRUNK_PREFIX,)
    wrong = [name for name, _, _ in incompatible.incorrect_shapes]
    missing = [name for name in incompatible.missing_keys if name not in wrong and not name.startswith(elsewhere)]
    if missing or wrong:
        raise ValueError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS!r} does not fit the model: it lacks {len(missing)} of its tensors and "
            f"has {len(wrong)} of another shape, {(missing + wrong)[0]!r} the first"
        )
