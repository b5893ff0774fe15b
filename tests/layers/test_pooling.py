"""The four poolers against plain NumPy loops, with padding, in half precision and at their limits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from oesir_d2.layers import GeMPooler, MACPooler, Pooler, RMACPooler, SPoCPooler, count_valid_cells

ALL_POOLERS = [SPoCPooler(), MACPooler(), RMACPooler(), GeMPooler()]
by_name = pytest.mark.parametrize("pooler", ALL_POOLERS, ids=lambda pooler: type(pooler).__name__)


def random_map(*shape: int, seed: int = 0) -> torch.Tensor:
    """Non-negative activations with many zeros, as after a ReLU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu()


def pool_with_numpy(name: str, cells: np.ndarray) -> np.ndarray:
    """SPoC, MAC or GeM (p = 3) of one map (C, H, W), channel by channel and cell by cell."""
    pooled = []
    for channel in cells:
        values = [float(value) for row in channel for value in row]
        if name == "SPoC":
            pooled.append(sum(values) / len(values))
        elif name == "MAC":
            pooled.append(max(values))
        else:
            pooled.append((sum(max(value, 1e-6) ** 3 for value in values) / len(values)) ** (1 / 3))
    return np.array(pooled)


@pytest.mark.parametrize(("name", "pooler"), [("SPoC", SPoCPooler()), ("MAC", MACPooler()), ("GeM", GeMPooler(p=3.0))])
def test_poolers_equal_plain_loops_on_padded_maps(name: str, pooler: Pooler) -> None:
    feature_map = random_map(3, 5, 6, 8)
    valid_sizes = [(6, 8), (4, 8), (5.2, 2.0)]  # the last one covers part of its sixth row of cells
    extents = [(6, 8), (4, 8), (6, 2)]
    for index, (rows, columns) in enumerate(extents):
        feature_map[index, :, rows:] = 1e4
        feature_map[index, :, :, columns:] = 1e4
    pooled = pooler(feature_map, valid_sizes)
    for index, (rows, columns) in enumerate(extents):
        expected = pool_with_numpy(name, feature_map[index, :, :rows, :columns].numpy())
        np.testing.assert_allclose(pooled[index].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "level", "rows", "columns"),
    [
        ((4, 6), 1, [(0, 4)], [(0, 4), (2, 6)]),
        # Side 2.67 at y = 0, 1.33 and at x = 0, 1.67, 3.33, rounded to whole cells.
        ((4, 6), 2, [(0, 3), (1, 4)], [(0, 3), (2, 4), (3, 6)]),
        # Side 2 at y = 0, 1, 2 and at x = 0, 1.33, 2.67, 4.
        ((4, 6), 3, [(0, 2), (1, 3), (2, 4)], [(0, 2), (1, 3), (3, 5), (4, 6)]),
        # Side 4 at y = 0, 2 and at x = 0, 2.5, 5: halves are rounded outwards.
        ((6, 9), 2, [(0, 4), (2, 6)], [(0, 4), (2, 7), (5, 9)]),
    ],
)
def test_rmac_equals_a_plain_loop_on_a_non_square_map(
    size: tuple[int, int], level: int, rows: list[tuple[int, int]], columns: list[tuple[int, int]]
) -> None:
    cells = random_map(2, 4, *size)
    expected = np.zeros((2, 4))
    for index, image in enumerate(cells.numpy()):
        for top, bottom in rows:
            for left, right in columns:
                region = np.array([channel[top:bottom, left:right].max() for channel in image])
                expected[index] += region / np.linalg.norm(region)
    np.testing.assert_allclose(RMACPooler(levels=[level])(cells).numpy(), expected, rtol=1e-5)


def test_rmac_adds_up_its_levels() -> None:
    cells = random_map(1, 4, 7, 10)
    each = [RMACPooler(levels=[level])(cells) for level in (1, 2, 3)]
    assert torch.allclose(RMACPooler(levels=(1, 2, 3))(cells), sum(each, torch.zeros(1, 4)), rtol=1e-5)


def test_rmac_of_one_cell_is_the_normalised_cell() -> None:
    cell = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)
    assert torch.allclose(RMACPooler()(cell), torch.tensor([[0.6, 0.8]]))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 7), (3, 40)])
def test_every_cell_takes_part_in_rmac(size: tuple[int, int]) -> None:
    height, width = size
    for row in range(height):
        for column in range(width):
            cells = torch.zeros(1, 1, height, width)
            cells[0, 0, row, column] = 1
            assert RMACPooler(levels=(3,))(cells).item() >= 1


def test_gem_with_p_1_is_spoc() -> None:
    cells = random_map(2, 5, 3, 7).double() + 0.1
    assert torch.allclose(GeMPooler(p=1.0)(cells), SPoCPooler()(cells), rtol=1e-12)


