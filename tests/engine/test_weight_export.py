"""Exported weights: what was learned, bit by bit, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from oesir_d2.data import ImageFile
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.embedder import Embedder
from oesir_d2.engine.model_loading import load_model
from oesir_d2.engine.weight_export import export_weights

OPTS = ["MODEL.DEVICE", "cpu", "MODEL.OESIR.EMBEDDING.WHITENING_DIM", "8"]
WHITENING = "roi_heads.embedding_head.whitening."
TRUNK = "backbone.bottom_up.trunk."


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """The state of a model that was "trained"."""
    torch.manual_seed(7)
    state = load_model(load_config("oesir_lite0.yaml", [*OPTS, "MODEL.WEIGHTS", ""])).state_dict()
    for name in ("mean", "projection"):
        state[f"{WHITENING}{name}"] = torch.randn_like(state[f"{WHITENING}{name}"])
    state[f"{WHITENING}fitted"] = torch.tensor(True)
    return state


def save_checkpoint(path: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save({"model": state, "optimizer": {"lr": 0.1}, "iteration": 3}, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    # As stage four leaves it: what only the training needed, and tensors in an order of their own.
    extra = {"loss.memory": torch.ones(3)}
    return save_checkpoint(tmp_path_factory.mktemp("run") / "model_final.pth", dict(reversed((state | extra).items())))


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    path = checkpoint.with_name("lite0.safetensors")
    facts = export_weights(checkpoint, path, opts=OPTS)
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts["bytes"] == path.stat().st_size
    assert facts["tensors"] == len(load_file(path))
    return path


def test_model_of_the_file_embeds_as_that_of_the_checkpoint(
    checkpoint: Path, exported: Path, write_photo: Callable[..., ImageFile]
) -> None:
    photo = write_photo("a.png", 96, 128)
    expected, given = (
        Embedder(load_config("oesir_lite0.yaml", [*OPTS, "MODEL.WEIGHTS", str(path)]))
        for path in (checkpoint, exported)
    )
    assert expected.info.weights_sha256 == given.info.weights_sha256
    assert expected.info.whitening_sha256 == given.info.whitening_sha256
    a, b = expected.embed(photo).embeddings, given.embed(photo).embeddings
    assert len(a.vectors) > 1
    np.testing.assert_array_equal(a.vectors, b.vectors)
    np.testing.assert_array_equal(a.boxes, b.boxes)


def test_file_holds_what_was_learned_alone(state: dict[str, torch.Tensor], exported: Path) -> None:
    names = set(load_file(exported))
    assert names == {name for name in state if not name.startswith(TRUNK)}
    assert {f"{WHITENING}projection", f"{WHITENING}fitted", "roi_heads.box_predictor.cls_score.weight"} <= names
    assert len(names) < len(state)


def test_same_tensors_give_the_same_bytes(state: dict[str, torch.Tensor], exported: Path, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "again.pth", state)  # in another order
    export_weights(checkpoint, tmp_path / "again.safetensors", opts=OPTS)
    assert (tmp_path / "again.safetensors").read_bytes() == exported.read_bytes()
    with safe_open(exported, framework="pt") as file:
        assert len(file.metadata()) <= 1, "several entries are written in any order"


def test_what_would_be_lost_is_refused(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    trained = next(name for name in state if name.startswith(TRUNK))
    path = save_checkpoint(tmp_path / "trunk.pth", state | {trained: state[trained] + 1})
    with pytest.raises(ValueError, match=rf"trunk.pth has another '{trained}'"):
        export_weights(path, output, opts=OPTS)
    path = save_checkpoint(tmp_path / "unfitted.pth", state | {f"{WHITENING}fitted": torch.tensor(False)})
    with pytest.raises(ValueError, match="whitening of .*unfitted.pth is not fitted"):
        export_weights(path, output, opts=OPTS)
    lost = "roi_heads.box_predictor.bbox_pred.bias"
    path = save_checkpoint(tmp_path / "half.pth", {name: value for name, value in state.items() if name != lost})
    with pytest.raises(ValueError, match="half.pth.* lacks 1 of its tensors"):
        export_weights(path, output, opts=OPTS)
    with pytest.raises(ValueError, match="must end in .safetensors"):
        export_weights(path, tmp_path / "out.pth", opts=OPTS)
    assert not output.exists()


def test_what_ships_is_as_the_export_writes_it(tmp_path: Path) -> None:
    reference = load_config("oesir_lite0.yaml").MODEL.WEIGHTS
    facts = export_weights(reference, tmp_path / "again.safetensors")
    assert reference.endswith(f"#sha256={facts['sha256']}")
