"""How a model is run for extraction: what is folded, in which layout and precision, and whether it is compiled."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import nn

from oesir_d2.modeling import OESIR
from oesir_d2.modeling.inference_layers import prepare_network

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def prepare_model(cfg: CfgNode, model: OESIR) -> None:
    """Make a model with loaded weights ready for inference as ``MODEL.OESIR.EXTRACTION`` says, in place.

    Its state dict, and so its hash, stays as it was; batch norms are folded into convolutions in any case. Boxes,
    scores, pooling and whitening are computed in float32 whatever the precision of the networks.

    Raises:
        ValueError: a precision or a compiler that is not there.
    """
    options = cfg.MODEL.OESIR.EXTRACTION
    dtype = _get_precision(options.PRECISION, model.device)
    memory_format = torch.channels_last if options.CHANNELS_LAST else torch.contiguous_format
    for network in find_networks(model):
        prepare_network(network, dtype, memory_format)
    if options.COMPILE:
        allowed = ["eager", *torch.compiler.list_backends()]
        if options.COMPILE not in allowed:
            raise ValueError(
                f"MODEL.OESIR.EXTRACTION.COMPILE is {options.COMPILE!r}; allowed: '' for none, or one of {allowed}"
            )
        # The networks of fixed structure; what follows them depends on how many boxes there are.
        model.backbone.compile(backend=options.COMPILE, dynamic=True)
        model.embedding_source.compile(backend=options.COMPILE, dynamic=True)


def find_networks(model: OESIR) -> list[nn.Module]:
    """The parts of a model that are convolutions and linear layers and nothing else, but for the last of the heads."""
    networks: list[nn.Module] = [model.backbone, model.embedding_source]
    if model.proposal_generator is not None:
        # Not what predicts from it: proposals are sorted by their scores, and in bfloat16 many of these are equal.
        networks.append(model.proposal_generator.rpn_head.conv)
    if hasattr(model.roi_heads, "box_head"):
        networks.append(model.roi_heads.box_head)
    return networks


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 by instructions of its own."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _get_precision(name: str, device: torch.device) -> torch.dtype:
    if name not in PRECISIONS:
        raise ValueError(f"MODEL.OESIR.EXTRACTION.PRECISION is {name!r}; allowed: {sorted(PRECISIONS)}")
    dtype = PRECISIONS[name]
    if dtype == torch.bfloat16 and not has_bfloat16(device):
        raise ValueError(
            f"MODEL.OESIR.EXTRACTION.PRECISION is {name!r}, which {device.type} here does not compute; "
            "allowed: 'float32'"
        )
    return dtype
