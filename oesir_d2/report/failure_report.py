"""The page of a splice evaluation: the figures first, then the worst failures as strips of photos.

A strip shows the query with the objects that were pasted into it, the top result, and the photos that the splice was
really made from with the ranks they got, as Figure 4 of the supplement of Chen et al. (CVPR 2021) does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oesir_d2.report.drawings import REGION_COLORS, Box, LabelledBox
from oesir_d2.report.page import (
    escape,
    facts_section,
    render_heading,
    render_name,
    render_notice,
    render_swatch,
    render_table,
    write_page,
)
from oesir_d2.report.photos import load_photo, render_photo
from oesir_d2.report.text import format_count, format_score, get_file_name

FAILURE_LONG_SIDE = 480

PASTED_COLOR = REGION_COLORS[0]
MATCHED_COLOR = REGION_COLORS[1]
PASTED_LABEL = "pasted"
MATCHED_LABEL = "matched"

# What the metrics of evaluation.splice_protocol mean; k stands for the number in the name.
METRIC_MEANINGS = (
    (r"mAP", "Mean average precision: 100 if the sources of every splice come before all other photos."),
    (r"host_recall@(\d+)", "Share of the splices whose host, the photo pasted into, has rank {k} or better."),
    (
        r"donor_recall@(\d+)",
        "Share of a splice's donors, the photos objects were cut from, of rank {k} or better; mean over splices.",
    ),
    (r"both_in_top_(\d+)", "Share of the splices whose host and donors all have rank {k} or better."),
)


@dataclass(frozen=True)
class RankedPhoto:
    """A photo of a query's ranking.

    Attributes:
        image_id: identifier of the photo in the index.
        path: its file.
        rank: its rank, from 1.
        score: its similarity to the query.
        query_box: the query's region of the best match, XYXY in pixels of the query photo; None if not known.
        database_box: the photo's region of the best match, XYXY in pixels of the photo; None if not known.
    """

    image_id: str
    path: str | Path
    rank: int
    score: float
    query_box: Box | None = None
    database_box: Box | None = None


@dataclass(frozen=True)
class TrueSource:
    """A photo that a splice was made from.

    Attributes:
        image_id: identifier of the photo in the index.
        role: ``host`` or ``donor``.
        path: its file.
        rank: its rank in the query's ranking, from 1; None if the ranking does not hold it.
    """

    image_id: str
    role: str
    path: str | Path
    rank: int | None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank {self.rank} of {self.image_id!r} is not allowed, ranks count from 1")


@dataclass(frozen=True)
class FailureCase:
    """A query whose sources were not all found first.

    Attributes:
        query_path: the spliced photo.
        pasted_boxes: where its pasted objects really lie, XYXY in pixels of the query photo.
        top_result: the first photo of the ranking; None if the ranking is empty.
        sources: the photos that the splice was made from.
        ranking_length: how many photos the ranking holds.
        database_size: how many photos were searched.
        first_wrong: the first photo that is no source, shown beside a top result that is one; None to leave it out.
    """

    query_path: str | Path
    pasted_boxes: Sequence[Box]
    top_result: RankedPhoto | None
    sources: Sequence[TrueSource]
    ranking_length: int
    database_size: int
    first_wrong: RankedPhoto | None = None


def write_failure_report(
    path: str | Path,
    metrics: Mapping[str, Mapping[str, float]],
    cases: Sequence[FailureCase],
    title: str = "Splice evaluation",
    facts: Mapping[str, object] | None = None,
) -> None:
    """Write the page of a splice evaluation to an HTML file, in one step.

    Args:
        path: HTML file; missing folders are made, an existing file is replaced.
        metrics: ``{group: {name: value}}``, values in percent, NaN where no query counts.
        cases: the failures to show, worst first.
        title: heading of the page.
        facts: what was evaluated and how.
    """
    write_page(path, title, [facts_section(facts or {}), metrics_section(metrics), failure_section(cases)])


def metrics_section(metrics: Mapping[str, Mapping[str, float]], heading: str = "Figures") -> Iterator[str]:
    """The figures of an evaluation as tables, one a group, each figure with its meaning in words."""
    yield f"<section>\n{render_heading(heading)}"
    if not any(metrics.values()):
        yield render_notice("No figures were computed.")
    for group, values in metrics.items():
        if values:
            yield render_heading(group.replace("_", " ").capitalize(), level=3)
            rows = [(name, _format_percent(value), describe_metric(name)) for name, value in values.items()]
            yield render_table(("Figure", "Percent", "Meaning"), rows, "figures")
    yield "</section>\n"


def failure_section(cases: Sequence[FailureCase], heading: str = "Worst failures") -> Iterator[str]:
    """The failures as a section of a page, one strip a query, in the order given."""
    yield f"<section>\n{render_heading(heading)}"
    if cases:
        yield (
            f"<p>{render_swatch(PASTED_LABEL, PASTED_COLOR)} marks what was really pasted into the query; "
            f"{render_swatch(MATCHED_LABEL, MATCHED_COLOR)} marks the regions of the query and of a result that "
            "were taken for the same object. A frame around a photo means the photo as a whole.</p>\n"
        )
    else:
        yield render_notice("No failure: every source of every query came before all other photos.")
    for case in cases:
        yield from _case_fragments(case)
    yield "</section>\n"


def describe_metric(name: str) -> str:
    """What a figure of the splice protocol means; empty for a name that the protocol does not have."""
    for pattern, meaning in METRIC_MEANINGS:
        found = re.fullmatch(pattern, name)
        if found:
            return meaning.format(k=found[1] if found.groups() else "")
    return ""


def describe_rank(source: TrueSource, ranking_length: int, database_size: int) -> str:
    """Where a source came in the ranking: ``rank 37 of 1,109`` or ``not in the top 100``."""
    if source.rank is not None:
        return f"rank {source.rank:,} of {database_size:,}"
    if ranking_length < database_size:
        return f"not in the top {ranking_length:,}"
    return f"not among the {format_count(database_size, 'photo')} searched"


def _format_percent(value: float) -> str:
    return "no query" if math.isnan(value) else f"{value:.1f}"


def _case_fragments(case: FailureCase) -> Iterator[str]:
    yield f'<article class="failure">\n<h3>{render_name(get_file_name(case.query_path))}</h3>\n'
    yield '<ul class="cards strip">\n'
    # The match that explains the failure is that of the wrong photo.
    explained = case.first_wrong or case.top_result
    query_boxes = [LabelledBox(box, PASTED_COLOR, PASTED_LABEL) for box in case.pasted_boxes]
    if explained is not None and explained.query_box is not None:
        query_boxes.append(LabelledBox(explained.query_box, MATCHED_COLOR, MATCHED_LABEL))
    yield _render_card(case.query_path, query_boxes, "Query")
    if case.top_result is None:
        yield f'<li class="card"><div class="words">{render_notice("Nothing was found for this query.")}</div></li>\n'
    else:
        yield _render_ranked(case.top_result, "Top result", case, explained is case.top_result)
    if case.first_wrong is not None:
        yield _render_ranked(case.first_wrong, "First wrong result", case, True)
    for source in case.sources:
        if case.top_result is not None and source.image_id == case.top_result.image_id:
            continue  # The top result's card says so already.
        rank = describe_rank(source, case.ranking_length, case.database_size)
        css_class = "good" if _is_ahead_of_others(source, case.sources) else "bad"
        yield _render_card(source.path, [], "True source", f"{source.role}: {rank}", css_class)
    yield "</ul>\n</article>\n"


def _is_ahead_of_others(source: TrueSource, sources: Sequence[TrueSource]) -> bool:
    """Whether a source is where it should be: only other sources come before it."""
    if source.rank is None:
        return False
    return source.rank == 1 + len({s.image_id for s in sources if s.rank is not None and s.rank < source.rank})


def _render_ranked(photo: RankedPhoto, title: str, case: FailureCase, with_match: bool) -> str:
    """The card of a photo of the ranking, which may or may not be a true source."""
    boxes = []
    if with_match and photo.database_box is not None:
        boxes.append(LabelledBox(photo.database_box, MATCHED_COLOR, MATCHED_LABEL))
    roles = " and ".join(source.role for source in case.sources if source.image_id == photo.image_id)
    verdict = f"{roles or 'not a source'}: rank {photo.rank:,} of {case.database_size:,}"
    outcome = f"{verdict}, score {format_score(photo.score)}"
    return _render_card(photo.path, boxes, title, outcome, "good" if roles else "bad")


def _render_card(
    path: str | Path, boxes: Sequence[LabelledBox], title: str, outcome: str = "", css_class: str = ""
) -> str:
    figure = render_photo(load_photo(path), boxes, FAILURE_LONG_SIDE)
    outcome_line = f'<p class="role {escape(css_class)}">{escape(outcome)}</p>\n' if outcome else ""
    return (
        f'<li class="card">\n{figure}<div class="words">\n<h4>{escape(title)}</h4>\n{outcome_line}'
        f"{render_name(path, 'path')}\n</div>\n</li>\n"
    )
