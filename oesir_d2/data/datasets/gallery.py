"""A gallery of real photos that every user has from PyPI: those inside scikit-image, scikit-learn and matplotlib.

Some are everyday photos with an object, some are textures or scientific pictures: distractors.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

PACKAGED_PHOTOS = {
    "skimage": (
        "data/astronaut.png",
        "data/brick.png",
        "data/camera.png",
        "data/chelsea.png",
        "data/clock_motion.png",
        "data/coffee.png",
        "data/coins.png",
        "data/grass.png",
        "data/gravel.png",
        "data/hubble_deep_field.jpg",
        "data/ihc.png",
        "data/moon.png",
        "data/motorcycle_left.png",
        "data/page.png",
        "data/retina.jpg",
        "data/rocket.jpg",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "matplotlib": ("mpl-data/sample_data/grace_hopper.jpg",),
}
"""Files by package, relative to the package's folder."""


def copy_gallery(folder: Path) -> int:
    """Copy the gallery into a folder; photos that are there already stay as they are.

    Args:
        folder: created if it is missing.

    Returns:
        The number of photos in the gallery.

    Raises:
        FileNotFoundError: a package that brings photos is not installed, or has them no longer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for package, names in PACKAGED_PHOTOS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise FileNotFoundError(f"the gallery needs the package {package}; run: pip install 'oesir_d2[demo]'")
        for name in names:
            source = Path(spec.origin).parent / name
            if not source.is_file():
                raise FileNotFoundError(f"{package} has no photo {name}; the gallery needs the version that is pinned")
            target = folder / source.name
            if not target.exists():
                shutil.copyfile(source, target)
            count += 1
    return count
