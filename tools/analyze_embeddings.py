"""Compare layers, poolings and PCA dimensions of classification and detection networks, as the paper's figures do."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oesir_d2.data import list_images
from oesir_d2.data.splicing import read_splices
from oesir_d2.engine.analysis_list import read_analysis_models
from oesir_d2.engine.analysis_ranking import NORMALIZATIONS, RankingOptions
from oesir_d2.engine.analysis_tasks import make_registered_task, make_splice_task
from oesir_d2.engine.command_line import (
    ToolParser,
    add_config_arguments,
    parse_named_paths,
    prepare_output,
    run_tool,
    whole_number,
)
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.embedding_analysis import DIMENSIONS, AnalysisOptions, analyze_embeddings
from oesir_d2.engine.layer_vectors import POOLINGS, AnalysisPhoto
from oesir_d2.engine.model_list import select_models
from oesir_d2.engine.training_data import register_datasets
from oesir_d2.engine.whitening_fit import choose_photos
from oesir_d2.evaluation.analysis_table import write_analysis_table
from oesir_d2.report.analysis_figures import FigureOptions, write_analysis_figures
from oesir_d2.report.paper_table import write_paper_table

TABLE_FILE = "analysis.csv"

EXAMPLES = """examples:
  analyze_embeddings.py --models comparisons/layers_lite0.yaml --splices medium=medium/splices.json \\
      --whitening-images other/ --output analysis/
  analyze_embeddings.py --models comparisons/layers_R50.yaml --datasets roxford5k rparis6k --output paper/ \\
      --whitening-images openimages/ DATASETS.OESIR.REVISITED "[['roxford5k', 'roxford5k.json', 'oxford/'], …]"
      the paper's Figures 1 and 2 and Table 1, for those who have its data sets (datasets/README.md)
  analyze_embeddings.py ... --output analysis/ --query-expansion 5 --alpha 3
      the same vectors, ranked in another way

A list of networks is YAML; oesir_d2/engine/analysis_list.py says what is in it. Every photo is passed once through
each network. Run it again, also after a crash, and only what is missing is done.
OUTPUT gets analysis.csv (one figure a row, in percent), three figures as PNG, and table_1.md. The last line of stdout
is JSON: these files, and by network how many photos were passed and how many cells were scored now.
"""


def main(argv: Sequence[str] | None = None) -> None:
    args = _make_parser().parse_args(argv)
    ranking = RankingOptions(args.query_expansion, args.alpha, args.score_normalization, args.background_neighbours)
    options = AnalysisOptions(tuple(sorted(set(args.dimensions))), tuple(args.poolings), ranking)
    models = select_models(read_analysis_models(args.models), args.only)
    images = list_images(args.images) if args.images else None
    fit_files = choose_photos(list_images(args.whitening_images), args.max_whitening_images, seed=0)
    paths = parse_named_paths(args.splices)
    if not paths and not args.datasets:
        raise ValueError("no data set is named; allowed: --splices NAME=JSON and --datasets NAME, one or more")
    repeated = [name for i, name in enumerate(args.datasets) if name in (*paths, *args.datasets[:i])]
    if repeated:
        raise ValueError(f"the data set {repeated[0]!r} is named twice")
    tasks = [make_splice_task(name, read_splices(path), images) for name, path in paths.items()]
    register_datasets(load_config("oesir_lite0.yaml", args.opts))
    tasks += [make_registered_task(name) for name in args.datasets]
    table = prepare_output(args.output / TABLE_FILE)

    fit_photos = [AnalysisPhoto.of(file) for file in fit_files]
    analysis = analyze_embeddings(models, tasks, fit_photos, args.output, options, args.weights_dir, args.strict)
    write_analysis_table(table, analysis.rows)
    titles = {model.name: model.title for model in models if model.name in analysis.counts}
    figures = FigureOptions(titles, {task.name: task.headline for task in tasks})
    drawn = write_analysis_figures(table.parent, analysis.rows, figures)
    files: dict[str, Any] = {"csv": str(table), "figures": [str(path) for path in drawn]}
    classifiers = [model for model in models if model.network == "teacher" and model.name in titles]
    if classifiers:
        layer = list(classifiers[0].layers)[-1]
        files["table_1"] = str(write_paper_table(table.parent, analysis.rows, classifiers[0].name, layer))
    facts = {"models": analysis.counts, "left_out": analysis.left_out, "skipped": analysis.skipped}
    print(json.dumps(files | facts))


def _make_parser() -> ToolParser:
    parser = ToolParser(__doc__, EXAMPLES)
    parser.add_argument("--models", required=True, metavar="FILE", help="a list, or its bare name under configs/")
    parser.add_argument(
        "--splices", metavar="NAME=JSON", nargs="+", action="extend", default=[], help="sets, by their panel's name"
    )
    parser.add_argument(
        "--datasets", metavar="NAME", nargs="+", default=[], help="retrieval sets that DATASETS.OESIR registers"
    )
    parser.add_argument("--images", metavar="DIR_OR_LIST", help="the database of the splices (default: their own)")
    parser.add_argument(
        "--whitening-images", required=True, metavar="DIR_OR_LIST", help="photos that are in no data set"
    )
    parser.add_argument(
        "--max-whitening-images", type=whole_number(2), default=10_000, metavar="N", help="drawn at random at most"
    )
    parser.add_argument("--output", required=True, metavar="DIR", type=Path, help="folder, created if missing")
    parser.add_argument("--weights-dir", metavar="DIR", type=Path, help="stands for ${WEIGHTS_DIR} in the list")
    parser.add_argument("--only", metavar="NAME", nargs="+", default=[], help="these networks of the list alone")
    parser.add_argument("--strict", action="store_true", help="refuse a network whose weights are not there")
    parser.add_argument(
        "--dimensions", type=whole_number(0), nargs="+", default=list(DIMENSIONS), metavar="D", help="0: not whitened"
    )
    parser.add_argument("--poolings", nargs="+", choices=list(POOLINGS), default=list(POOLINGS), help="of the layers")
    parser.add_argument(
        "--query-expansion", type=whole_number(0), default=0, metavar="N", help="neighbours to expand by; 0: none"
    )
    parser.add_argument("--alpha", type=_non_negative, default=0.0, help="of query expansion; 0: the plain average")
    parser.add_argument(
        "--score-normalization", choices=NORMALIZATIONS, default="none", help="against the photos of the whitening"
    )
    parser.add_argument(
        "--background-neighbours", type=whole_number(1), default=10, metavar="N", help="of score normalisation"
    )
    add_config_arguments(parser, default=None)
    return parser


def _non_negative(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed, expected a finite number of at least 0")
    return number


if __name__ == "__main__":
    run_tool(main)
