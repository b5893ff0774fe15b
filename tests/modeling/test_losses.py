"""Distillation losses against NumPy, and what they do not depend on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec

from oesir_d2.engine.config_loading import load_config
from oesir_d2.layers import GeMPooler, PCAWhitening, RegionPooler, SPoCPooler, save_whitening
from oesir_d2.modeling import build_distillation_losses
from oesir_d2.modeling.losses import FeatureMapL2Loss, RegionCosineLoss

SHAPE = ShapeSpec(channels=6, stride=32)


def average_cells(feature_map: np.ndarray, window: int) -> np.ndarray:
    """Mean over windows of (C, H, W), whose sides are multiples of the window."""
    channels, height, width = feature_map.shape
    return feature_map.reshape(channels, height // window, window, width // window, window).mean(axis=(2, 4))


def test_l2_is_the_mean_square_over_the_cells_of_the_photos() -> None:
    student, teacher = torch.randn(2, 6, 4, 5), torch.randn(2, 6, 4, 5)
    # 4 x 5 cells of stride 32; the second photo fills 2 x 3 of them, the last row and column in part.
    sizes = [(128, 160), (40, 70)]
    squares = (student.numpy().astype(np.float64) - teacher.numpy()) ** 2
    expected = (squares[0].sum() + squares[1, :, :2, :3].sum()) / (6 * (20 + 6))

    loss = FeatureMapL2Loss(student_stride=32, teacher_stride=32)(student, teacher, sizes)

    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_l2_averages_the_finer_map() -> None:
    student, teacher = torch.randn(1, 6, 8, 12), torch.randn(1, 6, 4, 6)
    expected = ((average_cells(student[0].numpy(), 2) - teacher[0].numpy()) ** 2).mean()

    loss = FeatureMapL2Loss(student_stride=16, teacher_stride=32)(student, teacher, [(128, 192)])
    mirrored = FeatureMapL2Loss(student_stride=32, teacher_stride=16)(teacher, student, [(128, 192)])

    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert mirrored.item() == pytest.approx(expected, rel=1e-5)


def test_l2_compares_maps_that_are_padded_differently() -> None:
    # A photo of 100 x 100 pixels, padded to 128 for the student; twice as large, and padded to 224, for the teacher.
    student, teacher = torch.randn(1, 6, 8, 8), torch.randn(1, 6, 7, 7)
    expected = ((student[0, :, :7, :7] - teacher[0]) ** 2).mean().item()

    loss = FeatureMapL2Loss(student_stride=16, teacher_stride=32 / 2)(student, teacher, [(100, 100)])

    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_l2_refuses_strides_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"stride 16 \(student\) and 24 \(teacher"):
        FeatureMapL2Loss(student_stride=16, teacher_stride=24)


def sample_bilinear(feature_map: np.ndarray, y: float, x: float) -> np.ndarray:
    """The value of (C, H, W) between its cells, whose centres are at whole numbers; the border is repeated."""
    _, height, width = feature_map.shape
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = min(int(y), max(0, height - 2)), min(int(x), max(0, width - 2))
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    upper = feature_map[:, top, left] * (1 - across) + feature_map[:, top, right] * across
    lower = feature_map[:, bottom, left] * (1 - across) + feature_map[:, bottom, right] * across
    return upper * (1 - down) + lower * down


def pool_box(feature_map: np.ndarray, box: np.ndarray, stride: float, bins: int, power: float) -> np.ndarray:
    """RoIAlign with one sample a bin, then the generalised mean."""
    x0, y0, x1, y1 = box / stride
    samples = [
        sample_bilinear(
            feature_map, y0 + (row + 0.5) * (y1 - y0) / bins - 0.5, x0 + (column + 0.5) * (x1 - x0) / bins - 0.5
        )
        for row in range(bins)
        for column in range(bins)
    ]
    return (np.stack(samples) ** power).mean(axis=0) ** (1 / power)


def test_region_cosine_is_that_of_the_pooled_regions() -> None:
    loss = RegionCosineLoss(
        region_pooler=RegionPooler(GeMPooler(p=3.0), resolution=3, sampling_ratio=1),
        student_stride=16,
        teacher_stride=32,
        num_regions=5,
    )
    student, teacher = torch.rand(2, 6, 8, 10) + 0.1, torch.rand(2, 6, 4, 5) + 0.1
    sizes = [(128, 160), (96, 128)]
    torch.manual_seed(3)
    boxes = [loss.draw_regions(size).numpy() for size in sizes]
    cosines = []
    for index, (height, width) in enumerate(sizes):
        student_map = student[index, :, : height // 16, : width // 16].double().numpy()
        teacher_map = teacher[index, :, : height // 32, : width // 32].double().numpy()
        for box in boxes[index]:
            a, b = pool_box(student_map, box, 16, 3, 3.0), pool_box(teacher_map, box, 32, 3, 3.0)
            cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert len(cosines) == 2 * (1 + 5)

    torch.manual_seed(3)
    value = loss(student, teacher, sizes).item()

    assert value == pytest.approx(1 - np.mean(cosines), rel=1e-4)


def test_region_cosine_knows_directions_only() -> None:
    loss = RegionCosineLoss(region_pooler=RegionPooler(SPoCPooler()), student_stride=32, teacher_stride=32)
    teacher = torch.rand(1, 6, 4, 4) + 0.1
    first, second = torch.zeros(1, 6, 4, 4), torch.zeros(1, 6, 4, 4)
    first[:, :3], second[:, 3:] = teacher[:, :3], teacher[:, 3:]

    assert loss(3 * teacher, teacher, [(128, 128)]).item() == pytest.approx(0, abs=1e-6)
    assert loss(first, second, [(128, 128)]).item() == pytest.approx(1, abs=1e-6)


def test_regions_lie_in_the_photo_and_have_the_asked_sides() -> None:
    loss = RegionCosineLoss(
        region_pooler=RegionPooler(SPoCPooler()),
        student_stride=32,
        teacher_stride=32,
        num_regions=200,
        region_sides=(0.25, 0.5),
    )

    boxes = loss.draw_regions((300, 500))

    assert boxes.shape == (201, 4)
    assert boxes[0].tolist() == [0, 0, 500, 300]
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 500).all()
    assert (boxes[:, 3] <= 300).all()
    shares = (boxes[1:, 2:] - boxes[1:, :2]) / torch.tensor([500.0, 300.0])
    assert shares.min() >= 0.25 - 1e-5
    assert shares.max() <= 0.5 + 1e-5
    assert shares.std() > 0.02


@pytest.mark.parametrize("name", ["FeatureMapL2Loss", "RegionCosineLoss"])
def test_contract_of_every_loss(name: str) -> None:
    cfg = load_config(
        "lite0/distill_S3.yaml",
        ["MODEL.OESIR.DISTILLATION.LOSSES", f"['{name}']", "MODEL.OESIR.DISTILLATION.LOSS_WEIGHTS", "[1.0]"],
    )
    ((weight, loss),) = build_distillation_losses(cfg, SHAPE, SHAPE)
    student, teacher = torch.rand(2, 6, 4, 4, requires_grad=True), torch.rand(2, 6, 4, 4)
    sizes = [(128, 128), (64, 96)]

    torch.manual_seed(0)
    value = loss(student, teacher, sizes)
    value.backward()

    assert weight == 1
    assert loss.name.startswith("loss_distill_")
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value > 0
    assert student.grad[0].any()
    assert not student.grad[1, :, 2:].any(), "padding has a gradient"
    assert not student.grad[1, :, :, 3:].any(), "padding has a gradient"
    assert loss(teacher, teacher, sizes).item() == pytest.approx(0, abs=1e-6)

    changed = student.detach().clone()
    changed[1, :, 2:] += 7
    torch.manual_seed(0)
    assert loss(changed, teacher, sizes).item() == pytest.approx(value.item(), rel=1e-6)

    torch.manual_seed(0)
    halved = loss(student.detach().half(), teacher.half(), sizes)
    assert halved.dtype == torch.float32
    assert halved.item() == pytest.approx(value.item(), rel=1e-2)


@pytest.mark.parametrize(
    ("losses", "weights", "message"),
    [
        (
            "[]",
            "[]",
            r"LOSSES is \[\]; allowed: .*\['FeatureMapL2Loss', 'RegionCosineLoss', 'WhitenedRegionCosineLoss'\]",
        ),
        ("['FeatureMapL2Loss', 'FeatureMapL2Loss']", "[1.0, 1.0]", "each once"),
        ("['L7']", "[1.0]", "LOSSES 'L7' unknown; allowed"),
        ("['FeatureMapL2Loss']", "[1.0, 2.0]", r"LOSS_WEIGHTS is \[1.0, 2.0\]; allowed: a number > 0 for each"),
        ("['FeatureMapL2Loss']", "[0.0]", r"LOSS_WEIGHTS is \[0.0\]"),
    ],
)
def test_mistakes_in_the_config_are_named(losses: str, weights: str, message: str) -> None:
    prefix = "MODEL.OESIR.DISTILLATION."
    cfg = load_config("lite0/distill_S3.yaml", [prefix + "LOSSES", losses, prefix + "LOSS_WEIGHTS", weights])
    with pytest.raises(ValueError, match=message):
        build_distillation_losses(cfg, SHAPE, SHAPE)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("NUM_REGIONS", "0", "NUM_REGIONS is 0; allowed: at least 1"),
        ("REGION_SIDES", "[0.5, 0.2]", r"REGION_SIDES is \[0.5, 0.2\]; allowed: 0 < min <= max <= 1"),
    ],
)
def test_regions_out_of_range_are_refused(key: str, value: str, message: str) -> None:
    prefix = "MODEL.OESIR.DISTILLATION."
    opts = [prefix + "LOSSES", "['RegionCosineLoss']", prefix + "LOSS_WEIGHTS", "[1.0]", prefix + key, value]
    with pytest.raises(ValueError, match=message):
        build_distillation_losses(load_config("lite0/distill_S3.yaml", opts), SHAPE, SHAPE)


def test_whitened_cosine_is_that_of_whitened_region_vectors(tmp_path: Path) -> None:
    fitted = PCAWhitening(6, 4).fit(torch.rand(50, 6))
    save_whitening(tmp_path / "whitening.safetensors", fitted, {"source": "noise", "count": 50})
    prefix = "MODEL.OESIR.DISTILLATION."
    opts = [
        *(f"{prefix}LOSSES", "['WhitenedRegionCosineLoss']", f"{prefix}LOSS_WEIGHTS", "[1.0]"),
        *(f"{prefix}WHITENING", str(tmp_path / "whitening.safetensors")),
        *(f"{prefix}REGION_SIDES", "[1.0, 1.0]", "MODEL.OESIR.EMBEDDING.REGION_POOLING", "area"),
        *("MODEL.OESIR.EMBEDDING.POOLER", "SPoCPooler"),
    ]
    ((_, loss),) = build_distillation_losses(load_config("lite0/distill_S3.yaml", opts), SHAPE, SHAPE)
    student, teacher = torch.rand(2, 6, 3, 4), torch.rand(2, 6, 3, 4)

    # All regions are the whole photo, whose SPoC is the mean of its cells.
    mean, projection = fitted.mean.numpy().astype(np.float64), fitted.projection.numpy().astype(np.float64)

    def whiten(feature_map: torch.Tensor) -> np.ndarray:
        vectors = feature_map.numpy().astype(np.float64).mean(axis=(2, 3))
        whitened = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) - mean) @ projection.T
        return whitened / np.linalg.norm(whitened, axis=1, keepdims=True)

    expected = 1 - (whiten(student) * whiten(teacher)).sum(axis=1).mean()
    assert loss(student, teacher, [(96, 128)] * 2).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("dimension", "message"),
    [(None, "which is empty; allowed: a file of tools/fit_whitening.py"), (5, "of 5 dimensions")],
)
def test_whitening_to_learn_by_must_be_the_teachers(dimension: int | None, message: str, tmp_path: Path) -> None:
    opts = ["MODEL.OESIR.DISTILLATION.LOSSES", "['WhitenedRegionCosineLoss']"]
    if dimension:
        fitted = PCAWhitening(dimension, 2).fit(torch.rand(20, dimension))
        save_whitening(tmp_path / "w.safetensors", fitted, {"source": "noise", "count": 20})
        opts += ["MODEL.OESIR.DISTILLATION.WHITENING", str(tmp_path / "w.safetensors")]
    cfg = load_config("lite0/distill_S3.yaml", [*opts, "MODEL.OESIR.DISTILLATION.LOSS_WEIGHTS", "[1.0]"])
    with pytest.raises(ValueError, match=message):
        build_distillation_losses(cfg, SHAPE, SHAPE)
