"""Training the embedded default: the order of its steps, what each is given, and how an interrupted run goes on.

What a step itself does is replaced where it is slow; tests/tools/test_train_embedded_default.py runs all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from oesir_d2.data.photo_split import is_held_out
from oesir_d2.data.pseudo_labels import Detections
from oesir_d2.engine import default_data, embedded_default
from oesir_d2.engine.default_data import TrainingMaterial
from oesir_d2.engine.embedded_default import TrainingOptions, train_embedded_default
from oesir_d2.index.lock import WriterLock
from oesir_d2.layers import PCAWhitening

HEIGHT, WIDTH = 96, 128


class FakeYolox:
    """Finds one object in the middle of each photo."""

    settings = {"network": "fake"}
    num_classes = 80

    def __init__(self, path: Path) -> None:
        assert path.name == "net.onnx"

    def detect(self, pixels: np.ndarray) -> Detections:
        height, width = pixels.shape[:2]
        box = np.array([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]], dtype=np.float32)
        return Detections(box, np.array([0.9], dtype=np.float32), np.array([0]))


@pytest.fixture
def material(tmp_path: Path, make_photo: Callable[..., np.ndarray]) -> TrainingMaterial:
    """Eight annotated photos with an outlined object each, six plain ones."""
    for folder, count in (("coco", 8), ("plain", 6)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            Image.fromarray(make_photo(HEIGHT, WIDTH)).save(tmp_path / folder / f"{i}.png")
    images = [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(8)]
    outline = [24, 16, 96, 16, 104, 70, 20, 60]
    annotations = [
        {
            "id": i + 1,
            "image_id": i,
            "category_id": 1,
            "bbox": [20, 16, 84, 54],
            "area": 3900,
            "iscrowd": 0,
            "segmentation": [outline],
        }
        for i in range(8)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    (tmp_path / "net.onnx").write_bytes(b"network")
    return TrainingMaterial(
        annotations=tmp_path / "instances.json",
        annotated=tmp_path / "coco",
        plain=tmp_path / "plain",
        network=tmp_path / "net.onnx",
        count=3,
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the slow parts were asked to do."""
    calls: list[Any] = []

    def train(words: Sequence[str]) -> None:
        split = list(words).index("--resume") + 1
        values = dict(zip(words[split::2], words[split + 1 :: 2], strict=True))  # the last value of a key counts
        calls.append(("train", list(words[:split]), values))
        torch.save({"model": {}}, Path(values["OUTPUT_DIR"]) / "model_final.pth")

    def fit(cfg: Any, files: Sequence[Any], dimension: int, shrinkage: float) -> tuple[PCAWhitening, dict[str, int]]:
        calls.append(("fit", cfg.MODEL.WEIGHTS, sorted(file.image_id for file in files), dimension))
        vectors = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
        return PCAWhitening(8, 4).fit(vectors), {"photos": len(files), "regions": 20, "skipped": 0}

    def export(checkpoint: Path, output: Path, config: str, opts: Sequence[str]) -> dict[str, Any]:
        calls.append(("export", checkpoint, config))
        output.write_bytes(b"weights")
        return {"sha256": "hash", "bytes": 7}

    monkeypatch.setattr(default_data, "YoloxDetector", FakeYolox)
    monkeypatch.setattr(embedded_default, "train_in_process", train)
    monkeypatch.setattr(embedded_default, "fit_whitening", fit)
    monkeypatch.setattr(embedded_default, "export_weights", export)
    return calls


def list_train(count: int) -> list[str]:
    return [f"{i}.png" for i in range(count) if not is_held_out(f"{i}.png", 0.4)]


