"""Where photos lie that users add: under names made from their content, whatever they were called."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from oesir_d2.data.images import ImageFile, get_readable_formats
from oesir_d2.data.quiet_pillow import quiet_pillow
from oesir_d2.files import open_atomically, sha256_of_file

COMMON_EXTENSIONS = (".jpg", ".png", ".webp", ".tif", ".gif", ".bmp")


def keep_photo(path: Path, folder: Path) -> ImageFile:
    """Copy a photo that was looked at into the folder of added photos, under a name made from its content.

    The same content has the same name, so that a photo that is added twice is there once.
    """
    name = sha256_of_file(path)[:32] + find_extension(path)
    target = folder / name
    if not target.exists():
        with open(path, "rb") as source, open_atomically(target) as file:
            shutil.copyfileobj(source, file)
    return ImageFile(f"added/{name}", target)


def find_extension(path: Path) -> str:
    """The extension for the format that a photo has by its content, with its dot; "" if the format has none."""
    with quiet_pillow, Image.open(path, formats=get_readable_formats()) as image:
        extensions = [name for name, kind in Image.registered_extensions().items() if kind == image.format]
    common = [name for name in extensions if name in COMMON_EXTENSIONS]
    return (common or extensions or [""])[0]
