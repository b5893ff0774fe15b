"""Photos on a page: read from their files, shrunk, drawn on and embedded; a placeholder where a file is not readable.

Boxes are XYXY in pixels of the original photo after its EXIF rotation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oesir_d2.data.images import DecodedImage, UnreadableImageError, read_image
from oesir_d2.report.drawings import DISPLAY_LONG_SIDE, Box, LabelledBox, crop_box, draw_display_photo
from oesir_d2.report.linking import is_whole_photo
from oesir_d2.report.page import escape, render_image
from oesir_d2.report.text import get_file_name

TINY_SIDE = 24

CROP_LONG_SIDE = 120

# Large JPEG files are decoded at a fraction of their size, which saves most of the time of writing a report. Twice the
# display size leaves enough for the crops of regions.
DECODED_LONG_SIDE = 2 * DISPLAY_LONG_SIDE


@dataclass(frozen=True)
class LoadedPhoto:
    """A photo, or the reason why there is none.

    Attributes:
        name: file name, for the reader.
        image: the decoded photo; None if the file is not readable.
        reason: why it is not; empty if it is.
    """

    name: str
    image: DecodedImage | None
    reason: str = ""

    def is_whole(self, box: Box) -> bool:
        """Whether a box is the whole photo; of an unreadable photo no one can tell, so it is not."""
        return self.image is not None and is_whole_photo(box, self.image.width, self.image.height)


def load_photo(path: str | Path) -> LoadedPhoto:
    """Read a photo for a report. Files may have moved since the search, so one that is not readable raises nothing."""
    name = get_file_name(path)
    try:
        return LoadedPhoto(name, read_image(path, format="RGB", reduce_to=DECODED_LONG_SIDE))
    except UnreadableImageError as error:
        return LoadedPhoto(name, None, error.reason)


def render_photo(photo: LoadedPhoto, boxes: Sequence[LabelledBox] = (), long_side: int = DISPLAY_LONG_SIDE) -> str:
    """A photo with boxes as a figure.

    The whole photo as a region is a frame around it: a box on its border would hide what lies there.

    Args:
        photo: the photo; an unreadable one gives a placeholder with the reason.
        boxes: boxes to draw.
        long_side: longer side in pixels at which it is embedded; a smaller photo keeps its size.
    """
    image = photo.image
    if image is None:
        return (
            '<figure><div class="stage"><p class="missing"><strong>This photo cannot be shown</strong> '
            f"{escape(photo.name)}: {escape(photo.reason)}</p></div></figure>\n"
        )
    frames = [box.color for box in boxes if photo.is_whole(box.box)]
    parts = [
        LabelledBox(_to_decoded(box.box, image), box.color, box.label) for box in boxes if not photo.is_whole(box.box)
    ]
    shown = draw_display_photo(image.pixels, parts, long_side)
    picture = render_image(shown, photo.name, frames[0] if frames else None)
    # Without its size, a photo of a few pixels looks like a mistake of the page.
    tiny = min(shown.shape[:2]) < TINY_SIDE
    size = f"<figcaption>{image.width} × {image.height} pixels</figcaption>" if tiny else ""
    return f'<figure><div class="stage">{picture}</div>{size}</figure>\n'


def render_crop(photo: LoadedPhoto, box: Box, alternative: str) -> str:
    """The part of a photo within a box, as a small picture in a line of text; a dash for an unreadable photo."""
    if photo.image is None:
        return '<span class="crop">–</span>'
    part = crop_box(photo.image.pixels, _to_decoded(box, photo.image))
    shown = draw_display_photo(part, long_side=CROP_LONG_SIDE)
    return f'<span class="crop">{render_image(shown, alternative)}</span>'


def _to_decoded(box: Box, image: DecodedImage) -> Box:
    """A box in pixels of the original as one in pixels of the photo as it was decoded."""
    scale_x, scale_y = image.pixels.shape[1] / image.width, image.pixels.shape[0] / image.height
    return box[0] * scale_x, box[1] * scale_y, box[2] * scale_x, box[3] * scale_y
