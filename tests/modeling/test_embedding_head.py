"""The embedding head and its configuration: poolers, whitening, sources of the map."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from oesir_d2 import layers
from oesir_d2.engine.config_loading import load_config
from oesir_d2.layers import PCAWhitening, save_whitening
from oesir_d2.modeling import EmbeddingHead, build_embedding_source

SECTION = "MODEL.OESIR.EMBEDDING"
CHANNELS = 16
SHAPE = ShapeSpec(channels=CHANNELS, stride=8)


def make_config(*opts: str) -> CfgNode:
    keys = [f"{SECTION}.{opt}" if index % 2 == 0 else opt for index, opt in enumerate(opts)]
    return load_config("oesir_R50.yaml", keys)


def make_map(images: int = 1) -> torch.Tensor:
    return torch.rand(images, CHANNELS, 8, 12)


@pytest.mark.parametrize("name", ["SPoCPooler", "MACPooler", "RMACPooler", "GeMPooler"])
def test_pooler_of_the_config_pools_maps_and_regions(name: str) -> None:
    head = EmbeddingHead(make_config("POOLER", name), SHAPE)
    pooler = getattr(layers, name)()
    assert type(head.pooler) is type(pooler)
    embedding_map = make_map()
    expected = torch.nn.functional.normalize(pooler(embedding_map))
    torch.testing.assert_close(head.embed_images(embedding_map, [(64, 96)]), expected)
    box = torch.tensor([[16.0, 8.0, 64.0, 48.0]])
    regions = head.embed_regions(embedding_map, [box], [(64, 96)])
    assert regions.shape == (1, CHANNELS)
    assert regions.norm(dim=1).item() == pytest.approx(1)
    assert not torch.allclose(regions, expected, atol=1e-3)


def test_options_of_the_poolers_come_from_the_config() -> None:
    assert EmbeddingHead(make_config("GEM_P", "5"), SHAPE).pooler.p == 5
    rmac = EmbeddingHead(make_config("POOLER", "RMACPooler", "RMAC_LEVELS", "[2]"), SHAPE)
    assert rmac.pooler.levels == (2,)
    head = EmbeddingHead(make_config("ROI_RESOLUTION", "3", "ROI_SAMPLING_RATIO", "0"), SHAPE)
    assert (head.region_pooler.resolution, head.region_pooler.sampling_ratio) == (3, 0)


def test_regions_come_image_by_image_and_may_be_none() -> None:
    head = EmbeddingHead(make_config(), SHAPE)
    embedding_map = make_map(images=3)
    boxes = [torch.tensor([[0.0, 0.0, 32.0, 32.0]]), torch.zeros(0, 4), torch.tensor([[8.0, 8.0, 96.0, 64.0]] * 2)]
    vectors = head.embed_regions(embedding_map, boxes, [(64, 96)] * 3)
    assert vectors.shape == (3, CHANNELS)
    for row, image in ((0, 0), (1, 2), (2, 2)):
        alone = head.embed_regions(embedding_map[image : image + 1], [boxes[image][:1]], [(64, 96)])
        torch.testing.assert_close(vectors[row : row + 1], alone)
    assert head.embed_regions(embedding_map, [torch.zeros(0, 4)] * 3, [(64, 96)] * 3).shape == (0, CHANNELS)


def test_padding_has_no_part_in_an_embedding() -> None:
    head = EmbeddingHead(make_config(), SHAPE)
    embedding_map = make_map()
    padded = torch.cat([embedding_map, torch.full((1, CHANNELS, 8, 4), 100.0)], dim=3)
    box = [torch.tensor([[40.0, 8.0, 96.0, 64.0]])]
    for embed, arguments in ((head.embed_images, ()), (head.embed_regions, (box,))):
        torch.testing.assert_close(
            embed(padded, *arguments, [(64, 96)]), embed(embedding_map, *arguments, [(64, 96)]), rtol=1e-5, atol=1e-6
        )


def write_whitening(path: Path, input_dim: int, output_dim: int) -> PCAWhitening:
    whitening = PCAWhitening(input_dim, output_dim).fit(torch.randn(100, input_dim))
    save_whitening(path, whitening, {"source": "noise", "count": 100})
    return whitening


def test_whitening_of_the_config_is_applied(tmp_path: Path) -> None:
    whitening = write_whitening(tmp_path / "w.safetensors", CHANNELS, 5)
    head = EmbeddingHead(make_config("WHITENING_DIM", "5", "WHITENING", str(tmp_path / "w.safetensors")), SHAPE)
    assert head.dimension == 5
    embedding_map, sizes = make_map(images=2), [(64, 96)] * 2
    boxes = [torch.tensor([[0.0, 0.0, 32.0, 32.0]])] * 2
    pooled = torch.cat([head.pool_images(embedding_map, sizes), head.pool_regions(embedding_map, boxes, sizes)])
    embedded = torch.cat([head.embed_images(embedding_map, sizes), head.embed_regions(embedding_map, boxes, sizes)])
    assert pooled.shape == (4, CHANNELS)
    projected = (pooled - whitening.mean) @ whitening.projection.T
    torch.testing.assert_close(embedded, projected / projected.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_no_whitening_leaves_the_pooled_vectors() -> None:
    head = EmbeddingHead(make_config("WHITENING_DIM", "0"), SHAPE)
    assert head.whitening is None and head.dimension == CHANNELS
    embedding_map = make_map()
    assert torch.equal(head.embed_images(embedding_map, [(64, 96)]), head.pool_images(embedding_map, [(64, 96)]))


def test_unfitted_whitening_is_built_and_refuses_to_run() -> None:
    head = EmbeddingHead(make_config("WHITENING_DIM", "5"), SHAPE)
    assert head.dimension == 5
    assert head.pool_images(make_map(), [(64, 96)]).shape == (1, CHANNELS)  # what it will be fitted on
    with pytest.raises(ValueError, match=r"not fitted: run tools/fit_whitening\.py"):
        head.embed_images(make_map(), [(64, 96)])


@pytest.mark.parametrize(
    ("opts", "error", "words"),
    [
        (["POOLER", "Nobody"], ValueError, r"POOLER 'Nobody' unknown; allowed: \['GeMPooler', 'MACPooler', 'RMACP"),
        (["GEM_P", "0.5"], ValueError, "exponent p is 0.5"),
        (["POOLER", "RMACPooler", "RMAC_LEVELS", "[0]"], ValueError, r"levels are \[0\]"),
        (["ROI_RESOLUTION", "0"], ValueError, "resolution of pooled regions is 0"),
        (["ROI_SAMPLING_RATIO", "-1"], ValueError, "sampling ratio of pooled regions is -1"),
        (["WHITENING_DIM", "17"], ValueError, r"WHITENING_DIM is 17; allowed: 0 \(none\) to 16"),
        (["WHITENING_DIM", "-1"], ValueError, r"WHITENING_DIM is -1; allowed: 0 \(none\) to 16"),
        (["WHITENING_DIM", "5", "WHITENING", "no/such"], FileNotFoundError, "no/such"),
        (
            ["WHITENING_DIM", "5", "WHITENING", "oesir://lite0_grid_whitening.safetensors"],
            ValueError,
            "lite0_grid_whitening.safetensors' maps 1280 to 512 dimensions; the model needs 16 to 5",
        ),
    ],
)
def test_wrong_values_are_refused_by_name(opts: list[str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        EmbeddingHead(make_config(*opts), SHAPE)


def test_detector_source_gives_the_detector_s_own_map() -> None:
    shapes = {"p3": ShapeSpec(channels=4, stride=8), "p4": ShapeSpec(channels=6, stride=16)}
    source = build_embedding_source(make_config("SOURCE", "DetectorSource", "DETECTOR_FEATURES", "['p4']"), shapes)
    features = {"p3": torch.rand(1, 4, 8, 8), "p4": torch.rand(1, 6, 4, 4)}
    assert torch.equal(source([], features), features["p4"])
    assert (source.output_shape.channels, source.output_shape.stride) == (6, 16)


def test_detector_source_joins_maps_at_the_finest_stride() -> None:
    shapes = {"p3": ShapeSpec(channels=4, stride=8), "p4": ShapeSpec(channels=6, stride=16)}
    source = build_embedding_source(
        make_config("SOURCE", "DetectorSource", "DETECTOR_FEATURES", "['p4', 'p3']"), shapes
    )
    features = {"p3": torch.rand(1, 4, 8, 10), "p4": torch.rand(1, 6, 4, 5)}
    joined = source([], features)
    assert (source.output_shape.channels, source.output_shape.stride) == (10, 8)
    assert torch.equal(joined[:, 6:], features["p3"])
    for row, column in ((0, 0), (3, 6), (7, 9)):
        assert torch.equal(joined[0, :6, row, column], features["p4"][0, :, row // 2, column // 2])


def test_area_pooling_is_chosen_by_the_config_and_needs_a_mean() -> None:
    head = EmbeddingHead(make_config("REGION_POOLING", "area", "GEM_P", "2"), SHAPE)
    embedding_map = make_map()
    # The whole image, cell by cell: the two ways to pool it are the same.
    whole = head.embed_regions(embedding_map, [torch.tensor([[0.0, 0.0, 96.0, 64.0]])], [(64, 96)])
    torch.testing.assert_close(whole, head.embed_images(embedding_map, [(64, 96)]))
    with pytest.raises(ValueError, match=r"'area' cannot weight the cells of a MACPooler; allowed: 'GeMPooler'"):
        EmbeddingHead(make_config("REGION_POOLING", "area", "POOLER", "MACPooler"), SHAPE)
    with pytest.raises(ValueError, match="REGION_POOLING is 'crop'; allowed: 'roi_align' and 'area'"):
        EmbeddingHead(make_config("REGION_POOLING", "crop"), SHAPE)


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["SOURCE", "Nobody"], r"SOURCE 'Nobody' unknown; allowed: \['DetectorSource', .*'TeacherSource'"),
        (["SOURCE", "DetectorSource", "DETECTOR_FEATURES", "['p9']"], r"\['p9'\]; allowed: .*maps \['p3'\]"),
    ],
)
def test_wrong_source_is_refused_by_name(opts: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_embedding_source(make_config(*opts), {"p3": ShapeSpec(channels=4, stride=8)})
