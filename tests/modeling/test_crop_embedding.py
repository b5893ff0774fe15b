"""Regions as photos of their own, and detection without any embedding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import nn

from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.model_loading import load_model
from oesir_d2.modeling.crop_embedding import crop_boxes

MakeImage = Callable[..., torch.Tensor]
SIZE = 64
GRID = [
    *("MODEL.DEVICE", "cpu", "MODEL.OESIR.EMBEDDING.WHITENING_DIM", "0", "MODEL.OESIR.EMBEDDING.WHITENING", ""),
    *("MODEL.OESIR.TEACHER.LAYER", "conv4_6", "MODEL.OESIR.REGIONS.GRID_LEVELS", "[1, 2]"),
]
CROPS = ["MODEL.META_ARCHITECTURE", "CropOESIR", "MODEL.OESIR.CROPS.SIZE", str(SIZE)]


def build(*opts: str, config: str = "oesir_lite0_grid.yaml") -> nn.Module:
    return load_model(load_config(config, [*GRID, *opts]))


@pytest.fixture(scope="module")
def crop_model() -> nn.Module:
    return build(*CROPS)


def resize(photo: torch.Tensor, size: int) -> torch.Tensor:
    return F.interpolate(photo[None].float(), size=(size, size), mode="bilinear", align_corners=False)[0]


def test_crops_that_grow_are_interpolated(make_image: MakeImage) -> None:
    photo = make_image(30, 40)
    whole, part = crop_boxes(photo, torch.tensor([[0.0, 0, 40, 30], [8, 5, 28, 25]]), SIZE)

    torch.testing.assert_close(whole, resize(photo, SIZE), rtol=0, atol=1e-3)
    # Away from its border, where the crop alone has no neighbours to interpolate with.
    expected = resize(photo[:, 5:25, 8:28], SIZE)
    torch.testing.assert_close(part[:, 3:-3, 3:-3], expected[:, 3:-3, 3:-3], rtol=0, atol=1e-3)


def test_crops_that_shrink_are_averaged(make_image: MakeImage) -> None:
    photo = make_image(80, 120)
    (crop,) = crop_boxes(photo, torch.tensor([[20.0, 10, 84, 74]]), 16)

    torch.testing.assert_close(crop, F.avg_pool2d(photo[None, :, 10:74, 20:84].float(), 4)[0], rtol=0, atol=1e-3)


@torch.no_grad()
def test_a_region_is_embedded_as_a_photo_of_its_own(crop_model: nn.Module, make_image: MakeImage) -> None:
    """Against an OESIR that gets each crop as its photo; the crops are those of this test."""
    photo, plain = make_image(48, 80), build()
    output = crop_model([{"image": photo}])[0]
    regions = output["instances"]

    assert torch.equal(regions.pred_boxes.tensor, plain([{"image": photo}])[0]["instances"].pred_boxes.tensor)
    assert regions.pred_boxes.tensor[-1].tolist() == [0, 0, 80, 48]
    assert torch.equal(regions.embeddings[-1], output["image_embedding"])
    for box, embedding in zip(regions.pred_boxes.tensor, regions.embeddings, strict=True):
        crop = crop_boxes(photo, box[None], SIZE)[0]
        torch.testing.assert_close(embedding, plain([{"image": crop}])[0]["image_embedding"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(regions.embeddings, plain([{"image": photo}])[0]["instances"].embeddings, atol=0.01)


@torch.no_grad()
def test_batches_of_crops_and_photos_change_nothing(crop_model: nn.Module, make_image: MakeImage) -> None:
    inputs = [{"image": make_image(48, 80)}, {"image": make_image(64, 40)}]
    small_batches = build(*CROPS, "MODEL.OESIR.CROPS.BATCH", "3")
    for x, expected in zip(inputs, crop_model(inputs), strict=True):
        embeddings = small_batches([x])[0]["instances"].embeddings
        torch.testing.assert_close(embeddings, expected["instances"].embeddings, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_given_boxes_are_cropped_and_nothing_is_detected(
    make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(*CROPS, "MODEL.OESIR.CROPS.SIZE", "32", config="lite0/Base-lite0-RCNN-FPN.yaml")
    photo, boxes = make_image(64, 64), torch.tensor([[8.0, 4.0, 60.0, 50.0], [0.0, 0.0, 20.0, 64.0]])
    given = Instances((64, 64), pred_boxes=Boxes(boxes), scores=torch.ones(2), pred_classes=torch.zeros(2).long())
    monkeypatch.setattr(model.backbone, "forward", None)
    (output,) = model.inference([{"image": photo}], detected_instances=[given])

    assert torch.equal(output["instances"].pred_boxes.tensor[:2], boxes)
    crops = [{"image": crop} for crop in crop_boxes(photo, boxes, 32)]
    expected = torch.stack([x["image_embedding"] for x in build()(crops)])
    torch.testing.assert_close(output["instances"].embeddings[:2], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["MODEL.OESIR.CROPS.SIZE", "0"], "MODEL.OESIR.CROPS.SIZE is 0; allowed: at least 1"),
        (["MODEL.OESIR.CROPS.BATCH", "-1"], "MODEL.OESIR.CROPS.BATCH is -1; allowed: at least 1"),
        (
            ["MODEL.OESIR.EMBEDDING.SOURCE", "DetectorSource"],
            "'DetectorSource' does not work on crops; allowed: 'Teach",
        ),
    ],
)
def test_what_does_not_go_is_refused(opts: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(*CROPS, *opts, config="lite0/Base-lite0-RCNN-FPN.yaml")


@pytest.mark.parametrize("architecture", ["OESIR", "CropOESIR"])
@torch.no_grad()
def test_detection_alone_gives_the_same_regions_and_runs_no_source(
    architecture: str, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    opts = ["MODEL.META_ARCHITECTURE", architecture, "MODEL.OESIR.REGIONS.SCORE_THRESH", "0.0"]
    model = build(*CROPS, *opts, "MODEL.RPN.POST_NMS_TOPK_TEST", "20", config="lite0/Base-lite0-RCNN-FPN.yaml")
    inputs = [{"image": make_image(64, 96), "height": 128, "width": 192}]
    embedded = model(inputs)[0]["instances"][:-1]
    monkeypatch.setattr(model.embedding_source, "forward", None)
    (output,) = model.detect(inputs)

    assert len(embedded) > 3
    assert set(output) == {"instances"} and not output["instances"].has("embeddings")
    for name in ("pred_boxes", "scores", "pred_classes"):
        found, expected = (instances.get(name) for instances in (output["instances"], embedded))
        found, expected = (getattr(value, "tensor", value) for value in (found, expected))
        assert torch.equal(found, expected)
