"""Distillation from maps computed once: they are the model's, a killed run goes on, and mistakes are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.frozen_maps import FOLDER, FrozenCrops
from oesir_d2.engine.trainer import OESIRTrainer
from oesir_d2.engine.training_data import register_datasets
from oesir_d2.index import read_skipped

OPTS = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "DATALOADER.NUM_WORKERS", "0", "SEED", "0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "INPUT.OESIR.CROP_SIZE", "64"),
    *("MODEL.OESIR.DISTILLATION.CACHED_CROPS", "22"),
]
STUDENT = "embedding_source.student."
Start = Callable[..., OESIRTrainer]


@pytest.fixture
def photos(tmp_path: Path, make_photo: Callable[..., np.ndarray]) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(make_photo(60, 80)).save(folder / f"photo{index}.png")
    return folder


@pytest.fixture
def start(photos: Path, tmp_path: Path) -> Start:
    """``start(*opts)`` makes a trainer of S3 whose maps lie in ``tmp_path / "out"``: 66 crops in two shards."""

    def make(*opts: str, resume: bool = False) -> OESIRTrainer:
        sets = ["DATASETS.OESIR.PHOTOS", str([["photos", str(photos)]]), "OUTPUT_DIR", str(tmp_path / "out")]
        cfg = load_config("lite0/distill_S3.yaml", [*OPTS, *sets, *opts])
        cfg.freeze()
        (tmp_path / "out").mkdir(exist_ok=True)
        register_datasets(cfg)
        trainer = OESIRTrainer(cfg)
        trainer.resume_or_load(resume=resume)
        return trainer

    return make


def read_shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def test_maps_on_disk_are_those_of_the_crops(start: Start, tmp_path: Path) -> None:
    trainer = start()
    trainer.train()
    model = trainer.model.eval()
    crops = FrozenCrops(tmp_path / "out" / FOLDER)
    assert len(crops) == 66
    assert {Path(crops[index]["file_name"]).name for index in range(66)} == {f"photo{index}.png" for index in range(3)}
    # Crops of one photo are not one crop.
    assert len({crops[index]["image"].numpy().tobytes() for index in range(66)}) > 60
    for index in (0, 17, 65):
        crop = crops[index]
        # Directly by the networks, the photo normalised as both of them have it.
        image = (crop["image"].float() - 127) / 128
        with torch.no_grad():
            features = model.backbone(image[None])
            teacher_map = model.teacher.network(image[None], ("conv5_3",))["conv5_3"]
        assert sorted(crop["features"]) == ["p3", "p4", "p5", "res2"]
        for name, value in crop["features"].items():
            torch.testing.assert_close(value.float(), features[name][0], rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(crop["teacher_map"].float(), teacher_map[0], rtol=2e-3, atol=2e-3)


def test_losses_are_those_of_the_crop_itself(start: Start, tmp_path: Path) -> None:
    trainer = start()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith(STUDENT)}

    crops = [FrozenCrops(tmp_path / "out" / FOLDER)[index] for index in (1, 40)]

    def compute(batch: list[dict[str, Any]]) -> dict[str, float]:
        torch.manual_seed(0)
        return {name: value.item() for name, value in trainer.model(batch).items()}

    assert compute(crops) == pytest.approx(compute([{"image": crop["image"]} for crop in crops]), rel=1e-2)


def test_killed_run_makes_only_what_is_missing(start: Start, tmp_path: Path) -> None:
    start().train()
    folder = tmp_path / "out" / FOLDER
    shards = read_shards(folder)
    assert len(shards) == 2
    # As a process leaves it that was killed while it wrote the second shard.
    (folder / "000001.safetensors").unlink()
    (folder / ".tmp-1-000001.safetensors").write_bytes(b"half")
    first_made = (folder / "000000.safetensors").stat().st_mtime_ns
    start(resume=True).train()
    assert (folder / "000000.safetensors").stat().st_mtime_ns == first_made
    assert read_shards(folder) == shards


@pytest.mark.parametrize("opts", [["SEED", "1"], ["INPUT.OESIR.CROP_AREA", "[0.5, 1.0]"]])
def test_maps_of_another_config_are_made_anew(opts: list[str], start: Start, tmp_path: Path) -> None:
    start().train()
    before = read_shards(tmp_path / "out" / FOLDER)
    start(*opts).train()
    after = read_shards(tmp_path / "out" / FOLDER)
    assert after.keys() == before.keys() and all(after[name] != before[name] for name in after)


def test_photo_that_cannot_be_read_is_skipped_and_counted(start: Start, photos: Path, tmp_path: Path) -> None:
    whole = (photos / "photo1.png").read_bytes()
    (photos / "photo1.png").write_bytes(whole[: len(whole) // 2])
    start().train()
    assert len(FrozenCrops(tmp_path / "out" / FOLDER)) == 44
    assert [Path(item.path).name for item in read_skipped(tmp_path / "out")] == ["photo1.png"]


def test_damaged_shard_is_named(start: Start, tmp_path: Path) -> None:
    start().train()
    path = tmp_path / "out" / FOLDER / "000001.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"000001\.safetensors is damaged .*delete it, and the next run makes it anew"):
        start(resume=True).train()
    path.unlink()
    start(resume=True).train()


def test_bfloat16_on_a_cpu_keeps_weights_and_losses_whole(start: Start) -> None:
    trainer = start("SOLVER.AMP.ENABLED", "True")
    dtypes: dict[str, torch.dtype] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, arguments, output: dtypes.update({name: output.dtype})

    student = trainer.model.embedding_source.student
    student.layers[0].conv1.register_forward_hook(note("student"))
    losses: list[torch.Tensor] = []
    trainer.model.register_forward_hook(lambda module, arguments, output: losses.extend(output.values()))
    trainer.train()
    assert dtypes == {"student": torch.bfloat16}
    assert len(losses) == 4 and all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses)
    assert all(parameter.dtype == torch.float32 for parameter in student.parameters())
