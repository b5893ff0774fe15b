"""Checkpoints of a training run that a crash cannot break."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oesir_d2.files import remove_temporaries, replace_file, temporary_beside
from oesir_d2.modeling.weights import SafeCheckpointer


class TrainingCheckpointer(SafeCheckpointer):
    """A SafeCheckpointer whose files are there as a whole or not at all, whenever the process is killed.

    Args:
        model: wrapped for several processes or not.
        save_dir: the folder of the checkpoints; what a killed process left half-written there is removed.
        **checkpointables: what is saved beside the model.
    """

    def __init__(self, model: nn.Module, save_dir: str, **checkpointables: Any) -> None:
        super().__init__(model, save_dir, **checkpointables)
        if self.save_to_disk and Path(save_dir).is_dir():
            remove_temporaries(Path(save_dir))

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth: the model, the checkpointables and ``kwargs``; then ``last_checkpoint`` names it."""
        if not self.save_dir or not self.save_to_disk:
            return
        # In one order in memory, whatever order was fastest: safetensors take no other.
        weights = {key: value.contiguous() for key, value in self.model.state_dict().items()}
        objects = {key: value.state_dict() for key, value in self.checkpointables.items()}
        target = Path(self.save_dir) / f"{name}.pth"
        temporary = temporary_beside(target)
        self.logger.info("Saving checkpoint to %s", target)
        try:
            with open(temporary, "wb") as stream:
                torch.save({"model": weights} | objects | kwargs, stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self.tag_last_checkpoint(target.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the checkpoint that a resumed run starts from."""
        replace_file(Path(self.save_dir) / "last_checkpoint", last_filename_basename.encode())
