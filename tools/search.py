"""Find the authentic photos that a photo was made from."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from oesir_d2.data import ImageFile, UnreadableImageError
from oesir_d2.engine.command_line import ToolParser, add_config_arguments, prepare_output, run_tool, whole_number
from oesir_d2.engine.provenance import Provenance, ProvenanceAnalyzer, analyze_all, save_mask
from oesir_d2.engine.retrieval import QueryResult, Retriever
from oesir_d2.files import open_atomically
from oesir_d2.index import AGGREGATORS
from oesir_d2.report import ProvenanceReport, QueryReport, write_provenance_report, write_search_report

EXAMPLES = """examples:
  search.py --index photos.index --query suspicious.jpg --report found/
      look at found/report.html: the query beside each photo found, matching objects in the same colour
  search.py --index photos.index --query suspicious.jpg --box 120,80,360,300 --top-k 20
      search with one object: X0,Y0,X1,Y1 in pixels of the photo, after its EXIF rotation
  search.py --index photos.index --query *.jpg --json results.jsonl
      one JSON object a line, one line a query
  search.py --index photos.index --query suspicious.jpg MODEL.WEIGHTS moved.pth RETRIEVAL.EXPLAIN_AWAY 0
      the model is the one that the index was built with; KEY VALUE pairs override its config
  search.py --index photos.index --query suspicious.jpg --verify --json found.json --report found/
      prove what is found, find out what was pasted and where from; found.masks/ gets the mask of each splice, and
      found/report.html shows the parts beside their sources and the points that agree

Boxes in the results are XYXY in pixels of the original photos, after their EXIF rotation. If some of the queries cannot
be read, the others are answered, and the exit code is 2. With --verify keypoints are kept in INDEX/keypoints, so the
first queries take longer than those after them.
"""
NAMED_IN_ERROR = 3
DEFAULT_CANDIDATES = 100
# A file system allows 255 bytes a name; a mask's has a number and an extension as well, and a longer one while written.
MAX_STEM_BYTES = 200


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    parser.add_argument("--index", required=True, metavar="INDEX", type=Path, help="folder that build_index.py wrote")
    parser.add_argument("--query", required=True, nargs="+", metavar="IMAGE", type=Path, help="one photo or more")
    parser.add_argument("--box", metavar="X0,Y0,X1,Y1", type=parse_box, help="search with this part of the photo alone")
    parser.add_argument(
        "--top-k", metavar="K", type=whole_number(1), help="results a query (default: RETRIEVAL.TOP_K of the config)"
    )
    parser.add_argument(
        "--aggregate",
        choices=sorted(AGGREGATORS),
        help="how regions' scores make a photo's (default: RETRIEVAL.AGGREGATE of the config)",
    )
    parser.add_argument(
        "--verify", action="store_true", help="prove matches by their geometry, rank by it, and locate the splice"
    )
    parser.add_argument(
        "--candidates",
        metavar="N",
        type=whole_number(1),
        help="with --verify: photos looked at for the query and for each pasted object "
        f"(default: {DEFAULT_CANDIDATES})",
    )
    parser.add_argument(
        "--masks",
        metavar="DIR",
        type=Path,
        help="with --verify: where the masks of the splices go (default: FILE.masks beside that of --json, else none)",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results here instead of to stdout")
    parser.add_argument("--report", metavar="DIR", type=Path, help="write DIR/report.html with pictures")
    add_config_arguments(parser, default=None)
    args = parser.parse_args(argv)
    check_verify_options(args)

    retriever = Retriever(args.index, args.opts)
    json_path = prepare_output(args.json) if args.json else None
    report_path = prepare_output(args.report / "report.html") if args.report else None
    masks = prepare_mask_folder(args)
    files = [ImageFile(str(path), path) for path in args.query]
    found = search_each(retriever, files, args)
    entries: list[QueryReport] = []
    proofs: list[ProvenanceReport] = []
    unreadable: list[str] = []
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(open_atomically(json_path)) if json_path else None
        for file, result in tqdm(found, total=len(files), desc="Searching", unit="query", disable=len(files) == 1):
            if isinstance(result, UnreadableImageError):
                unreadable.append(str(result))
                continue
            if isinstance(result, Provenance):
                as_json = result.to_dict(write_mask(result, masks, files.index(file)))
            else:
                as_json = result.to_dict()
            # ASCII, so that a name which is not valid Unicode survives in any terminal and any file.
            line = json.dumps(as_json) + "\n"
            if output:
                output.write(line.encode("ascii"))
            else:
                print(line, end="", flush=True)
            if report_path:
                entries.append(QueryReport(file.path, as_json["objects"], result.results))
                if isinstance(result, Provenance):
                    proofs.append(ProvenanceReport(file.path, result.results, result.findings, as_json))
    if report_path:
        facts = {"Photos searched": len(retriever.index.images)}
        if args.verify:
            write_provenance_report(report_path, proofs, facts, entries)
        else:
            write_search_report(report_path, entries, facts=facts)
        print(f"report: {report_path}", file=sys.stderr)
    if unreadable:
        more = [f"and {len(unreadable) - NAMED_IN_ERROR} more"] if len(unreadable) > NAMED_IN_ERROR else []
        named = "; ".join(unreadable[:NAMED_IN_ERROR] + more)
        raise ValueError(f"{len(unreadable)} of {len(files)} queries could not be read: {named}")


def search_each(
    retriever: Retriever, files: Sequence[ImageFile], args: argparse.Namespace
) -> Iterator[tuple[ImageFile, QueryResult | Provenance | UnreadableImageError]]:
    if args.verify:
        analyzer = ProvenanceAnalyzer(retriever, args.candidates or DEFAULT_CANDIDATES)
        yield from analyze_all(analyzer, files, args.top_k, args.aggregate, args.box)
        return
    if args.box is None:
        yield from retriever.search_all(files, args.top_k, args.aggregate)
        return
    for file in files:
        try:
            yield file, retriever.search(file, args.box, args.top_k, args.aggregate)
        except UnreadableImageError as error:
            yield file, error


def check_verify_options(args: argparse.Namespace) -> None:
    for name in ("masks", "candidates"):
        if getattr(args, name) is not None and not args.verify:
            raise ValueError(f"--{name} needs --verify")


def prepare_mask_folder(args: argparse.Namespace) -> Path | None:
    folder: Path | None = args.masks
    if folder is None and args.verify and args.json is not None:
        folder = args.json.with_suffix(".masks")
    if folder is not None:
        # Fails before the work if no mask can be written; a folder that is missing is made with the first one.
        prepare_output(folder / "mask.png" if folder.exists() else folder)
    return folder


def write_mask(result: Provenance, folder: Path | None, number: int) -> str | None:
    if folder is None or result.findings.mask is None:
        return None
    stem = result.query.file.path.stem
    while len(os.fsencode(stem)) > MAX_STEM_BYTES:
        stem = stem[:-1]
    # The number keeps queries of the same name apart.
    path = folder / f"{number:04d}_{stem}.png"
    save_mask(result.findings.mask, path)
    return str(path)


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
