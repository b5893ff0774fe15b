"""Measure extraction, search and the building of an index on this machine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from oesir_d2.data import list_images
from oesir_d2.engine.benchmark_report import (
    BUILD_COLUMNS,
    SEARCH_COLUMNS,
    describe_growth,
    extraction_to_markdown,
    to_markdown,
    write_benchmark,
)
from oesir_d2.engine.build_benchmark import benchmark_build
from oesir_d2.engine.command_line import ToolParser, add_config_arguments, run_tool, whole_number
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.extraction_benchmark import measure_extraction, measure_processes
from oesir_d2.engine.search_benchmark import SearchOptions, benchmark_search
from oesir_d2.evaluation.synthetic_embeddings import SyntheticWorld

EXAMPLES = """examples:
  benchmark.py extract --images photos/ --output bench/
      the stages of extraction against this machine's own matrix product, and two processes against one
  benchmark.py search --output bench/ --sizes 10000 100000 --factories "IVF1024,Flat nprobe=16" HNSW32
      exact and approximate search over made-up embeddings: latency, recall, memory, and how they grow
  benchmark.py build --output bench/ --sizes 100000 1000000 --factories Flat OPQ32,IVF1024,PQ32
      objects a second, and peak memory against final size

Run it again, also after a crash or with more sizes, and what was measured before is kept; delete OUTPUT to start anew.
What is compared is measured in turns in one process; OMP_NUM_THREADS sets the number of threads. OUTPUT gets NAME.json
and NAME.md; the last line of stdout is JSON. Bytes are bytes, times milliseconds unless named otherwise.
"""
SIZES = [10_000, 100_000, 1_000_000]
MADE_UP = ("sizes", "factories", "dimension", "photo_regions", "seed")
OPTIONS = {
    "extract": ("images", "photos", "processes", "rounds", "config_file", "opts"),
    "search": (*MADE_UP, "queries", "query_regions", "explain_away", "keep_indexes", "rounds"),
    "build": MADE_UP,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    parser.add_argument("what", choices=["extract", "search", "build"], help="what to measure")
    parser.add_argument("--output", required=True, metavar="DIR", type=Path, help="folder, created if missing")
    extract = parser.add_argument_group("extract")
    extract.add_argument("--images", metavar="DIR_OR_LIST", help="photos to extract from")
    extract.add_argument("--photos", type=whole_number(1), default=12, metavar="N", help="the first N of them")
    extract.add_argument(
        "--processes", type=whole_number(1), default=2, metavar="N", help="1: do not compare processes"
    )
    extract.add_argument("--rounds", type=whole_number(1), default=3, metavar="N", help="timed rounds; search, too")
    made_up = parser.add_argument_group("search and build")
    made_up.add_argument("--sizes", type=whole_number(1), nargs="+", default=SIZES, metavar="N", help="objects")
    made_up.add_argument(
        "--factories",
        nargs="+",
        default=["Flat"],
        metavar="F",
        help='such as "IVF1024,Flat nprobe=16"; search also "stored": what index.py tune left in OUTPUT/index-N',
    )
    made_up.add_argument("--dimension", type=whole_number(1), default=256, metavar="D", help="of an embedding")
    made_up.add_argument("--photo-regions", type=whole_number(1), default=10, metavar="N", help="objects a photo")
    made_up.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of the made-up embeddings")
    search = parser.add_argument_group("search")
    search.add_argument("--queries", type=whole_number(1), default=50, metavar="N", help="query photos")
    search.add_argument("--query-regions", type=whole_number(8), default=20, metavar="N", help="regions a query, >= 8")
    search.add_argument("--explain-away", type=float, default=1.0, metavar="W", help="as RETRIEVAL.EXPLAIN_AWAY")
    search.add_argument("--keep-indexes", action="store_true", help="leave new indexes in OUTPUT; old ones stay")
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    refuse_foreign(parser, args)
    figures, markdown = {"extract": run_extract, "search": run_search, "build": run_build}[args.what](args)
    files = write_benchmark(args.output, args.what, figures, markdown)
    print(json.dumps(files | figures))


def refuse_foreign(parser: ToolParser, args: argparse.Namespace) -> None:
    given = [name for names in OPTIONS.values() for name in names if getattr(args, name) != parser.get_default(name)]
    foreign = [name for name in given if name not in OPTIONS[args.what]]
    if foreign:
        words = "KEY VALUE" if foreign[0] == "opts" else f"--{foreign[0].replace('_', '-')}"
        raise ValueError(f"{words} does not belong to {args.what}; --help shows examples")


def run_extract(args: argparse.Namespace) -> tuple[dict, str]:
    if args.images is None:
        raise ValueError("extract needs --images DIR_OR_LIST")
    cfg = load_config(args.config_file, args.opts)
    figures = asdict(measure_extraction(cfg, list_images(args.images)[: args.photos], args.rounds))
    if args.processes > 1:
        figures["processes"] = measure_processes(cfg, args.images, args.processes, args.rounds)
    return figures, extraction_to_markdown(figures)


def run_search(args: argparse.Namespace) -> tuple[dict, str]:
    options = SearchOptions(
        queries=args.queries,
        query_regions=args.query_regions,
        repetitions=args.rounds,
        explain_away=args.explain_away,
        photo_regions=args.photo_regions,
        dimension=args.dimension,
        seed=args.seed,
    )
    rows = benchmark_search(args.sizes, args.factories, options, args.output, args.keep_indexes)
    growth = describe_growth(rows, ["ms", "faiss_ms", "ratio", "peak_bytes"])
    return {"options": asdict(options), "rows": rows, "growth": growth}, to_markdown(SEARCH_COLUMNS, rows, growth)


def run_build(args: argparse.Namespace) -> tuple[dict, str]:
    world = SyntheticWorld(dimension=args.dimension, seed=args.seed)
    rows = benchmark_build(args.sizes, args.factories, world, args.photo_regions, args.output)
    growth = describe_growth(rows, ["build_objects_per_second", "build_peak_bytes"])
    return {"rows": rows, "growth": growth}, to_markdown(BUILD_COLUMNS, rows, growth)


if __name__ == "__main__":
    run_tool(main)
