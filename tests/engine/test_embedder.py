"""Photos to embeddings: order, memory, sizes, rotation, given boxes, and what is refused."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from PIL import ExifTags, Image
from safetensors.torch import save_file

from oesir_d2.data import ImageFile, UnreadableImageError
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.decoding import READ_AHEAD
from oesir_d2.engine.embedder import Embedder
from oesir_d2.layers import rmac_grid
from oesir_d2.modeling.weights import TRUNK_PREFIX
from oesir_d2.structures import NO_CLASS

WritePhoto = Callable[..., ImageFile]


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def input_sizes(embedder: Embedder) -> Iterator[list[tuple[int, ...]]]:
    """The shapes (C, H, W) of the images that the network sees during a test."""
    sizes: list[tuple[int, ...]] = []
    source = embedder.model.embedding_source
    hook = source.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0][0].shape)))
    yield sizes
    hook.remove()


def test_photo_becomes_its_regions(embedder: Embedder, write_photo: WritePhoto) -> None:
    file = write_photo("a.png", 60, 90)
    embedded = embedder.embed(file)
    embeddings = embedded.embeddings
    assert (embedded.file, embedded.width, embedded.height) == (file, 90, 60)
    assert embeddings.image_id == "a.png"
    grid = rmac_grid(60, 90, (1, 2), 0.4).numpy()
    assert_close(embeddings.boxes, np.concatenate([grid, [[0, 0, 90, 60]]]))
    assert embeddings.vectors.shape == (len(grid) + 1, embedder.info.dimension)
    assert embeddings.vectors.dtype == embeddings.boxes.dtype == embeddings.scores.dtype == np.float32
    assert embeddings.classes.dtype == np.int64
    assert_close(np.linalg.norm(embeddings.vectors, axis=1), np.ones(len(embeddings)))
    assert (embeddings.scores == 1).all() and (embeddings.classes == NO_CLASS).all()


def test_many_photos_come_in_order_with_the_unreadable_ones(
    embedder: Embedder, photos: list[ImageFile], tmp_path: Path
) -> None:
    (tmp_path / "empty.png").touch()
    broken = [ImageFile("gone", tmp_path / "gone.png"), ImageFile("empty", tmp_path / "empty.png")]
    files = [broken[0], *photos[:3], broken[1], *photos[3:]]
    results = list(embedder.embed_all(iter(files)))
    assert [file for file, _ in results] == files
    for file, result in results:
        if file in broken:
            assert isinstance(result, UnreadableImageError) and result.path == file.path
            assert result.reason == {"gone": "the file does not exist", "empty": "the file is empty"}[file.image_id]
        else:
            assert result.embeddings.image_id == file.image_id
            assert_close(result.embeddings.vectors, embedder.embed(file).embeddings.vectors)


def test_no_photos_are_no_results(embedder: Embedder) -> None:
    assert list(embedder.embed_all([])) == []


def test_few_photos_are_held_at_a_time(
    embedder: Embedder, write_photo: WritePhoto, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_photo("a.png", 32, 32)
    alive, most, listed = 0, 0, 0
    mapper = embedder._mapper

    def forget() -> None:
        nonlocal alive
        alive -= 1

    def count(dataset_dict: dict[str, Any]) -> dict[str, Any]:
        nonlocal alive, most
        mapped = mapper(dataset_dict)
        weakref.finalize(mapped["image"], forget)
        alive += 1
        most = max(most, alive)
        return mapped

    def list_files() -> Iterator[ImageFile]:
        nonlocal listed
        for _ in range(40):
            listed += 1
            yield file

    monkeypatch.setattr(embedder, "_mapper", count)
    for done, _ in enumerate(embedder.embed_all(list_files()), start=1):
        assert listed <= done + READ_AHEAD
    assert done == 40
    # Beyond those that wait: the one in the model, and those that the consumer has not let go of yet.
    assert most <= READ_AHEAD + 3
    assert alive <= 1


def test_stopping_early_leaves_no_thread_behind(embedder: Embedder, photos: list[ImageFile]) -> None:
    import threading

    results = embedder.embed_all(photos * 5)
    next(results)
    results.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_any_other_error_of_a_photo_is_not_hidden(
    embedder: Embedder, photos: list[ImageFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(dataset_dict: dict[str, Any]) -> None:
        raise RuntimeError("our own fault")

    monkeypatch.setattr(embedder, "_mapper", fail)
    with pytest.raises(RuntimeError, match="our own fault"):
        list(embedder.embed_all(photos))


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((2000, 3000), (683, 1024)),
        ((1200, 300), (1024, 256)),
        ((1024, 700), (1024, 700)),
        ((500, 700), (500, 700)),
        ((2, 3000), (1, 1024)),
        ((1, 1), (1, 1)),
    ],
)
def test_longer_side_is_reduced_and_never_enlarged(
    size: tuple[int, int],
    seen: tuple[int, int],
    embedder: Embedder,
    input_sizes: list[tuple[int, ...]],
    write_photo: WritePhoto,
) -> None:
    height, width = size
    embedded = embedder.embed(write_photo("a.jpg", height, width))
    assert input_sizes == [(3, *seen)]
    assert (embedded.height, embedded.width) == size
    embeddings = embedded.embeddings
    assert embeddings.boxes[-1].tolist() == [0, 0, width, height]
    assert len(embeddings) > 1 and np.isfinite(embeddings.vectors).all()
    assert_close(np.linalg.norm(embeddings.vectors, axis=1), np.ones(len(embeddings)))
    assert (embeddings.boxes[:, 2:] > embeddings.boxes[:, :2]).all() and (embeddings.boxes >= 0).all()
    assert (embeddings.boxes <= [width, height, width, height]).all()
    # The grid reaches every border of the original photo.
    np.testing.assert_allclose(embeddings.boxes[:-1, 2:].max(axis=0), [width, height], rtol=1e-5)


def test_reduced_photo_looks_as_if_it_had_been_reduced_before(embedder: Embedder, write_photo: WritePhoto) -> None:
    large = write_photo("large.png", 300, 1536)
    with Image.open(large.path) as image:
        image.resize((1024, 200), Image.Resampling.BILINEAR).save(large.path.with_name("small.png"))
    small = embedder.embed(ImageFile("small", large.path.with_name("small.png"))).embeddings
    embeddings = embedder.embed(large).embeddings
    assert_close(embeddings.vectors, small.vectors)
    assert_close(embeddings.boxes, small.boxes * np.float32(1536 / 1024))


def test_the_limit_comes_from_the_config(cfg: CfgNode, write_photo: WritePhoto) -> None:
    cfg.INPUT.OESIR.MAX_LONG_SIDE = 64
    cfg.INPUT.OESIR.MAX_PIXELS = 128 * 96
    embedder = Embedder(cfg)
    shapes: list[tuple[int, ...]] = []
    embedder.model.embedding_source.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0][0].shape))
    embedder.embed(write_photo("a.png", 96, 128))
    assert [tuple(shape) for shape in shapes] == [(3, 48, 64)]
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        embedder.embed(write_photo("b.png", 97, 128))


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (2, lambda pixels: pixels[:, ::-1]),
        (3, lambda pixels: pixels[::-1, ::-1]),
        (6, lambda pixels: np.rot90(pixels, 1)),
        (8, lambda pixels: np.rot90(pixels, -1)),
    ],
)
def test_rotated_photo_is_its_upright_copy(
    orientation: int,
    undo: Callable[[np.ndarray], np.ndarray],
    embedder: Embedder,
    make_photo: Callable[..., np.ndarray],
    tmp_path: Path,
) -> None:
    upright = make_photo(60, 100)
    Image.fromarray(upright).save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    # The pixels as the camera stores them: showing them as the orientation says gives the upright photo.
    Image.fromarray(np.ascontiguousarray(undo(upright))).save(tmp_path / "rotated.png", exif=exif)
    expected = embedder.embed(ImageFile("upright", tmp_path / "upright.png"))
    rotated = embedder.embed(ImageFile("rotated", tmp_path / "rotated.png"))
    assert (rotated.width, rotated.height) == (expected.width, expected.height) == (100, 60)
    assert np.array_equal(rotated.embeddings.vectors, expected.embeddings.vectors)
    assert np.array_equal(rotated.embeddings.boxes, expected.embeddings.boxes)
    box = [[70, 10, 100, 55]]
    assert np.array_equal(
        embedder.embed(rotated.file, box).embeddings.vectors, embedder.embed(expected.file, box).embeddings.vectors
    )


def test_given_box_gets_the_embedding_of_the_same_region(embedder: Embedder, write_photo: WritePhoto) -> None:
    file = write_photo("a.png", 120, 90)
    grid = embedder.embed(file).embeddings
    given = embedder.embed(file, grid.boxes[[3, 0]].tolist()).embeddings
    assert_close(given.vectors, grid.vectors[[3, 0]])
    assert np.array_equal(given.boxes, grid.boxes[[3, 0]])
    assert given.scores.tolist() == [1, 1] and given.classes.tolist() == [NO_CLASS] * 2
    assert len(embedder.embed(file, []).embeddings) == 0


def test_given_box_is_in_pixels_of_the_original_photo(
    embedder: Embedder, write_photo: WritePhoto, tmp_path: Path
) -> None:
    large = write_photo("large.png", 400, 2048)
    with Image.open(large.path) as image:
        image.resize((1024, 200), Image.Resampling.BILINEAR).save(tmp_path / "small.png")
    box = [400.0, 20.0, 1500.0, 380.0]
    given = embedder.embed(large, [box]).embeddings
    half = embedder.embed(ImageFile("small", tmp_path / "small.png"), [[value / 2 for value in box]]).embeddings
    assert_close(given.vectors, half.vectors)
    assert given.boxes.tolist() == [box]


def test_thinnest_box_is_still_that_box(embedder: Embedder, write_photo: WritePhoto) -> None:
    """In float32 this box has no width: it must not be dropped, which would leave the whole image in its place."""
    file = write_photo("a.png", 48, 1000)
    thin, wide = [999.99999, 0, 1000, 48], [999, 0, 1000, 48]
    given = embedder.embed(file, [thin, wide]).embeddings
    assert len(given) == 2 and np.isfinite(given.vectors).all()
    assert_close(given.vectors[0], given.vectors[1])
    whole = embedder.embed(file).embeddings.vectors[-1]
    assert not np.allclose(given.vectors[0], whole, atol=1e-2)


@pytest.mark.parametrize(
    "box",
    [
        (-1, 0, 20, 20),
        (0, -0.5, 20, 20),
        (0, 0, 91, 20),
        (0, 0, 20, 60.5),
        (20, 0, 20, 30),
        (30, 0, 20, 30),
        (0, 30, 20, 20),
        (float("nan"), 0, 20, 20),
        (0, 0, float("inf"), 20),
        (90, 60, 120, 90),
    ],
)
def test_box_outside_of_the_photo_is_refused_with_what_is_allowed(
    box: tuple[float, ...], embedder: Embedder, write_photo: WritePhoto
) -> None:
    file = write_photo("a.png", 60, 90)
    with pytest.raises(ValueError, match=r"a\.png; allowed: .* 0 <= X0 < X1 <= 90 and 0 <= Y0 < Y1 <= 60") as raised:
        embedder.embed(file, [(0, 0, 10, 10), box])
    assert ",".join(f"{value:g}" for value in box) in str(raised.value)


def test_unreadable_photo_is_refused_by_name(embedder: Embedder, tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="gone.png: the file does not exist"):
        embedder.embed(ImageFile("gone", tmp_path / "gone.png"))


def test_embedding_needs_no_gradients(embedder: Embedder, photos: list[ImageFile]) -> None:
    recorded: list[bool] = []
    hook = embedder.model.embedding_source.register_forward_hook(
        lambda *_: recorded.append(torch.is_inference_mode_enabled())
    )
    embedder.embed(photos[0])
    hook.remove()
    assert recorded == [True]


def test_checkpoint_without_the_trunk_of_the_package_loads_and_embeds_alike(
    write_photo: WritePhoto, tmp_path: Path
) -> None:
    opts = ["MODEL.META_ARCHITECTURE", "OESIR", "MODEL.OESIR.REGIONS.SCORE_THRESH", "0.0"]
    opts += ["MODEL.OESIR.EMBEDDING.SOURCE", "DetectorSource"]
    trained = Embedder(load_config("lite0/Base-lite0-RCNN-FPN.yaml", opts))
    tensors = {name: value for name, value in trained.model.state_dict().items() if not name.startswith(TRUNK_PREFIX)}
    assert 0 < len(tensors) < len(trained.model.state_dict())
    save_file(tensors, tmp_path / "learned.safetensors")
    loaded = Embedder(
        load_config("lite0/Base-lite0-RCNN-FPN.yaml", [*opts, "MODEL.WEIGHTS", str(tmp_path / "learned.safetensors")])
    )
    file = write_photo("a.png", 96, 128)
    np.testing.assert_array_equal(loaded.embed(file).embeddings.vectors, trained.embed(file).embeddings.vectors)
    assert loaded.info.weights_sha256 == trained.info.weights_sha256

    # Without the package's weights, or without a part that only training gives, it is refused.
    missing = tmp_path / "missing.safetensors"
    save_file({name: value for name, value in tensors.items() if "fpn_lateral3" not in name}, missing)
    for wrong, word in (
        (["MODEL.WEIGHTS", str(missing)], "fpn_lateral3"),
        (["MODEL.WEIGHTS", str(tmp_path / "learned.safetensors"), "MODEL.OESIR.EFFICIENTNET.WEIGHTS", ""], "trunk"),
    ):
        with pytest.raises(ValueError, match=rf"does not fit the model: it lacks \d+ of its tensors .*{word}"):
            Embedder(load_config("lite0/Base-lite0-RCNN-FPN.yaml", [*opts, *wrong]))
