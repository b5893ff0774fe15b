"""The page of a search: each query with its objects, its results beside it, matching boxes in the same colour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oesir_d2.index.results import SearchResult
from oesir_d2.report.drawings import LabelledBox
from oesir_d2.report.linking import LinkedMatch, LinkedRegion, link_matches
from oesir_d2.report.page import (
    escape,
    facts_section,
    render_heading,
    render_name,
    render_notice,
    render_swatch,
    write_page,
)
from oesir_d2.report.photos import LoadedPhoto, load_photo, render_crop, render_photo
from oesir_d2.report.text import format_count, format_score, get_file_name

# Result photos are shown smaller than the query beside them, and there are many more of them.
RESULT_LONG_SIDE = 480

HOW_TO_READ = (
    "Each query stands beside the photos of the index that match it best. A numbered box of a result shows what was "
    "taken for the query's box of the same number and colour; a frame around a photo means the photo as a whole. Below "
    "a result these pairs are shown side by side. Of matches that overlap only the best is shown. The score "
    "of the first photo and of every pair is a similarity: the higher, the closer. A photo further down is scored by "
    "what it explains of the query beyond the first photo. No score is a proof."
)


@dataclass(frozen=True)
class QueryReport:
    """One query and what a search found for it.

    Attributes:
        path: the query photo.
        objects: its regions, each ``{"box": [x0, y0, x1, y1], "score": s, "class": c}``, boxes in pixels of the
            original photo after its EXIF rotation; ``class`` is a name, an index, or None or negative for none.
        results: best first; empty if nothing was found.
        name: what the query is called, where its path is of no use to the reader; empty to show the path.
    """

    path: str | Path
    objects: Sequence[Mapping[str, Any]]
    results: Sequence[SearchResult]
    name: str = ""

    @property
    def shown_name(self) -> str:
        """The query's name for a heading."""
        return self.name or get_file_name(self.path)


def write_search_report(
    path: str | Path,
    entries: Sequence[QueryReport],
    title: str = "Search results",
    facts: Mapping[str, object] | None = None,
) -> None:
    """Write the page of a search to an HTML file, in one step.

    Photos are read from their paths and embedded; one that is not readable any more is replaced by the reason.

    Args:
        path: HTML file; missing folders are made, an existing file is replaced.
        entries: the queries in the order of the page.
        title: heading of the page.
        facts: what was searched and how, such as the number of photos in the index.
    """
    write_page(path, title, [facts_section(facts or {}), search_section(entries)])


def search_section(entries: Sequence[QueryReport], heading: str = "Queries", show_paths: bool = True) -> Iterator[str]:
    """The queries with their results as a section of a page.

    A page holds at most one such section, since the anchors of its queries are numbered.

    Args:
        entries: the queries in order.
        heading: heading of the section; empty for none.
        show_paths: name the results' files by their paths, not their ids alone.
    """
    yield f"<section>\n{render_heading(heading)}"
    if entries:
        yield f"<p>{escape(HOW_TO_READ)}</p>\n"
    else:
        yield render_notice("No photo was searched for.")
    if len(entries) > 1:
        yield '<ol class="contents">\n'
        for number, entry in enumerate(entries, start=1):
            yield f'<li><a href="#query-{number}">{render_name(entry.shown_name)}</a></li>\n'
        yield "</ol>\n"
    for number, entry in enumerate(entries, start=1):
        yield from _query_fragments(number, entry, show_paths)
    yield "</section>\n"


def _query_fragments(number: int, entry: QueryReport, show_paths: bool) -> Iterator[str]:
    photo = load_photo(entry.path)
    regions, links = link_matches(entry.objects, entry.results)
    yield f'<article class="query" id="query-{number}">\n'
    yield f'<h3>Query {number}: {render_name(entry.shown_name)}</h3>\n<div class="beside">\n<aside>\n'
    yield render_photo(photo, [LabelledBox(r.box, r.color, str(r.number)) for r in regions])
    yield _render_legend(regions, photo, len(entry.objects))
    yield f"{'' if entry.name else render_name(entry.path, 'path')}\n</aside>\n<div>\n"
    if entry.results:
        # Several results may match the same region of the query: its crop is encoded once.
        crops = {r.number: render_crop(photo, r.box, f"region {r.number} of the query") for r in regions}
        yield '<ol class="cards">\n'
        for result, matches in zip(entry.results, links, strict=True):
            yield _render_result(result, matches, crops, show_paths)
        yield "</ol>\n"
    else:
        yield render_notice("Nothing was found: no photo of the index matches this query.")
    yield "</div>\n</div>\n</article>\n"


def _render_legend(regions: Sequence[LinkedRegion], photo: LoadedPhoto, num_objects: int) -> str:
    """What the numbers on the query stand for, and how many regions it has in all."""
    items = [
        f"<li>{render_swatch(str(region.number), region.color)} {_describe_region(region, photo)}</li>\n"
        for region in regions
    ]
    num_regions = max(num_objects, len(regions))
    if num_regions == 0:
        note = "No object was found in this photo."
    elif num_regions > len(regions):
        note = f"{format_count(num_regions, 'region')} searched for; those without a match shown here are not drawn."
    else:
        note = f"{format_count(num_regions, 'region')} searched for."
    legend = f'<ul class="regions">\n{"".join(items)}</ul>\n' if items else ""
    return f'{legend}<p class="soft">{escape(note)}</p>\n'


def _describe_region(region: LinkedRegion, photo: LoadedPhoto) -> str:
    # Only a detector gives scores that tell regions apart; those of a grid or of given boxes are all 1.
    if region.category and region.score is not None:
        return f'{escape(region.category)} <span class="number soft">{format_score(region.score)}</span>'
    return escape(region.category) or ("whole photo" if photo.is_whole(region.box) else "region")


def _render_result(
    result: SearchResult, matches: Sequence[LinkedMatch], crops: Mapping[int, str], show_paths: bool
) -> str:
    """One result: its photo with the matched boxes, where it comes from, and the pairs of regions with their scores."""
    photo = load_photo(result.path)
    boxes = [LabelledBox(m.database_box, m.region.color, str(m.region.number)) for m in matches]
    pairs = "".join(
        f"<li>{render_swatch(str(match.region.number), match.region.color)} {crops[match.region.number]} → "
        f"{render_crop(photo, match.database_box, 'its match')} "
        f'<span class="number">{format_score(match.score)}</span></li>\n'
        for match in matches
    )
    return (
        f'<li class="card">\n{render_photo(photo, boxes, RESULT_LONG_SIDE)}<div class="words">\n'
        f'<h4><span>Rank {result.rank:,}</span> <span class="number">{format_score(result.score)}</span></h4>\n'
        f"{render_name(result.image_id)}\n{render_name(result.path, 'path') if show_paths else ''}\n"
        f'<ul class="pairs">\n{pairs}</ul>\n</div>\n</li>\n'
    )
