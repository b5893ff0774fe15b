"""The proposer that proposes nothing: a photo is its global vector alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.model_loading import load_model
from oesir_d2.modeling import build_region_proposer

NO_REGIONS = ["MODEL.DEVICE", "cpu", "MODEL.OESIR.REGIONS.PROPOSER", "NoRegions"]


@torch.no_grad()
def test_a_photo_is_its_whole_self(make_image: Callable[..., torch.Tensor]) -> None:
    model = load_model(load_config("oesir_lite0_grid.yaml", NO_REGIONS))
    inputs = [{"image": make_image(64, 96), "height": 128, "width": 192}, {"image": make_image(96, 50)}]
    first, second = model(inputs)

    assert first["instances"].pred_boxes.tensor.tolist() == [[0, 0, 192, 128]]
    assert second["instances"].pred_boxes.tensor.tolist() == [[0, 0, 50, 96]]
    for output in (first, second):
        assert torch.equal(output["instances"].embeddings, output["image_embedding"][None])


def test_it_needs_the_whole_image() -> None:
    cfg = load_config("oesir_lite0_grid.yaml", [*NO_REGIONS, "MODEL.OESIR.REGIONS.WHOLE_IMAGE", "False"])
    with pytest.raises(ValueError, match="'NoRegions' needs MODEL.OESIR.REGIONS.WHOLE_IMAGE True"):
        build_region_proposer(cfg)
