"""The main job on real photos: index them, splice some, find the sources, and show it in one page."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from oesir_d2.data import ImageFile, UnreadableImageError, list_images
from oesir_d2.data.datasets.gallery import copy_gallery
from oesir_d2.data.splicing import PhotoCutOuts, SpliceOptions, SpliceSet, make_splice_set
from oesir_d2.engine.command_line import ToolParser, add_config_arguments, replace_nan, run_tool
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.indexing import build_index
from oesir_d2.engine.retrieval import Retriever
from oesir_d2.engine.splice_evaluation import evaluate_splices
from oesir_d2.report import (
    QueryReport,
    facts_section,
    failure_section,
    make_failure_cases,
    metrics_section,
    search_section,
    write_page,
)

QUERIES_SHOWN = 6
RESULTS_SHOWN = 5
FAILURES_SHOWN = 10


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser(__doc__)
    parser.add_argument(
        "--photos", metavar="DIR", help="a folder of your own photos (default: those inside scikit-image and others)"
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), metavar="DIR", help="folder for everything")
    parser.add_argument("--count", type=int, default=12, metavar="N", help="splices to make")
    parser.add_argument("--seed", type=int, default=0, help="of the splices")
    add_config_arguments(parser)
    args = parser.parse_args(argv)

    start = time.perf_counter()
    cfg = load_config(args.config_file, args.opts)
    photos = Path(args.photos) if args.photos else args.output / "gallery"
    if not args.photos:
        copy_gallery(photos)
    files = list_images(photos)
    # Another folder of photos, or another model, gets an index of its own.
    key = hashlib.sha256(f"{photos.resolve()}\n{cfg.dump()}".encode()).hexdigest()[:8]
    log(f"1/4 indexing {len(files)} photos of {photos}")
    summary = build_index(cfg, files, args.output / f"index-{key}")
    log(f"2/4 composing {args.count} splices")
    splices = compose_splices(files, photos, args.output / f"splices-{key}-{args.seed}", args.count, args.seed)
    log("3/4 searching for their sources")
    retriever = Retriever(args.output / f"index-{key}")
    scored = evaluate_splices(retriever, splices, depth=max(100, summary.images), allow_missing=True)
    log("4/4 writing the report")
    report = args.output / "report.html"
    metrics = scored.evaluation.metrics
    failures = make_failure_cases(splices, scored.evaluation, scored.kept, scored.matches, scored.paths, FAILURES_SHOWN)
    facts = {
        "Photos in the index": summary.images,
        "Objects in the index": summary.objects,
        "Files skipped": summary.skipped,
        "Splices": len(splices.queries),
    }
    sections = [
        facts_section(facts),
        metrics_section(metrics),
        search_section(search_examples(retriever, splices), "Splices and the photos found"),
        failure_section(failures),
    ]
    write_page(report, "Where do these photos come from?", sections)
    log(f"look at {report}")
    figures = {
        "report": str(report),
        "images": summary.images,
        "objects": summary.objects,
        "skipped": summary.skipped,
        "queries": len(splices.queries),
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(figures | replace_nan(metrics["splice_retrieval"])))


def compose_splices(files: list[ImageFile], photos: Path, output: Path, count: int, seed: int) -> SpliceSet:
    return make_splice_set(
        files,
        PhotoCutOuts(photos),
        [],
        output,
        count=count,
        options=SpliceOptions(),
        seed=seed,
        progress=lambda numbers: tqdm(numbers, desc="Composing", unit="splice"),
    )


def search_examples(retriever: Retriever, splices: SpliceSet) -> list[QueryReport]:
    files = [ImageFile(query.file_name, splices.resolve(query.file_name)) for query in splices.queries[:QUERIES_SHOWN]]
    entries = []
    for _, result in retriever.search_all(files, top_k=RESULTS_SHOWN):
        assert not isinstance(result, UnreadableImageError), result
        entries.append(QueryReport(result.query.file.path, result.to_dict()["objects"], result.results))
    return entries


def log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_tool(main)
