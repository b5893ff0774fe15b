"""Benchmarks as tables: JSON and Markdown, and how figures grow with the number of objects."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oesir_d2.engine.command_line import replace_nan
from oesir_d2.files import replace_file

Column = tuple[str, Callable[[Mapping[str, Any]], str]]

SEARCH_COLUMNS: tuple[Column, ...] = (
    ("objects", lambda row: f"{row['objects']:,}"),
    ("object index", lambda row: f"`{row['factory']}`"),
    ("recall@10", lambda row: f"{row['recall']:.3f}"),
    ("ms a query (90 %)", lambda row: f"{row['ms']:.1f} ({row['ms_p90']:.1f})"),
    ("fetch", lambda row: str(row["fetch"])),
    ("over FAISS alone", lambda row: f"{row['ratio']:.2f}"),
    ("ms in a batch", lambda row: f"{row['batch_ms']:.1f}"),
    ("over FAISS alone", lambda row: f"{row['batch_ratio']:.2f}"),
    ("bytes an object", lambda row: f"{row['bytes_per_object']:.1f}"),
    ("peak memory, MB", lambda row: f"{row['peak_bytes'] / 1e6:.0f}"),
    ("threads", lambda row: str(row["threads"])),
)
BUILD_COLUMNS: tuple[Column, ...] = (
    ("objects", lambda row: f"{row['objects']:,}"),
    ("object index", lambda row: f"`{row['factory']}`"),
    ("objects/s into segments", lambda row: f"{row['write_objects_per_second']:,.0f}"),
    ("time over plain files", lambda row: f"{row['write_ratio']:.2f}"),
    ("peak memory, MB", lambda row: f"{row['write_peak_bytes'] / 1e6:.0f}"),
    ("objects/s into the object index", lambda row: f"{row['build_objects_per_second']:,.0f}"),
    ("its size, MB", lambda row: f"{row['final_bytes'] / 1e6:.1f}"),
    ("peak memory, MB", lambda row: f"{row['build_peak_bytes'] / 1e6:.0f}"),
    ("over its size", lambda row: f"{row['peak_ratio']:.2f}"),
    ("bytes an object on disk", lambda row: f"{row['disk_bytes_per_object']:.0f}"),
)


def fit_growth(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Fit value = factor * size ** exponent, as a line through the logarithms.

    Returns:
        The factor and the exponent.

    Raises:
        ValueError: fewer than two sizes, or a number that is not positive.
    """
    if len(set(sizes)) < 2 or min(*sizes, *values) <= 0:
        raise ValueError(f"growth needs two sizes and positive values, got {list(sizes)} and {list(values)}")
    exponent, intercept = np.polyfit(np.log(sizes), np.log(values), 1)
    return float(np.exp(intercept)), float(exponent)


def describe_growth(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """For every factory measured at two sizes or more, the exponents of the named figures."""
    growth = []
    for factory in dict.fromkeys(row["factory"] for row in rows):
        of_factory = [row for row in rows if row["factory"] == factory]
        sizes = [row["objects"] for row in of_factory]
        if len(set(sizes)) > 1:
            exponents = {name: fit_growth(sizes, [row[name] for row in of_factory])[1] for name in names}
            growth.append({"factory": factory, "exponents": exponents})
    return growth


def to_markdown(
    columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], growth: Sequence[Mapping[str, Any]]
) -> str:
    """A table of the rows, and a line on the growth of every factory."""
    lines = [_line([title for title, _ in columns]), _line(["---"] * len(columns))]
    lines += [_line([show(row) for _, show in columns]) for row in rows]
    for entry in growth:
        exponents = ", ".join(f"{name} as objects^{exponent:.2f}" for name, exponent in entry["exponents"].items())
        lines += ["", f"`{entry['factory']}`: {exponents}"]
    return "\n".join(lines) + "\n"


def extraction_to_markdown(figures: Mapping[str, Any]) -> str:
    """The figures of ``ExtractionFigures``, as a table of the stages and one of all else."""
    lines = [_line(["stage", "ms a photo", "in matrix products"]), _line(["---"] * 3)]
    for stage, milliseconds in figures["stages"].items():
        lines.append(_line([stage, f"{milliseconds:.1f}", f"{figures['stages_in_products'][stage]:.2f}"]))
    lines += ["", _line(["figure", "value"]), _line(["---"] * 2)]
    others = {name: value for name, value in figures.items() if name not in ("stages", "stages_in_products")}
    for name, value in others.items():
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        for part, number in parts:
            shown = f"{number:.3f}" if isinstance(number, float) else str(number)
            lines.append(_line([f"{name} {part}".strip(), shown]))
    return "\n".join(lines) + "\n"


def write_benchmark(folder: Path, name: str, content: Mapping[str, Any], markdown: str) -> dict[str, str]:
    """Write NAME.json and NAME.md into a folder, and return their paths."""
    files = {"json": folder / f"{name}.json", "table": folder / f"{name}.md"}
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    replace_file(
        files["json"], (json.dumps(replace_nan(dict(content) | {"machine": machine}), indent=1) + "\n").encode()
    )
    replace_file(files["table"], markdown.encode())
    return {kind: str(path) for kind, path in files.items()}


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
