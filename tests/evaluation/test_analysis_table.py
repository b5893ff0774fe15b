"""The table of an analysis: read as it was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from oesir_d2.evaluation.analysis_table import AnalysisRow, read_analysis_table, write_analysis_table

ROWS = [
    AnalysisRow("a", "conv4_1", "R-MAC", 64, "medium", "mAP", 100 / 3),
    AnalysisRow("a, b", "p5", "GeM", 0, "medium", "donor_recall@10", None),
]


def test_rows_come_back_to_the_last_digit(tmp_path: Path) -> None:
    path = tmp_path / "analysis.csv"
    write_analysis_table(path, ROWS)
    assert read_analysis_table(path) == ROWS
    assert path.read_text().splitlines()[0] == "model,layer,pooling,dimension,dataset,metric,value"


def test_another_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"columns \['a', 'b'\]"):
        read_analysis_table(path)
