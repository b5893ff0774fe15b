"""The outcome of an analysis of embeddings as a tidy table: one figure a row, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from oesir_d2.files import replace_file


@dataclass(frozen=True)
class AnalysisRow:
    """One figure of one cell of the grid.

    Attributes:
        model, layer, pooling, dataset, metric: what was measured.
        dimension: of the whitened vectors; 0: they were not whitened.
        value: in percent; None for a metric that no query counts for.
    """

    model: str
    layer: str
    pooling: str
    dimension: int
    dataset: str
    metric: str
    value: float | None


COLUMNS = tuple(field.name for field in fields(AnalysisRow))


def write_analysis_table(path: Path, rows: Iterable[AnalysisRow]) -> None:
    """Write rows as CSV, with every digit of their values; the file is whole or not there."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(asdict(row))
    replace_file(path, text.getvalue().encode())


def read_analysis_table(path: Path) -> list[AnalysisRow]:
    """Read what :func:`write_analysis_table` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such table.
    """
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} has the columns {reader.fieldnames}, expected {list(COLUMNS)}")
        rows = []
        for record in reader:
            value = float(record["value"]) if record["value"] else None
            words = {name: record[name] for name in ("model", "layer", "pooling", "dataset", "metric")}
            rows.append(AnalysisRow(**words, dimension=int(record["dimension"]), value=value))
    return rows
