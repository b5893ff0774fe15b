"""The whole network: what comes out, in whose pixels, and that given boxes are embedded as the model's own are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from oesir_d2.modeling.regions import GivenRegions, GridRegions, RegionProposer, RPNRegions
from oesir_d2.structures import NO_CLASS

MakeImage = Callable[..., torch.Tensor]
UseProposer = Callable[[nn.Module, RegionProposer], None]
BOXES = torch.tensor([[8.0, 4.0, 60.0, 50.0], [0.0, 0.0, 96.0, 64.0], [30.5, 20.25, 40.0, 44.0]])


@pytest.fixture
def use_proposer() -> Iterator[Callable[[nn.Module, RegionProposer], None]]:
    """``use_proposer(model, proposer)`` replaces a model's region proposer for the rest of a test."""
    replaced = []

    def use(model: nn.Module, proposer: RegionProposer) -> None:
        replaced.append((model, model.roi_heads.region_proposer))
        model.roi_heads.region_proposer = proposer

    yield use
    for model, proposer in reversed(replaced):
        model.roi_heads.region_proposer = proposer


def forbid(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"{name} was run")

    monkeypatch.setattr(owner, name, fail)


def make_given(boxes: torch.Tensor, size: tuple[int, int]) -> Instances:
    count = len(boxes)
    scores, classes = torch.full((count,), 0.5), torch.full((count,), 3)
    return Instances(size, pred_boxes=Boxes(boxes.clone()), scores=scores, pred_classes=classes)


def make_proposals(boxes: torch.Tensor, size: tuple[int, int]) -> Instances:
    return Instances(size, proposal_boxes=Boxes(boxes.clone()))


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_name", ["grid_model", "detector_model"])
@torch.no_grad()
def test_output_is_regions_with_embeddings_and_the_whole_image(
    model_name: str, request: pytest.FixtureRequest, make_image: MakeImage
) -> None:
    model = request.getfixturevalue(model_name)
    (output,) = model([{"image": make_image(64, 96), "height": 128, "width": 288}])
    assert set(output) == {"instances", "image_embedding"}
    regions, count = output["instances"], len(output["instances"])
    assert set(regions.get_fields()) == {"pred_boxes", "scores", "pred_classes", "embeddings"}
    assert count > 3 and regions.image_size == (128, 288)
    assert regions.embeddings.shape == (count, model.roi_heads.embedding_head.dimension)
    assert regions.embeddings.dtype == output["image_embedding"].dtype == torch.float32
    assert_close(regions.embeddings.norm(dim=1), torch.ones(count))
    boxes = regions.pred_boxes.tensor
    assert boxes[:, :2].min() >= 0 and boxes[:, 2].max() <= 288 and boxes[:, 3].max() <= 128
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes[-1].tolist() == [0, 0, 288, 128]
    assert (regions.scores[-1], regions.pred_classes[-1]) == (1, NO_CLASS)
    assert torch.equal(regions.embeddings[-1], output["image_embedding"])


@torch.no_grad()
def test_boxes_are_scaled_to_the_original_image(grid_model: nn.Module, make_image: MakeImage) -> None:
    image = make_image(64, 96)
    ((plain,), (scaled,)) = (grid_model([{"image": image} | size]) for size in ({}, {"height": 128, "width": 288}))
    factors = torch.tensor([3.0, 2.0, 3.0, 2.0])
    assert_close(scaled["instances"].pred_boxes.tensor, plain["instances"].pred_boxes.tensor * factors)
    assert torch.equal(scaled["instances"].embeddings, plain["instances"].embeddings)


@pytest.mark.parametrize("sizes", [[(64, 96)], [(64, 96), (96, 50)], [(64, 96), (64, 96), (20, 130)]])
@torch.no_grad()
def test_a_batch_gives_what_its_photos_give_one_by_one(
    sizes: list[tuple[int, int]], grid_model: nn.Module, make_image: MakeImage
) -> None:
    inputs = [{"image": make_image(*size)} for size in sizes]
    for in_batch, single in zip(grid_model(inputs), inputs, strict=True):
        (alone,) = grid_model([single])
        assert_close(in_batch["instances"].embeddings, alone["instances"].embeddings)
        assert_close(in_batch["image_embedding"], alone["image_embedding"])
        assert torch.equal(in_batch["instances"].pred_boxes.tensor, alone["instances"].pred_boxes.tensor)


