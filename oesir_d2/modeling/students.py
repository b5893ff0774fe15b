"""Students: small heads that learn to give the teacher's map from the photo or from the detector's features.

The paper has three: S1 works on the image, S2 on the detector's stride-4 map, S3 on the maps of all scales of its FPN.
Widths, and how S3 joins the FPN's maps, are our choice: the paper's supplement does not state them.

Shape shorthand: N images of H x W pixels, padded to a multiple of 32; C channels and S stride of the teacher's map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import ImageList
from detectron2.utils.registry import Registry
from torch import nn

from oesir_d2.modeling.registry import get_registered
from oesir_d2.modeling.student_layers import MapJoin, make_layers, plan_strides

SIZE_DIVISIBILITY = 32
NORMS = ("BN", "SyncBN", "GN", "FrozenBN", "")

STUDENT_REGISTRY = Registry("STUDENT")
STUDENT_REGISTRY.__doc__ = """
Students. The registered object is called with ``obj(cfg, input_shape, output_shape)``, where input_shape is the
detector backbone's ``output_shape()`` and output_shape the channels and stride of the map to give, and returns a
:class:`Student`.
"""


class Student(nn.Module):
    """Gives a map of the teacher's channels.

    A subclass sets ``output_shape`` (channels and stride) and ``in_features`` (the names of the detector's maps that
    it takes).

    Like the last blocks of the teachers, students end in a ReLU. Of a teacher's layer without one (EfficientNet-Lite's
    blocks before conv5_3) they learn the positive values, which are all that GeM sees.
    """

    output_shape: ShapeSpec
    in_features: tuple[str, ...] = ()

    def forward(self, images: list[torch.Tensor], features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute the map of a batch.

        Args:
            images: each (3, H_i, W_i), 0 to 255, in cfg.INPUT.FORMAT's channel order.
            features: the detector backbone's maps of the same batch, by name.

        Returns:
            (N, C, H / S, W / S), not negative, not normalised; the images' padding at the right and bottom included.
        """
        raise NotImplementedError


@STUDENT_REGISTRY.register()
class StudentS1(Student):
    """Five bottleneck layers on the image; nothing of the detector is used.

    Args:
        output_shape: channels and stride of the map; stride 8, 16 or 32.
        widths: output channels of the first four layers; the fifth has the map's.
        bottleneck_widths: channels of the 3x3 convolution of each of the five layers.
        norm: normalisation after each convolution, one of ``NORMS``.
        pixel_mean, pixel_std: three values each, for 0 to 255, in the order of the images' channels.
    """

    NUM_LAYERS = 5

    @configurable
    def __init__(
        self,
        *,
        output_shape: ShapeSpec,
        widths: Sequence[int] = (64, 256, 512, 1024),
        bottleneck_widths: Sequence[int] = (32, 64, 128, 256, 512),
        norm: str = "BN",
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        strides = plan_strides(self.NUM_LAYERS, 1, output_shape.stride)
        self.layers = make_layers(3, widths, bottleneck_widths, output_shape.channels, strides, norm)
        self.output_shape = output_shape
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], output_shape: ShapeSpec) -> dict[str, Any]:
        return _build_common_arguments(cfg, output_shape, cls.NUM_LAYERS) | {
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, images: list[torch.Tensor], features: dict[str, torch.Tensor]) -> torch.Tensor:
        normalised = [(image.to(self.pixel_mean) - self.pixel_mean) / self.pixel_std for image in images]
        x = ImageList.from_tensors(normalised, SIZE_DIVISIBILITY).tensor
        for layer in self.layers:
            x = layer(x)
        return x


@STUDENT_REGISTRY.register()
class StudentS2(Student):
    """Three bottleneck layers on the detector's stride-4 map F2.

    Args:
        input_shape: of the detector's maps, by name.
        in_feature: the name of F2 among them.
        output_shape, widths, bottleneck_widths, norm: as for :class:`StudentS1`, for three layers.
    """

    NUM_LAYERS = 3

    @configurable
    def __init__(
        self,
        *,
        input_shape: dict[str, ShapeSpec],
        in_feature: str = "p2",
        output_shape: ShapeSpec,
        widths: Sequence[int] = (512, 1024),
        bottleneck_widths: Sequence[int] = (128, 256, 512),
        norm: str = "BN",
    ) -> None:
        super().__init__()
        self.in_features = (in_feature,)
        shape = input_shape[in_feature]
        strides = plan_strides(self.NUM_LAYERS, shape.stride, output_shape.stride)
        self.layers = make_layers(shape.channels, widths, bottleneck_widths, output_shape.channels, strides, norm)
        self.output_shape = output_shape

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], output_shape: ShapeSpec) -> dict[str, Any]:
        return _build_common_arguments(cfg, output_shape, cls.NUM_LAYERS) | {
            "input_shape": input_shape,
            "in_feature": _build_in_features(cfg, input_shape, 1)[0],
        }

    def forward(self, images: list[torch.Tensor], features: dict[str, torch.Tensor]) -> torch.Tensor:
        x = features[self.in_features[0]]
        for layer in self.layers:
            x = layer(x)
        return x


