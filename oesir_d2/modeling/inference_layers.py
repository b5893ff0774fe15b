"""A model made ready for inference: batch norms folded into convolutions, memory layout and precision of its networks.

Only what is computed changes. The state dict stays as it was, under the same names: a model's hash is that of its
weights, however they are run.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

PAIRS = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
"""Attributes of EfficientNet-Lite's blocks: a convolution, and the batch norm that follows it."""


class InferenceConv2d(nn.Conv2d):
    """A convolution that runs with the batch norm behind it folded in; the input is cast to the type of its weights."""

    folded_weight: Tensor
    folded_bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.folded_weight.dtype)
        if any(self.pad_before):
            x = F.pad(x, self.pad_before)
        x = F.conv2d(x, self.folded_weight, self.folded_bias, self.stride, self.padding, self.dilation, self.groups)
        if self.norm_is_left:
            x = self.norm(x.to(self.weight.dtype))
        activation = getattr(self, "activation", None)
        return x if activation is None else activation(x)


class FoldedNorm(nn.Module):
    """A batch norm that a convolution has taken in: it keeps its tensors and does nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class InferenceLinear(nn.Linear):
    """A linear layer that computes in another type than that of its parameters; the input is cast to it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.cast_weight.dtype), self.cast_weight, self.cast_bias)


def prepare_network(
    root: nn.Module, dtype: torch.dtype = torch.float32, memory_format: torch.memory_format = torch.contiguous_format
) -> None:
    """Make a network in eval mode ready for inference, in place.

    Args:
        root: the network; its outputs are float32 as before.
        dtype: in which convolutions and linear layers compute.
        memory_format: of the weights of convolutions, which the maps then take, too.
    """
    assert not root.training, "a network that trains has batch norms that change"
    for module in list(root.modules()):
        for conv, norm in _find_pairs(module):
            _prepare_conv(conv, norm, dtype, memory_format)
            norm.__class__ = FoldedNorm
    for module in list(root.modules()):
        if isinstance(module, nn.Conv2d) and not isinstance(module, InferenceConv2d):
            _prepare_conv(module, getattr(module, "norm", None), dtype, memory_format)
        elif type(module) is nn.Linear and dtype != module.weight.dtype:
            _prepare_linear(module, dtype)
    if dtype != torch.float32:
        root.register_forward_hook(_give_float32)


def _find_pairs(module: nn.Module) -> list[tuple[nn.Conv2d, nn.Module]]:
    """Convolutions among a module's children, each with the batch norm that is the child behind it."""
    names = [pair for pair in PAIRS if hasattr(module, pair[0])]
    if isinstance(module, nn.Sequential):
        names = list(zip(module._modules, list(module._modules)[1:]))
    pairs = [(getattr(module, first), getattr(module, second)) for first, second in names]
    return [
        (conv, norm)
        for conv, norm in pairs
        if isinstance(conv, nn.Conv2d) and getattr(conv, "norm", None) is None and _is_batch_norm(norm)
    ]


def _prepare_conv(
    conv: nn.Conv2d, norm: nn.Module | None, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    """Turn a convolution into an :class:`InferenceConv2d`: detectron2's (``norm``, ``activation``) or one that pads."""
    folds = norm is not None and _is_batch_norm(norm)
    weight, bias = fold_batch_norm(conv, norm if folds else None)
    pad = _get_static_padding(conv)
    # The very object stays, since detectron2's FPN keeps its convolutions in lists beside its modules.
    conv.__class__ = InferenceConv2d
    conv.register_buffer(
        "folded_weight", round_filters(weight, dtype).to(memory_format=memory_format), persistent=False
    )
    conv.register_buffer("folded_bias", None if bias is None else bias.to(dtype), persistent=False)
    left, right, top, bottom = pad
    if left == right and top == bottom:
        # The convolution pads by itself, without a copy.
        conv.padding = (conv.padding[0] + top, conv.padding[1] + left)
        pad = (0, 0, 0, 0)
    conv.pad_before = pad
    conv.norm_is_left = norm is not None and not folds


def _prepare_linear(linear: nn.Linear, dtype: torch.dtype) -> None:
    linear.__class__ = InferenceLinear
    linear.register_buffer("cast_weight", linear.weight.detach().to(dtype), persistent=False)
    linear.register_buffer(
        "cast_bias", None if linear.bias is None else linear.bias.detach().to(dtype), persistent=False
    )


def fold_batch_norm(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor | None]:
    """The weights and the bias of one convolution that does what ``conv`` and then ``norm`` do."""
    if norm is None:
        return conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
    # In double precision: the variance of a channel that is hardly ever active is tiny.
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -norm.running_mean.double() * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    if conv.bias is not None:
        bias = bias + conv.bias.double() * scale
    weight = conv.weight.double() * scale[:, None, None, None]
    return weight.detach().to(conv.weight.dtype), bias.detach().to(conv.weight.dtype)


def round_filters(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights (O, I, h, w) of a convolution in another type, each filter (h, w) with the sum that it had.

    Neighbouring cells of a map are alike, so that what a filter gives depends above all on the sum of its weights. The
    weight that is largest is rounded first; what it is off by is added to the next smaller one, and so on. This is the
    error diffusion of Floyd and Steinberg (1976). Rounded one by one, the few weights of a depthwise convolution
    would shift its whole channel.
    """
    if dtype == weight.dtype:
        return weight
    filters = weight.double().flatten(2)
    order = filters.abs().argsort(dim=2, descending=True)
    carried = torch.zeros_like(filters[..., 0])
    rounded = []
    for taps in filters.gather(2, order).unbind(dim=2):
        wanted = taps + carried
        rounded.append(wanted.to(dtype))
        carried = wanted - rounded[-1].double()
    return torch.zeros_like(filters, dtype=dtype).scatter(2, order, torch.stack(rounded, dim=2)).reshape(weight.shape)


def _is_batch_norm(norm: nn.Module) -> bool:
    """Whether a norm only scales and shifts channels: frozen, or in eval mode with statistics of its own."""
    if isinstance(norm, FrozenBatchNorm2d):
        return True
    return isinstance(norm, _BatchNorm) and not norm.training and norm.running_var is not None


def _get_static_padding(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """What EfficientNet's convolutions pad before they run: left, right, top, bottom."""
    padding = getattr(conv, "static_padding", None)
    return tuple(padding.padding) if isinstance(padding, nn.ZeroPad2d) else (0, 0, 0, 0)


def _give_float32(module: nn.Module, inputs: Any, output: Any) -> Any:
    """A forward hook: floating-point tensors as float32, through dicts, lists and tuples."""
    return _to_float32(output)


def _to_float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _to_float32(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_float32(item) for item in value)
    return value
