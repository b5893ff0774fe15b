"""Classification with a margin: softmax cross-entropy over cosines, where the true class has to win by a margin.

The embedding and the vector of each class are L2-normalised, so that a class is learned as a direction, and embeddings
of one class gather around it: what retrieval by cosines needs.

Shape shorthand: N embeddings, D dimensions, K classes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oesir_d2.layers.numerics import at_least_float32, l2_normalize

MIN_SQUARED_SINE = 1e-7
"""Smaller squared sines count as this, about what float32 tells of them: at 0 their root has no finite derivative."""


class MarginSoftmax(nn.Module, ABC):
    """A classification layer and its loss.

    Everything is computed in float32 or float64, under autocast as well: a margin of a few degrees and a scale of 30
    are too much for float16.

    Args:
        num_classes: K, >= 2.
        dim: D, > 0.
        scale: what cosines are multiplied by before the softmax, > 0; the inverse of a temperature.
        margin: in the unit of the subclass, in [0, pi / 2]; 0 is a softmax of cosines without a margin.

    Raises:
        ValueError: if a value is out of its range.
    """

    def __init__(self, num_classes: int, dim: int, scale: float = 30.0, margin: float = 0.3) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"a margin softmax has {num_classes} classes, expected at least 2")
        if dim < 1:
            raise ValueError(f"a margin softmax takes vectors of {dim} dimensions, expected at least 1")
        if not 0 < scale < math.inf:
            raise ValueError(f"the scale of a margin softmax is {scale}, expected a finite number > 0")
        if not 0 <= margin <= math.pi / 2:
            raise ValueError(f"the margin of a margin softmax is {margin}, expected a number in [0, pi / 2]")
        self.scale = float(scale)
        self.margin = float(margin)
        # Only the direction counts, and a short vector turns faster: the step of its direction is one by its length
        # squared.
        self.weight = nn.Parameter(torch.empty(num_classes, dim))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The mean loss: (N, D) embeddings, normalised or not, and (N,) integers in [0, K) give a scalar."""
        return self.compute_loss(self.compute_cosines(embeddings), labels)

    def compute_cosines(self, embeddings: Tensor) -> Tensor:
        """The cosine of every embedding (N, D), normalised or not, with every class: (N, K), without any margin."""
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = at_least_float32(embeddings)
            return F.linear(l2_normalize(embeddings), l2_normalize(self.weight.to(embeddings.dtype)))

    def compute_loss(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """Softmax cross-entropy with the margin.

        Args:
            cosines: (N, K) from :meth:`compute_cosines`.
            labels: (N,) int64 in [0, K), the true classes.

        Returns:
            The mean over the embeddings, a scalar >= 0.
        """
        with torch.autocast(cosines.device.type, enabled=False):
            cosines = at_least_float32(cosines)
            harder = self.add_margin(cosines.gather(1, labels[:, None]))
            return F.cross_entropy(self.scale * cosines.scatter(1, labels[:, None], harder), labels)

    @abstractmethod
    def add_margin(self, cosines: Tensor) -> Tensor:
        """What takes the place of the cosine with the true class: of any shape, in float32 or float64."""

    def extra_repr(self) -> str:
        num_classes, dim = self.weight.shape
        return f"num_classes={num_classes}, dim={dim}, scale={self.scale:g}, margin={self.margin:g}"


class ArcFace(MarginSoftmax):
    """An additive angular margin (Deng et al., CVPR 2019, equation 3): cos(angle + m) for cos(angle).

    The margin, in radians, holds at all angles up to pi - m; there is no "easy margin", which would spare angles over
    pi / 2, where half of them are when training begins. Beyond pi - m the cosine would rise again with the angle; there
    cos(angle) - m sin(m) takes its place, which goes on falling. The equation does not treat this case.

    >>> arcface = ArcFace(num_classes=2, dim=1, margin=0.5)
    >>> arcface.add_margin(torch.tensor([0.8, 0.0, -1.0]))  # cos(acos(0.8) + 0.5), cos(pi / 2 + 0.5), -1 - 0.5 sin(0.5)
    tensor([ 0.4144, -0.4794, -1.2397])
    """

    def add_margin(self, cosines: Tensor) -> Tensor:
        sines = (1 - cosines.square()).clamp(min=MIN_SQUARED_SINE).sqrt()
        shifted = cosines * math.cos(self.margin) - sines * math.sin(self.margin)
        is_within = cosines > math.cos(math.pi - self.margin)
        return torch.where(is_within, shifted, cosines - self.margin * math.sin(self.margin))


class CosFace(MarginSoftmax):
    """An additive cosine margin (Wang et al., CVPR 2018, equation 4): cos(angle) - m.

    >>> CosFace(num_classes=2, dim=1, margin=0.25).add_margin(torch.tensor([1.0, -0.5]))
    tensor([ 0.7500, -0.7500])
    """

    def add_margin(self, cosines: Tensor) -> Tensor:
        return cosines - self.margin
