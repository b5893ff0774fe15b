"""A quick model and photo files that the tests of the engine share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from PIL import Image

from oesir_d2.data import ImageFile
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.embedder import Embedder

TINY_OPTS = [
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.OESIR.REGIONS.GRID_LEVELS", "[1, 2]"),
    *("MODEL.OESIR.EMBEDDING.WHITENING_DIM", "0"),
    *("MODEL.OESIR.EMBEDDING.WHITENING", ""),
    # 112 channels of stride 16: most of the network does not run.
    *("MODEL.OESIR.TEACHER.LAYER", "conv4_6"),
]


@pytest.fixture
def cfg() -> CfgNode:
    """A config of its own for each test: grid regions of a part of EfficientNet-Lite0, not whitened."""
    return load_config("oesir_lite0_grid.yaml", TINY_OPTS)


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    """The embedder of ``cfg``. Tests do not change it."""
    return Embedder(load_config("oesir_lite0_grid.yaml", TINY_OPTS))


@pytest.fixture
def write_photo(make_photo: Callable[..., np.ndarray], tmp_path: Path) -> Callable[..., ImageFile]:
    """``write_photo(name, height, width)`` writes a new photo under ``tmp_path / "photos"``."""

    def write(name: str, height: int = 48, width: int = 64) -> ImageFile:
        path = tmp_path / "photos" / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(make_photo(height, width)).save(path)
        return ImageFile(name, path)

    return write


@pytest.fixture
def photos(write_photo: Callable[..., ImageFile]) -> list[ImageFile]:
    """Six small photos of different sizes."""
    return [write_photo(f"{index}.png", 48 + 8 * index, 72) for index in range(6)]
