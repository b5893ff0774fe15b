"""The contrastive stage's model: what learns and what does not, its loss from an OESIR's embeddings, its state dict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from oesir_d2.engine.config_loading import load_config
from oesir_d2.layers import PCAWhitening, load_whitening, save_whitening
from oesir_d2.modeling import OESIRContrastive

CONFIG = "lite0/contrastive.yaml"
DIMENSION = 16
# A detector with batch norms that training mode would change.
OPTS = ["MODEL.DEVICE", "cpu", "MODEL.OESIR.EMBEDDING.WHITENING_DIM", DIMENSION, "MODEL.FPN.NORM", "BN"]
NO_TEACHER = ["MODEL.OESIR.CONTRASTIVE.DISTILLATION_WEIGHT", 0.0]
DETECTOR = ["MODEL.OESIR.EMBEDDING.SOURCE", "DetectorSource", "MODEL.OESIR.EMBEDDING.DETECTOR_FEATURES", ["p4"]]
TEACHER = ["MODEL.OESIR.EMBEDDING.SOURCE", "TeacherSource"]
STUDENT = "embedding_source.student."
PROJECTION = {f"roi_heads.embedding_head.whitening.{name}" for name in ("mean", "projection")}
MakeBatch = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def whitenings(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Files by their number of channels."""
    folder, files = tmp_path_factory.mktemp("whitening"), {}
    for channels in (96, 1280):
        vectors = torch.randn(200, channels, generator=torch.Generator().manual_seed(0)).exp()
        whitening = PCAWhitening(channels, DIMENSION).fit(vectors)
        save_whitening(folder / f"{channels}.safetensors", whitening, {"source": "test", "count": 200})
        files[channels] = str(folder / f"{channels}.safetensors")
    return files


@pytest.fixture
def build(whitenings: dict[int, str]) -> Callable[..., nn.Module]:
    def build(*opts: Any, channels: int = 1280) -> nn.Module:
        torch.manual_seed(0)
        whitening = ["MODEL.OESIR.EMBEDDING.WHITENING", whitenings[channels]]
        model = build_model(load_config(CONFIG, [str(word) for word in (*OPTS, *whitening, *opts)]))
        # Batch norms that have never seen anything would hide their statistics' part.
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        return model.train()

    return build


@pytest.fixture
def make_batch(make_image: Callable[[int, int], torch.Tensor]) -> MakeBatch:
    """``make_batch(first)``: three pairs of views with the object and a piece of background, of new photos."""

    def make(first: int = 0, sizes: Sequence[tuple[int, int]] = ((64, 96), (64, 96))) -> list[dict[str, Any]]:
        items = []
        for number in range(first, first + 3):
            views = []
            for view, (height, width) in enumerate(sizes):
                instances = Instances((height, width))
                instances.gt_boxes = Boxes(torch.tensor([[8.0, 10.0, 50.0, 60.0], [52.0, 5.0, 78.0, 40.0]]))
                instances.gt_objects = torch.tensor([number, 1000 + 2 * number + view])
                # Each object is pasted into the photo of the next one.
                instances.gt_photos = torch.tensor([number, number + view])
                views.append({"image": make_image(height, width), "instances": instances})
            items.append({"file_name": f"{number}.jpg", "views": views})
        return items

    return make


