"""Region pooling: exact on whole cells, close to whole-map pooling, blind to padding, finite on degenerate boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from oesir_d2.layers import GeMPooler, MACPooler, Pooler, RegionPooler, RMACPooler, SPoCPooler, region_pooling

STRIDE = 16
POOLERS = [SPoCPooler(), MACPooler(), RMACPooler(), GeMPooler()]


def random_map(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def boxes_of(*rows: Sequence[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


@pytest.mark.parametrize("pooler", POOLERS, ids=lambda pooler: type(pooler).__name__)
def test_a_box_on_whole_cells_is_pooled_exactly(pooler: Pooler) -> None:
    feature_map = random_map(1, 3, 10, 12)
    # 4 x 4 bins of one sample over 4 x 4 cells: each sample falls on a cell's centre.
    region_pooler = RegionPooler(pooler, resolution=4, sampling_ratio=1)
    box = boxes_of([3 * STRIDE, 2 * STRIDE, 7 * STRIDE, 6 * STRIDE])
    pooled = region_pooler(feature_map, [box], 1 / STRIDE)
    assert torch.allclose(pooled, pooler(feature_map[:, :, 2:6, 3:7]), rtol=1e-5)


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
def test_the_inside_of_a_map_of_constant_blocks_gives_the_block(sampling_ratio: int) -> None:
    feature_map = torch.zeros(1, 2, 8, 8)
    feature_map[:, 0, :, :4], feature_map[:, 1, :, 4:] = 2.0, 5.0
    region_pooler = RegionPooler(GeMPooler(eps=1e-6), sampling_ratio=sampling_ratio)
    half_a_cell = STRIDE / 2  # bilinear sampling looks half a cell further
    box = boxes_of([0, 0, 4 * STRIDE - half_a_cell, 8 * STRIDE], [4 * STRIDE + half_a_cell, 0, 8 * STRIDE, 8 * STRIDE])
    pooled = region_pooler(feature_map, [box], 1 / STRIDE)
    assert torch.allclose(pooled, torch.tensor([[2.0, 0.0], [0.0, 5.0]]), atol=1e-5)


@pytest.mark.parametrize("pooler", [SPoCPooler(), GeMPooler(), MACPooler()], ids=lambda pooler: type(pooler).__name__)
def test_the_whole_image_is_close_to_whole_map_pooling_on_a_smooth_map(pooler: Pooler) -> None:
    rows, columns = torch.linspace(0, math.pi, 24), torch.linspace(0, math.pi, 32)
    wave = 1 + torch.sin(rows)[:, None] * torch.cos(columns)[None, :]
    feature_map = torch.stack([wave, 2 - wave / 2, wave**2])[None]
    whole_image = boxes_of([0, 0, 32 * STRIDE, 24 * STRIDE])
    pooled = RegionPooler(pooler)(feature_map, [whole_image], 1 / STRIDE)
    assert torch.allclose(pooled, pooler(feature_map), rtol=0.03)


def test_vectors_come_image_by_image_in_the_order_of_the_boxes() -> None:
    feature_map = torch.arange(1.0, 4.0).reshape(3, 1, 1, 1).expand(3, 2, 4, 4).contiguous()
    feature_map[:, 1] = torch.arange(0.0, 4.0)
    left, right = [0, 0, STRIDE, 64], [3 * STRIDE, 0, 64, 64]
    pooled = RegionPooler(MACPooler())(feature_map, [boxes_of(right, left), boxes_of(), boxes_of(left)], 1 / STRIDE)
    assert pooled[:, 0].tolist() == [1, 1, 3]
    assert pooled[0, 1] > pooled[1, 1]


@pytest.mark.parametrize("image_size", [(100, 150), (112, 160)])
def test_padding_has_no_part_in_a_region(image_size: tuple[int, int]) -> None:
    # 7 x 10 cells hold some of the image; the larger one fills them, the smaller one fills 6.25 x 9.375.
    alone = random_map(1, 3, 7, 10)
    padded = torch.full((2, 3, 12, 12), float("nan"))
    padded[:1, :, :7, :10] = alone
    padded[1] = 1.0
    boxes = boxes_of([0, 0, 160, 112], [90, 60, 150, 100], [140, 90, 400, 300])
    region_pooler = RegionPooler(GeMPooler())
    expected = region_pooler(alone, [boxes], 1 / STRIDE, [image_size])
    pooled = region_pooler(padded, [boxes, boxes_of()], 1 / STRIDE, [image_size, (192, 192)])
    assert torch.isfinite(expected).all()
    assert torch.equal(pooled, expected)


def test_boxes_are_clipped_to_the_image() -> None:
    feature_map = random_map(1, 3, 6, 6)
    region_pooler = RegionPooler(SPoCPooler())
    outside = region_pooler(feature_map, [boxes_of([-500, 10, 40, 9999])], 1 / STRIDE, [(90, 80)])
    inside = region_pooler(feature_map, [boxes_of([0, 10, 40, 90])], 1 / STRIDE, [(90, 80)])
    assert torch.equal(outside, inside)


def test_a_box_without_an_area_in_the_corner_reads_the_corner() -> None:
    feature_map = torch.full((1, 1, 6, 6), 5.0)
    pooled = RegionPooler(SPoCPooler())(feature_map, [boxes_of([6, 6, 6, 6], [9, 9, 20, 20])], spatial_scale=1)
    assert torch.allclose(pooled, torch.full((2, 1), 5.0))


def test_a_map_that_ends_before_the_image_is_not_read_as_zeros() -> None:
    feature_map = torch.full((1, 1, 3, 3), 5.0)  # of 63 x 63 pixels at stride 16, the last 15 of them dropped
    boxes = boxes_of([0, 0, 63, 63], [50, 50, 63, 63])
    pooled = RegionPooler(SPoCPooler())(feature_map, [boxes], 1 / STRIDE, [(63, 63)])
    assert torch.allclose(pooled, torch.full((2, 1), 5.0))


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("pooler", POOLERS, ids=lambda pooler: type(pooler).__name__)
def test_degenerate_boxes_give_vectors_of_their_surroundings(pooler: Pooler, sampling_ratio: int) -> None:
    feature_map = 1 + random_map(1, 3, 6, 6)
    boxes = boxes_of(
        [20, 20, 20, 20],  # no area
        [20, 20, 20.01, 90],  # no width to speak of
        [33, 33, 35, 36],  # smaller than a cell
        [96, 96, 96, 96],  # no area, in the corner
        [500, 500, 600, 600],  # outside
        [50, 50, 40, 40],  # corners swapped
    )
    pooled = RegionPooler(pooler, sampling_ratio=sampling_ratio)(feature_map, [boxes], 1 / STRIDE)
    assert torch.isfinite(pooled).all()
    if not isinstance(pooler, RMACPooler):
        assert ((pooled >= 1) & (pooled <= 2.00001)).all()


def test_a_map_of_one_cell_and_an_image_of_one_pixel() -> None:
    feature_map = torch.tensor([2.0, 7.0]).reshape(1, 2, 1, 1)
    pooled = RegionPooler(GeMPooler())(feature_map, [boxes_of([0, 0, 1, 1])], 1 / 32, [(1, 1)])
    assert torch.allclose(pooled, torch.tensor([[2.0, 7.0]]))


def test_no_regions_and_no_images() -> None:
    region_pooler = RegionPooler(GeMPooler())
    assert region_pooler(random_map(2, 5, 4, 4), [boxes_of(), boxes_of()], 1 / STRIDE).shape == (0, 5)
    assert region_pooler(random_map(0, 5, 4, 4), [], 1 / STRIDE).shape == (0, 5)


def test_many_regions_are_pooled_in_chunks_without_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    feature_map = random_map(1, 8, 10, 10)
    corners = 120 * torch.rand((50, 2), generator=torch.Generator().manual_seed(1))
    boxes = torch.cat([corners, corners + 30], dim=1)
    chunk_sizes = []
    pooler = GeMPooler()
    pooler.register_forward_hook(lambda module, inputs, output: chunk_sizes.append(len(output)))
    region_pooler = RegionPooler(pooler)
    at_once = region_pooler(feature_map, [boxes], 1 / STRIDE)
    monkeypatch.setattr(region_pooling, "MAX_SAMPLED_VALUES", 20 * 8 * 49)
    in_chunks = region_pooler(feature_map, [boxes], 1 / STRIDE)
    assert chunk_sizes == [50, 20, 20, 10]
    assert torch.equal(at_once, in_chunks)


def test_gradients_reach_the_cells_of_the_box_and_no_others() -> None:
    feature_map = random_map(1, 2, 8, 8).requires_grad_()
    box = boxes_of([2 * STRIDE, 2 * STRIDE, 4 * STRIDE, 4 * STRIDE])
    RegionPooler(GeMPooler())(feature_map, [box], 1 / STRIDE).sum().backward()
    assert feature_map.grad is not None
    touched = feature_map.grad[0].abs().sum(dim=0) > 0
    assert touched[2:4, 2:4].all()
    assert not touched[:1].any() and not touched[5:].any() and not touched[:, :1].any() and not touched[:, 5:].any()


def test_gradients_equal_finite_differences() -> None:
    feature_map = (0.5 + random_map(1, 2, 5, 5).double()).requires_grad_()
    region_pooler = RegionPooler(GeMPooler(), resolution=2)
    boxes = boxes_of([5, 9, 60, 70], [30, 30, 31, 31])
    assert torch.autograd.gradcheck(lambda values: region_pooler(values, [boxes], 1 / STRIDE), feature_map)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_pooled_in_float32(dtype: torch.dtype) -> None:
    feature_map = (100 * random_map(1, 3, 6, 6)).to(dtype)
    region_pooler = RegionPooler(GeMPooler())
    boxes = boxes_of([3, 5, 70.3, 61.7])
    pooled = region_pooler(feature_map, [boxes], 1 / STRIDE)
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, region_pooler(feature_map.float(), [boxes], 1 / STRIDE))


def test_wrong_arguments_are_named() -> None:
    region_pooler, feature_map = RegionPooler(SPoCPooler()), random_map(2, 3, 4, 4)
    with pytest.raises(ValueError, match="1 box lists and 2 image sizes for 2 feature maps"):
        region_pooler(feature_map, [boxes_of()], 1 / STRIDE)
    with pytest.raises(ValueError, match=r"boxes of image 1 have shape \(4,\)"):
        region_pooler(feature_map, [boxes_of(), torch.zeros(4)], 1 / STRIDE)
    with pytest.raises(ValueError, match="spatial scale is 0"):
        region_pooler(feature_map, [boxes_of(), boxes_of()], 0)
    with pytest.raises(ValueError, match="resolution of pooled regions is 0"):
        RegionPooler(SPoCPooler(), resolution=0)
    with pytest.raises(ValueError, match="sampling ratio of pooled regions is -1"):
        RegionPooler(SPoCPooler(), sampling_ratio=-1)