@STUDENT_REGISTRY.register()
class StudentS3(Student):
    """S2's three layers, each joined by the detector's FPN map of its scale. This is our reading of the paper's S3.

    The first layer takes p2, each other what came before it; they are joined by p3, p4 and p5, of strides 8, 16 and 32.
    A student of a finer stride keeps its later layers at that stride, and the coarser FPN maps are enlarged to it.

    Args:
        input_shape: of the detector's maps, by name.
        in_features: the map that the first layer takes, then the map that joins each layer.
        fusion: "sum" adds a 1x1 projection of the detector's map to the layer's output; "concat" puts the two side by
            side and brings them back to the layer's width by a 1x1 convolution.
        output_shape, widths, bottleneck_widths, norm: as for :class:`StudentS2`.
    """

    NUM_LAYERS = 3

    @configurable
    def __init__(
        self,
        *,
        input_shape: dict[str, ShapeSpec],
        in_features: Sequence[str] = ("p2", "p3", "p4", "p5"),
        fusion: str = "sum",
        output_shape: ShapeSpec,
        widths: Sequence[int] = (512, 1024),
        bottleneck_widths: Sequence[int] = (128, 256, 512),
        norm: str = "BN",
    ) -> None:
        super().__init__()
        first, *joined = in_features
        assert len(joined) == self.NUM_LAYERS, f"S3 takes {self.NUM_LAYERS + 1} maps, got {list(in_features)}"
        self.in_features = tuple(in_features)
        shape = input_shape[first]
        strides = plan_strides(self.NUM_LAYERS, shape.stride, output_shape.stride)
        self.layers = make_layers(shape.channels, widths, bottleneck_widths, output_shape.channels, strides, norm)
        self.joins = nn.ModuleList(
            MapJoin(width, input_shape[name].channels, fusion, norm)
            for width, name in zip((*widths, output_shape.channels), joined, strict=True)
        )
        self.output_shape = output_shape

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], output_shape: ShapeSpec) -> dict[str, Any]:
        return _build_common_arguments(cfg, output_shape, cls.NUM_LAYERS) | {
            "input_shape": input_shape,
            "in_features": _build_in_features(cfg, input_shape, cls.NUM_LAYERS + 1),
            "fusion": cfg.MODEL.OESIR.STUDENT.FUSION,
        }

    def forward(self, images: list[torch.Tensor], features: dict[str, torch.Tensor]) -> torch.Tensor:
        first, *joined = self.in_features
        x = features[first]
        for layer, join, name in zip(self.layers, self.joins, joined, strict=True):
            x = join(layer(x), features[name])
        return x


def _build_common_arguments(cfg: CfgNode, output_shape: ShapeSpec, num_layers: int) -> dict[str, Any]:
    """What every student takes from the config; empty lists leave a class's own widths.

    Raises:
        ValueError: an unknown normalisation, or a wrong number of widths.
    """
    options = cfg.MODEL.OESIR.STUDENT
    if options.NORM not in NORMS:
        raise ValueError(f"MODEL.OESIR.STUDENT.NORM {options.NORM!r} unknown; allowed: {list(NORMS)}")
    arguments: dict[str, Any] = {"output_shape": output_shape, "norm": options.NORM}
    for key, name, count in (
        ("WIDTHS", "widths", num_layers - 1),
        ("BOTTLENECK_WIDTHS", "bottleneck_widths", num_layers),
    ):
        values = tuple(options[key])
        if values and len(values) != count:
            raise ValueError(
                f"MODEL.OESIR.STUDENT.{key} has {len(values)} values, {list(values)}; "
                f"{options.NAME} needs {count}, or none for its defaults"
            )
        if values:
            arguments[name] = values
    return arguments


def _build_in_features(cfg: CfgNode, input_shape: dict[str, ShapeSpec], count: int) -> list[str]:
    """The first ``count`` of STUDENT.IN_FEATURES.

    Raises:
        ValueError: there are fewer, or the backbone does not have one of them.
    """
    names = list(cfg.MODEL.OESIR.STUDENT.IN_FEATURES)[:count]
    unknown = [name for name in names if name not in input_shape]
    if unknown or len(names) < count:
        raise ValueError(
            f"MODEL.OESIR.STUDENT.IN_FEATURES is {list(cfg.MODEL.OESIR.STUDENT.IN_FEATURES)}; "
            f"{cfg.MODEL.OESIR.STUDENT.NAME} needs {count} of the backbone's maps {sorted(input_shape)}"
        )
    return names


def build_student(cfg: CfgNode, input_shape: dict[str, ShapeSpec], output_shape: ShapeSpec) -> Student:
    """Build the student that ``MODEL.OESIR.STUDENT.NAME`` names."""
    name = cfg.MODEL.OESIR.STUDENT.NAME
    return get_registered(STUDENT_REGISTRY, name, "MODEL.OESIR.STUDENT.NAME")(cfg, input_shape, output_shape)
