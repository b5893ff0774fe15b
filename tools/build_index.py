"""Build an index of authentic photos, or bring one up to date."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from oesir_d2.engine.command_line import ToolParser, add_config_arguments, run_tool
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.parallel_indexing import Build, launch_build
from oesir_d2.engine.process_launch import add_launch_arguments, get_layout

EXAMPLES = """examples:
  build_index.py --images photos/ --output photos.index
      embed every photo under photos/; run it again and only new or changed photos are embedded
  build_index.py --images list.txt --output photos.index INDEX.SEGMENT_IMAGES 256
      one path a line, relative to list.txt; a crash then loses at most 256 photos' work
  build_index.py --images photos/ --output photos.index --num-gpus 4 MODEL.DEVICE cpu
      in four processes; on several machines, which share INDEX's disk, the same command with
      --num-machines 2 --machine-rank 0 (and 1) --dist-url tcp://FIRST_MACHINE:29500

Files that cannot be read are left out and listed with the reason in OUTPUT/skipped.jsonl.
If a process is killed, run the same command again: it embeds what is missing.
The last line of stdout is JSON, on machine 0: images and objects in the index, photos embedded and skipped by this
run, seconds, images_per_second, bytes_per_object.
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
    add_launch_arguments(parser)
    add_config_arguments(parser)
    args = parser.parse_args(argv)

    cfg = load_config(args.config_file, args.opts)
    summary = launch_build(Build(cfg, args.images, args.output, args.strict), get_layout(args))
    if summary is not None:
        print(json.dumps(asdict(summary)))


if __name__ == "__main__":
    run_tool(main)
