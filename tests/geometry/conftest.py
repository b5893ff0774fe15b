"""Real photos that lie inside the wheels of scikit-image and scikit-learn, and known warps of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.resources import files

import cv2
import numpy as np
import pytest
from PIL import Image


@cache
def _read_photo(name: str, long_side: int) -> np.ndarray:
    package = "sklearn.datasets.images" if name in ("china", "flower") else "skimage.data"
    suffix = "png" if name in ("astronaut", "coffee", "chelsea", "motorcycle_left") else "jpg"
    with Image.open(str(files(package) / f"{name}.{suffix}")) as image:
        rgb = image.convert("RGB")
    factor = long_side / max(rgb.size)
    pixels = np.array(rgb.resize((round(rgb.width * factor), round(rgb.height * factor)), Image.Resampling.LANCZOS))
    pixels.setflags(write=False)
    return pixels


@pytest.fixture(scope="session")
def read_photo() -> Callable[..., np.ndarray]:
    """``read_photo(name, long_side=320)`` gives a photo, (H, W, 3) uint8 RGB, read-only."""

    def read(name: str, long_side: int = 320) -> np.ndarray:
        return _read_photo(name, long_side)

    return read


@pytest.fixture(scope="session")
def recompress() -> Callable[..., np.ndarray]:
    """``recompress(pixels, quality)`` gives the pixels after a JPEG file of that quality."""

    def through_jpeg(pixels: np.ndarray, quality: int = 75) -> np.ndarray:
        _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])

    return through_jpeg


@pytest.fixture(scope="session")
def see_from_elsewhere() -> Callable[..., np.ndarray]:
    """``see_from_elsewhere(photo, light)`` stands for another photo of the same thing.

    Near things have moved against far ones, and the light, the more the larger ``light``, comes from another side.
    """

    def see(photo: np.ndarray, light: float) -> np.ndarray:
        rows, columns = np.indices(photo.shape[:2]).astype(np.float32)
        depth = np.sin(rows / 25) * np.cos(columns / 25)
        at = columns + 6 * depth, rows + 1.5 * depth
        moved = cv2.remap(photo, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT).astype(np.float32)
        slope = cv2.Sobel(cv2.GaussianBlur(moved.mean(axis=2), (0, 0), 3), cv2.CV_32F, 1, 0)
        return np.clip(moved + light * slope[..., None], 0, 255).astype(np.uint8)

    return see


@pytest.fixture(scope="session")
def make_similarity() -> Callable[..., np.ndarray]:
    """``make_similarity(scale, degrees, dx, dy, mirror_width=None)``: a (3, 3) transform, clockwise as seen."""

    def make(scale: float, degrees: float, dx: float, dy: float, mirror_width: int | None = None) -> np.ndarray:
        cosine, sine = scale * np.cos(np.deg2rad(degrees)), scale * np.sin(np.deg2rad(degrees))
        transform = np.array([[cosine, -sine, dx], [sine, cosine, dy], [0, 0, 1.0]])
        if mirror_width is not None:
            transform = transform @ np.array([[-1.0, 0, mirror_width - 1], [0, 1, 0], [0, 0, 1]])
        return transform

    return make


@pytest.fixture(scope="session")
def paste() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """``paste(host, donor, transform, ellipse)``: the splice, and (H, W) bool where it shows the donor.

    The ellipse, (x, y, half width, half height) in pixels of the donor, is what is cut out.
    """

    def put(
        host: np.ndarray, donor: np.ndarray, transform: np.ndarray, ellipse: tuple[float, float, float, float]
    ) -> tuple[np.ndarray, np.ndarray]:
        height, width = host.shape[:2]
        y, x = np.mgrid[0 : donor.shape[0], 0 : donor.shape[1]]
        inside = ((x - ellipse[0]) / ellipse[2]) ** 2 + ((y - ellipse[1]) / ellipse[3]) ** 2 < 1
        alpha = cv2.warpPerspective(inside.astype(np.float32), transform, (width, height))
        warped = cv2.warpPerspective(donor, transform, (width, height))
        splice = np.rint(host * (1 - alpha[..., None]) + warped * alpha[..., None]).astype(np.uint8)
        return splice, alpha > 0.5

    return put
