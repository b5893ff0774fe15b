"""The main job on real photos: index them, splice some, find the sources, and show it in one page."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from oesir_d2 import report
from oesir_d2.data import ImageFile, UnreadableImageError, list_images
from oesir_d2.data.datasets.gallery import copy_gallery
from oesir_d2.data.splicing import PhotoCutOuts, SpliceSet, make_splice_set
from oesir_d2.engine.command_line import ToolParser, add_config_arguments, replace_nan, run_tool, whole_number
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.indexing import build_index
from oesir_d2.engine.retrieval import Retriever
from oesir_d2.engine.splice_evaluation import evaluate_splices

EXAMPLES = """examples:
  demo.py
      everything on the photos that come with scikit-image, scikit-learn and matplotlib; look at output/demo/report.html
  demo.py --photos holiday/ --count 30
      the same on photos of your own; at least two of them need an object that stands out

A second run does only what is missing. The last line of stdout is JSON: the report's path, images, objects and skipped
files of the index, queries (the splices searched for), seconds, and the figures of the evaluation in percent.
"""
QUERIES_SHOWN = 6
RESULTS_SHOWN = 5
FAILURES_SHOWN = 10
LEAST_DEPTH = 100


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    parser.add_argument(
        "--photos", metavar="DIR", help="a folder of your own photos (default: those inside scikit-image and others)"
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), metavar="DIR", help="folder for everything")
    parser.add_argument("--count", type=whole_number(1), default=12, metavar="N", help="splices to make")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of the splices")
    add_config_arguments(parser)
    args = parser.parse_args(argv)

    start = time.perf_counter()
    cfg = load_config(args.config_file, args.opts)
    photos = Path(args.photos) if args.photos else args.output / "gallery"
    if not args.photos:
        copy_gallery(photos)
    files = list_images(photos)
    # Another folder of photos, or another model, gets an index of its own, and other photos get splices of their own.
    index = args.output / f"index-{make_key(str(photos.resolve()), cfg.dump())}"
    splices_folder = args.output / f"splices-{make_key(*(str(file.path.resolve()) for file in files))}-{args.seed}"
    log(f"1/4 indexing {len(files)} photos of {photos}")
    summary = build_index(cfg, files, index)
    log(f"2/4 composing {args.count} splices")
    splices = make_splice_set(
        files,
        PhotoCutOuts(photos),
        [],
        splices_folder,
        count=args.count,
        seed=args.seed,
        progress=lambda numbers: tqdm(numbers, desc="Composing", unit="splice"),
    )
    log("3/4 searching for their sources")
    retriever = Retriever(index)
    scored = evaluate_splices(retriever, splices, depth=max(LEAST_DEPTH, summary.images), allow_missing=True)
    log("4/4 writing the report")
    failures = report.make_failure_cases(
        splices, scored.evaluation, scored.kept, scored.matches, scored.paths, FAILURES_SHOWN
    )
    facts = {
        "images": summary.images,
        "objects": summary.objects,
        "skipped": summary.skipped,
        "queries": len(splices.queries),
    }
    sections = [
        report.facts_section({name.capitalize(): count for name, count in facts.items()}),
        report.metrics_section(scored.evaluation.metrics),
        report.search_section(search_examples(retriever, splices), "Splices and the photos found"),
        report.failure_section(failures),
    ]
    page = args.output / "report.html"
    report.write_page(page, "Where do these photos come from?", sections)
    log(f"look at {page}")
    figures = facts | {"report": str(page), "seconds": round(time.perf_counter() - start, 1)}
    print(json.dumps(figures | replace_nan(scored.evaluation.metrics["splice_retrieval"])))


def search_examples(retriever: Retriever, splices: SpliceSet) -> list[report.QueryReport]:
    files = [ImageFile(query.file_name, splices.resolve(query.file_name)) for query in splices.queries[:QUERIES_SHOWN]]
    entries = []
    for _, result in retriever.search_all(files, top_k=RESULTS_SHOWN):
        assert not isinstance(result, UnreadableImageError), result
        entries.append(report.QueryReport(result.query.file.path, result.to_dict()["objects"], result.results))
    return entries


def make_key(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_tool(main)
