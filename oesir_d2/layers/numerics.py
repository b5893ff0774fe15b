"""Two habits that all layers share: computing in at least float32, and how a vector is L2-normalised."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-6
"""Vectors shorter than this are divided by it instead of by their length."""


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or in float64 if it already is.

    Sums over thousands of cells and powers of activations lose too much in float16 and bfloat16.

    >>> at_least_float32(torch.ones(1, dtype=torch.float16)).dtype, at_least_float32(torch.ones(1).double()).dtype
    (torch.float32, torch.float64)
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def l2_normalize(vectors: Tensor) -> Tensor:
    """Scale every row to length 1; a row of zeros stays a row of zeros.

    Args:
        vectors: (..., D), floating point.

    Returns:
        (..., D), of the same dtype. A row shorter than ``NORM_EPS`` comes out shorter than 1: the bound is far
        under any real embedding, and keeps the gradient at a row of zeros at 1 / ``NORM_EPS`` instead of 1e12.

    >>> l2_normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    return F.normalize(vectors, dim=-1, eps=NORM_EPS)
