"""Models and photos that the tests of the network share."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.model_loading import load_model


@pytest.fixture
def make_image(make_photo: Callable[..., np.ndarray]) -> Callable[..., torch.Tensor]:
    """``make_image(height, width)`` gives a new photo as the model takes it: (3, H, W) uint8."""
    return lambda height, width: torch.from_numpy(make_photo(height, width).transpose(2, 0, 1).copy())


@pytest.fixture(scope="session")
def grid_model() -> nn.Module:
    """The embedded default as it is shipped: grid regions of an EfficientNet-Lite0, whitened."""
    return load_model(load_config("oesir_lite0_grid.yaml"))


@pytest.fixture(scope="session")
def random_resnet50(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """torchvision's ResNet-50 with random weights and statistics, in eval mode, and its state dict as a .pth file."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    network = resnet50(weights=None).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    path = tmp_path_factory.mktemp("torchvision") / "resnet50.pth"
    torch.save(network.state_dict(), path)
    return network, path


DETECTOR_OPTS = ["MODEL.DEVICE", "cpu", "MODEL.RPN.POST_NMS_TOPK_TEST", "60"]
"""Fewer proposals than usual: a random RPN finds objects everywhere."""


@pytest.fixture(scope="session")
def zoo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A Faster R-CNN of detectron2's model zoo with random weights, and its checkpoint in the form of the zoo."""
    from detectron2 import model_zoo
    from detectron2.modeling import build_model

    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml")
    cfg.merge_from_list(DETECTOR_OPTS)
    torch.manual_seed(0)
    detector = build_model(cfg).eval()
    with torch.no_grad():  # so that proposals and detections differ, and some scores are over the threshold
        detector.backbone.bottom_up.stem.conv1.weight /= 1000
        detector.roi_heads.box_predictor.cls_score.weight *= 20
    path = tmp_path_factory.mktemp("zoo") / "model_final_280758.pkl"
    arrays = {name: value.numpy() for name, value in detector.state_dict().items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    return detector, path


@pytest.fixture(scope="session")
def detector_model(zoo_checkpoint: tuple[nn.Module, Path], random_resnet50: tuple[nn.Module, Path]) -> nn.Module:
    """The research model: the zoo's detector, loaded from its file, and a ResNet-50 with random weights as teacher."""
    weights = ["MODEL.WEIGHTS", str(zoo_checkpoint[1]), "MODEL.OESIR.TEACHER.WEIGHTS", str(random_resnet50[1])]
    return load_model(load_config("oesir_R50.yaml", [*DETECTOR_OPTS, *weights]))
