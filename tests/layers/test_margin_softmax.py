"""Margin softmax against an independent computation by angles, its gradients, and its behaviour in low precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from oesir_d2.layers import ArcFace, CosFace, MarginSoftmax


def compute_expected_loss(
    embeddings: np.ndarray, classes: np.ndarray, labels: np.ndarray, kind: str, scale: float, margin: float
) -> float:
    """By angles in float64, one embedding at a time."""
    losses = []
    for embedding, label in zip(embeddings.astype(np.float64), labels, strict=True):
        logits = []
        for k, vector in enumerate(classes.astype(np.float64)):
            cosine = embedding @ vector / math.sqrt((embedding @ embedding) * (vector @ vector))
            angle = math.acos(cosine)
            if k == label and kind == "CosFace":
                cosine -= margin
            elif k == label:
                cosine = math.cos(angle + margin) if angle + margin < math.pi else cosine - margin * math.sin(margin)
            logits.append(scale * cosine)
        largest = max(logits)
        losses.append(largest + math.log(sum(math.exp(x - largest) for x in logits)) - logits[label])
    return float(np.mean(losses))


def make(kind: str, **options: float) -> MarginSoftmax:
    return {"ArcFace": ArcFace, "CosFace": CosFace}[kind](num_classes=5, dim=3, **options)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings in all directions, of all lengths; one of each class and one that points away from its class."""
    generator = torch.Generator().manual_seed(3)
    embeddings = torch.randn(6, 3, generator=generator) * torch.tensor([[0.01], [0.1], [1.0], [10.0], [100.0], [1.0]])
    return embeddings, torch.tensor([0, 1, 2, 3, 4, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "scale", "margin"),
    [("ArcFace", 30, 0.3), ("ArcFace", 64, 0.5), ("ArcFace", 8, 1.5), ("CosFace", 30, 0.35)],
)
def test_loss_is_that_of_the_angles(
    kind: str, scale: float, margin: float, dtype: torch.dtype, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    layer = make(kind, scale=scale, margin=margin)
    embeddings, labels = batch
    with torch.no_grad():
        layer.weight.copy_(torch.randn(5, 3))
        layer.weight[0] = -3 * embeddings[5]  # over pi - margin
    expected = compute_expected_loss(
        embeddings.numpy(), layer.weight.detach().numpy(), labels.numpy(), kind, scale, margin
    )

    loss = layer(embeddings.to(dtype), labels)

    assert loss.dtype == dtype and loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["ArcFace", "CosFace"])
def test_without_a_margin_it_is_a_softmax_of_cosines(kind: str, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    layer = make(kind, scale=10.0, margin=0.0)
    embeddings, labels = batch
    cosines = torch.nn.functional.cosine_similarity(embeddings[:, None], layer.weight[None], dim=2)
    torch.testing.assert_close(layer.compute_cosines(embeddings), cosines)
    # ArcFace's angle of zero margin goes through a sine that is at least 3e-4.
    expected = torch.nn.functional.cross_entropy(10 * cosines, labels)
    torch.testing.assert_close(layer(embeddings, labels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "margin"), [("ArcFace", 0.1), ("ArcFace", 0.5), ("ArcFace", 1.57), ("CosFace", 0.3)])
def test_what_replaces_the_cosine_falls_with_the_angle_and_is_below_it(kind: str, margin: float) -> None:
    cosines = torch.linspace(0, math.pi, 2001, dtype=torch.float64).cos()
    harder = make(kind, margin=margin).add_margin(cosines)
    assert (harder.diff() < 1e-9).all()
    assert (harder < cosines).all()


@pytest.mark.parametrize("kind", ["ArcFace", "CosFace"])
def test_gradients_are_those_of_the_loss(kind: str, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    layer = make(kind, scale=5.0).double()
    embeddings, labels = batch
    embeddings = torch.nn.functional.normalize(embeddings.double()).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x, labels), embeddings)


def test_gradients_are_finite_where_an_embedding_lies_on_its_class_opposite_to_it_or_nowhere() -> None:
    layer = make("ArcFace", scale=64.0, margin=0.5)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(5, 3))
    embeddings = torch.stack([layer.weight[0], -layer.weight[1], torch.zeros(3)]).detach().requires_grad_()

    loss = layer(embeddings, torch.tensor([0, 1, 2]))
    loss.backward()

    assert torch.isfinite(loss)
    for gradient in (embeddings.grad, layer.weight.grad):
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_embeddings_that_follow_the_gradient_gather_around_their_class_by_the_margin() -> None:
    """In the plane, two classes at right angles: with the margin an embedding does not stop where it is just right."""
    layer = ArcFace(num_classes=2, dim=2, scale=30.0, margin=0.5)
    angles = {}
    for margin in (0.0, 0.5):
        layer.margin = margin
        with torch.no_grad():
            layer.weight.copy_(torch.eye(2))
        embedding = torch.tensor([[1.0, 1.2]], requires_grad=True)
        for _ in range(200):
            (gradient,) = torch.autograd.grad(layer(embedding, torch.tensor([0])), embedding)
            embedding = torch.nn.functional.normalize(embedding - 0.003 * gradient).detach().requires_grad_()
        angles[margin] = layer.compute_cosines(embedding)[0, 0].acos().item()
    assert angles[0.5] + 0.2 < angles[0.0] < math.pi / 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_around_it_changes_nothing(dtype: torch.dtype, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    layer = make("ArcFace", scale=64.0, margin=0.5)
    embeddings, labels = batch
    expected = layer(embeddings, labels)
    with torch.autocast("cpu", dtype=dtype):
        assert (embeddings @ embeddings.T).dtype == dtype, "what is outside does run in low precision"
        loss = layer(embeddings, labels)
    assert torch.equal(loss, expected)
    # Of an input of low precision, no more is lost than the input has lost.
    low = embeddings.to(dtype)
    torch.testing.assert_close(layer(low, labels), layer(low.float(), labels), rtol=0, atol=0)


def test_a_thousand_times_longer_embedding_has_the_same_loss(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    layer = make("ArcFace")
    embeddings, labels = batch
    torch.testing.assert_close(layer(1000 * embeddings, labels), layer(embeddings, labels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1, "dim": 3}, "has 1 classes, expected at least 2"),
        ({"num_classes": 5, "dim": 0}, "of 0 dimensions"),
        ({"num_classes": 5, "dim": 3, "scale": 0.0}, "scale of a margin softmax is 0.0"),
        ({"num_classes": 5, "dim": 3, "scale": math.inf}, "scale of a margin softmax is inf"),
        ({"num_classes": 5, "dim": 3, "margin": -0.1}, "margin of a margin softmax is -0.1"),
        ({"num_classes": 5, "dim": 3, "margin": 1.6}, "margin of a margin softmax is 1.6"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArcFace(**options)
