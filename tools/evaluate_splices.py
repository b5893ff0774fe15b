"""Score an index on splices whose sources are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from oesir_d2.data.splicing import read_splices
from oesir_d2.engine.command_line import (
    ToolParser,
    add_config_arguments,
    prepare_output,
    replace_nan,
    run_tool,
    whole_number,
)
from oesir_d2.engine.retrieval import Retriever
from oesir_d2.engine.splice_evaluation import evaluate_splices
from oesir_d2.evaluation import summarise_provenance
from oesir_d2.files import replace_file
from oesir_d2.index import AGGREGATORS
from oesir_d2.report import make_failure_cases, write_failure_report

EXAMPLES = """examples:
  evaluate_splices.py --index photos.index --splices splices/splices.json
  evaluate_splices.py --index photos.index --splices splices/splices.json --report scores/
      scores/failures.html shows the queries that fared worst: query, top result, true sources
  evaluate_splices.py --index photos.index --splices splices/splices.json --verify
      verify what is found, too: roles and masks are scored as well
  evaluate_splices.py --index others.index --splices splices/splices.json --verify --allow-missing
      others.index without the sources: false_accept is how often a photo is confirmed that is none

The index must hold the database of the splices; photos are matched by path, then by id, then by file name.
The last line of stdout is JSON, in percent: mAP, recall of hosts and of donors at 1, 5 and 10, and the share of
queries with all sources in the top 2, 5 and 10. With --verify also, under "provenance": host_confirmed and
donor_confirmed, the recall of the true roles; false_accept, the share of queries with a confirmed photo that is no
source; copy_recognised, the share of the copy-moves recognised as such; mask_iou and mask_f1 where the host was
confirmed.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    parser.add_argument("--index", required=True, metavar="INDEX", type=Path, help="folder that build_index.py wrote")
    parser.add_argument("--splices", required=True, metavar="JSON", type=Path, help="a splices.json")
    parser.add_argument(
        "--depth",
        type=whole_number(1),
        default=100,
        metavar="K",
        help="results a query; sources that lie deeper count as never found",
    )
    parser.add_argument(
        "--aggregate",
        choices=sorted(AGGREGATORS),
        help="how regions' scores make a photo's (default: RETRIEVAL.AGGREGATE of the config)",
    )
    parser.add_argument("--verify", action="store_true", help="rank by geometric evidence, and score roles and masks")
    parser.add_argument("--allow-missing", action="store_true", help="count sources that the index lacks as not found")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write figures and one row a query here")
    parser.add_argument("--report", metavar="DIR", type=Path, help="write DIR/failures.html with the worst queries")
    parser.add_argument(
        "--max-failures", type=whole_number(0), default=20, metavar="N", help="queries that the report shows at most"
    )
    add_config_arguments(parser, default=None)
    args = parser.parse_args(argv)

    splices = read_splices(args.splices, check_files=("queries", "masks") if args.verify else ("queries",))
    retriever = Retriever(args.index, args.opts)
    json_path = prepare_output(args.json) if args.json else None
    report_path = prepare_output(args.report / "failures.html") if args.report else None
    scored = evaluate_splices(retriever, splices, args.depth, args.aggregate, args.allow_missing, args.verify)
    metrics = replace_nan(scored.evaluation.metrics)
    if args.verify:
        metrics["provenance"] = replace_nan(dict(summarise_provenance(scored.provenance)))
    facts = {
        "queries": len(splices.queries),
        "database": len(retriever.index.images),
        "unreadable_queries": len(scored.unreadable),
    }
    if json_path:
        rows = [asdict(row) for row in scored.evaluation.rows]
        content = metrics | facts | {"rows": rows}
        if args.verify:
            content["provenance_rows"] = [asdict(row) for row in scored.provenance]
        replace_file(json_path, (json.dumps(content, indent=1) + "\n").encode("ascii"))
    if report_path:
        cases = make_failure_cases(
            splices, scored.evaluation, scored.kept, scored.matches, scored.paths, args.max_failures
        )
        shown = {
            "Splices": args.splices,
            "Queries": len(splices.queries),
            "Photos searched": len(retriever.index.images),
        }
        write_failure_report(report_path, scored.evaluation.metrics, cases, facts=shown)
    print(json.dumps(metrics | facts))


if __name__ == "__main__":
    run_tool(main)
