"""What a model costs: parameters, multiply-adds and time, of detection alone and of all that embedding adds.

Shape shorthand: H x W pixels of the network's input, R regions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from fvcore.nn import FlopCountAnalysis
from torch import nn

from oesir_d2.engine.model_info import hash_tensors
from oesir_d2.engine.timing import time_side_by_side
from oesir_d2.modeling import OESIR, CropOESIR, build_teacher
from oesir_d2.modeling.embedding_source import DetectorSource, TeacherSource
from oesir_d2.modeling.weights import SOURCE_PREFIX

HEAD_PREFIX = "roi_heads.embedding_head."
RUNNING_STATISTICS = (".running_mean", ".running_var")
GIGA = 1e9


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Numbers that a model's weight file holds, by part; the running statistics of its batch norms are not counted.

    Frozen batch norms, which torch does not call parameters, count as those that learn do; so does a whitening.

    Returns:
        ``detector`` (all but the others: backbone, RPN and box head), ``source`` (student or teacher) and ``head`` (the
        embedding head with its whitening).
    """
    counts = {"detector": 0, "source": 0, "head": 0}
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not name.endswith(RUNNING_STATISTICS):
            counts[_name_part(name)] += value.numel()
    return counts


def hash_detector(model: nn.Module) -> str:
    """The hash of a model's detector: where it is the same, so are the regions; "" for a model without one."""
    state = {name: value for name, value in model.state_dict().items() if _name_part(name) == "detector"}
    return hash_tensors(state) if state else ""


def _name_part(name: str) -> str:
    """The part of a model that a tensor of its state dict belongs to."""
    if name.startswith(SOURCE_PREFIX):
        return "source"
    return "head" if name.startswith(HEAD_PREFIX) else "detector"


@dataclass(frozen=True)
class MultiplyAdds:
    """Billions of multiply-adds of one photo: a multiplication with the addition that follows it counts once.

    Attributes:
        width, height: of the network's input, in pixels.
        regions: R, those that the photo got, the whole image among them; what regions cost depends on it.
        detection: backbone, RPN, box head and the choice of regions; None for a model without a detector.
        source: what makes the embedding map, student or teacher.
        head: all else.
        total: of all together.
        teacher: the config's teacher alone, on the photo as a whole.
        unsupported: operators that fvcore has no count for, and how often each is run; they are not in the figures.
    """

    width: int
    height: int
    regions: int
    detection: float | None
    source: float
    head: float
    total: float
    teacher: float
    unsupported: dict[str, int]


class _RunOn(nn.Module):
    """A function of one photo as a module that can be traced, with the model that it runs."""

    def __init__(self, model: nn.Module, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.model = model
        self._function = function

    def forward(self, image: torch.Tensor) -> Any:
        return self._function(image)


@torch.no_grad()
def count_multiply_adds(model: OESIR, teacher: nn.Module, image: torch.Tensor) -> MultiplyAdds:
    """Count what a model does with a photo, by fvcore.

    Args:
        model: in eval mode.
        teacher: counted alone.
        image: (3, H, W), 0 to 255.
    """
    num_regions = 0

    # All that comes out is returned: what no output depends on would not be in the trace.
    def infer(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        nonlocal num_regions
        (regions,) = model.inference([{"image": image}], do_postprocess=False)
        num_regions = len(regions)
        return regions.pred_boxes.tensor, regions.scores, regions.embeddings

    def detect(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        regions = model.detect([{"image": image}])[0]["instances"]
        return regions.pred_boxes.tensor, regions.scores

    whole = _analyse(_RunOn(model, infer), image)
    detection = _analyse(_RunOn(model, detect), image).total() if _has_detector(model) else 0
    of_teacher = _analyse(_RunOn(teacher, lambda image: teacher([image])), image).total()
    total, source = whole.total(), whole.by_module()[f"model.{SOURCE_PREFIX}"[:-1]]
    unsupported = dict(sorted(whole.unsupported_ops().items()))
    return MultiplyAdds(
        width=image.shape[2],
        height=image.shape[1],
        regions=num_regions,
        detection=detection / GIGA if _has_detector(model) else None,
        source=source / GIGA,
        head=(total - detection - source) / GIGA,
        total=total / GIGA,
        teacher=of_teacher / GIGA,
        unsupported=unsupported,
    )


def _analyse(module: nn.Module, image: torch.Tensor) -> FlopCountAnalysis:
    # What has no count is reported; that detection does not call the source is no news.
    analysis = FlopCountAnalysis(module, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return analysis.tracer_warnings("none")


@dataclass(frozen=True)
class Milliseconds:
    """Time a photo, all measured in turns in one run; see :func:`time_side_by_side`.

    Attributes:
        detection: photo in, regions out; None for a model without a detector.
        total: photo in, regions with embeddings out.
        overhead_percent: how much longer ``total`` is than ``detection``.
        source: the embedding source alone; None where there is nothing to run (the detector's own map) and where it
            runs once a crop.
        teacher: the config's teacher alone, on the whole photo.
        photos, repetitions: what was measured.
        threads: of torch on the CPU.
        device: cfg.MODEL.DEVICE.
    """

    detection: float | None
    total: float
    overhead_percent: float | None
    source: float | None
    teacher: float
    photos: int
    repetitions: int
    threads: int
    device: str


@torch.inference_mode()
def time_model(
    model: OESIR, teacher: nn.Module, photos: Sequence[dict[str, Any]], repetitions: int, device: str
) -> Milliseconds:
    """Time a model and its parts on photos.

    Args:
        model: in eval mode.
        teacher: timed alone.
        photos: as the model takes them, see :class:`EmbeddingMapper`.
        repetitions: timed rounds a photo, after one that is not.
        device: where the model is.
    """
    source = model.embedding_source
    has_source = not isinstance(source, DetectorSource) and not isinstance(model, CropOESIR)
    # Computed ahead: to a student alone they are given.
    features = {}
    if has_source:
        features = {id(x): model.backbone(model.preprocess_image([x]).tensor) for x in photos}

    def move(x: dict[str, Any]) -> torch.Tensor:
        return x["image"].to(model.device)

    functions: dict[str, Callable[[dict[str, Any]], Any]] = {"total": lambda x: model([x])}
    if _has_detector(model):
        functions["detection"] = lambda x: model.detect([x])
    if has_source:
        functions["source"] = lambda x: source([move(x)], features[id(x)])
    # Timing the same network twice would tell nothing.
    if not (has_source and isinstance(source, TeacherSource)):
        functions["teacher"] = lambda x: teacher([move(x)])
    wait = partial(torch.cuda.synchronize, model.device) if model.device.type == "cuda" else None
    times = time_side_by_side(functions, photos, repetitions, synchronize=wait)
    detection = times.get("detection")
    return Milliseconds(
        detection=detection,
        total=times["total"],
        overhead_percent=None if detection is None else 100 * (times["total"] / detection - 1),
        source=times.get("source"),
        teacher=times["teacher"] if "teacher" in times else times["source"],
        photos=len(photos),
        repetitions=repetitions,
        threads=torch.get_num_threads(),
        device=device,
    )


def build_random_teacher(cfg: CfgNode) -> nn.Module:
    """The config's teacher with random weights: what it costs does not depend on them."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.OESIR.TEACHER.WEIGHTS = ""
    return build_teacher(cfg).to(cfg.MODEL.DEVICE)


def resize_photo(image: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """A photo (3, H, W) of any type as float32 of another size, whatever its shape."""
    return F.interpolate(image[None].float(), size=(height, width), mode="bilinear", antialias=True)[0]


def _has_detector(model: OESIR) -> bool:
    return model.proposal_generator is not None
