"""The work that a network's convolutions are: floating-point operations, and bytes that must move.

Shape shorthand: N images, C channels, H x W cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

MATRIX_SIDE = 1024
COPY_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Work:
    """What one convolution does on one input.

    Attributes:
        operations: floating-point; a multiplication and an addition are two.
        bytes: its input and its weights read once, its output written once.
    """

    operations: int
    bytes: int


def count_convolutions(network: nn.Module, run: Callable[[], Any]) -> list[Work]:
    """The work of every convolution of a network that a function runs, in their order."""
    work: list[Work] = []

    def note(conv: nn.Conv2d, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        weights = getattr(conv, "folded_weight", conv.weight)
        element = weights.element_size()
        moved = element * (inputs[0].numel() + weights.numel() + output.numel())
        work.append(Work(2 * output.numel() * weights[0].numel(), moved))

    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, nn.Conv2d)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return work


class MachineRates:
    """What the machine can do, as functions to be timed beside what is measured.

    Args:
        device: where.
        dtype: of the matrices.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        self._left = torch.randn(MATRIX_SIDE, MATRIX_SIDE, generator=generator).to(device, dtype)
        self._right = torch.randn(MATRIX_SIDE, MATRIX_SIDE, generator=generator).to(device, dtype)
        self._product = torch.empty_like(self._left)
        self._source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
        self._target = torch.zeros_like(self._source)

    def multiply(self, _: object = None) -> None:
        """One matrix product of ``operations`` floating-point operations."""
        torch.mm(self._left, self._right, out=self._product)

    def copy(self, _: object = None) -> None:
        """One copy within memory that moves ``bytes``."""
        self._target.copy_(self._source)

    operations = 2 * MATRIX_SIDE**3
    bytes = 2 * COPY_BYTES


def bound_milliseconds(work: list[Work], operations_per_ms: float, bytes_per_ms: float) -> float:
    """The least time for some convolutions, one after the other (the roofline model of Williams et al., 2009)."""
    return sum(max(w.operations / operations_per_ms, w.bytes / bytes_per_ms) for w in work)


def time_in_turns(
    functions: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of every round of long jobs, which take turns; each round begins with another."""
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            functions[name]()
            seconds[name].append(clock() - start)
    return seconds