def test_steps_come_in_order_and_each_is_given_what_the_earlier_ones_made(
    material: TrainingMaterial, calls: list[Any], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    reports = train_embedded_default(material, output, TrainingOptions(seed=5, opts=("SOLVER.MAX_ITER", "9")))

    assert list(reports) == [
        *("photos", "pseudo_labels", "detection_set"),
        *("detector", "whitening", "projection", "export"),
    ]
    annotated, plain = list_train(8), list_train(6)
    assert 0 < len(annotated) < 8 and 0 < len(plain) < 6
    assert reports["photos"] == {"annotated": len(annotated), "plain": len(plain)}
    assert reports["export"] == {
        "weights": str(output / "export" / "oesir_lite0.safetensors"),
        "sha256": "hash",
        "bytes": 7,
    }

    (_, flags, detector), fit, (_, _, projection), export = calls
    assert flags == ["--config-file", "lite0/detector.yaml", "--num-gpus", "1", "--resume"]
    assert (detector["SEED"], detector["SOLVER.MAX_ITER"]) == ("5", "9")
    composed = output / "detection_set"
    assert detector["DATASETS.OESIR.COCO"] == str(
        [["objects", str(composed / "instances.json"), str(composed / "images")]]
    )
    weights = str(output / "detector" / "model_final.pth")
    trained_on = sorted([f"annotated/{name}" for name in annotated] + [f"plain/{name}" for name in plain])
    assert fit == ("fit", weights, trained_on, 512)
    assert projection["MODEL.WEIGHTS"] == weights
    assert projection["MODEL.OESIR.EMBEDDING.WHITENING"] == str(output / "whitening" / "whitening.safetensors")
    objects = ["objects", "coco", str(material.annotations), str(output / "photos" / "annotated")]
    assert projection["DATASETS.OESIR.CUTOUTS"] == str([objects, ["regions", "blobs", str(output / "photos")]])
    assert export == ("export", output / "projection" / "model_final.pth", "oesir_lite0.yaml")
    assert (output / "weights" / "detector.pth").resolve() == (output / "detector" / "model_final.pth").resolve()

    # No photo that is held out is seen by anything.
    instances = json.loads((composed / "instances.json").read_text())
    assert {Path(item["source"]).name for item in instances["annotations"]} <= {*annotated, *plain}
    assert {item["host"] for item in instances["images"]} <= {*annotated, *plain}
    labels = json.loads((output / "pseudo_labels" / "instances.json").read_text())
    assert [item["file_name"] for item in labels["images"]] == plain


def test_an_interrupted_run_goes_on_and_a_finished_one_does_nothing(
    material: TrainingMaterial, calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embedded_default, "fit_whitening", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_embedded_default(material, tmp_path / "out", TrainingOptions())
    assert [call[0] for call in calls] == ["train"]
    first = train_embedded_default(material, tmp_path / "out", TrainingOptions())
    assert [call[0] for call in calls] == ["train", "fit", "train", "export"]
    assert train_embedded_default(material, tmp_path / "out", TrainingOptions()) == first
    assert len(calls) == 4

    # A student is one stage more, and nothing else changes.
    more = train_embedded_default(material, tmp_path / "out", TrainingOptions(asked=("S2",)))
    assert (len(calls), calls[-1][1][1]) == (5, "lite0/distill_S2.yaml")
    assert calls[-1][2]["DATASETS.OESIR.PHOTOS"] == str([["photos", str(tmp_path / "out" / "photos")]])
    assert more["export"] == first["export"]


def test_what_was_made_from_something_else_is_refused_before_any_work(
    material: TrainingMaterial, calls: list[Any], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    train_embedded_default(material, output, TrainingOptions())
    calls.clear()
    for message, other, options in (
        (
            r"else: detection_set \(recipe\); detector \(detection_set\); whitening \(detector\); projection \(",
            replace(material, count=4),
            TrainingOptions(),
        ),
        (r"else: detector \(seed\); whitening \(detector\)", material, TrainingOptions(seed=1)),
        (r"else: detector \(config\); ", material, TrainingOptions(opts=("SOLVER.BASE_LR", "0.1"))),
    ):
        with pytest.raises(FileExistsError, match=message):
            train_embedded_default(other, output, options)
    # What depends on the machine alone does not count.
    machine = ("DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", "elsewhere")
    train_embedded_default(material, output, TrainingOptions(opts=machine, num_gpus=2))
    photo = next(material.plain / name for name in list_train(6))
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)).save(photo)
    with pytest.raises(FileExistsError, match=r"photos \(plain\); pseudo_labels \(plain\)"):
        train_embedded_default(material, output, TrainingOptions())
    assert calls == []


def test_mistakes_are_found_before_the_work(material: TrainingMaterial, calls: list[Any], tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="network .*nowhere.onnx does not exist"):
        replace(material, network=tmp_path / "nowhere.onnx")
    with pytest.raises(ValueError, match="hold out is 1.0"):
        replace(material, held_out=1.0)
    with pytest.raises(ValueError, match="all 8 photos of .*coco are held out"):
        train_embedded_default(replace(material, held_out=0.999), output, TrainingOptions())
    with pytest.raises(ValueError, match="SOLVER.MAX_ITERS"):
        train_embedded_default(material, output, TrainingOptions(opts=("SOLVER.MAX_ITERS", "2")))
    with pytest.raises(ValueError, match="no stage 'S4'; allowed: S1, S2, S3"):
        train_embedded_default(material, output, TrainingOptions(asked=("S4",)))
    assert not output.exists() and calls == []
    output.mkdir()
    lock = WriterLock(output)
    try:
        with pytest.raises(ValueError, match="another process trains in"):
            train_embedded_default(material, output, TrainingOptions())
    finally:
        lock.release()


@pytest.mark.parametrize("error", [ChildProcessError("it ended by signal 9"), ValueError("a mistake")])
def test_a_failed_training_is_named(
    error: Exception, material: TrainingMaterial, calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(words: Sequence[str]) -> None:
        raise error

    monkeypatch.setattr(embedded_default, "train_in_process", fail)
    with pytest.raises(type(error), match=f"stage detector: {error}"):
        train_embedded_default(material, tmp_path / "out", TrainingOptions())
