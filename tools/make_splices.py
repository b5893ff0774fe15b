"""Compose spliced photos whose sources are known, as queries to evaluate retrieval on.

DIR_OR_LIST is a folder of images, or a text file with one path a line. The output gets splices.json, queries/*.jpg
and masks/*.png. An image id is the path relative to the folder that was given; if two folders have the same one, the
later one's begins with donors/ or distractors/. An interrupted run goes on when it is started again, and a larger
--count adds to what is there. The last line of stdout is JSON: {"splices", "queries", "database", "seconds"}.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from oesir_d2.data import list_images, splicing
from oesir_d2.engine.command_line import ToolParser, run_tool

EXAMPLES = """examples:
  # objects of COCO, by their annotated outlines, pasted into photos of your own
  make_splices.py --hosts photos --coco instances.json --coco-images train2017 --count 50 --output splices
  # small objects that GrabCut finds in the very same photos, two a splice
  make_splices.py --hosts photos --photos photos --donors 2 --scale 0.12,0.25 --output splices
  # images with transparency; the source of such an object is the image file itself, shown on white
  make_splices.py --hosts photos --cutouts stamps --rotate 0 --flip 0 --output splices
  # copy-moves: an object of the host, pasted elsewhere in it
  make_splices.py --hosts train2017 --coco instances.json --coco-images train2017 --copy-move 0.8,1.25 --output copies
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--hosts", required=True, metavar="DIR_OR_LIST", help="photos to paste into")
    add("--coco", metavar="JSON", help="cut objects by these COCO annotations, out of --coco-images")
    add("--coco-images", metavar="DIR", help="photos of the COCO annotations")
    add("--cutouts", metavar="DIR_OR_LIST", help="take images with transparency as objects")
    add("--photos", metavar="DIR_OR_LIST", help="cut objects by GrabCut out of plain photos; may be the hosts")
    add("--boxes", metavar="JSON", help="boxes around the objects of --photos, {IMAGE_ID: [[x0, y0, x1, y1], ...]} in "
        "pixels after the EXIF rotation; without, boxes are proposed by saliency")  # fmt: skip
    add("--distractors", metavar="DIR_OR_LIST", help="photos that are in the database only")
    add("--count", type=int, default=100, help="number of splices")
    add("--donors", type=int, default=1, help="objects a splice, each out of another photo")
    add("--scale", type=pair_of(float), default="0.25,0.5", metavar="MIN,MAX", help="objects' longer side : the host's")
    add("--copy-move", type=pair_of(float), metavar="MIN,MAX", help="paste objects of the host itself elsewhere in it, "
        "MIN to MAX times their size instead of --scale; the hosts must be among the photos that objects are cut from; "
        "the host is then the only source, and its mask shows the copy")  # fmt: skip
    add("--rotate", type=float, default=15, help="largest rotation to either side, in degrees")
    add("--flip", type=float, default=0.5, help="probability of mirroring, 0 to 1")
    add("--colour", type=float, default=0.1, help="largest relative change of red, green and blue, 0 to 1")
    add("--softness", type=float, default=1, help="width of the objects' edges, sigma in pixels; 0 makes hard edges")
    add("--quality", type=pair_of(int), default="65,90", metavar="MIN,MAX", help="JPEG quality, 1 to 100")
    add("--seed", type=int, default=0, help="the same seed makes the same splices")
    add("--output", required=True, metavar="DIR", help="folder to write to: new, empty, or of an interrupted run")
    args = parser.parse_args(argv)

    start = time.perf_counter()
    look = args.scale, args.rotate, args.flip, args.colour, args.softness, args.quality
    options = splicing.SpliceOptions(*look, copy_move=args.copy_move)
    source = make_source(args)
    hosts = list_images(args.hosts)
    distractors = list_images(args.distractors) if args.distractors else []
    numbers = {"count": args.count, "donors": args.donors, "seed": args.seed}
    splices = splicing.make_splice_set(
        hosts, source, distractors, args.output, options=options, progress=lambda todo: tqdm(todo, "splices"), **numbers
    )
    summary = {"splices": str(Path(args.output, "splices.json")), "queries": len(splices.queries)}
    summary |= {"database": len(splices.database), "seconds": round(time.perf_counter() - start, 2)}
    print(json.dumps(summary))


def make_source(args: argparse.Namespace) -> splicing.CutOutSource:
    if [args.coco, args.cutouts, args.photos].count(None) != 2:
        raise ValueError("objects come from one of --coco, --cutouts and --photos, expected exactly one of them")
    if (args.coco is None) != (args.coco_images is None):
        raise ValueError("--coco and --coco-images are given together or not at all")
    if args.boxes is not None and args.photos is None:
        raise ValueError("--boxes is given without --photos, whose objects it is about")
    if args.coco is not None:
        return splicing.CocoCutOuts(args.coco, args.coco_images)
    if args.cutouts is not None:
        return splicing.AlphaCutOuts(args.cutouts)
    return splicing.PhotoCutOuts(args.photos, splicing.read_boxes(args.boxes) if args.boxes is not None else None)


def pair_of(number: Callable[[str], float]) -> Callable[[str], tuple[float, ...]]:
    def parse(text: str) -> tuple[float, ...]:
        numbers = tuple(number(part) for part in text.split(","))
        if len(numbers) != 2:
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form MIN,MAX")
        return numbers

    parse.__name__ = f"MIN,MAX pair of {number.__name__}"  # argparse names it in its message
    return parse


if __name__ == "__main__":
    run_tool(main)
