"""Compare models on the same photos and splices: retrieval, coverage of objects, cost."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from oesir_d2.data import list_images
from oesir_d2.data.splicing import read_splices
from oesir_d2.engine.command_line import ToolParser, parse_named_paths, run_tool, whole_number
from oesir_d2.engine.comparison_list import read_variants
from oesir_d2.engine.comparison_table import JSON_FILE, MARKDOWN_FILE
from oesir_d2.engine.model_comparison import compare_models
from oesir_d2.engine.model_list import select_models
from oesir_d2.engine.variant_run import ComparisonOptions
from oesir_d2.engine.whitening_fit import choose_photos

EXAMPLES = """examples:
  compare_models.py --models comparisons/lite0.yaml --weights-dir weights/ --images photos/ --whitening-images other/ \\
      --splices medium=medium/splices.json --splices small=small/splices.json --output comparison/
  compare_models.py ... --output comparison/ --only grid detector-s3
      two models of the list; the table then has these alone, and what others took is kept

A list of models is YAML; oesir_d2/engine/comparison_list.py says what is in it. Every model gets a whitening, fitted on
its own regions of the whitening photos, unless it brings one; an index of the photos; a search with every splice; and a
measurement of its cost. Run it again, also after a crash, and only what has changed is done again.
Set OMP_NUM_THREADS for the number of threads that times are measured with, on a machine that does nothing else; to
measure a cost again, delete OUTPUT/variants/NAME/cost.json.
OUTPUT gets comparison.md and comparison.json. The last line of stdout is JSON with the figures in percent, parameters,
billions of multiply-adds (one multiplication with its addition counts once) and milliseconds a photo.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    parser.add_argument("--models", required=True, metavar="FILE", help="a list, or its bare name under configs/")
    parser.add_argument("--images", required=True, metavar="DIR_OR_LIST", help="the database of the splices")
    parser.add_argument(
        "--splices", required=True, metavar="NAME=JSON", nargs="+", action="extend", help="sets, by their table's name"
    )
    parser.add_argument(
        "--whitening-images", required=True, metavar="DIR_OR_LIST", help="photos that are no sources of the splices"
    )
    parser.add_argument("--output", required=True, metavar="DIR", type=Path, help="folder, created if missing")
    parser.add_argument("--weights-dir", metavar="DIR", type=Path, help="stands for ${WEIGHTS_DIR} in the list")
    parser.add_argument("--only", metavar="NAME", nargs="+", default=[], help="these models of the list alone")
    parser.add_argument("--strict", action="store_true", help="refuse a model whose weights are not there")
    parser.add_argument("--depth", type=whole_number(1), default=100, metavar="K", help="results a query")
    parser.add_argument(
        "--max-whitening-images", type=whole_number(1), default=10_000, metavar="N", help="drawn at random at most"
    )
    parser.add_argument(
        "--cost-photos", type=whole_number(1), default=8, metavar="N", help="photos that times are measured on"
    )
    parser.add_argument(
        "--repetitions", type=whole_number(0), default=5, metavar="N", help="timed rounds a photo; 0: no times"
    )
    parser.add_argument(
        "--input-size", default="1024x768", metavar="WxH", help="pixels of the photo that multiply-adds are counted on"
    )
    args = parser.parse_args(argv)

    options = ComparisonOptions(args.depth, args.cost_photos, args.repetitions, _parse_size(args.input_size))
    variants = select_models(read_variants(args.models), args.only)
    paths = parse_named_paths(args.splices)
    comparison = compare_models(
        variants,
        list_images(args.images),
        choose_photos(list_images(args.whitening_images), args.max_whitening_images, seed=0),
        {name: read_splices(path) for name, path in paths.items()},
        args.output,
        options,
        args.weights_dir,
        args.strict,
    )
    files = {"table": str(args.output / MARKDOWN_FILE), "json": str(args.output / JSON_FILE)}
    print(json.dumps(files | {"skipped": comparison.skipped, "models": comparison.rows}))


def _parse_size(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9][0-9]*x[1-9][0-9]*", text):
        raise ValueError(f"--input-size is {text!r}, expected WIDTHxHEIGHT in pixels, such as 1024x768")
    width, height = text.split("x")
    return int(width), int(height)


if __name__ == "__main__":
    run_tool(main)
