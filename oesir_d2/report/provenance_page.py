"""The page of a proof: the query's parts, each beside its place in its source, and the evidence for it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from oesir_d2.data.images import DecodedImage
from oesir_d2.report.drawings import Color, draw_display_photo, get_text_color
from oesir_d2.report.overlays import (
    draw_correspondences,
    draw_warped,
    find_label_place,
    format_outline,
    make_display_scale,
    map_points,
)
from oesir_d2.report.page import (
    encode_data_uri,
    escape,
    facts_section,
    render_facts,
    render_heading,
    render_image,
    render_name,
    render_swatch,
    to_css_color,
    write_page,
)
from oesir_d2.report.photos import LoadedPhoto, load_photo, render_photo
from oesir_d2.report.provenance import (
    ROLE_WORDS,
    ProvenanceReport,
    ShownSource,
    describe_confidence,
    describe_doubt,
    describe_evidence,
    describe_verdict,
    list_sources,
    list_unknown,
)
from oesir_d2.report.search_report import QueryReport, search_section
from oesir_d2.report.text import get_file_name

UNKNOWN_COLOR: Color = (230, 0, 92)
UNVERIFIED_SHOWN = 5
TITLE = "Where does this photo come from?"

SLIDER_SCRIPT = """
for (const slider of document.querySelectorAll(".slider input")) {
  const move = () => slider.parentElement.style.setProperty("--split", slider.value + "%");
  slider.addEventListener("input", move);
  move();
}
"""


def write_provenance_report(
    path: str | Path,
    reports: Sequence[ProvenanceReport],
    facts: Mapping[str, object] | None = None,
    searches: Sequence[QueryReport] = (),
) -> None:
    """Write the page of some proofs to an HTML file, in one step.

    Args:
        path: HTML file; missing folders are made, an existing file is replaced.
        reports: the queries in the order of the page.
        facts: what was searched and how.
        searches: the same queries with all that was found, which follow the proofs.
    """
    sections = [facts_section(facts or {}), *(provenance_section(report, n) for n, report in enumerate(reports, 1))]
    if searches:
        sections.append(search_section(searches, "All that was found"))
    write_page(path, TITLE, sections, script=SLIDER_SCRIPT)


def provenance_section(report: ProvenanceReport, number: int = 1, show_paths: bool = True) -> Iterator[str]:
    """One query as a section of a page, which needs ``SLIDER_SCRIPT``.

    Args:
        report: the query and what was proven.
        number: of the section on its page, for its anchors.
        show_paths: name the files by their paths, not their ids alone.
    """
    name = report.name or get_file_name(report.path)
    query = load_photo(report.path)
    sources = list_sources(report)
    yield f'<section class="proof" id="proof-{number}">\n{render_heading(name)}'
    yield _render_verdict(report)
    yield f'<div class="beside">\n<aside>\n{_render_query(query, report, sources, number)}</aside>\n<div>\n'
    yield f"{_render_legend(report, sources, number)}</div>\n</div>\n"
    for source in sources:
        yield from _source_fragments(query, source, number, show_paths)
    yield "</section>\n"


def _render_verdict(report: ProvenanceReport) -> str:
    first, *others = describe_verdict(report)
    # ASCII, so that a name which is not valid Unicode survives.
    content = json.dumps(report.content, indent=1).encode("ascii")
    source = "data:application/json;base64," + base64.b64encode(content).decode("ascii")
    return (
        f'<p class="notice"><strong>{escape(first)}</strong> {escape(" ".join(others))}</p>\n'
        f'<p><a class="save" download="provenance.json" href="{source}">Save as JSON</a></p>\n'
    )


def _render_query(query: LoadedPhoto, report: ProvenanceReport, sources: Sequence[ShownSource], number: int) -> str:
    """The query with its parts as coloured areas, each a link to its source."""
    if query.image is None:
        return render_photo(query)
    areas = [
        _render_area(query.image, _get_outlines(source), source.color, source.label, _get_anchor(source, number))
        for source in sources
        if source.parts
    ]
    unknown = [polygon for part in list_unknown(report.findings) for polygon in part.polygons]
    if unknown:
        areas.append(_render_area(query.image, unknown, UNKNOWN_COLOR, "?", f"unknown-{number}"))
    return _render_layers(query.image, areas, "The photo with its parts")


def _render_layers(image: DecodedImage, areas: Sequence[str], alternative: str) -> str:
    """A photo with areas drawn over it that stay sharp at any size."""
    shown = draw_display_photo(image.pixels)
    height, width = shown.shape[:2]
    drawing = f'<svg viewBox="0 0 {width} {height}">{"".join(areas)}</svg>' if areas else ""
    return f'<figure class="stage"><div class="layers">{render_image(shown, alternative)}{drawing}</div></figure>\n'


def _render_area(
    image: DecodedImage, polygons: Sequence[np.ndarray], color: Color, label: str, anchor: str, is_filled: bool = True
) -> str:
    """Polygons, in pixels of the original photo, with a number in the largest of them, as a link."""
    scale = make_display_scale(image)[1]
    scaled = [map_points(scale, polygon) for polygon in polygons]
    outlines = "".join(f'<polygon points="{format_outline(polygon)}"></polygon>' for polygon in scaled)
    x, y = find_label_place(scaled)
    return (
        f'<a href="#{escape(anchor)}" class="area{"" if is_filled else " outline"}" aria-label="Part {escape(label)}" '
        f'style="--color:{to_css_color(color)}">{outlines}<circle cx="{x:.1f}" cy="{y:.1f}" r="13"></circle>'
        f'<text x="{x:.1f}" y="{y:.1f}" style="fill:{to_css_color(get_text_color(color))}">{escape(label)}</text></a>'
    )


def _render_legend(report: ProvenanceReport, sources: Sequence[ShownSource], number: int) -> str:
    """Each source with its evidence, then what no source explains, and what only looks alike."""
    items = [
        f'<li>{render_swatch(source.label, source.color)} <a href="#{_get_anchor(source, number)}">'
        f'{render_name(source.name)}</a> <span class="role">{escape(source.role)}</span>: '
        f"{escape(describe_evidence(source.match))}; {_render_confidence(source)}</li>\n"
        for source in sources
    ]
    unknown = list_unknown(report.findings)
    if unknown:
        area = sum(part.area for part in unknown)
        items.append(
            f'<li id="unknown-{number}">{render_swatch("?", UNKNOWN_COLOR)} <span class="role">unknown source</span>: '
            f"differs from the host, {area:.1%} of the photo, and no photo of the index explains it</li>\n"
        )
    legend = f'<ul class="parts">\n{"".join(items)}</ul>\n' if items else ""
    return legend + _render_unverified(report)


def _render_unverified(report: ProvenanceReport) -> str:
    """The candidates whose geometry does not convince, so that nobody takes their rank for a proof."""
    names = [
        f"{render_name(photo.image_id)} ({escape(describe_doubt(photo))})"
        for photo in report.findings.photos
        if not photo.verified and photo.match is not None
    ][:UNVERIFIED_SHOWN]
    if not names:
        return ""
    return f'<p class="soft">Found, but not proven: {", ".join(names)}.</p>\n'


def _render_confidence(source: ShownSource) -> str:
    css_class = "bad" if source.is_weak else "good"
    return f'<span class="{css_class}">{escape(describe_confidence(source.confidence))}</span>'


def _source_fragments(query: LoadedPhoto, source: ShownSource, number: int, show_paths: bool) -> Iterator[str]:
    yield f'<article class="source" id="{_get_anchor(source, number)}">\n'
    yield f"<h3>{render_swatch(source.label, source.color)} {render_name(source.name)}</h3>\n"
    if show_paths and source.path is not None:
        yield f"{render_name(source.path, 'path')}\n"
    yield f"<p>{escape(source.role.capitalize())}: {escape(ROLE_WORDS[source.role])}.</p>\n"
    evidence = {"Evidence": describe_evidence(source.match), "Confidence": describe_confidence(source.confidence)}
    yield render_facts(evidence)
    photo = query if source.path is None else load_photo(source.path)
    if photo.image is None or query.image is None:
        yield f"{render_photo(photo)}</article>\n"
        return
    if source.parts:
        yield f'<div class="pair">\n{_render_places(query.image, photo.image, source, f"proof-{number}")}</div>\n'
    match = source.match
    lines = draw_correspondences(query.image, photo.image, match.query_points, match.source_points, source.color)
    yield '<div class="pair">\n<div><h4>Points that agree</h4>\n'
    yield f"<figure>{render_image(lines, 'Lines between points that agree')}</figure></div>\n"
    if source.path is not None:
        yield _render_slider(query.image, draw_warped(photo.image, query.image, match.transform))
    yield "</div>\n</article>\n"


def _render_places(query: DecodedImage, photo: DecodedImage, source: ShownSource, anchor: str) -> str:
    """The parts in the query, and the same outlines in the source."""
    outlines = _get_outlines(source)
    back = np.linalg.inv(source.match.transform)
    panes = []
    for image, polygons, caption in (
        (query, outlines, "In this photo"),
        (photo, [map_points(back, polygon) for polygon in outlines], "Its place in the source"),
    ):
        area = _render_area(image, polygons, source.color, source.label, anchor, is_filled=False)
        panes.append(f'<div>{_render_layers(image, [area], caption)}<p class="soft">{escape(caption)}</p></div>\n')
    return "".join(panes)


def _render_slider(query: DecodedImage, warped: np.ndarray) -> str:
    """The query, and the source laid over it up to where the reader moves the handle."""
    shown = draw_display_photo(query.pixels)
    height, width = shown.shape[:2]
    return (
        "<div><h4>The source laid over this photo</h4>\n"
        f'<div class="slider" style="max-width:{width}px;aspect-ratio:{width}/{height}">'
        f'<img src="{encode_data_uri(shown)}" alt="This photo" width="{width}" height="{height}">'
        f'<img class="over" src="{encode_data_uri(warped)}" alt="The source, moved onto it" width="{width}" '
        f'height="{height}"><input type="range" min="0" max="100" value="50" aria-label="Share of the source"></div>\n'
        '<p class="soft">Left of the line is the source, right of it this photo; move the line.</p></div>\n'
    )


def _get_outlines(source: ShownSource) -> list[np.ndarray]:
    return [polygon for part in source.parts for polygon in part.polygons]


def _get_anchor(source: ShownSource, number: int) -> str:
    return f"source-{number}-{source.label}"
