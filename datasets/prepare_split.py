"""Split a collection of photos into two folders of links, one to learn from and one to evaluate on.

A photo's side follows from the SHA-256 of its id alone: the split needs no seed, does not depend on which other photos
there are, and a photo never changes sides. Its id, the path below the folder, stays the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from oesir_d2.data import list_images
from oesir_d2.engine.command_line import ToolParser, run_tool


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser(__doc__)
    parser.add_argument("--images", required=True, metavar="DIR", help="the photos")
    parser.add_argument("--held-out", type=float, default=0.4, metavar="SHARE", help="share to evaluate on, 0 to 1")
    parser.add_argument("--output", required=True, metavar="DIR", type=Path, help="gets train/ and held_out/")
    args = parser.parse_args(argv)
    if not 0 <= args.held_out <= 1:
        raise ValueError(f"--held-out is {args.held_out}; allowed: 0 to 1")

    counts = {"train": 0, "held_out": 0}
    for file in list_images(args.images):
        side = "held_out" if is_held_out(file.image_id, args.held_out) else "train"
        link = args.output / side / file.image_id
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(file.path.resolve())
        counts[side] += 1
    print(json.dumps(counts))


def is_held_out(image_id: str, share: float) -> bool:
    """Whether a photo falls on the evaluation's side; ``share`` of all ids do."""
    digest = hashlib.sha256(image_id.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


if __name__ == "__main__":
    run_tool(main)
