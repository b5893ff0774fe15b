"""A comparison as Markdown tables, for readers, and as JSON, for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from oesir_d2.files import replace_file

MARKDOWN_FILE = "comparison.md"
JSON_FILE = "comparison.json"

_METRICS = (
    ("donor R@1", "donor_recall@1"),
    ("donor R@5", "donor_recall@5"),
    ("donor R@10", "donor_recall@10"),
    ("host R@1", "host_recall@1"),
    ("both in top 2", "both_in_top_2"),
    ("mAP", "mAP"),
)


def write_comparison(
    output: Path, rows: Mapping[str, dict[str, Any]], skipped: Mapping[str, str], facts: Mapping[str, Any]
) -> None:
    """Write ``comparison.md`` and ``comparison.json`` into a folder.

    Args:
        output: the folder.
        rows: by variant, its ``title`` and what :func:`run_variant` gives.
        skipped: by variant, why it was left out.
        facts: what all rows were measured on, as :class:`Comparison` has them.
    """
    content = {"rows": rows, "skipped": skipped, "facts": facts}
    replace_file(output / JSON_FILE, (json.dumps(content, indent=1) + "\n").encode("ascii"))
    replace_file(output / MARKDOWN_FILE, render_markdown(rows, skipped, facts).encode("utf-8", "backslashreplace"))


def render_markdown(rows: Mapping[str, dict[str, Any]], skipped: Mapping[str, str], facts: Mapping[str, Any]) -> str:
    """The tables: one of figures for each set of splices, one of costs, and notes on how to read them."""
    parts = ["# Comparison of models\n"]
    parts.append(
        f"{facts['images']:,} photos in the database; whitenings fitted on {facts['whitening_images']:,} photos. "
        "Figures in percent. Coverage: share of the pasted objects that one of the regions covers at an IoU of 0.5 or "
        "more; the whole image is no region.\n"
    )
    for name, queries in facts["queries"].items():
        parts += [f"## Splices: {name} ({queries:,} queries)\n", _render_scores(rows, name)]
    parts += ["## Cost of a photo\n", _render_costs(rows), *_explain_costs(rows, facts)]
    if skipped:
        parts.append("## Left out\n")
        parts.append("\n".join(f"- {name}: {' '.join(reason.split())}" for name, reason in skipped.items()) + "\n")
    return "\n".join(parts)


def _render_scores(rows: Mapping[str, dict[str, Any]], name: str) -> str:
    table = []
    for row in rows.values():
        scores = row["splices"][name]
        metrics = [_format(scores["metrics"][metric]) for _, metric in _METRICS]
        coverage = scores["coverage"]
        cells = [_format(coverage["percent"]), _format(coverage["mean_regions"])]
        table.append([_escape(row["title"]), str(row["dimension"]), row["whitening"], *metrics, *cells])
    header = ["model", "dimensions", "whitening", *(title for title, _ in _METRICS), "coverage", "regions"]
    return _render_table(header, table)


def _render_costs(rows: Mapping[str, dict[str, Any]]) -> str:
    table = []
    for row in rows.values():
        parameters, adds, times = (row["cost"][name] for name in ("parameters", "multiply_adds", "milliseconds"))
        adds, times = adds or {}, times or {}
        cells = [_format(parameters[part] / 1e6, 2) for part in ("detector", "source", "head")]
        cells += [_format(adds.get(part), 2) for part in ("detection", "source", "head", "total", "teacher")]
        cells += [_format(times.get(part), 0) for part in ("detection", "total")]
        overhead = times.get("overhead_percent")
        cells.append("–" if overhead is None else f"{overhead:+.1f} %")
        cells += [_format(times.get(part), 0) for part in ("source", "teacher")]
        table.append([_escape(row["title"]), *cells])
    header = ["model", *(f"M parameters: {part}" for part in ("detector", "source", "head"))]
    header += [f"G multiply-adds: {part}" for part in ("detection", "source", "head", "total", "teacher alone")]
    header += ["ms: detection", "ms: with embedding", "embedding adds", "ms: source alone", "ms: teacher alone"]
    return _render_table(header, table)


def _explain_costs(rows: Mapping[str, dict[str, Any]], facts: Mapping[str, Any]) -> Iterable[str]:
    """How the costs were measured, as far as the rows agree about it."""
    yield (
        "Source: what makes the embedding map, a student or the teacher. Parameters: numbers in the weight file "
        "without running statistics. Multiply-adds: counted by fvcore, a multiplication with its addition once (fvcore "
        "also counts what batch norms and enlarged maps cost).\n"
    )
    counted = [row["cost"]["multiply_adds"] for row in rows.values() if row["cost"]["multiply_adds"]]
    if counted:
        width, height = facts["options"]["input_size"]
        regions = ", ".join(
            f"{row['cost']['multiply_adds']['regions']} ({name})"
            for name, row in rows.items()
            if row["cost"]["multiply_adds"]
        )
        operators = sorted({operator for adds in counted for operator in adds["unsupported"]})
        yield f"Counted on one photo of {width} x {height} pixels, with so many regions: {regions}.\n"
        yield f"Operators that fvcore has no count for, not in the figures: {', '.join(operators) or 'none'}.\n"
    timed = [row["cost"]["milliseconds"] for row in rows.values() if row["cost"]["milliseconds"]]
    for device, threads, photos, repetitions in sorted(
        {(times["device"], times["threads"], times["photos"], times["repetitions"]) for times in timed}
    ):
        yield (
            f"Milliseconds on {device} with {threads} thread(s): mean over {photos} photos, as the index takes them, "
            f"of the median of {repetitions} rounds, in which the columns of a row were run in turns.\n"
        )
    detectors = {row["detector_sha256"] for row in rows.values() if row["detector_sha256"]}
    if len(detectors) > 1:
        yield f"The detectors are not all the same: there are {len(detectors)} sets of detector weights.\n"


def _render_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _format(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
