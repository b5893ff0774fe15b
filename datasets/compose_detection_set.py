"""Compose a training set for a detector from few photos: objects pasted into photos whose own objects are known.

The output gets images/*.jpg and instances.json, in COCO's format with the one class "object". Each object has besides
its "source" (the photo it comes from), "source_box" (in pixels of that photo), "pasted", "category_name" and, if a
detector found it, "score". Every set of photos may have a WEIGHT, 1 by default: its share is its weight among all. An
interrupted run goes on when it is started again, and a larger --count adds to what is there. The last line of stdout is
JSON: {"instances", "photos", "whole_hosts", "objects", "pasted", "crowds", "composed_now", "unreadable", "seconds"}.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from oesir_d2.data import splicing
from oesir_d2.data.splicing.annotated_photos import AnnotatedPhotos
from oesir_d2.data.splicing.detection_options import DetectionOptions
from oesir_d2.data.splicing.detection_set import INSTANCES_NAME, make_detection_set
from oesir_d2.engine.command_line import ToolParser, run_tool

EXAMPLES = """examples:
  # annotated photos and pseudo-labelled ones as hosts; objects by annotated outlines, and by GrabCut in boxes
  compose_detection_set.py --hosts instances.json coco --hosts pseudo.json photos 2 \\
      --coco instances.json coco 3 --boxed pseudo.json photos --output set
  # images with transparency, and objects that saliency and GrabCut find
  compose_detection_set.py --hosts instances.json coco --cutouts stamps --photos photos 0.5 --output set
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    annotated, plain = ("JSON DIR", "WEIGHT"), ("DIR_OR_LIST", "WEIGHT")

    def add_source(name: str, metavar: tuple[str, str], help: str, **options: object) -> None:
        add(name, nargs="+", action="append", default=[], metavar=metavar, help=help, **options)

    add_source("--hosts", annotated, "photos to paste into, with COCO annotations or pseudo-labels", required=True)
    add_source("--coco", annotated, "cut objects by the outlines of COCO annotations")
    add_source("--boxed", annotated, "cut objects by GrabCut out of the boxes of COCO annotations or pseudo-labels")
    add_source("--photos", plain, "cut objects by saliency and GrabCut out of plain photos")
    add_source("--cutouts", plain, "take images with transparency as objects")
    add(
        "--cache",
        metavar="DIR",
        help="folder that keeps what GrabCut finds, for other sets too; default: in the output",
    )
    add("--count", type=int, default=4000, help="number of composed photos")
    add("--whole-hosts", action="store_true", help="add each host once with nothing pasted into it")
    add("--empty-hosts", action="store_true", help="use hosts of which no object is known and none can be cut out")
    options = DetectionOptions()
    add("--long-side", type=pair_of(int), default="320,640", metavar="MIN,MAX", help="longer sides, in pixels")
    add("--max-objects", type=int, default=options.max_objects, help="most objects pasted into a photo")
    add("--without", type=float, default=options.without, metavar="SHARE", help="share that gets no object, 0 to 1")
    add(
        "--scale", type=pair_of(float), default="0.08,0.6", metavar="MIN,MAX", help="objects' longer side : the photo's"
    )
    add("--rotate", type=float, default=options.rotation, help="largest rotation to either side, in degrees")
    add("--flip", type=float, default=options.flip, help="probability of mirroring an object, 0 to 1")
    add("--colour", type=float, default=options.colour, help="largest relative change of red, green and blue, 0 to 1")
    add("--softness", type=pair_of(float), default="0,2", metavar="MIN,MAX", help="width of edges, sigma in pixels")
    add("--quality", type=pair_of(int), default="60,95", metavar="MIN,MAX", help="JPEG quality, 1 to 100")
    add("--seed", type=int, default=0, help="the same seed makes the same set")
    add("--output", required=True, metavar="DIR", help="folder to write to: new, empty, or of an interrupted run")
    args = parser.parse_args(argv)

    start = time.perf_counter()
    options = DetectionOptions(
        long_side=args.long_side,
        max_objects=args.max_objects,
        without=args.without,
        scale=args.scale,
        rotation=args.rotate,
        flip=args.flip,
        colour=args.colour,
        softness=args.softness,
        quality=args.quality,
        keep_empty=args.empty_hosts,
    )
    hosts = [weigh("--hosts", words, AnnotatedPhotos, 2) for words in args.hosts]
    sources = [weigh("--coco", words, splicing.CocoCutOuts, 2) for words in args.coco]
    sources += [weigh("--boxed", words, cut_boxed, 2) for words in args.boxed]
    sources += [weigh("--photos", words, splicing.PhotoCutOuts, 1) for words in args.photos]
    sources += [weigh("--cutouts", words, splicing.AlphaCutOuts, 1) for words in args.cutouts]
    made = make_detection_set(
        hosts,
        sources,
        args.output,
        count=args.count,
        options=options,
        whole_hosts=args.whole_hosts,
        seed=args.seed,
        cache=args.cache,
        progress=lambda names: tqdm(names, "photos"),
    )
    annotations = made.instances["annotations"]
    summary = {"instances": str(Path(args.output, INSTANCES_NAME)), "photos": len(made.instances["images"])}
    summary["whole_hosts"] = sum(item["file_name"].startswith("host_") for item in made.instances["images"])
    summary |= {"objects": len(annotations), "pasted": sum(item["pasted"] for item in annotations)}
    summary["crowds"] = sum(item["iscrowd"] for item in annotations)
    summary |= {"composed_now": made.num_composed, "unreadable": len(made.unreadable)}
    print(json.dumps(summary | {"seconds": round(time.perf_counter() - start, 2)}))


def cut_boxed(annotation_file: str, image_folder: str) -> splicing.CutOutSource:
    return splicing.PhotoCutOuts(image_folder, AnnotatedPhotos(annotation_file, image_folder).get_boxes())


def weigh(option: str, words: Sequence[str], make: Callable[..., Any], num_paths: int) -> tuple[Any, float]:
    """What is made of an option's paths, and its weight."""
    if not num_paths <= len(words) <= num_paths + 1:
        raise ValueError(f"{option} {' '.join(words)} has {len(words)} values, expected {num_paths} and maybe a WEIGHT")
    try:
        weight = float(words[num_paths]) if len(words) > num_paths else 1.0
    except ValueError as error:
        raise ValueError(f"{option} has the weight {words[num_paths]!r}, expected a number above 0") from error
    return make(*words[:num_paths]), weight


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
