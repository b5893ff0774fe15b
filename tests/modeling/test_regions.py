"""Region proposers: which boxes they choose, in which order, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances

from oesir_d2.engine.config_loading import load_config
from oesir_d2.layers import rmac_grid
from oesir_d2.modeling import REGION_PROPOSER_REGISTRY, build_region_proposer
from oesir_d2.modeling.regions import DetectorRegions, GivenRegions, GridRegions, RegionProposer, RPNRegions
from oesir_d2.structures import NO_CLASS

SIZE = (100, 200)


def make_boxes(count: int) -> torch.Tensor:
    """Boxes that differ in their left side: box k begins at k."""
    left = torch.arange(count, dtype=torch.float32)
    return torch.stack([left, torch.zeros(count), left + 20, torch.full((count,), 30.0)], dim=1)


def make_detections(scores: list[float], classes: list[int]) -> Instances:
    boxes = Boxes(make_boxes(len(scores)))
    return Instances(SIZE, pred_boxes=boxes, scores=torch.tensor(scores), pred_classes=torch.tensor(classes))


def make_proposals(logits: list[float]) -> Instances:
    return Instances(SIZE, proposal_boxes=Boxes(make_boxes(len(logits))), objectness_logits=torch.tensor(logits))


def get_lefts(regions: Instances) -> list[float]:
    return regions.pred_boxes.tensor[:, 0].tolist()


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({"max_regions": 10}, [1, 3, 4, 0, 2]),
        ({"max_regions": 2}, [1, 3]),
        ({"max_regions": 10, "score_threshold": 0.5}, [1, 3, 4]),
        ({"max_regions": 10, "classes": (7,)}, [3, 4, 2]),
        ({"max_regions": 10, "classes": (7, 5)}, [1, 3, 4, 2]),
        ({"max_regions": 2, "score_threshold": 0.5, "classes": (7,)}, [3, 4]),
        ({"max_regions": 10, "classes": (1,)}, []),
        ({"max_regions": 10, "score_threshold": 1.0}, []),
    ],
)
def test_detector_regions_keep_the_best_of_the_wanted_classes(arguments: dict[str, Any], kept: list[int]) -> None:
    scores, classes = [0.25, 0.9, 0.125, 0.5, 0.5], [3, 5, 7, 7, 7]
    detections = make_detections(scores, classes)
    (regions,) = DetectorRegions(**arguments)([SIZE], [detections], None)
    assert get_lefts(regions) == kept  # equal scores keep the detector's order, and the threshold itself is kept
    assert regions.scores.tolist() == pytest.approx([scores[k] for k in kept])
    assert regions.pred_classes.tolist() == [classes[k] for k in kept]


def test_detector_regions_of_an_image_without_detections_are_none() -> None:
    detections = [make_detections([], []), make_detections([0.9], [1])]
    assert [len(regions) for regions in DetectorRegions(max_regions=5)([SIZE] * 2, detections, None)] == [0, 1]


def test_rpn_regions_come_best_first_with_probabilities_and_without_a_class() -> None:
    logits = [-1.0, 3.0, 0.0, 2.0]
    (regions,) = RPNRegions(max_regions=3)([SIZE], None, [make_proposals(logits)])
    assert get_lefts(regions) == [1, 3, 2]
    expected = [1 / (1 + torch.tensor(-logits[k]).exp().item()) for k in (1, 3, 2)]
    assert regions.scores.tolist() == pytest.approx(expected)
    assert regions.pred_classes.tolist() == [NO_CLASS] * 3


def test_given_regions_are_all_boxes_in_their_order() -> None:
    scored, plain = make_proposals([-1.0, 3.0, 0.0]), Instances(SIZE, proposal_boxes=Boxes(make_boxes(2)))
    first, second = GivenRegions()([SIZE, SIZE], None, [scored, plain])
    assert get_lefts(first) == [0, 1, 2] and get_lefts(second) == [0, 1]
    assert first.scores.tolist() == pytest.approx(torch.tensor([-1.0, 3.0, 0.0]).sigmoid().tolist())
    assert second.scores.tolist() == [1, 1]
    assert first.pred_classes.tolist() == [NO_CLASS] * 3
    first.pred_boxes.scale(2, 2)
    assert torch.equal(scored.proposal_boxes.tensor, make_boxes(3)), "the caller's boxes were changed"


def test_grid_regions_are_the_rmac_grid_of_each_image() -> None:
    proposer = GridRegions(levels=(1, 2, 3), overlap=0.4, max_regions=100)
    sizes = [(100, 200), (64, 64), (1, 1)]
    for size, regions in zip(sizes, proposer(sizes, None, None), strict=True):
        assert torch.equal(regions.pred_boxes.tensor, rmac_grid(*size, (1, 2, 3), 0.4))
        assert regions.image_size == size
        assert regions.scores.eq(1).all() and regions.pred_classes.eq(NO_CLASS).all()


@pytest.mark.parametrize("max_regions", [1, 3, 7])
def test_grid_is_cut_after_its_coarse_levels(max_regions: int) -> None:
    (regions,) = GridRegions(levels=(1, 2, 3), overlap=0.4, max_regions=max_regions)([(100, 200)], None, None)
    assert torch.equal(regions.pred_boxes.tensor, rmac_grid(100, 200, (1, 2, 3), 0.4)[:max_regions])
    sides = regions.pred_boxes.tensor[:, 3] - regions.pred_boxes.tensor[:, 1]
    assert torch.equal(sides, sides.sort(descending=True).values)


def build(name: str, *opts: str) -> RegionProposer:
    return build_region_proposer(load_config("oesir_R50.yaml", ["MODEL.OESIR.REGIONS.PROPOSER", name, *opts]))


def test_config_reaches_the_proposers() -> None:
    section = "MODEL.OESIR.REGIONS"
    detector = build("DetectorRegions", f"{section}.SCORE_THRESH", "0.3", f"{section}.CLASSES", "[2, 79]")
    assert (detector.score_threshold, detector.classes, detector.max_regions) == (0.3, (2, 79), 50)
    grid = build("GridRegions", f"{section}.GRID_LEVELS", "[2]", f"{section}.GRID_OVERLAP", "0.1")
    assert (grid.levels, grid.overlap, grid.max_regions) == ((2,), 0.1, 50)
    assert build("RPNRegions", f"{section}.MAX_REGIONS", "7").max_regions == 7
    assert isinstance(build("GivenRegions"), GivenRegions)


@pytest.mark.parametrize(
    ("name", "opts", "words"),
    [
        ("Nobody", [], r"PROPOSER 'Nobody' unknown; allowed: \['DetectorRegions', 'GivenRegions', 'GridRegions', 'NoR"),
        ("DetectorRegions", ["MAX_REGIONS", "0"], "MAX_REGIONS is 0; allowed: at least 1"),
        ("RPNRegions", ["MAX_REGIONS", "-1"], "MAX_REGIONS is -1; allowed: at least 1"),
        ("GridRegions", ["MAX_REGIONS", "0"], "MAX_REGIONS is 0; allowed: at least 1"),
        ("DetectorRegions", ["SCORE_THRESH", "1.5"], "SCORE_THRESH is 1.5; allowed: 0 to 1"),
        ("DetectorRegions", ["CLASSES", "[80]"], "CLASSES has 80; allowed: .* 0 to 79"),
        ("DetectorRegions", ["CLASSES", "['cat']"], "CLASSES has 'cat'; allowed: .* 0 to 79"),
        ("GridRegions", ["GRID_LEVELS", "[0]"], r"levels are \[0\]"),
        ("GridRegions", ["GRID_LEVELS", "[]"], r"levels are \[\]"),
        ("GridRegions", ["GRID_OVERLAP", "1.0"], "overlap is 1.0"),
    ],
)
def test_wrong_values_are_refused_by_name(name: str, opts: list[str], words: str) -> None:
    keys = [f"MODEL.OESIR.REGIONS.{opt}" if index % 2 == 0 else opt for index, opt in enumerate(opts)]
    with pytest.raises(ValueError, match=words):
        build(name, *keys)


def test_registered_proposers_say_what_they_need() -> None:
    needs = {name: (proposer.needs_detections, proposer.needs_proposals) for name, proposer in REGION_PROPOSER_REGISTRY}
    assert needs == {
        "DetectorRegions": (True, True),
        "RPNRegions": (False, True),
        "GivenRegions": (False, True),
        "GridRegions": (False, False),
        "NoRegions": (False, False),
    }
