"""The landmark stage's model: what learns, what it computes, and how what it learned becomes a teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from oesir_d2.engine.checkpointing import TrainingCheckpointer
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.model_loading import load_model
from oesir_d2.modeling import LandmarkClassifier, build_teacher
from oesir_d2.modeling.weights import load_state_dict

LITE0, R50 = "landmarks/finetune_lite0.yaml", "landmarks/finetune_R50.yaml"
TEACHER = "embedding_source.teacher.network."
MakeImage = Callable[..., torch.Tensor]


def build(config: str = LITE0, *opts: str) -> LandmarkClassifier:
    return build_model(load_config(config, ["MODEL.OESIR.LANDMARKS.NUM_CLASSES", "3", *opts]))


@pytest.fixture(scope="module")
def model() -> LandmarkClassifier:
    """For tests that leave it in training mode and change no weight of it."""
    return build().train()


@pytest.fixture
def inputs(make_image: MakeImage) -> list[dict[str, Any]]:
    return [{"image": make_image(64, 96), "class_id": class_id} for class_id in (2, 0, 2)]


def train_step(model: LandmarkClassifier, inputs: list[dict[str, Any]], rate: float = 0.01) -> float:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=rate)
    (loss,) = model.train()(inputs).values()
    loss.backward()
    optimizer.step()
    model.zero_grad()
    return loss.item()


def test_loss_is_that_of_the_pooled_map(model: LandmarkClassifier, inputs: list[dict[str, Any]]) -> None:
    feature_maps = build_teacher(load_config(LITE0))([x["image"] for x in inputs])
    vectors = feature_maps.clamp(min=1e-6).pow(3).mean(dim=(2, 3)).pow(1 / 3)
    cosines = nn.functional.normalize(vectors) @ nn.functional.normalize(model.classifier.weight).T
    labels = torch.tensor([2, 0, 2])
    logits = cosines.clone()
    for row, label in enumerate(labels):
        logits[row, label] = torch.cos(torch.acos(cosines[row, label]) + 0.3)
    with EventStorage() as storage:
        losses = model(inputs)

    assert set(losses) == {"loss_landmark"}
    expected = nn.functional.cross_entropy(30 * logits, labels)
    torch.testing.assert_close(losses["loss_landmark"], expected, rtol=1e-3, atol=1e-3)
    right = (cosines.argmax(dim=1) == labels).float().mean().item()
    assert storage.history("landmarks/accuracy").latest() == pytest.approx(right)


def test_photos_of_several_shapes_do_not_change_each_other(model: LandmarkClassifier, make_image: MakeImage) -> None:
    images = [make_image(64, 96), make_image(70, 50), make_image(64, 96)]
    together = model.compute_vectors(images)
    for image, vector in zip(images, together, strict=True):
        torch.testing.assert_close(model.compute_vectors([image])[0], vector, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))


def test_mixed_precision_keeps_the_loss(model: LandmarkClassifier, inputs: list[dict[str, Any]]) -> None:
    expected = model(inputs)["loss_landmark"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(inputs)["loss_landmark"]
    assert loss.dtype == torch.float32
    assert loss.item() != expected.item(), "the convolutions do run in low precision"
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)
    gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_projection_is_a_linear_layer_of_the_pooled_vector(inputs: list[dict[str, Any]]) -> None:
    model = build(LITE0, "MODEL.OESIR.LANDMARKS.PROJECTION_DIM", "16").train()
    images = [x["image"] for x in inputs]
    projected = model.compute_vectors(images)
    layer, model.projection = model.projection, None
    pooled = model.compute_vectors(images)
    torch.testing.assert_close(projected, nn.functional.normalize(pooled @ layer.weight.T + layer.bias))
    assert model.classifier.weight.shape == (3, 16)


@pytest.mark.parametrize("loss", ["ArcFace", "CosFace"])
def test_it_learns_to_tell_landmarks_apart(loss: str, inputs: list[dict[str, Any]]) -> None:
    model = build(LITE0, "MODEL.OESIR.LANDMARKS.LOSS", loss)
    assert type(model.classifier).__name__ == loss
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0002, momentum=0.9)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        (loss,) = model.train()(inputs).values()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_only_the_teachers_convolutions_and_the_classes_learn(inputs: list[dict[str, Any]]) -> None:
    model = build(LITE0, "MODEL.OESIR.LANDMARKS.PROJECTION_DIM", "8")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_step(model, inputs)

    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert changed == trained
    assert {"classifier.weight", "projection.weight", "projection.bias", f"{TEACHER}stem.0.weight"} <= trained
    assert {name for name in before if not name.startswith(TEACHER)} - trained == {"finetuned_pixel_std"}
    assert not any(module.training for name, module in model.named_modules() if name)


@pytest.mark.parametrize(
    ("config", "opts", "behind"),
    [
        (LITE0, [], ()),
        (
            LITE0,
            ["MODEL.OESIR.TEACHER.LAYER", "conv4_6"],
            tuple(
                f"{TEACHER}{part}."
                for part in ("blocks.11", "blocks.12", "blocks.13", "blocks.14", "blocks.15", "head")
            ),
        ),
        (
            R50,
            ["MODEL.OESIR.TEACHER.WEIGHTS", "", "MODEL.OESIR.TEACHER.LAYER", "conv5_1"],
            (f"{TEACHER}res5.1.", f"{TEACHER}res5.2."),
        ),
    ],
)
def test_every_weight_that_is_trained_gets_a_gradient(
    config: str, opts: list[str], behind: tuple[str, ...], inputs: list[dict[str, Any]]
) -> None:
    """Else a run of several processes waits for it in vain."""
    model = build(config, *opts).train()
    model(inputs)["loss_landmark"].backward()
    for name, parameter in model.named_parameters():
        is_trained = not (behind and name.startswith(behind))
        assert parameter.requires_grad is is_trained, name
        assert (parameter.grad is not None) is is_trained, name


def test_in_eval_mode_it_is_an_oesir(inputs: list[dict[str, Any]]) -> None:
    own = build().eval()(inputs)
    plain = load_model(load_config(LITE0, ["MODEL.META_ARCHITECTURE", "OESIR"]))(inputs)
    for ours, theirs in zip(own, plain, strict=True):
        torch.testing.assert_close(ours["image_embedding"], theirs["image_embedding"])
        torch.testing.assert_close(ours["instances"].embeddings, theirs["instances"].embeddings)


@pytest.fixture(scope="module", params=["lite0", "R50 of torchvision", "R50 of MSRA"])
def finetuned(
    request: pytest.FixtureRequest, random_resnet50: tuple[nn.Module, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[LandmarkClassifier, Path]:
    """A model after a step of training, and its checkpoint as the trainer writes it. Tests do not change it."""
    tmp_path = tmp_path_factory.mktemp("landmarks")
    options = ["MODEL.OESIR.LANDMARKS.PROJECTION_DIM", "8"]
    if request.param != "lite0":
        weights = random_resnet50[1]
        if request.param == "R50 of MSRA":
            state = build(R50, "MODEL.OESIR.TEACHER.WEIGHTS", str(weights)).teacher.network.state_dict()
            weights = tmp_path / "msra.pth"
            torch.save(state, weights)  # detectron2's names without a signature
        options += ["MODEL.OESIR.TEACHER.WEIGHTS", str(weights)]
    model = build(LITE0 if request.param == "lite0" else R50, *options)
    assert model.teacher.pixel_std.flatten()[0] == {"lite0": 128, "R50 of MSRA": 1}.get(request.param, 58.395)
    train_step(model, [{"image": torch.randint(0, 256, (3, 64, 64)), "class_id": k} for k in range(3)], rate=0.1)
    checkpointer = TrainingCheckpointer(model, str(tmp_path), optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    checkpointer.save("model_final", iteration=1)
    return model.eval(), tmp_path / "model_final.pth"


@pytest.mark.parametrize("config", ["oesir_lite0_grid.yaml", "lite0/distill_S3.yaml"])
def test_checkpoint_is_a_teacher(
    config: str, finetuned: tuple[LandmarkClassifier, Path], make_image: MakeImage
) -> None:
    """Loaded by torch with weights_only, in models that know nothing of landmarks, in either channel order."""
    trained, path = finetuned
    teacher_of = {"EfficientNetLiteTeacher": LITE0, "ResNet50Teacher": R50}
    name = type(trained.teacher).__name__
    trained_format = load_config(teacher_of[name]).INPUT.FORMAT
    options = ["MODEL.OESIR.TEACHER.NAME", name, "MODEL.OESIR.TEACHER.WEIGHTS", str(path)]
    # Of a grid model on another map than it was fitted for.
    options += ["MODEL.OESIR.EMBEDDING.WHITENING_DIM", "0", "MODEL.OESIR.EMBEDDING.WHITENING", ""]
    model = build_model(load_config(config, options))
    teacher = model.teacher if config.startswith("lite0/") else model.embedding_source.teacher
    image = make_image(64, 96)
    expected = trained.teacher([image if trained_format == "RGB" else image.flip(0)])

    torch.testing.assert_close(teacher([image]), expected)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    original = build_teacher(load_config(LITE0)) if name == "EfficientNetLiteTeacher" else None
    assert original is None or not torch.allclose(original([image]), expected, rtol=1e-3)


def test_checkpoint_is_an_oesirs(finetuned: tuple[LandmarkClassifier, Path], inputs: list[dict[str, Any]]) -> None:
    trained, path = finetuned
    name = type(trained.teacher).__name__
    for reference in ("MODEL.WEIGHTS", "MODEL.OESIR.TEACHER.WEIGHTS"):
        if reference == "MODEL.WEIGHTS" and name == "ResNet50Teacher":
            continue  # its family is that of TEACHER.WEIGHTS
        config = LITE0 if name == "EfficientNetLiteTeacher" else R50
        model = load_model(load_config(config, ["MODEL.META_ARCHITECTURE", "OESIR", reference, str(path)]))
        actual = model(inputs)[0]["image_embedding"]
        torch.testing.assert_close(actual, trained(inputs)[0]["image_embedding"])


def test_tapped_at_another_layer_it_is_the_same_network(
    finetuned: tuple[LandmarkClassifier, Path], make_image: MakeImage
) -> None:
    trained, path = finetuned
    config = LITE0 if type(trained.teacher).__name__ == "EfficientNetLiteTeacher" else R50
    options = ["MODEL.OESIR.TEACHER.WEIGHTS", str(path), "MODEL.OESIR.TEACHER.LAYER", "conv4_2"]
    teacher = build_teacher(load_config(config, options))
    assert teacher([make_image(64, 96)]).shape[2:] == (4, 6)
    state = trained.teacher.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())


def test_checkpoint_of_another_network_is_refused(finetuned: tuple[LandmarkClassifier, Path]) -> None:
    trained, path = finetuned
    if type(trained.teacher).__name__ == "EfficientNetLiteTeacher":
        others = [(R50, "ResNet50Teacher", "lite0"), (LITE0, "EfficientNetLiteTeacher", "lite2")]
    else:
        others = [(LITE0, "EfficientNetLiteTeacher", "lite0")]
    for config, name, variant in others:
        options = ["MODEL.OESIR.TEACHER.WEIGHTS", str(path), "MODEL.OESIR.TEACHER.VARIANT", variant]
        with pytest.raises(
            ValueError, match=r"model_final\.pth' (are no ResNet-50|do not fit efficientnet-lite)"
        ) as caught:
            build_teacher(load_config(config, [*options, "MODEL.OESIR.TEACHER.NAME", name]))
        assert "\n" not in str(caught.value)


def test_checkpoint_holds_plain_tensors(finetuned: tuple[LandmarkClassifier, Path]) -> None:
    tensors = load_state_dict(finetuned[1])
    assert {"classifier.weight", "projection.weight", "finetuned_pixel_std"} <= set(tensors)
    assert set(tensors) == set(finetuned[0].state_dict())


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["MODEL.OESIR.LANDMARKS.LOSS", "Softmax"],
            r"LANDMARKS\.LOSS 'Softmax' unknown; allowed: \['ArcFace', 'CosFace'",
        ),
        (["MODEL.OESIR.LANDMARKS.PROJECTION_DIM", "-1"], "PROJECTION_DIM is -1; allowed: 0"),
        (["MODEL.OESIR.LANDMARKS.NUM_CLASSES", "1"], "has 1 classes, expected at least 2"),
        (["MODEL.OESIR.LANDMARKS.SCALE", "0.0"], "scale of a margin softmax is 0.0"),
    ],
)
def test_mistakes_in_the_config_are_named(opts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(LITE0, *opts)


def test_a_source_without_a_teacher_is_refused() -> None:
    cfg = load_config("lite0/distill_S3.yaml", ["MODEL.META_ARCHITECTURE", "LandmarkClassifier"])
    with pytest.raises(ValueError, match="'StudentSource' is no teacher to fine-tune; allowed: 'TeacherSource'"):
        build_model(cfg)