def copy_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def list_trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def embed(model: nn.Module, batch: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of the batch's regions by an OESIR in eval mode, view by view, and their objects and photos."""
    vectors, objects, photos = [], [], []
    for view in (view for item in batch for view in item["views"]):
        given = Instances(
            view["instances"].image_size,
            pred_boxes=view["instances"].gt_boxes,
            scores=torch.ones(2),
            pred_classes=torch.zeros(2, dtype=torch.int64),
        )
        regions = model.inference([view], detected_instances=[given], do_postprocess=False)[0]
        vectors.append(regions.embeddings[:2].double().numpy())
        objects += view["instances"].gt_objects.tolist()
        photos += view["instances"].gt_photos.tolist()
    return np.concatenate(vectors), np.array(objects), np.array(photos)


def compute_info_nce(
    anchors: tuple[np.ndarray, ...], references: tuple[np.ndarray, ...], temperature: float = 0.07
) -> float:
    losses = []
    for i, (vector, number, photo) in enumerate(zip(*anchors, strict=True)):
        exponentials = np.exp(references[0] @ vector / temperature)
        own = (references[1] == number) & (np.arange(len(exponentials)) != i)
        if own.any():
            (positive,) = exponentials[own]
            losses.append(-np.log(positive / (positive + exponentials[references[2] != photo].sum())))
    assert len(losses) == 6
    return float(np.mean(losses))


@pytest.mark.parametrize(("opts", "channels"), [([], 1280), (DETECTOR, 96), (TEACHER, 1280)])
def test_loss_is_that_of_an_oesirs_embeddings(
    opts: list[Any], channels: int, build: Callable[..., nn.Module], make_batch: MakeBatch
) -> None:
    model = build(*NO_TEACHER, *opts, channels=channels)
    oesir = build(*NO_TEACHER, *opts, "MODEL.META_ARCHITECTURE", "OESIR", channels=channels)
    oesir.load_state_dict(model.state_dict())
    first, second = make_batch(), make_batch(first=2)
    embedded = [embed(oesir.eval(), batch) for batch in (first, second)]

    with EventStorage() as storage:
        (loss,) = model(first).values()
    assert loss.item() == pytest.approx(compute_info_nce(embedded[0], embedded[0]), rel=1e-4)
    # The second batch is told apart from the first, too, but for what shows the photo that they share.
    both = [np.concatenate(parts) for parts in zip(*reversed(embedded), strict=True)]
    both[1][12:] = -1  # what is remembered is a negative only
    (loss,) = model(second).values()
    assert loss.item() == pytest.approx(compute_info_nce(embedded[1], tuple(both)), rel=1e-4)

    vectors, objects, photos = embedded[0]
    cosines = vectors @ vectors.T
    pairs = [(i, j) for i in range(12) for j in range(12) if i != j and objects[i] == objects[j]]
    positive = [cosines[pair] for pair in pairs]
    negative = [cosines[i][photos != photos[i]].max() for i, _ in pairs]
    logged = {name: value for name, (value, _) in storage.latest().items()}
    assert logged["contrastive/positive_cosine"] == pytest.approx(np.mean(positive), abs=1e-4)
    others = [cosines[i, j] for i, _ in pairs for j in range(12) if photos[i] != photos[j]]
    assert logged["contrastive/negative_cosine"] == pytest.approx(np.mean(others), abs=1e-4)
    assert logged["contrastive/recall@1"] == pytest.approx(np.mean(np.greater(positive, negative)))


@pytest.mark.parametrize(
    ("opts", "channels", "learns_student"),
    [
        ([], 1280, True),
        (NO_TEACHER, 1280, True),
        ([*NO_TEACHER, "MODEL.OESIR.CONTRASTIVE.TRAIN_STUDENT", False], 1280, False),
        ([*NO_TEACHER, *DETECTOR], 96, False),
        ([*NO_TEACHER, *TEACHER], 1280, False),
    ],
)
def test_only_student_and_projection_learn(
    opts: list[Any], channels: int, learns_student: bool, build: Callable[..., nn.Module], make_batch: MakeBatch
) -> None:
    model = build(*opts, channels=channels)
    trained = list_trained(model)
    student = {name for name, _ in model.named_parameters() if name.startswith(STUDENT)}
    assert trained == PROJECTION | (student if learns_student else set())

    before = copy_state(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for first in (0, 3):
        optimizer.zero_grad()
        sum(model(make_batch(first)).values()).backward()
        optimizer.step()
    # Statistics of batch norms are in the state dict, and stay.
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trained


@pytest.mark.parametrize("loss", ["InfoNCELoss", "MultiSimilarityLoss", "TripletMarginLoss"])
def test_what_learns_brings_views_of_one_object_together(
    loss: str, build: Callable[..., nn.Module], make_batch: MakeBatch
) -> None:
    options = ["MODEL.OESIR.CONTRASTIVE.LOSS", loss, "MODEL.OESIR.CONTRASTIVE.MEMORY_SIZE", 0]
    model = build(*NO_TEACHER, *DETECTOR, *options, channels=96)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    batch = make_batch()
    values = []
    for _ in range(12):
        (value,) = model(batch).values()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0]


def test_no_part_leaves_eval_mode(build: Callable[..., nn.Module]) -> None:
    model = build()
    assert model.training
    assert not any(module.training for name, module in model.named_modules() if name)
    assert not model.eval().training


def test_state_dict_and_results_are_an_oesirs(
    build: Callable[..., nn.Module], make_image: Callable[[int, int], torch.Tensor]
) -> None:
    model = build()
    oesir = build("MODEL.META_ARCHITECTURE", "OESIR")
    assert sorted(model.state_dict()) == sorted(oesir.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    oesir.load_state_dict(model.state_dict())
    model.load_state_dict(model.state_dict())

    inputs = [{"image": make_image(96, 64)}]
    with torch.no_grad():
        expected, result = oesir.eval()(inputs)[0], model.eval()(inputs)[0]
    assert torch.equal(result["image_embedding"], expected["image_embedding"])
    assert torch.equal(result["instances"].embeddings, expected["instances"].embeddings)


def test_learned_projection_is_a_whitening_file(
    build: Callable[..., nn.Module], make_batch: MakeBatch, tmp_path: Path
) -> None:
    model = build(*NO_TEACHER)
    learned = model.roi_heads.embedding_head.whitening
    vectors = torch.randn(5, 1280).exp()
    before = learned(vectors).detach()
    model(make_batch())
    # Scaled for the optimizer, which no embedding sees.
    assert learned.projection.norm().item() == pytest.approx(DIMENSION**0.5, rel=1e-5)
    torch.testing.assert_close(learned(vectors), before, atol=1e-6, rtol=1e-5)

    with torch.no_grad():
        learned.projection += 0.1 * torch.randn_like(learned.projection)
        learned.mean += 0.01
    save_whitening(tmp_path / "learned.safetensors", learned, {"source": "test", "count": 1})
    read, _ = load_whitening(tmp_path / "learned.safetensors")
    torch.testing.assert_close(read(vectors), learned(vectors).detach())
    assert (read(vectors) - before).abs().max() > 0.01


def test_student_stays_near_its_teacher(build: Callable[..., nn.Module], make_batch: MakeBatch) -> None:
    model = build("MODEL.OESIR.DISTILLATION.LOSSES", ["FeatureMapL2Loss"], "MODEL.OESIR.DISTILLATION.LOSS_WEIGHTS", [2])
    batch = make_batch(sizes=[(64, 96), (96, 80)])
    losses = model(batch)
    assert set(losses) == {"loss_contrastive_info_nce", "loss_distill_l2"}

    # Cells of padding have no part, and the teacher sees each view alone.
    squared, cells = 0.0, 0
    views = [view for item in batch for view in item["views"]]
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(views).tensor)
        student_map = model.embedding_source([view["image"] for view in views], features)
        for view, student in zip(views, student_map, strict=True):
            rows, columns = (-(-side // 32) for side in view["image"].shape[1:])
            (teacher,) = model.teacher([view["image"]])
            difference = (student[:, :rows, :columns] - teacher).square().mean(dim=0)
            squared, cells = squared + difference.sum().item(), cells + difference.numel()
    assert losses["loss_distill_l2"].item() == pytest.approx(2 * squared / cells, rel=1e-3)


def test_projection_is_pulled_to_its_start(build: Callable[..., nn.Module], make_batch: MakeBatch) -> None:
    model = build(*NO_TEACHER, "MODEL.OESIR.CONTRASTIVE.PROJECTION_PULL", 3.0)
    # Its length does not count.
    assert model(make_batch())["loss_projection_pull"].item() == pytest.approx(0, abs=1e-9)
    projection = model.roi_heads.embedding_head.whitening.projection
    start = projection.detach().clone()
    with torch.no_grad():
        projection[0] *= -1
    # The first row's sign alone differs: a difference of twice the row.
    expected = 3.0 * 4 * start[0].square().sum().item() / start.square().sum().item()
    assert model(make_batch(3))["loss_projection_pull"].item() == pytest.approx(expected, rel=1e-4)
    assert "projection_start" not in model.state_dict()


def test_weights_scale_their_losses(build: Callable[..., nn.Module], make_batch: MakeBatch) -> None:
    batch, name = make_batch(), "MODEL.OESIR.CONTRASTIVE"
    once = build()(batch)
    scaled = build(f"{name}.WEIGHT", 2.0, f"{name}.DISTILLATION_WEIGHT", 0.5)(batch)
    assert scaled["loss_contrastive_info_nce"].item() == pytest.approx(2 * once["loss_contrastive_info_nce"].item())
    assert scaled["loss_distill_l2"].item() == pytest.approx(once["loss_distill_l2"].item() / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["WEIGHT", 0.0], r"CONTRASTIVE\.WEIGHT is 0\.0; allowed: over 0"),
        (["MEMORY_SIZE", -1], "MEMORY_SIZE is -1; allowed: 0 or more"),
        (["PROJECTION_PULL", -1.0], r"PROJECTION_PULL is -1\.0; allowed"),
        (["DISTILLATION_WEIGHT", -1.0], r"DISTILLATION_WEIGHT is -1\.0 with the embedding source 'StudentSource'"),
    ],
)
def test_mistakes_in_the_config_are_named(opts: list[Any], message: str, build: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match=message):
        build(f"MODEL.OESIR.CONTRASTIVE.{opts[0]}", opts[1])


def test_what_is_asked_for_must_be_there(build: Callable[..., nn.Module], make_batch: MakeBatch) -> None:
    with pytest.raises(ValueError, match=r"DISTILLATION_WEIGHT is 1\.0 with the embedding source 'TeacherSource'"):
        build(*TEACHER)
    unfitted = ["MODEL.OESIR.EMBEDDING.WHITENING", ""]
    with pytest.raises(ValueError, match="PROJECTION_PULL is 1.0, but there is nothing to pull the projection to"):
        build(*unfitted, *NO_TEACHER, "MODEL.OESIR.CONTRASTIVE.PROJECTION_PULL", 1.0)
    with pytest.raises(ValueError, match="not fitted"):
        build(*unfitted, *NO_TEACHER)(make_batch())


def test_a_student_alone_learns_without_a_whitening(build: Callable[..., nn.Module], make_batch: MakeBatch) -> None:
    none = ["MODEL.OESIR.EMBEDDING.WHITENING", "", "MODEL.OESIR.EMBEDDING.WHITENING_DIM", 0]
    model = build(*NO_TEACHER, *none)
    assert isinstance(model, OESIRContrastive)
    assert all(name.startswith(STUDENT) for name in list_trained(model))
    (loss,) = model(make_batch()).values()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
