"""From a checkpoint to the weights that ship: all that was learned here, and nothing that comes from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from safetensors.torch import save

from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.model_loading import load_model
from oesir_d2.files import replace_file, sha256_of_file
from oesir_d2.modeling.weights import TEACHER_PREFIX, TRUNK_PREFIX, WHITENING_PREFIX

FILE_METADATA = {"format": "pt"}
"""A single entry: safetensors write several ones in any order, and the file would have another hash each time."""


def export_weights(
    checkpoint: str | Path, output: str | Path, config: str = "oesir_lite0.yaml", opts: Sequence[str] = ()
) -> dict[str, Any]:
    """Write the weights of a trained model as safetensors, for ``MODEL.WEIGHTS`` of the same config.

    What the config takes from elsewhere, the trunk by ``MODEL.OESIR.EFFICIENTNET.WEIGHTS`` and a teacher by
    ``MODEL.OESIR.TEACHER.WEIGHTS``, is left out, as is what only the training needed. The same tensors give the same
    bytes.

    Args:
        checkpoint: of a training run, or any other file that ``MODEL.WEIGHTS`` may name.
        output: the file, replaced if it exists; its name must end in .safetensors.
        config, opts: of the model, see :func:`load_config`.

    Returns:
        ``tensors``, ``parameters``, ``bytes`` and ``sha256`` of the file.

    Raises:
        FileNotFoundError: a checkpoint or a config that is not there.
        ValueError: the checkpoint does not fit the config, its whitening is not fitted, or it has learned something of
            what would be left out.
    """
    output = Path(output)
    if output.suffix != ".safetensors":
        raise ValueError(f"the weights are to be written to {str(output)!r}; the name must end in .safetensors")
    trained = _load_state(load_config(config, [*opts, "MODEL.WEIGHTS", str(checkpoint)]))
    cfg = load_config(config, [*opts, "MODEL.WEIGHTS", ""])
    if f"{WHITENING_PREFIX}fitted" in trained and not trained[f"{WHITENING_PREFIX}fitted"]:
        raise ValueError(f"the whitening of {checkpoint} is not fitted, and the config names none")
    elsewhere = _list_elsewhere(cfg)
    fresh = _load_state(cfg)
    learned = {}
    for name, value in sorted(trained.items()):
        if not name.startswith(elsewhere):
            learned[name] = value
        elif not torch.equal(value, fresh[name]):
            raise ValueError(
                f"{checkpoint} has another {name!r} than the weights that the config names for it; allowed: a "
                "checkpoint of a training that kept them frozen"
            )
    replace_file(output, save(learned, FILE_METADATA))
    _check_written(trained, _load_state(load_config(config, [*opts, "MODEL.WEIGHTS", str(output)])), output)
    return {
        "tensors": len(learned),
        "parameters": sum(value.numel() for value in learned.values()),
        "bytes": output.stat().st_size,
        "sha256": sha256_of_file(output),
    }


def _load_state(cfg: CfgNode) -> dict[str, torch.Tensor]:
    # The device does not matter, and a GPU may be busy.
    cfg.MODEL.DEVICE = "cpu"
    state = load_model(cfg).state_dict()
    # Tensors that share memory, or are views, cannot be written.
    return {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in state.items()}


def _list_elsewhere(cfg: CfgNode) -> tuple[str, ...]:
    """How the names of the tensors begin that a checkpoint may leave out."""
    options = cfg.MODEL.OESIR
    references = {TRUNK_PREFIX: options.EFFICIENTNET.WEIGHTS, TEACHER_PREFIX: options.TEACHER.WEIGHTS}
    return tuple(prefix for prefix, reference in references.items() if reference)


def _check_written(trained: dict[str, torch.Tensor], loaded: dict[str, torch.Tensor], output: Path) -> None:
    different = [name for name, value in trained.items() if not torch.equal(value, loaded[name])]
    assert not different, f"{output} does not give back {different[0]!r} as it was trained"
