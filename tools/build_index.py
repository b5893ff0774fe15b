"""Build an index of authentic photos, or bring one up to date."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from oesir_d2.data import list_images
from oesir_d2.engine.command_line import ToolParser, add_config_arguments, run_tool
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.indexing import build_index

EXAMPLES = """examples:
  build_index.py --images photos/ --output photos.index
      embed every photo under photos/; run it again and only new or changed photos are embedded
  build_index.py --images list.txt --output photos.index INDEX.SEGMENT_IMAGES 256
      one path a line, relative to list.txt; a crash then loses at most 256 photos' work

Files that cannot be read are left out and listed with the reason in OUTPUT/skipped.jsonl.
The last line of stdout is JSON: images and objects in the index, photos embedded and skipped by this run,
seconds, images_per_second, bytes_per_object.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    parser.add_argument(
        "--images",
        required=True,
        metavar="DIR_OR_LIST",
        help="a folder (searched with its subfolders), a text file of paths, or a splices.json",
    )
    parser.add_argument("--output", required=True, metavar="INDEX", type=Path, help="index folder, created if missing")
    parser.add_argument("--strict", action="store_true", help="stop at the first file that cannot be read")
    add_config_arguments(parser)
    args = parser.parse_args(argv)

    cfg = load_config(args.config_file, args.opts)
    summary = build_index(cfg, list_images(args.images), args.output, strict=args.strict)
    print(json.dumps(asdict(summary)))


if __name__ == "__main__":
    run_tool(main)
