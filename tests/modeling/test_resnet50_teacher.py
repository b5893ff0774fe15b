"""The ResNet-50 teacher against torchvision's and detectron2's own networks, for every form of their weights."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from torch import nn

from oesir_d2.modeling import ResNet50Teacher

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
MSRA_MEAN_BGR = torch.tensor([103.530, 116.280, 123.675]).view(3, 1, 1)

CAFFE_NAMES = {
    r"^stem\.conv1\.norm\.": "res_conv1_bn_",
    r"^stem\.conv1\.": "conv1_",
    r"\.shortcut\.norm\.": "_branch1_bn_",
    r"\.shortcut\.": "_branch1_",
    r"\.conv(\d)\.norm\.": lambda match: f"_branch2{'abc'[int(match[1]) - 1]}_bn_",
    r"\.conv(\d)\.": lambda match: f"_branch2{'abc'[int(match[1]) - 1]}_",
    r"\.(\d)_": r"_\1_",
}
BATCH_NORM_NAMES = {"bn_weight": "bn_gamma", "bn_bias": "bn_beta"}
FUSED_NAMES = {"bn_weight": "bn_s", "bn_bias": "bn_b"}


def rename_to_caffe(state: dict[str, np.ndarray], norm_names: dict[str, str]) -> dict[str, np.ndarray]:
    """detectron2's names of a ResNet's tensors as Caffe2 has them: res2.0.conv1.weight -> res2_0_branch2a_w."""
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in CAFFE_NAMES.items():
            name = re.sub(pattern, replacement, name)
        for before, after in norm_names.items():
            name = name.replace(before, after)
        renamed[re.sub("_weight$", "_w", name)] = value
    return renamed


@pytest.fixture(scope="module")
def msra_network() -> ResNet:
    """A ResNet-50 as detectron2 builds it for MSRA's weights, random."""
    torch.manual_seed(0)
    stages = ResNet.make_default_stages(50, stride_in_1x1=True, norm="FrozenBN")
    network = ResNet(BasicStem(norm="FrozenBN"), stages, out_features=["res4", "res5"]).eval()
    for name, value in network.named_buffers():
        scale = 0.5 if name.endswith(("weight", "running_var")) else 0.0
        value.copy_(torch.rand_like(value) * 0.5 + scale)
    return network


def get_arrays(network: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in network.state_dict().items()}


def write_pickle(path: Path, content: object) -> str:
    path.write_bytes(pickle.dumps(content))
    return str(path)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("layer", ["conv4_1", "conv4_6", "conv5_2", "conv5_3"])