@torch.no_grad()
def test_without_the_whole_image_there_are_regions_alone(
    grid_model: nn.Module, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_image(64, 96)
    (with_image,) = grid_model([{"image": image}])
    monkeypatch.setattr(grid_model, "whole_image", False)
    (without,) = grid_model([{"image": image}])
    assert torch.equal(without["instances"].embeddings, with_image["instances"].embeddings[:-1])
    assert torch.equal(without["image_embedding"], with_image["image_embedding"])


@torch.no_grad()
def test_image_without_detections_is_its_whole_self(
    detector_model: nn.Module, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector_model.roi_heads.region_proposer, "score_threshold", 1.1)
    (output,) = detector_model([{"image": make_image(64, 96)}])
    assert output["instances"].pred_boxes.tensor.tolist() == [[0, 0, 96, 64]]
    assert torch.equal(output["instances"].embeddings[0], output["image_embedding"])
    monkeypatch.setattr(detector_model, "whole_image", False)
    (output,) = detector_model([{"image": make_image(64, 96)}])
    assert output["instances"].embeddings.shape == (0, 2048)


@torch.no_grad()
def test_detected_boxes_given_back_get_the_same_embeddings(detector_model: nn.Module, make_image: MakeImage) -> None:
    image = make_image(64, 96)
    detected = detector_model([{"image": image}])[0]["instances"][:-1]
    assert len(detected) > 3
    given = make_given(detected.pred_boxes.tensor, (64, 96))
    (output,) = detector_model.inference([{"image": image}], detected_instances=[given])
    assert_close(output["instances"].embeddings[:-1], detected.embeddings)
    assert torch.equal(output["instances"].pred_boxes.tensor[:-1], detected.pred_boxes.tensor)


@torch.no_grad()
def test_a_box_has_one_embedding_however_it_comes(
    grid_model: nn.Module, make_image: MakeImage, use_proposer: UseProposer
) -> None:
    image, size = make_image(64, 96), (64, 96)
    grid = grid_model([{"image": image}])[0]["instances"][:-1]
    boxes = grid.pred_boxes.tensor[[2, 0, 11]]
    given = grid_model.inference([{"image": image}], detected_instances=[make_given(boxes, size)])[0]["instances"]
    use_proposer(grid_model, GivenRegions())
    proposed = grid_model([{"image": image, "proposals": make_proposals(boxes, size)}])[0]["instances"]
    for regions in (given, proposed):
        assert_close(regions.embeddings[:-1], grid.embeddings[[2, 0, 11]])
        assert torch.equal(regions.pred_boxes.tensor[:-1], boxes)


@torch.no_grad()
def test_given_boxes_keep_their_order_scores_and_classes(grid_model: nn.Module, make_image: MakeImage) -> None:
    images, sizes = [make_image(64, 96), make_image(96, 64)], [(64, 96), (96, 64)]
    given = [make_given(BOXES, sizes[0]), make_given(torch.zeros(0, 4), sizes[1])]
    inputs = [{"image": image, "height": 128, "width": 192} for image in images]
    first, second = grid_model.inference(inputs, detected_instances=given)
    assert torch.equal(first["instances"].pred_boxes.tensor[:-1], BOXES * 2)
    assert first["instances"].scores.tolist() == [0.5, 0.5, 0.5, 1]
    assert first["instances"].pred_classes.tolist() == [3, 3, 3, NO_CLASS]
    assert len(second["instances"]) == 1  # no box given: the whole image is left
    assert torch.equal(second["instances"].embeddings[0], second["image_embedding"])


@pytest.mark.parametrize("whole_image", [True, False])
@torch.no_grad()
def test_the_caller_s_boxes_are_not_changed(
    whole_image: bool,
    grid_model: nn.Module,
    make_image: MakeImage,
    use_proposer: UseProposer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grid_model, "whole_image", whole_image)
    given, proposals = make_given(BOXES, (64, 96)), make_proposals(BOXES, (64, 96))
    inputs = [{"image": make_image(64, 96), "height": 640, "width": 960, "proposals": proposals}]
    grid_model.inference(inputs, detected_instances=[given])
    use_proposer(grid_model, GivenRegions())
    grid_model(inputs)
    assert torch.equal(given.pred_boxes.tensor, BOXES) and torch.equal(proposals.proposal_boxes.tensor, BOXES)
    assert not given.has("embeddings")


@torch.no_grad()
def test_given_proposals_are_used_in_a_model_that_has_an_rpn(
    detector_model: nn.Module, make_image: MakeImage, use_proposer: UseProposer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image = detector_model, make_image(64, 96)
    use_proposer(model, GivenRegions())
    forbid(monkeypatch, model.proposal_generator, "forward")
    forbid(monkeypatch, model.roi_heads, "_forward_box")
    proposed = model([{"image": image, "proposals": make_proposals(BOXES, (64, 96))}])[0]["instances"]
    given = model.inference([{"image": image}], detected_instances=[make_given(BOXES, (64, 96))])[0]["instances"]
    assert_close(proposed.embeddings, given.embeddings)


@torch.no_grad()
def test_rpn_regions_are_the_rpn_s_proposals(
    detector_model: nn.Module, make_image: MakeImage, use_proposer: UseProposer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image = detector_model, make_image(64, 96)
    use_proposer(model, RPNRegions(max_regions=9))
    images = model.preprocess_image([{"image": image}])
    (proposals,), _ = model.proposal_generator(images, model.backbone(images.tensor), None)
    forbid(monkeypatch, model.roi_heads, "_forward_box")
    regions = model([{"image": image}])[0]["instances"][:-1]
    logits, order = proposals.objectness_logits.sort(descending=True)
    assert_close(regions.scores, logits[:9].sigmoid())
    assert_close(regions.pred_boxes.tensor, proposals.proposal_boxes.tensor[order[:9]])
    assert regions.pred_classes.eq(NO_CLASS).all()


@torch.no_grad()
def test_grid_regions_run_no_part_of_the_detector_s_heads(
    detector_model: nn.Module, make_image: MakeImage, use_proposer: UseProposer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = detector_model
    use_proposer(model, GridRegions(levels=(1, 2), overlap=0.4, max_regions=3))
    forbid(monkeypatch, model.proposal_generator, "forward")
    forbid(monkeypatch, model.roi_heads, "_forward_box")
    assert len(model([{"image": make_image(64, 96)}])[0]["instances"]) == 4


@pytest.mark.parametrize("given", [None, [make_given(BOXES, (64, 96))]])
@torch.no_grad()
def test_one_pass_does_it_all(given: list[Instances] | None, detector_model: nn.Module, make_image: MakeImage) -> None:
    calls: list[str] = []
    parts = {"backbone": detector_model.backbone, "teacher": detector_model.embedding_source.teacher}
    hooks = [module.register_forward_hook(lambda *_, name=name: calls.append(name)) for name, module in parts.items()]
    detector_model.inference([{"image": make_image(64, 96)}], detected_instances=given)
    for hook in hooks:
        hook.remove()
    assert sorted(calls) == ["backbone", "teacher"]


@torch.no_grad()
def test_missing_proposals_and_boxes_of_another_size_are_refused(
    detector_model: nn.Module, make_image: MakeImage, use_proposer: UseProposer
) -> None:
    model, image = detector_model, make_image(64, 96)
    use_proposer(model, GivenRegions())
    complete = {"image": image, "proposals": make_proposals(BOXES, (64, 96))}
    with pytest.raises(ValueError, match="GivenRegions .* needs 'proposals' in every input; input 1 has none"):
        model([complete, {"image": image}])
    sizes = r"\(height, width\) \[\(640, 960\)\], expected the network's inputs: \[\(64, 96\)\]"
    with pytest.raises(ValueError, match=sizes):
        model([{"image": image, "proposals": make_proposals(BOXES, (640, 960))}])
    with pytest.raises(ValueError, match=sizes):
        model.inference([{"image": image}], detected_instances=[make_given(BOXES, (640, 960))])


@torch.no_grad()
def test_whole_image_refuses_regions_with_fields_that_it_lacks(grid_model: nn.Module, make_image: MakeImage) -> None:
    given = make_given(BOXES, (64, 96))
    given.pred_masks = torch.zeros(3, 64, 96)
    with pytest.raises(ValueError, match=r"cannot join regions with \['pred_masks'\]; set .*WHOLE_IMAGE False"):
        grid_model.inference([{"image": make_image(64, 96)}], detected_instances=[given])


@torch.no_grad()
def test_raw_regions_stay_in_the_network_s_pixels(grid_model: nn.Module, make_image: MakeImage) -> None:
    inputs = [{"image": make_image(64, 96), "height": 640, "width": 960}]
    (raw,) = grid_model.inference(inputs, do_postprocess=False)
    (output,) = grid_model.inference(inputs)
    assert raw.image_size == (64, 96)
    assert_close(raw.pred_boxes.tensor * 10, output["instances"].pred_boxes.tensor)
    assert torch.equal(raw.embeddings, output["instances"].embeddings)
