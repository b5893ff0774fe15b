"""What the composer of a detection set draws from."""

from __future__ import annotations

from dataclasses import dataclass

from oesir_d2.data.splicing.compositor import SpliceOptions


@dataclass(frozen=True)
class DetectionOptions:
    """The ranges that the composer draws from, uniformly but for the objects' sizes.

    Attributes:
        long_side: longer side of a composed photo, in pixels.
        max_enlargement: a host is never enlarged by more than this, and may so become smaller than ``long_side``.
        max_objects: most objects that are pasted into a photo.
        without: share of the photos that nothing is pasted into.
        scale: longer side of an object, as a fraction of the photo's; log-uniform.
        rotation, flip, colour, quality: see ``SpliceOptions``.
        softness: width of an object's edges; a quarter of the objects have the least.
        max_covered: share of an object that later ones may cover; of a host, objects that are covered more lose their
            box, and a pasted object is drawn again.
        keep_empty: whether hosts are used that have no known object and that no source cuts an object out of.

    Raises:
        ValueError: if a value is out of range.
    """

    long_side: tuple[int, int] = (320, 640)
    max_enlargement: float = 1.5
    max_objects: int = 5
    without: float = 0.1
    scale: tuple[float, float] = (0.08, 0.6)
    rotation: float = 20.0
    flip: float = 0.5
    colour: float = 0.15
    softness: tuple[float, float] = (0.0, 2.0)
    quality: tuple[int, int] = (60, 95)
    max_covered: float = 0.6
    keep_empty: bool = False

    def __post_init__(self) -> None:
        # Comparisons with NaN are false, so each test asks for what is allowed.
        if not 32 <= self.long_side[0] <= self.long_side[1] <= 8192:
            raise ValueError(f"long_side is {self.long_side}, expected two ascending sizes in 32 to 8192 pixels")
        if not 0 < self.max_enlargement <= 16:
            raise ValueError(f"max_enlargement is {self.max_enlargement}, expected a factor in (0, 16]")
        if not 0 <= self.max_objects <= 100:
            raise ValueError(f"max_objects is {self.max_objects}, expected 0 to 100")
        for name in ("without", "max_covered"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a share in [0, 1]")
        for softness in self.softness:
            self.make_splice_options(self.scale, softness)  # which checks the others
        if not self.softness[0] <= self.softness[1]:
            raise ValueError(f"softness is {self.softness}, expected two ascending widths in pixels")

    def make_splice_options(self, scale: tuple[float, float], softness: float) -> SpliceOptions:
        """What the compositor needs to know of one object."""
        return SpliceOptions(scale, self.rotation, self.flip, self.colour, softness, self.quality)
