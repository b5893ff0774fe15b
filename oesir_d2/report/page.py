"""Self-contained HTML pages: all that a page shows lies in its one file, its script too where it has one.

A page is put together from sections. A section is any iterable of HTML fragments, mostly a generator: fragments are
written as they come, so that a page of many photos is never held in memory as a whole. Functions named ``render_…``
return HTML and escape every text that they are given.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from oesir_d2.files import open_atomically
from oesir_d2.report.drawings import Color, get_text_color
from oesir_d2.report.style import PAGE_STYLE
from oesir_d2.report.text import make_printable

JPEG_QUALITY = 80

# The browser itself refuses whatever would come from outside, should a fragment ever ask for it.
CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_page(path: str | Path, title: str, sections: Iterable[Iterable[str]], script: str = "") -> None:
    """Write a page to a file, fragment by fragment, and put it in place when it is complete.

    Args:
        path: HTML file; missing folders are made, an existing file is replaced.
        title: heading of the page and of its window.
        sections: the page's sections in order, each an iterable of HTML fragments.
        script: run when the page has been read; no other script is.
    """
    with open_atomically(path) as file:
        for fragment in iterate_page(title, sections, script):
            file.write(fragment.encode("utf-8"))


def render_page(title: str, sections: Iterable[Iterable[str]], script: str = "") -> str:
    """The same page as a string."""
    return "".join(iterate_page(title, sections, script))


def iterate_page(title: str, sections: Iterable[Iterable[str]], script: str = "") -> Iterator[str]:
    """The fragments of a whole page in order."""
    policy = CONTENT_POLICY
    if script:
        # Its hash lets the browser run this script alone, whatever else a name should have smuggled in.
        digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
        policy += f"; script-src 'sha256-{digest}'"
    yield f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{PAGE_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
"""
    for section in sections:
        yield from section
    ending = f"<script>{script}</script>\n" if script else ""
    yield f"</main>\n{ending}</body>\n</html>\n"


def escape(text: object) -> str:
    """Text as it may stand in HTML, between tags and in quoted attributes."""
    return html.escape(make_printable(text), quote=True)


def render_name(text: object, css_class: str = "name") -> str:
    """A file name, path or id. It is kept apart from the direction of the text around it, which a name can turn."""
    return f'<bdi class="{escape(css_class)}">{escape(text)}</bdi>'


def render_facts(facts: Mapping[str, object]) -> str:
    """Names with their values, such as what was searched and how; nothing for no facts."""
    if not facts:
        return ""
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd><bdi>{escape(facts[name])}</bdi></dd></div>" for name in facts)
    return f'<dl class="facts">{rows}</dl>\n'


def facts_section(facts: Mapping[str, object], heading: str = "") -> Iterator[str]:
    """A section that holds facts only, with a heading if one is given."""
    if facts:
        yield f"<section>{render_heading(heading)}{render_facts(facts)}</section>\n"


def render_heading(heading: str, level: int = 2, anchor: str = "") -> str:
    """A heading, or nothing for an empty one."""
    identity = f' id="{escape(anchor)}"' if anchor else ""
    return f"<h{level}{identity}>{escape(heading)}</h{level}>\n" if heading else ""


def render_table(header: Sequence[str], rows: Iterable[Sequence[object]], css_class: str = "") -> str:
    """A table whose first column names its rows; it scrolls by itself where the window is too narrow for it.

    Args:
        header: names of the columns.
        rows: cells, as many as there are columns.
        css_class: class of the table; ``figures`` for a name, a number and words, which a narrow window shows below.
    """
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    table = f'<table class="{escape(css_class)}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>\n'


def render_notice(text: str) -> str:
    """A sentence that stands in place of content, such as that nothing was found."""
    return f'<p class="notice">{escape(text)}</p>\n'


def render_swatch(label: str, color: Color) -> str:
    """A box's label on its colour, as it stands on the photo."""
    style = f"background:{to_css_color(color)};color:{to_css_color(get_text_color(color))}"
    return f'<span class="swatch" style="{style}">{escape(label)}</span>'


def render_image(pixels: np.ndarray, alternative: str, frame: Color | None = None) -> str:
    """A photo embedded as a JPEG file.

    Args:
        pixels: (H, W, 3) uint8 RGB at display size.
        alternative: what the photo is, for readers who cannot see it.
        frame: colour of a frame around the photo; None for none.
    """
    style = f' class="framed" style="border-color:{to_css_color(frame)}"' if frame else ""
    height, width = pixels.shape[:2]
    source = encode_data_uri(pixels)
    return f'<img src="{source}" width="{width}" height="{height}" alt="{escape(alternative)}"{style}>'


def encode_data_uri(pixels: np.ndarray, quality: int = JPEG_QUALITY) -> str:
    """A photo, (H, W, 3) uint8 RGB, as a ``data:`` URI of a JPEG file."""
    buffer = io.BytesIO()
    # Full colour resolution: halving it, the JPEG default, would bleach the thin coloured borders that link the boxes.
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def to_css_color(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