def test_gem_with_a_large_p_approaches_mac() -> None:
    cells = random_map(2, 5, 3, 7).double() + 0.1
    mac, differences = MACPooler()(cells), []
    for p in (10.0, 100.0, 1000.0):
        differences.append(float(((mac - GeMPooler(p=p)(cells)) / mac).max()))
    assert differences[0] > differences[1] > differences[2] > 0
    assert differences[1] < 0.03 and differences[2] < 0.004  # 1 - 21^(-1/p) is the most for 21 cells


def test_gem_does_not_overflow_in_float32() -> None:
    cells = 50 * random_map(1, 4, 5, 5) + 1
    expected = GeMPooler(p=60.0)(cells.double())
    assert torch.allclose(GeMPooler(p=60.0)(cells).double(), expected, rtol=1e-5)


def test_gem_has_finite_gradients_at_a_map_of_zeros() -> None:
    pooler = GeMPooler(learnable=True)
    cells = torch.zeros(2, 3, 4, 4, requires_grad=True)
    pooler(cells).sum().backward()
    assert cells.grad is not None and torch.isfinite(cells.grad).all()
    assert isinstance(pooler.p, torch.nn.Parameter) and pooler.p.grad is not None and torch.isfinite(pooler.p.grad)


def test_gem_gradients_are_right_with_respect_to_the_map_and_p() -> None:
    pooler = GeMPooler(p=2.5, learnable=True).double()
    cells = (random_map(1, 2, 3, 3).double() + 0.2).requires_grad_()
    assert torch.autograd.gradcheck(pooler, cells)
    pooler(cells).sum().backward()
    assert isinstance(pooler.p, torch.nn.Parameter) and pooler.p.grad is not None
    step = 1e-6
    slope = (GeMPooler(2.5 + step)(cells) - GeMPooler(2.5 - step)(cells)).sum() / (2 * step)
    assert pooler.p.grad.item() == pytest.approx(slope.item(), rel=1e-6)


def test_only_a_learnable_p_is_part_of_the_state_dict() -> None:
    assert list(GeMPooler(p=4.0).state_dict()) == []
    assert list(GeMPooler(p=4.0, learnable=True).state_dict()) == ["p"]


@by_name
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_pooled_in_float32(pooler: Pooler, dtype: torch.dtype) -> None:
    cells = (100 * random_map(1, 3, 40, 40)).to(dtype)  # their sum and cubes are over the largest float16
    pooled = pooler(cells)
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, pooler(cells.float()))


@by_name
def test_batch_of_one_no_images_and_the_order_of_images(pooler: Pooler) -> None:
    cells = random_map(3, 4, 5, 6)
    pooled = pooler(cells)
    assert pooled.shape == (3, 4)
    for index in range(3):
        assert torch.allclose(pooler(cells[index : index + 1]), pooled[index : index + 1], rtol=1e-6)
    assert pooler(cells[:0]).shape == (0, 4)
    assert pooler(cells[:0], valid_sizes=[]).shape == (0, 4)


@by_name
def test_a_map_of_zeros_gives_finite_vectors_and_gradients(pooler: Pooler) -> None:
    cells = torch.zeros(1, 3, 4, 5, requires_grad=True)
    pooled = pooler(cells)
    pooled.sum().backward()
    assert torch.isfinite(pooled).all()
    assert cells.grad is not None and torch.isfinite(cells.grad).all()


@by_name
def test_the_map_is_not_changed(pooler: Pooler) -> None:
    cells = random_map(1, 3, 4, 5) - 0.5
    before = cells.clone()
    pooler(cells, [(2, 3)])
    assert torch.equal(cells, before)


@by_name
def test_sizes_that_do_not_fit_are_refused(pooler: Pooler) -> None:
    cells = random_map(2, 3, 4, 5)
    with pytest.raises(ValueError, match="1 valid sizes for 2 feature maps"):
        pooler(cells, [(4, 5)])
    with pytest.raises(ValueError, match="covers 0 cells"):
        pooler(cells, [(4, 5), (0, 5)])
    with pytest.raises(ValueError, match=r"\(2, 3, 0, 5\)"):
        pooler(cells[:, :, :0])
    with pytest.raises(ValueError, match=r"\(3, 4, 5\)"):
        pooler(cells[0])


def test_valid_cells_forgive_rounding_noise() -> None:
    noisy = 0.1 * 3 / 0.1  # 3.0000000000000004
    assert noisy > 3 and count_valid_cells(noisy, 8) == 3
    assert count_valid_cells(1e-6, 8) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GeMPooler(p=0.5), "p is 0.5"),
        (lambda: GeMPooler(p=float("nan")), "p is nan"),
        (lambda: GeMPooler(eps=0.0), "eps is 0.0"),
        (lambda: RMACPooler(levels=()), "levels"),
        (lambda: RMACPooler(overlap=1.5), "overlap is 1.5"),
    ],
)
def test_wrong_options_are_refused_when_the_pooler_is_made(make: Callable[[], Pooler], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
