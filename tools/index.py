"""Look after an index of photos: what it holds, more photos, fewer photos, less disk, faster search."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oesir_d2.engine import index_upkeep
from oesir_d2.engine.command_line import ToolParser, run_tool
from oesir_d2.index import Budget

EXAMPLES = """examples:
  index.py info --index photos.index
      photos, objects, bytes, and how it is searched
  index.py add --index photos.index --images photos/
      embed new and changed photos with the index's own model, as build_index.py does
  index.py remove --index photos.index --ids a.jpg b/c.jpg
  index.py remove --index photos.index --gone
      take photos out: these, or all whose files are gone; the disk is freed by compact
  index.py compact --index photos.index
      drop what was replaced or removed, and join small segments; searches go on meanwhile
  index.py merge --index all.index --sources a.index b.index
      of a photo that several have, the file that changed last counts; the sources stay as they are
  index.py verify --index photos.index
      read everything and compare it with the checksums
  index.py tune --index photos.index --max-memory 64MB --max-latency 50 --min-recall 0.98
      choose the type of the object index and its parameters; or say it: --factory IVF4096,PQ32

Every job survives a crash: the index is then as before or as after. One process at a time may change an index. The last
line of stdout is JSON: the index as it is then, and what the job did.
"""
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
OPTIONS = {
    "info": (),
    "add": ("images", "strict"),
    "remove": ("ids", "gone"),
    "compact": (),
    "merge": ("sources",),
    "verify": (),
    "tune": ("factory", "max_memory", "max_latency", "min_recall"),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    parser.add_argument("job", choices=list(OPTIONS))
    parser.add_argument("--index", required=True, metavar="INDEX", type=Path, help="index folder")
    parser.add_argument(
        "--images", metavar="DIR_OR_LIST", help="add: a folder, a text file of paths, or a splices.json"
    )
    parser.add_argument("--strict", action="store_true", help="add: stop at the first file that cannot be read")
    parser.add_argument("--ids", nargs="+", metavar="ID", help="remove: ids of photos, as search results name them")
    parser.add_argument("--gone", action="store_true", help="remove: the photos whose files are not there any more")
    parser.add_argument("--sources", nargs="+", metavar="INDEX", type=Path, help="merge: indexes of the same model")
    parser.add_argument("--factory", metavar="STRING", help="tune: a FAISS factory string instead of a budget's choice")
    parser.add_argument("--max-memory", metavar="SIZE", type=parse_size, help="tune: e.g. 64MB, for what search holds")
    parser.add_argument("--max-latency", metavar="MS", type=float, help="tune: milliseconds a query of 20 regions")
    parser.add_argument(
        "--min-recall", metavar="SHARE", type=float, help="tune: of the 10 most similar photos found (default: 0.98)"
    )
    args = parser.parse_args(argv)
    print(json.dumps(run(args)))


def run(args: argparse.Namespace) -> dict[str, Any]:
    given = [name for names in OPTIONS.values() for name in names if getattr(args, name) not in (None, False)]
    foreign = [name for name in given if name not in OPTIONS[args.job]]
    if foreign:
        raise ValueError(f"--{foreign[0].replace('_', '-')} does not belong to {args.job}; --help shows examples")
    if args.job == "add":
        return index_upkeep.add_photos(args.index, require(args, "images"), args.strict)
    if args.job == "remove":
        if not args.gone:
            require(args, "ids")
        return index_upkeep.remove_photos(args.index, args.ids or [], args.gone)
    if args.job == "merge":
        return index_upkeep.merge_indexes(args.index, require(args, "sources"))
    if args.job == "tune":
        for name in ("max_memory", "max_latency"):
            if args.factory is not None and getattr(args, name) is not None:
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"{flag} chooses a type, and --factory names one: give one of them; --help shows examples"
                )
        latency = None if args.max_latency is None else args.max_latency / 1000
        recall = 0.98 if args.min_recall is None else args.min_recall
        return index_upkeep.tune_index(args.index, Budget(args.max_memory, latency, recall), args.factory)
    jobs = {"info": index_upkeep.describe_index, "compact": index_upkeep.compact_index}
    return jobs.get(args.job, index_upkeep.verify_index)(args.index)


def require(args: argparse.Namespace, name: str) -> Any:
    value = getattr(args, name)
    if value is None:
        raise ValueError(f"{args.job} needs --{name}; --help shows examples")
    return value


def parse_size(text: str) -> int:
    match = re.fullmatch(r"([0-9.]+)\s*([KMG]?B?)", text.upper())
    unit = match and match[2].rstrip("B")
    try:
        return int(float(match[1]) * UNITS[f"{unit}B" if unit else ""]) if match else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, expected such as 64MB or 1.5GB") from None


if __name__ == "__main__":
    run_tool(main)
