"""Find the authentic photos that a photo was made from."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from oesir_d2.data import ImageFile, UnreadableImageError
from oesir_d2.engine.command_line import ToolParser, add_config_arguments, run_tool
from oesir_d2.engine.retrieval import QueryResult, Retriever
from oesir_d2.index import AGGREGATORS
from oesir_d2.report import QueryReport, write_search_report

EXAMPLES = """examples:
  search.py --index photos.index --query suspicious.jpg --report found/
      look at found/report.html: the query beside each photo found, matching objects in the same colour
  search.py --index photos.index --query suspicious.jpg --box 120,80,360,300 --top-k 20
      search with one object: X0,Y0,X1,Y1 in pixels of the photo, after its EXIF rotation
  search.py --index photos.index --query *.jpg --json results.jsonl
      one JSON object a line, one line a query

The model is the one that the index was built with. Trailing KEY VALUE pairs override its config, for example
MODEL.WEIGHTS FILE if its weights have moved; put -- before them if they follow --query.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    parser.add_argument("--index", required=True, metavar="INDEX", type=Path, help="folder that build_index.py wrote")
    parser.add_argument("--query", required=True, nargs="+", metavar="IMAGE", type=Path, help="one photo or more")
    parser.add_argument("--box", metavar="X0,Y0,X1,Y1", type=parse_box, help="search with this part of the photo alone")
    parser.add_argument("--top-k", type=int, metavar="K", help="results a query (default: the config's, 10)")
    parser.add_argument(
        "--aggregate",
        choices=sorted(AGGREGATORS),
        help="how regions' scores make a photo's (default: the config's, max)",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results here instead of to stdout")
    parser.add_argument("--report", metavar="DIR", type=Path, help="write DIR/report.html with pictures")
    add_config_arguments(parser, default=None)
    args = parser.parse_args(argv)

    retriever = Retriever(args.index, args.opts)
    files = [ImageFile(str(path), path) for path in args.query]
    if args.box is not None:
        found = ((file, retriever.search(file, args.box, args.top_k, args.aggregate)) for file in files)
    else:
        found = retriever.search_all(files, args.top_k, args.aggregate)
    results: list[QueryResult] = []
    unreadable: list[UnreadableImageError] = []
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(open(args.json, "w", encoding="utf-8")) if args.json else sys.stdout
        for _, result in tqdm(found, total=len(files), desc="Searching", unit="query", disable=len(files) == 1):
            if isinstance(result, UnreadableImageError):
                unreadable.append(result)
                continue
            print(json.dumps(result.to_dict(), ensure_ascii=False), file=output, flush=True)
            results.append(result)
    if args.report:
        write_report(args.report / "report.html", retriever, results)
    if unreadable:
        raise ValueError(f"{len(unreadable)} of {len(files)} queries could not be read: {unreadable[0]}")


def write_report(path: Path, retriever: Retriever, results: Sequence[QueryResult]) -> None:
    entries = []
    for result in results:
        as_json = result.to_dict()
        entries.append(QueryReport(result.query.file.path, as_json["objects"], result.results))
    write_search_report(path, entries, facts={"Photos searched": len(retriever.index.images)})
    print(f"report: {path}", file=sys.stderr)


def parse_box(text: str) -> list[float]:
    try:
        box = [float(part) for part in text.split(",")]
    except ValueError:
        box = []
    if len(box) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not X0,Y0,X1,Y1, four numbers in pixels")
    return box


if __name__ == "__main__":
    run_tool(main)
