"""Distillation: only the student learns, its checkpoint is an OESIR's, and any detector of the zoo's form will do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from oesir_d2.engine.config_loading import load_config
from oesir_d2.modeling import OESIRDistillation, build_teacher
from oesir_d2.modeling.weights import SafeCheckpointer

CONFIG = "lite0/distill_S3.yaml"
# A detector with batch norms that training mode would change.
OPTS = ["MODEL.FPN.NORM", "BN"]
STUDENT = "embedding_source.student."
MakeImage = Callable[..., torch.Tensor]


def build(*opts: str) -> nn.Module:
    return build_model(load_config(CONFIG, [*OPTS, *opts]))


@pytest.fixture(scope="module")
def model() -> OESIRDistillation:
    """For tests that leave it in training mode and change no weight of it."""
    return build().train()


@pytest.fixture
def inputs(make_image: MakeImage) -> list[dict[str, Any]]:
    return [{"image": make_image(64, 96)}, {"image": make_image(64, 96)}]


def test_only_the_student_is_in_training_mode_and_has_gradients(model: OESIRDistillation) -> None:
    for mode in (True, False, True):
        model.train(mode)
        assert model.training is mode
        for name, module in model.named_modules():
            assert module.training is (mode and (name == "" or name.startswith("embedding_source"))), name
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith(STUDENT)}
    assert trained


def test_training_changes_the_student_only(inputs: list[dict[str, Any]]) -> None:
    model = build().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    teacher_before = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        sum(model(inputs).values()).backward()
        optimizer.step()

    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith(STUDENT)}
    assert any("running_mean" in name for name in changed)
    assert all(torch.equal(value, teacher_before[name]) for name, value in model.teacher.state_dict().items())


def test_student_learns_the_teachers_map(inputs: list[dict[str, Any]]) -> None:
    model = build().train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    with EventStorage() as storage:
        for _ in range(12):
            loss = sum(model(inputs).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        first_cosine, last_cosine = (storage.history("distillation/image_cosine").values()[i][0] for i in (0, -1))

    assert losses[-1] < 0.6 * losses[0]
    assert first_cosine < last_cosine <= 1


def test_losses_compare_the_two_maps_by_weight(inputs: list[dict[str, Any]]) -> None:
    prefix = "MODEL.OESIR.DISTILLATION."
    model = build(
        f"{prefix}LOSSES", "['FeatureMapL2Loss', 'RegionCosineLoss']", f"{prefix}LOSS_WEIGHTS", "[0.5, 2.0]"
    ).train()
    images = [x["image"] for x in inputs]
    normalised = torch.stack([(image - model.pixel_mean) / model.pixel_std for image in images])
    with torch.no_grad():
        student_map = model.embedding_source.student(images, model.backbone(normalised))
        teacher_map = build_teacher(load_config(CONFIG))(images)
        torch.manual_seed(1)
        cosine = model.losses[1](student_map, teacher_map, [(64, 96), (64, 96)])
        torch.manual_seed(1)
        losses = model(inputs)

    assert set(losses) == {"loss_distill_l2", "loss_distill_region_cosine"}
    assert losses["loss_distill_l2"].item() == pytest.approx(
        0.5 * (student_map - teacher_map).square().mean().item(), rel=1e-4
    )
    assert losses["loss_distill_region_cosine"].item() == pytest.approx(2 * cosine.item(), rel=1e-4)


def test_teacher_sees_enlarged_photos(make_image: MakeImage) -> None:
    options = ("MODEL.OESIR.DISTILLATION.TEACHER_SCALE", "2.0", "MODEL.OESIR.STUDENT.STRIDE", "16")
    model = build(*options).train()
    image = make_image(64, 96)
    enlarged = nn.functional.interpolate(image[None].float(), size=(128, 192), mode="bilinear", align_corners=False)

    student_map, teacher_map, sizes = model.compute_maps([{"image": image}])

    assert sizes == [(64, 96)]
    assert student_map.shape == teacher_map.shape == (1, 1280, 4, 6)
    torch.testing.assert_close(teacher_map, model.teacher([enlarged[0]]))
    assert not teacher_map.requires_grad
    assert student_map.requires_grad


def test_checkpoint_is_that_of_an_oesir(model: OESIRDistillation, make_image: MakeImage, tmp_path: Path) -> None:
    embedder = build("MODEL.META_ARCHITECTURE", "OESIR").eval()
    inputs = [{"image": make_image(70, 100)}]

    SafeCheckpointer(model, str(tmp_path)).save("student")
    checkpointer = SafeCheckpointer(embedder)
    checkpointer.load(str(tmp_path / "student.pth"))

    assert not any(checkpointer.incompatible)
    assert model.state_dict().keys() == embedder.state_dict().keys()
    model.eval()
    with torch.inference_mode():
        (expected,), (found,) = model(inputs), embedder(inputs)
    model.train()
    assert torch.equal(found["image_embedding"], expected["image_embedding"])
    assert torch.equal(found["instances"].embeddings, expected["instances"].embeddings)


def test_checkpoint_fills_the_model_again(model: OESIRDistillation, tmp_path: Path) -> None:
    SafeCheckpointer(model, str(tmp_path)).save("student")
    checkpointer = SafeCheckpointer(build())
    checkpointer.load(str(tmp_path / "student.pth"))

    assert not any(checkpointer.incompatible), "the teacher is not missed"


@pytest.mark.parametrize("student", ["StudentS1", "StudentS2", "StudentS3"])
def test_any_detector_of_the_zoos_form_is_the_frozen_detector(
    student: str,
    zoo_checkpoint: tuple[nn.Module, Path],
    random_resnet50: tuple[nn.Module, Path],
    make_image: MakeImage,
) -> None:
    detector, path = zoo_checkpoint
    opts = ["MODEL.DEVICE", "cpu", "MODEL.OESIR.TEACHER.WEIGHTS", str(random_resnet50[1])]
    model = build_model(load_config(f"students/oesir_R50_{student[-2:]}.yaml", opts)).train()
    inputs = [{"image": make_image(64, 64)}, {"image": make_image(64, 64)}]

    checkpointer = SafeCheckpointer(model)
    checkpointer.load(str(path))
    sum(model(inputs).values()).backward()

    assert all(name.startswith(STUDENT) for name in checkpointer.incompatible.missing_keys)
    assert not checkpointer.incompatible.unexpected_keys
    assert not checkpointer.incompatible.incorrect_shapes
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in model.named_parameters() if name.startswith(STUDENT)}
    zoo_state = detector.state_dict()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in zoo_state.items())


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.OESIR.EMBEDDING.SOURCE", "DetectorSource"], "'DetectorSource' has nothing to distil into; allowed"),
        (["MODEL.OESIR.DISTILLATION.TEACHER_SCALE", "0.5"], "TEACHER_SCALE is 0.5; allowed: at least 1"),
    ],
)
def test_mistakes_in_the_config_are_named(opts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(*opts)
