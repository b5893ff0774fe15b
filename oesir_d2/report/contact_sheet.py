"""Many photos at a glance: a grid of captioned photos as one image.

Photos are (H, W, 3) uint8 RGB arrays; so is the sheet.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from oesir_d2.files import open_atomically
from oesir_d2.report.drawings import Color, draw_display_photo, get_font
from oesir_d2.report.text import make_printable

PAPER: Color = (250, 250, 248)
INK: Color = (32, 32, 36)
EMPTY_CELL: Color = (222, 222, 218)

CELL_SIDE = 240
COLUMNS = 5
GAP = 12
CAPTION_SIZE = 13
ELLIPSIS = "…"


@dataclass(frozen=True)
class CaptionedPhoto:
    """One cell of a contact sheet.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, boxes already drawn; None for a photo that could not be read.
        caption: text below the photo, one line of the sheet for each of its lines; a line that is too long for the
            cell is shortened in its middle, so that a file name keeps its beginning and its end.
    """

    pixels: np.ndarray | None
    caption: str


def draw_contact_sheet(
    photos: Iterable[CaptionedPhoto], columns: int = COLUMNS, cell_side: int = CELL_SIDE
) -> np.ndarray:
    """Lay photos out in a grid, row by row.

    Args:
        photos: read one after the other; only their shrunken copies are kept.
        columns: photos a row; a sheet of fewer photos is narrower.
        cell_side: longer side of a shown photo in pixels; smaller photos keep their size.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: if there is no photo, or ``columns`` or ``cell_side`` is not allowed.
    """
    if columns < 1:
        raise ValueError(f"{columns} columns are not allowed, a contact sheet has at least 1")
    if cell_side < 16:
        raise ValueError(f"cell side {cell_side} is not allowed, it has at least 16 pixels")
    shown = [
        CaptionedPhoto(None if p.pixels is None else draw_display_photo(p.pixels, long_side=cell_side), p.caption)
        for p in photos
    ]
    if not shown:
        raise ValueError("a contact sheet needs at least 1 photo, got 0")
    font = get_font(CAPTION_SIZE)
    line_height = round(1.4 * CAPTION_SIZE)
    columns = min(columns, len(shown))
    rows = math.ceil(len(shown) / columns)
    caption_height = line_height * max(len(p.caption.splitlines()) for p in shown)
    step_x, step_y = cell_side + GAP, cell_side + caption_height + GAP
    sheet = Image.new("RGB", (GAP + columns * step_x, GAP + rows * step_y), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, photo in enumerate(shown):
        left, top = GAP + (index % columns) * step_x, GAP + (index // columns) * step_y
        _draw_cell(sheet, draw, photo.pixels, (left, top), cell_side)
        for line_number, line in enumerate(photo.caption.splitlines()):
            origin = (left, top + cell_side + line_number * line_height)
            draw.text(origin, shorten_caption(make_printable(line), font, cell_side), font=font, fill=INK)
    return np.array(sheet)


def write_contact_sheet(
    path: str | Path, photos: Iterable[CaptionedPhoto], columns: int = COLUMNS, cell_side: int = CELL_SIDE
) -> None:
    """Write a contact sheet as a PNG file, in one step: no reader ever sees half of it.

    Args:
        path: file to write; its folder is made if it is missing, an existing file is replaced.
        photos, columns, cell_side: as for ``draw_contact_sheet``.

    Raises:
        ValueError: as ``draw_contact_sheet``, or if ``path`` does not end in ``.png``.
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"contact sheet {str(path)!r} is not allowed, its name ends in .png")
    sheet = draw_contact_sheet(photos, columns, cell_side)
    content = io.BytesIO()
    Image.fromarray(sheet).save(content, format="PNG")
    with open_atomically(path) as file:
        file.write(content.getbuffer())


def shorten_caption(line: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Take characters out of the middle of a line until it is at most ``width`` pixels wide in this font."""
    if font.getlength(line) <= width:
        return line
    for kept in range(len(line) - 1, 0, -1):
        head, tail = line[: math.ceil(kept / 2)], line[len(line) - kept // 2 :]
        if font.getlength(head + ELLIPSIS + tail) <= width:
            return head + ELLIPSIS + tail
    return ELLIPSIS


def _draw_cell(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, pixels: np.ndarray | None, origin: tuple[int, int], side: int
) -> None:
    """Put one photo in the middle of its square, or cross the square out where there is none."""
    left, top = origin
    right, bottom = left + side - 1, top + side - 1
    draw.rectangle((left, top, right, bottom), fill=EMPTY_CELL)
    if pixels is None:
        draw.line((left, top, right, bottom), fill=INK)
        draw.line((left, bottom, right, top), fill=INK)
        return
    height, width = pixels.shape[:2]
    sheet.paste(Image.fromarray(pixels), (left + (side - width) // 2, top + (side - height) // 2))
