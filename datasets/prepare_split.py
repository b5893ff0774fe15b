"""Split a collection of photos into two folders of links, one to learn from and one to evaluate on.

A photo's side follows from the SHA-256 of its id alone: the split needs no seed, does not depend on which other photos
there are, and a photo never changes sides. Its id, the path below the folder, stays the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from oesir_d2.data import list_images
from oesir_d2.data.photo_split import HELD_OUT_SHARE, is_held_out, link_photos
from oesir_d2.engine.command_line import ToolParser, run_tool


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser(__doc__)
    add = parser.add_argument
    add("--images", required=True, metavar="DIR", help="the photos")
    add("--held-out", type=float, default=HELD_OUT_SHARE, metavar="SHARE", help="share to evaluate on, 0 to 1")
    add("--output", required=True, metavar="DIR", type=Path, help="gets train/ and held_out/")
    args = parser.parse_args(argv)
    if not 0 <= args.held_out <= 1:
        raise ValueError(f"--held-out is {args.held_out}; allowed: 0 to 1")

    files = list_images(args.images)
    held_out = [file for file in files if is_held_out(file.image_id, args.held_out)]
    train = [file for file in files if not is_held_out(file.image_id, args.held_out)]
    link_photos(train, args.output / "train")
    link_photos(held_out, args.output / "held_out")
    print(json.dumps({"train": len(train), "held_out": len(held_out)}))


if __name__ == "__main__":
    run_tool(main)
