"""Local features: RootSIFT keypoints of a photo, of an enlarged part of it, and as its mirror image would have them.

RootSIFT: Arandjelovic and Zisserman, "Three things everyone should know to improve object retrieval", CVPR 2012.
Shape shorthand: N keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

DESCRIPTOR_SIZE = 128

# RootSIFT elements lie in [0, 1] and seldom above one half; so they are stored in a byte each.
_QUANTISATION = 512.0


@dataclass(frozen=True)
class FeatureOptions:
    """How keypoints are detected.

    Attributes:
        max_features: the strongest so many are kept; > 0.
        contrast: SIFT's contrast threshold, > 0. OpenCV's default is 0.04; recompressed and small objects need less.
        edge: SIFT's edge threshold, > 0; larger keeps more keypoints along edges.
        max_long_side: a larger photo is made smaller before, in pixels.

    Raises:
        ValueError: if a value is not above 0.
    """

    max_features: int = 2000
    contrast: float = 0.01
    edge: float = 15.0
    max_long_side: int = 1024

    def __post_init__(self) -> None:
        for name in ("max_features", "contrast", "edge", "max_long_side"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")


@dataclass(frozen=True)
class LocalFeatures:
    """Keypoints with their descriptors.

    Attributes:
        points: (N, 2) float32, (x, y) in pixels of the original photo, the centre of its first pixel at (0, 0).
        sizes: (N,) float32, diameters in pixels of the original photo.
        angles: (N,) float32, orientations in radians, clockwise as seen, since y points down.
        descriptors: (N, 128) uint8, RootSIFT times 512; see ``unit_descriptors``.
    """

    points: np.ndarray
    sizes: np.ndarray
    angles: np.ndarray
    descriptors: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.points)
        shapes = (self.points.shape, self.sizes.shape, self.angles.shape, self.descriptors.shape)
        assert shapes == ((n, 2), (n,), (n,), (n, DESCRIPTOR_SIZE)), f"shapes {shapes} do not belong together"

    def __len__(self) -> int:
        return len(self.points)

    @classmethod
    def empty(cls) -> LocalFeatures:
        """No keypoint at all, as in a blank photo."""
        nothing = np.zeros(0, np.float32)
        return cls(np.zeros((0, 2), np.float32), nothing, nothing, np.zeros((0, DESCRIPTOR_SIZE), np.uint8))

    def unit_descriptors(self) -> np.ndarray:
        """(N, 128) float32, L2-normalised."""
        descriptors = self.descriptors.astype(np.float32)
        norms = np.sqrt(np.einsum("nd,nd->n", descriptors, descriptors))
        return descriptors / np.maximum(norms, 1e-6)[:, None]

    def select(self, chosen: np.ndarray) -> LocalFeatures:
        """Some of the keypoints, by a boolean mask (N,) or by their positions."""
        return LocalFeatures(self.points[chosen], self.sizes[chosen], self.angles[chosen], self.descriptors[chosen])

    def inside(self, box: Sequence[float], margin: float = 0.0) -> LocalFeatures:
        """The keypoints in a box.

        Args:
            box: XYXY in pixels of the original photo.
            margin: by how much the box is enlarged on each side, as a share of its longer side.
        """
        x0, y0, x1, y1 = box
        margin *= max(x1 - x0, y1 - y0)
        lower, upper = np.array([x0 - margin, y0 - margin]), np.array([x1 + margin, y1 + margin])
        return self.select(np.flatnonzero(((self.points >= lower) & (self.points <= upper)).all(axis=1)))

    def mirrored(self, width: int) -> LocalFeatures:
        """What would be found in the photo mirrored left and right: nothing is detected again.

        Args:
            width: of the original photo, in pixels.
        """
        points = self.points.copy()
        points[:, 0] = width - 1 - points[:, 0]
        # A descriptor has 4 rows of 4 cells with 8 orientations each, relative to the keypoint's. A mirror swaps the
        # sides of that orientation and the sense of rotation.
        cells = self.descriptors.reshape(-1, 4, 4, 8)[:, ::-1, :, [0, 7, 6, 5, 4, 3, 2, 1]]
        descriptors = np.ascontiguousarray(cells).reshape(-1, DESCRIPTOR_SIZE)
        return LocalFeatures(points, self.sizes, np.float32(np.pi) - self.angles, descriptors)


def detect_features(pixels: np.ndarray, options: FeatureOptions, mask: np.ndarray | None = None) -> LocalFeatures:
    """Detect the keypoints of a photo.

    Args:
        pixels: (H, W, 3) uint8 RGB, or (H, W) uint8.
        options: how.
        mask: (H, W) uint8; keypoints lie where it is not 0.
    """
    height, width = pixels.shape[:2]
    return detect_features_in_box(pixels, (0, 0, width, height), options, max(height, width), mask)


def detect_features_in_box(
    pixels: np.ndarray,
    box: tuple[int, int, int, int],
    options: FeatureOptions,
    long_side: int,
    mask: np.ndarray | None = None,
    max_enlargement: float = 4.0,
) -> LocalFeatures:
    """Detect keypoints in a part of a photo that is enlarged before: a small object has few of them at its own size.

    Args:
        pixels: (H, W, 3) uint8 RGB, or (H, W) uint8.
        box: XYXY in whole pixels, inside the photo, not empty.
        options: how.
        long_side: what the longer side of the part is enlarged to, in pixels; one that is longer stays as it is.
        mask: (H, W) uint8; keypoints lie where it is not 0.
        max_enlargement: bound of the enlargement, >= 1.

    Returns:
        The keypoints in pixels of the whole photo.
    """
    x0, y0, x1, y1 = box
    part = pixels[y0:y1, x0:x1]
    grey = part if part.ndim == 2 else cv2.cvtColor(part, cv2.COLOR_RGB2GRAY)
    longer = max(grey.shape)
    factor = min(max(long_side / longer, 1.0), max_enlargement, options.max_long_side / longer)
    size = max(1, round(grey.shape[1] * factor)), max(1, round(grey.shape[0] * factor))
    if size != grey.shape[::-1]:
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)
        if mask is not None:
            mask = cv2.resize(mask[y0:y1, x0:x1], size, interpolation=cv2.INTER_NEAREST)
    elif mask is not None:
        mask = np.ascontiguousarray(mask[y0:y1, x0:x1])
    features = _detect(np.ascontiguousarray(grey), options, mask)
    scale = np.array([(x1 - x0) / size[0], (y1 - y0) / size[1]])
    # Pixel centres are at whole numbers, pixel edges are what a resize keeps in place.
    points = (features.points + 0.5) * scale - 0.5 + np.array([x0, y0])
    sizes = features.sizes * np.sqrt(scale.prod())
    return LocalFeatures(points.astype(np.float32), sizes.astype(np.float32), features.angles, features.descriptors)


def _detect(grey: np.ndarray, options: FeatureOptions, mask: np.ndarray | None) -> LocalFeatures:
    detector = cv2.SIFT.create(
        nfeatures=options.max_features, contrastThreshold=options.contrast, edgeThreshold=options.edge
    )
    keypoints, descriptors = detector.detectAndCompute(grey, mask)
    if descriptors is None or len(keypoints) == 0:
        return LocalFeatures.empty()
    rows = np.array([(*keypoint.pt, keypoint.size, keypoint.angle) for keypoint in keypoints], dtype=np.float32)
    # The square root of an L1-normalised histogram has unit length.
    shares = descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-6)
    quantised = np.minimum(np.rint(np.sqrt(shares) * _QUANTISATION), 255).astype(np.uint8)
    return LocalFeatures(rows[:, :2], rows[:, 2], np.deg2rad(rows[:, 3]), quantised)
