"""Fetch the photos of PS-Battles that its two lists name, and say how much of it there is.

Run it again to go on after an interruption or to try what was missing: photos that are there, with the hash of their
list, are not fetched again. Writes DIR/coverage.json, which says of each missing photo why. The last line of stdout is
JSON: per list the total, what is on disk, and what is missing for which reason.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from oesir_d2.data.datasets.psbattles import COLUMNS, read_photo_list
from oesir_d2.data.psbattles_download import DownloadOptions, download_photos
from oesir_d2.engine.command_line import ToolParser, run_tool, whole_number
from oesir_d2.files import replace_file

EXAMPLES = """examples:
  download_psbattles.py --dir psbattles
      the folder has originals.tsv and photoshops.tsv; gets originals/ and photoshops/
  download_psbattles.py --dir psbattles --limit 1000
      the first 1000 originals and their photoshops
"""


def main(argv: Sequence[str] | None = None) -> None:
    defaults = DownloadOptions()
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--dir", required=True, metavar="DIR", type=Path, help="folder with originals.tsv and photoshops.tsv")
    add("--limit", type=whole_number(1), metavar="N", help="only so many originals, and their photoshops")
    add("--workers", type=whole_number(1), default=defaults.workers, metavar="N", help="photos fetched at a time")
    add("--retries", type=whole_number(0), default=defaults.retries, metavar="N", help="further tries a photo")
    add("--timeout", type=float, default=defaults.timeout, metavar="SECONDS", help="longest wait for an answer")
    add("--pause", type=float, default=defaults.pause, metavar="SECONDS", help="before the first further try; "
        "each one after waits twice as long")  # fmt: skip
    args = parser.parse_args(argv)

    options = DownloadOptions(args.retries, args.timeout, args.pause, args.workers)
    lists = {file: read_photo_list(args.dir / file) for file in COLUMNS}
    wanted = {photo.photo_id for photo in list(lists.values())[0][0][: args.limit]}
    summary, report = {}, {}
    for file, (photos, broken) in lists.items():
        if broken.count:
            logging.getLogger(__name__).warning("%s: %d lines left out: %s", file, broken.count, broken)
        chosen = [photo for photo in photos if (photo.original or photo.photo_id) in wanted]
        with tqdm(total=len(chosen), desc=file, unit="photo") as progress:
            coverage = download_photos(chosen, args.dir, options, lambda path, bar=progress: bar.update())
        summary[file] = coverage.to_dict() | {"broken_lines": broken.count}
        report[file] = asdict(coverage) | {"broken_lines": broken.count}
    replace_file(args.dir / "coverage.json", (json.dumps(report, indent=1) + "\n").encode())
    print(json.dumps(summary))


if __name__ == "__main__":
    run_tool(main)
