"""Figures of an analysis of embeddings in the layout of the supplement's Figures 1 and 2: a panel a data set."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from oesir_d2.evaluation.analysis_table import AnalysisRow
from oesir_d2.files import replace_file

DIMENSION_FIGURE = "figure_1a_dimension.png"
POOLING_FIGURE = "figure_1b_pooling.png"
LAYER_FIGURE = "figure_2_layer.png"

_PANEL_INCHES = (4.4, 3.6)
_DOTS_PER_INCH = 130
_COLORS = ("#1f5fa8", "#d9730d", "#2e8b57", "#8e4fb3", "#b03a2e", "#6b6b6b")
_MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class FigureOptions:
    """What the figures show.

    Attributes:
        titles: of the models, by name, in the order of the legend.
        metrics: the metric that each data set's panel shows.
        pooling: of Figures 1(a) and 2; the first one that there is, if there is none of this name.
    """

    titles: Mapping[str, str]
    metrics: Mapping[str, str]
    pooling: str = "GeM"


@dataclass(frozen=True)
class _Line:
    """One model in one panel: what stands on the x axis, and the metric in percent."""

    title: str
    style: dict[str, str]
    points: dict[str | int, float]


def write_analysis_figures(folder: Path, rows: Sequence[AnalysisRow], options: FigureOptions) -> list[Path]:
    """Draw the three figures as PNG.

    Figures 1(a) and 1(b) show each model's last layer. Figure 1(b) is drawn at the largest dimension that these layers
    have in common, Figure 2 at the largest that all layers have in common: a rule that looks at no result.

    Args:
        folder: for the files; must exist.
        rows: of the analysis.
        options: what to show.

    Returns:
        The files; none for what the rows have nothing of.
    """
    shown = [row for row in rows if row.model in options.titles and options.metrics.get(row.dataset) == row.metric]
    if not shown:
        return []
    last = {row.model: row.layer for row in shown}
    poolings = list(dict.fromkeys(row.pooling for row in shown))
    pooling = options.pooling if options.pooling in poolings else poolings[0]
    of_last_layers = [row for row in shown if row.layer == last[row.model]]
    layers = ", ".join(dict.fromkeys(last.values()))
    paths = []

    def draw(name: str, rows: list[AnalysisRow], column: str, title: str, plot: Callable[..., None]) -> None:
        if rows:
            paths.append(_write(folder / name, _draw_figure(rows, column, title, plot, options)))

    of_pooling = [row for row in of_last_layers if row.pooling == pooling and row.dimension]
    draw(DIMENSION_FIGURE, of_pooling, "dimension", f"{pooling} of {layers}", _plot_dimensions)
    common = _find_common_dimension(of_last_layers)
    at_common = [row for row in of_last_layers if row.dimension == common]
    draw(POOLING_FIGURE, at_common, "pooling", f"{layers}, {_tell(common)}", _plot_bars)
    of_pooling = [row for row in shown if row.pooling == pooling]
    common = _find_common_dimension(of_pooling)
    at_common = [row for row in of_pooling if row.dimension == common]
    draw(LAYER_FIGURE, at_common, "layer", f"{pooling}, {_tell(common)}", _plot_categories)
    return paths


def _find_common_dimension(rows: Sequence[AnalysisRow]) -> int | None:
    """The largest dimension that every model, layer and pooling of the rows has; None if there is none."""
    dimensions: dict[tuple[str, str, str], set[int]] = {}
    for row in rows:
        dimensions.setdefault((row.model, row.layer, row.pooling), set()).add(row.dimension)
    return max(set.intersection(*dimensions.values()), default=None) if dimensions else None


def _tell(dimension: int | None) -> str:
    return f"PCA whitening to {dimension} dimensions" if dimension else "not whitened"


def _draw_figure(
    rows: Sequence[AnalysisRow], column: str, title: str, plot: Callable[..., None], options: FigureOptions
) -> Figure:
    datasets = [name for name in options.metrics if any(row.dataset == name for row in rows)]
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * len(datasets), height), dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(datasets), squeeze=False)[0]
    categories = list(dict.fromkeys(getattr(row, column) for row in rows))
    for panel, dataset in zip(panels, datasets, strict=True):
        lines = []
        for index, (model, model_title) in enumerate(options.titles.items()):
            points = {
                getattr(row, column): row.value
                for row in rows
                if (row.model, row.dataset) == (model, dataset) and row.value is not None
            }
            style = {"color": _COLORS[index % len(_COLORS)], "marker": _MARKERS[index % len(_MARKERS)]}
            if points:
                lines.append(_Line(model_title, style, points))
        plot(panel, lines, categories)
        panel.set_title(dataset)
        panel.set_ylabel(f"{options.metrics[dataset]} (%)")
        panel.grid(axis="y", linewidth=0.5, alpha=0.5)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    # One panel is as wide as one title.
    ncols = min(len(labels), len(datasets))
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def _plot_dimensions(panel: Axes, lines: Sequence[_Line], categories: Sequence[int]) -> None:
    for line in lines:
        panel.plot(list(line.points), list(line.points.values()), label=line.title, **line.style)
    ticks = sorted(categories)
    panel.set_xscale("log", base=2)
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.minorticks_off()
    panel.set_xlabel("PCA dimensions")


def _plot_categories(panel: Axes, lines: Sequence[_Line], categories: Sequence[str]) -> None:
    for line in lines:
        positions = [categories.index(name) for name in line.points]
        panel.plot(positions, list(line.points.values()), label=line.title, **line.style)
    panel.set_xticks(range(len(categories)), categories)
    if len(categories) > 5:
        panel.tick_params(axis="x", labelsize=9)
        for label in panel.get_xticklabels():
            label.set(rotation=45, horizontalalignment="right", rotation_mode="anchor")
    panel.set_xlim(-0.5, len(categories) - 0.5)


def _plot_bars(panel: Axes, lines: Sequence[_Line], categories: Sequence[str]) -> None:
    width = 0.8 / max(1, len(lines))
    for index, line in enumerate(lines):
        offset = (index - (len(lines) - 1) / 2) * width
        positions = [categories.index(name) + offset for name in line.points]
        bars = panel.bar(positions, list(line.points.values()), width, label=line.title, color=line.style["color"])
        panel.bar_label(bars, fmt="%.1f", fontsize=8, padding=1)
    panel.set_xticks(range(len(categories)), categories)


def _write(path: Path, figure: Figure) -> Path:
    stream = io.BytesIO()
    # Without the version of the library, so that the same rows give the same file.
    figure.savefig(stream, format="png", metadata={"Software": None})
    replace_file(path, stream.getvalue())
    return path
