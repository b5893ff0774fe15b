"""Figures and table of an analysis: what they show, and where it comes from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from oesir_d2.evaluation.analysis_table import AnalysisRow
from oesir_d2.report import analysis_figures
from oesir_d2.report.analysis_figures import (
    DIMENSION_FIGURE,
    LAYER_FIGURE,
    POOLING_FIGURE,
    FigureOptions,
    write_analysis_figures,
)
from oesir_d2.report.paper_table import TABLE_FILE, render_paper_table, write_paper_table

OPTIONS = FigureOptions({"a": "Classifier", "b": "Detector"}, {"x": "mAP", "y": "medium/mAP"})


def make_rows() -> list[AnalysisRow]:
    """Two models on two data sets; the second model's last layer lacks 128 dimensions."""
    rows = []
    for model, layers in (("a", ["conv4_1", "conv5_3"]), ("b", ["conv4_1", "p5"])):
        for i, layer in enumerate(layers):
            for j, pooling in enumerate(("SPoC", "GeM")):
                for dimension in (0, 64, 128) if layer != "p5" else (0, 64):
                    value = 10.0 * i + 20 * j + dimension / 10 + (50 if model == "a" else 0)
                    rows += [
                        AnalysisRow(model, layer, pooling, dimension, "x", "mAP", value),
                        AnalysisRow(model, layer, pooling, dimension, "x", "other", 1.0),
                        AnalysisRow(model, layer, pooling, dimension, "y", "medium/mAP", value / 2),
                    ]
    return rows


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Figure]:
    """What was drawn of these rows, by file name."""
    drawn: dict[str, Figure] = {}
    write = analysis_figures._write
    monkeypatch.setattr(
        analysis_figures, "_write", lambda path, figure: write(path, drawn.setdefault(path.name, figure))
    )
    paths = write_analysis_figures(tmp_path, make_rows(), OPTIONS)
    assert [path.name for path in paths] == [DIMENSION_FIGURE, POOLING_FIGURE, LAYER_FIGURE]
    return drawn


def lines_of(figure: Figure, panel: int) -> dict[str, tuple[list[float], list[float]]]:
    lines = figure.axes[panel].get_lines()
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in lines}


def test_a_panel_for_each_data_set(figures: dict[str, Figure]) -> None:
    for figure in figures.values():
        assert [(axes.get_title(), axes.get_ylabel()) for axes in figure.axes] == [
            ("x", "mAP (%)"),
            ("y", "medium/mAP (%)"),
        ]


def test_figure_1a_shows_gem_of_the_last_layers_by_dimension(figures: dict[str, Figure]) -> None:
    figure = figures[DIMENSION_FIGURE]
    assert lines_of(figure, 0) == {"Classifier": ([64, 128], [86.4, 92.8]), "Detector": ([64], [36.4])}
    assert lines_of(figure, 1)["Detector"] == ([64], [18.2])
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["64", "128"]


def test_figure_1b_shows_poolings_at_the_dimension_that_the_last_layers_share(figures: dict[str, Figure]) -> None:
    figure = figures[POOLING_FIGURE]
    heights = [[bar.get_height() for bar in bars] for bars in figure.axes[0].containers]
    assert heights == [[66.4, 86.4], [16.4, 36.4]]
    assert "PCA whitening to 64 dimensions" in figure.get_suptitle()


def test_figure_2_shows_layers_in_their_order(figures: dict[str, Figure]) -> None:
    figure = figures[LAYER_FIGURE]
    assert lines_of(figure, 0) == {"Classifier": ([0, 1], [76.4, 86.4]), "Detector": ([0, 2], [26.4, 36.4])}
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["conv4_1", "conv5_3", "p5"]


def test_long_titles_fit_under_a_single_panel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(analysis_figures, "_write", lambda path, figure: drawn.append(figure) or path)
    titles = {"a": "EfficientNet-Lite0, ImageNet classifier", "b": "Detector on EfficientNet-Lite0, pyramid"}
    write_analysis_figures(tmp_path, make_rows(), FigureOptions(titles, {"x": "mAP"}))
    for figure in drawn:
        figure.draw_without_rendering()
        legend, page = figure.legends[0].get_window_extent(), figure.bbox
        assert page.x0 <= legend.x0 and legend.x1 <= page.x1


def test_files_are_pictures_and_the_same_every_time(tmp_path: Path) -> None:
    for path in write_analysis_figures(tmp_path, make_rows(), OPTIONS):
        first = path.read_bytes()
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert pixels.shape[1] > 2 * 500 and (pixels != 255).any(axis=2).mean() > 0.005
        write_analysis_figures(tmp_path, make_rows(), OPTIONS)
        assert path.read_bytes() == first


def test_what_there_is_nothing_of_is_not_drawn(tmp_path: Path) -> None:
    assert write_analysis_figures(tmp_path, [], OPTIONS) == []
    no_value = [AnalysisRow("a", "conv5_3", "MAC", 0, "x", "mAP", None)]
    assert [p.name for p in write_analysis_figures(tmp_path, no_value, OPTIONS)] == [POOLING_FIGURE, LAYER_FIGURE]


def test_table_1_has_the_paper_s_values_and_ours_or_says_that_there_are_none(tmp_path: Path) -> None:
    rows = [
        AnalysisRow("a", "conv5_3", "GeM", 512, "roxford5k", "medium/mAP", 44.44),
        AnalysisRow("a", "conv5_3", "GeM", 1024, "roxford5k", "medium/mAP", 45.55),
        AnalysisRow("a", "conv5_3", "GeM", 1024, "roxford5k", "hard/mAP", 9.0),
        AnalysisRow("a", "conv5_3", "GeM", 1024, "roxford5k", "medium/mP@10", 66.0),
        AnalysisRow("b", "conv5_3", "MAC", 1024, "roxford5k", "medium/mAP", 1.0),
    ]
    text = write_paper_table(tmp_path, rows, "a", "conv5_3", {"OE-SIR": {"rparis6k/medium/mAP": 70.0}}).read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert "| GeM | 1024 | 45.7 | 45.5 | 67.2 | 66.0 | 63.6 | not run | 96.3 | not run |" in lines
    assert "| MAC | – | 40.1 | not run | 61.3 | not run | 57.3 | not run | 96.7 | not run |" in lines
    assert "| OE-SIR | – | 53.4 | not run | 76.0 | not run | 69.7 | 70.0 | 98.6 | not run |" in lines
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 2 + 6
    assert (tmp_path / TABLE_FILE).read_text() == text
    assert render_paper_table([], "a", "conv5_3").count("not run") == 24
