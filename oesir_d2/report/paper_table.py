"""The supplement's Table 1 as Markdown, the paper's values beside ours.

The table: medium protocol of the revisited Oxford and Paris data sets (Radenović et al., CVPR 2018), mAP and P@10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from oesir_d2.evaluation.analysis_table import AnalysisRow
from oesir_d2.files import replace_file

TABLE_FILE = "table_1.md"

PAPER_DATASETS = {"roxford5k": "ROxford5K", "rparis6k": "RParis6K"}
"""The table's data sets by the names that an analysis gives them."""

PAPER_METRICS = {"medium/mAP": "mAP", "medium/mP@10": "P@10"}
"""The table's metrics by the names that the revisited protocol's evaluation gives them."""

PAPER_VALUES: dict[str, dict[str, tuple[float, float]]] = {
    "SPoC": {"roxford5k": (35.7, 55.4), "rparis6k": (53.5, 90.3)},
    "MAC": {"roxford5k": (40.1, 61.3), "rparis6k": (57.3, 96.7)},
    "R-MAC": {"roxford5k": (49.4, 70.4), "rparis6k": (67.6, 98.1)},
    "GeM": {"roxford5k": (45.7, 67.2), "rparis6k": (63.6, 96.3)},
    "OE-SIR": {"roxford5k": (53.4, 76.0), "rparis6k": (69.7, 98.6)},
    "OE-SIR-FT": {"roxford5k": (78.7, 91.8), "rparis6k": (83.4, 98.3)},
}
"""mAP and P@10 in percent, by method and data set. The last row had more training data than ImageNet."""

NOT_RUN = "not run"


def write_paper_table(
    folder: Path, rows: Sequence[AnalysisRow], model: str, layer: str, others: Mapping[str, Mapping[str, float]] = {}
) -> Path:
    """Write ``table_1.md``.

    Args:
        folder: that gets the file.
        rows: of an analysis.
        model, layer: the cells of the poolings' rows, at the largest dimension that each of them has.
        others: what was measured of rows that an analysis of whole images does not have: by row, values by
            "dataset/metric".
    """
    path = folder / TABLE_FILE
    replace_file(path, render_paper_table(rows, model, layer, others).encode())
    return path


def render_paper_table(
    rows: Sequence[AnalysisRow], model: str, layer: str, others: Mapping[str, Mapping[str, float]] = {}
) -> str:
    """The table as Markdown; see :func:`write_paper_table`."""
    columns = [(dataset, metric) for dataset in PAPER_DATASETS for metric in PAPER_METRICS]
    header = ["method", "dimensions"]
    for dataset, metric in columns:
        header += [f"{PAPER_DATASETS[dataset]} {PAPER_METRICS[metric]}, paper", "ours"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for method, paper in PAPER_VALUES.items():
        ours, dimension = _find_ours(rows, model, layer, method)
        ours |= others.get(method, {})
        cells = [method, str(dimension) if dimension is not None else "–"]
        for dataset, metric in columns:
            value = ours.get(f"{dataset}/{metric}")
            cells += [f"{paper[dataset][list(PAPER_METRICS).index(metric)]:.1f}"]
            cells += [NOT_RUN if value is None else f"{value:.1f}"]
        lines.append(cells)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return (
        "# Table 1 of the supplement: landmark retrieval, medium protocol, percent\n\n"
        f"Ours: {layer} of the model {model!r}, at the largest PCA dimension that was measured. The paper does not say "
        f"which dimension its table has.\n\n{table}\n"
    )


def _find_ours(
    rows: Sequence[AnalysisRow], model: str, layer: str, pooling: str
) -> tuple[dict[str, float], int | None]:
    """The values of a pooling by "dataset/metric" and their dimension, the largest that there is."""
    cells = [
        row
        for row in rows
        if (row.model, row.layer, row.pooling) == (model, layer, pooling)
        and row.dataset in PAPER_DATASETS
        and row.metric in PAPER_METRICS
        and row.value is not None
    ]
    dimension = max((row.dimension for row in cells), default=None)
    return {f"{row.dataset}/{row.metric}": row.value for row in cells if row.dimension == dimension}, dimension
