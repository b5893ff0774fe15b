"""detectron2 stays as it is: importing oesir_d2 adds to its registries, and changes nothing that it computes.

The wheel of detectron2 carries no tests of its own. So a process of its own runs detectron2's ROI heads, RPN and
postprocessing, imports oesir_d2, and runs them again on the same numbers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

PROBE = """
import json, warnings
warnings.simplefilter("ignore")
import torch
from detectron2 import modeling
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

SIZE = (64, 96)
BOXES = torch.tensor([[8.0, 8.0, 40.0, 40.0], [30.0, 10.0, 90.0, 60.0]])

def probe():
    registries = {
        name: {key: f"{obj.__module__}.{obj.__qualname__}" for key, obj in getattr(modeling, name)}
        for name in dir(modeling)
        if name.endswith("_REGISTRY")
    }
    results = {}
    for heads in ("StandardROIHeads", "CascadeROIHeads"):
        run(heads, lambda name, value: results.__setitem__(f"{heads} {name}", value.double().flatten().tolist()))
    return {"registries": registries, "config": get_cfg().dump(), "results": results}

def run(heads, note):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 50
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.MODEL.ROI_HEADS.NAME = heads
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIAlignV2"
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = heads == "CascadeROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    torch.manual_seed(0)
    shapes = {"res4": ShapeSpec(channels=32, stride=16)}
    features = {"res4": torch.rand(2, 32, 4, 6)}
    images = ImageList(torch.rand(2, 3, *SIZE), [SIZE, SIZE])
    targets = [Instances(SIZE, gt_boxes=Boxes(BOXES.clone()), gt_classes=torch.tensor([2, 4])) for _ in range(2)]
    rpn = modeling.build_proposal_generator(cfg, shapes)
    roi_heads = modeling.build_roi_heads(cfg, shapes)
    with EventStorage():
        proposals, losses = rpn(images, features, targets)
        losses = losses | roi_heads(images, features, proposals, targets)[1]
    for name, loss in losses.items():
        note(name, loss)
    sum(losses.values()).backward()
    for name, parameter in [*rpn.named_parameters(), *roi_heads.named_parameters()]:
        note(f"gradient of {name}", parameter.grad.norm())
    with torch.no_grad():
        proposals, _ = rpn.eval()(images, features, None)
        predictions, _ = roi_heads.eval()(images, features, proposals, None)
    for proposals_per_image, predictions_per_image in zip(proposals, predictions):
        output = modeling.detector_postprocess(predictions_per_image, 128, 300)
        note("proposals", proposals_per_image.proposal_boxes.tensor)
        note("boxes", output.pred_boxes.tensor)
        note("scores", output.scores)

torch.set_num_threads(1)
before = probe()
import oesir_d2
print(json.dumps([before, probe()]))
"""


@pytest.fixture(scope="module")
def probes() -> tuple[dict[str, Any], dict[str, Any]]:
    """What detectron2 has and computes before and after oesir_d2 is imported."""
    process = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == 0, process.stderr
    before, after = json.loads(process.stdout.splitlines()[-1])
    return before, after


def test_registries_are_only_added_to(probes: tuple[dict[str, Any], dict[str, Any]]) -> None:
    before, after = (probe["registries"] for probe in probes)
    assert {"ROI_HEADS_REGISTRY", "META_ARCH_REGISTRY", "BACKBONE_REGISTRY"} <= before.keys() == after.keys()
    for name, registered in before.items():
        assert registered.items() <= after[name].items(), name
        added = {key: path for key, path in after[name].items() if key not in registered}
        assert all(path.startswith("oesir_d2.") for path in added.values()), name
    assert {"ObjectEmbeddingROIHeads", "RegionEmbeddingROIHeads"} <= after["ROI_HEADS_REGISTRY"].keys()
    assert "OESIR" in after["META_ARCH_REGISTRY"]


def test_default_config_is_untouched(probes: tuple[dict[str, Any], dict[str, Any]]) -> None:
    before, after = probes
    assert before["config"] == after["config"]


def test_losses_gradients_and_boxes_are_the_same(probes: tuple[dict[str, Any], dict[str, Any]]) -> None:
    before, after = (probe["results"] for probe in probes)
    for heads in ("StandardROIHeads", "CascadeROIHeads"):
        assert len(before[f"{heads} boxes"]) > 4 and len(before[f"{heads} proposals"]) > 4
        assert before[f"{heads} loss_rpn_loc"][0] > 0
    assert any("gradient of" in name and values[0] > 0 for name, values in before.items())
    assert before == after