def test_torchvision_weights_give_torchvision_s_maps(
    layer: str, random_resnet50: tuple[nn.Module, Path], make_image: Callable[..., torch.Tensor]
) -> None:
    network, path = random_resnet50
    teacher = ResNet50Teacher(input_format="RGB", layer=layer, weights=str(path))
    image = make_image(64, 96)
    stage, block = int(layer[4]), int(layer[6])
    x = network.maxpool(network.relu(network.bn1(network.conv1(((image / 255 - IMAGENET_MEAN) / IMAGENET_STD)[None]))))
    x = network.layer2(network.layer1(x))
    x = network.layer3[:block](x) if stage == 4 else network.layer4[:block](network.layer3(x))
    actual = teacher([image])
    assert_close(actual, x.detach())
    assert teacher.output_shape.channels == actual.shape[1] == {4: 1024, 5: 2048}[stage]
    assert (64 // teacher.output_shape.stride, 96 // teacher.output_shape.stride) == actual.shape[2:]


@pytest.mark.parametrize(
    ("form", "layer", "input_format"),
    [
        ("caffe", "conv5_3", "BGR"),
        ("caffe, batch norms fused", "conv5_3", "RGB"),
        ("detectron2", "conv4_6", "BGR"),
    ],
)
def test_msra_weights_give_detectron2_s_maps(
    form: str,
    layer: str,
    input_format: str,
    msra_network: ResNet,
    tmp_path: Path,
    make_image: Callable[..., torch.Tensor],
) -> None:
    arrays = get_arrays(msra_network)
    if form == "caffe":  # as detectron2://ImageNetPretrained/MSRA/R-50.pkl
        classifier = {"fc1000_w": np.zeros((1000, 2048), np.float32), "conv1_b": np.zeros(64, np.float32)}
        content: object = rename_to_caffe(arrays, BATCH_NORM_NAMES) | classifier
        assert {"conv1_w", "res_conv1_bn_gamma", "res2_0_branch1_w", "res5_2_branch2c_bn_running_var"} < content.keys()
    elif form == "detectron2":
        content = {"model": arrays, "__author__": "Detectron2 Model Zoo"}
    else:
        msra_network = fuse_batch_norms(msra_network)
        arrays = {name: value for name, value in get_arrays(msra_network).items() if "running" not in name}
        content = rename_to_caffe(arrays, FUSED_NAMES)
        assert {"res_conv1_bn_s", "res2_0_branch2a_bn_b"} < content.keys()
    weights = write_pickle(tmp_path / "R-50.pkl", content)

    image_bgr = make_image(64, 64)
    expected = msra_network((image_bgr - MSRA_MEAN_BGR)[None])[{"conv4_6": "res4", "conv5_3": "res5"}[layer]].detach()
    teacher = ResNet50Teacher(input_format=input_format, layer=layer, weights=weights)
    assert_close(teacher([image_bgr if input_format == "BGR" else image_bgr.flip(0)]), expected)


def fuse_batch_norms(network: ResNet) -> ResNet:
    """The same stages with batch norms whose statistics change nothing."""
    stages = ResNet.make_default_stages(50, stride_in_1x1=True, norm="FrozenBN")
    fused = ResNet(BasicStem(norm="FrozenBN"), stages, out_features=["res4", "res5"]).eval()
    state = {name: value for name, value in network.state_dict().items() if "running" not in name}
    fused.load_state_dict(state, strict=False)
    return fused


def test_torchvision_weights_in_detectron2_s_form(
    random_resnet50: tuple[nn.Module, Path], tmp_path: Path, make_image: Callable[..., torch.Tensor]
) -> None:
    """detectron2://ImageNetPretrained/torchvision/R-50.pkl has detectron2's names, but torchvision's normalisation."""
    own = ResNet50Teacher(input_format="RGB", weights=str(random_resnet50[1]))
    content = {"model": get_arrays(own.network), "__author__": "torchvision", "matching_heuristics": True}
    converted = ResNet50Teacher(input_format="RGB", weights=write_pickle(tmp_path / "R-50.pkl", content))
    image = make_image(64, 64)
    assert torch.equal(own([image]), converted([image]))


def test_channel_order_of_the_input_is_turned_into_the_network_s(
    random_resnet50: tuple[nn.Module, Path], make_image: Callable[..., torch.Tensor]
) -> None:
    weights = str(random_resnet50[1])
    image_rgb = make_image(64, 64)
    expected = ResNet50Teacher(input_format="RGB", weights=weights)([image_rgb])
    teacher = ResNet50Teacher(input_format="BGR", weights=weights)
    assert torch.equal(teacher([image_rgb.flip(0)]), expected)
    assert not torch.allclose(teacher([image_rgb]), expected, rtol=0.01)


@pytest.mark.parametrize("network", ["resnet18", "resnet101", "wide_resnet50_2"])
def test_weights_of_another_network_are_refused_by_name(network: str, tmp_path: Path) -> None:
    import torchvision

    with torch.device("meta"):
        state = getattr(torchvision.models, network)(weights=None).state_dict()
    path = tmp_path / f"{network}.pth"
    # One value, repeated: the file stays small.
    torch.save({name: torch.zeros(()).expand(value.shape) for name, value in state.items()}, path)
    with pytest.raises(ValueError, match=rf"{network}\.pth' are no ResNet-50: "):
        ResNet50Teacher(input_format="RGB", weights=str(path))


@pytest.mark.parametrize("layer", ["conv3_1", "conv4_7", "conv5_4", "res5", ""])
def test_unknown_layer_is_refused(layer: str) -> None:
    with pytest.raises(ValueError, match=rf"layer '{layer}' unknown; allowed: .*'conv4_1'.*'conv5_3'"):
        ResNet50Teacher(input_format="RGB", layer=layer)
