"""Hooks of a training run: stop where the loss is no number, count the skipped photos, write what was learned."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from oesir_d2.index.skipped import read_skipped
from oesir_d2.layers import PCAWhitening, save_whitening

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


PROJECTION_FILE = "whitening.safetensors"
"""Where a run that learns a projection writes it, in its output folder."""


class WriteProjection(HookBase):
    """Writes a learned projection at the end, in the form of a whitening: for ``MODEL.OESIR.EMBEDDING.WHITENING``.

    Args:
        whitening: the model's, as it is trained.
        folder: the run's output folder; an earlier file is replaced.
        source: what it was trained on.
        batch_size: objects an iteration.
    """

    def __init__(self, whitening: PCAWhitening, folder: Path, source: str, batch_size: int) -> None:
        self._whitening = whitening
        self._path = folder / PROJECTION_FILE
        self._source = source
        self._batch_size = batch_size

    def after_train(self) -> None:
        # A run that failed comes here, too; its checkpoints hold what there is.
        if comm.is_main_process() and self.trainer.iter >= self.trainer.max_iter:
            metadata = {"source": self._source, "count": self.trainer.iter * self._batch_size}
            save_whitening(self._path, self._whitening, metadata)
            logger.info("Wrote the learned projection to %s", self._path)
