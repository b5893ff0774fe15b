"""Hooks of a training run: stop where the loss is no number, count the photos that were skipped."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import nn

from oesir_d2.index.skipped import read_skipped

logger = logging.getLogger(__name__)


class NonFiniteLossError(FloatingPointError, ValueError):
    """A loss became NaN or infinite.

    A FloatingPointError as detectron2 raises it, and a ValueError, since a learning rate or a photo of the user's is
    nearly always the cause.
    """


class StopOnNonFiniteLoss(HookBase):
    """Stops the training at the first loss that is NaN or infinite, before a weight changes, and names the batch.

    detectron2's own check knows neither the batch nor, with several processes, whose loss it was.
    """

    def before_train(self) -> None:
        self._handle = self.trainer.model.register_forward_hook(self._check)

    def after_train(self) -> None:
        self._handle.remove()

    def _check(self, model: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if not model.training:
            return
        broken = {name: value.item() for name, value in output.items() if not torch.isfinite(value)}
        if broken:
            files = ", ".join(str(item.get("file_name", "an image without a file")) for item in arguments[0])
            values = ", ".join(f"{name} is {value}" for name, value in broken.items())
            raise NonFiniteLossError(f"training stopped at iteration {self.trainer.iter}: {values}; its files: {files}")


class CountSkippedImages(HookBase):
    """Logs how many photos of the training set were skipped so far, as ``data/skipped_images``.

    Args:
        folder: the run's output folder, where ``skipped.jsonl`` lies.
        period: in iterations; that of detectron2's writers.
    """

    def __init__(self, folder: Path, period: int = 20) -> None:
        self._folder = folder
        self._period = period

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period == 0 or self.trainer.iter == self.trainer.max_iter - 1:
            self.trainer.storage.put_scalar(
                "data/skipped_images", len(read_skipped(self._folder)), smoothing_hint=False
            )

    def after_train(self) -> None:
        count = len(read_skipped(self._folder))
        if count:
            logger.warning("%d photo(s) could not be read and were skipped; %s says why", count, self._folder)
