"""Label photos without annotations with the boxes that YOLOX finds, as a COCO-format file.

The photos' "file_name" is their path below --images; boxes are in pixels after the EXIF rotation, and each has its
"score". Photos that cannot be read are skipped. Needs onnxruntime: pip install -e ".[train]". The last line of stdout
is JSON: {"output", "photos", "skipped", "without_object", "objects", "seconds"}.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from oesir_d2.data import list_images
from oesir_d2.data.pseudo_labels import YoloxDetector, label_photos
from oesir_d2.engine.command_line import ToolParser, prepare_output, run_tool
from oesir_d2.files import replace_file

EXAMPLES = """examples:
  pseudo_label.py --images photos --network yolox_nano.onnx --output pseudo.json
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--images", required=True, metavar="DIR_OR_LIST", help="photos to label")
    add("--network", required=True, metavar="ONNX", help="an export of YOLOX: input 1 x 3 x S x S, sigmoids inside, "
        "boxes not decoded")  # fmt: skip
    add("--min-score", type=float, default=0.3, metavar="SCORE", help="least score of an object, 0 to 1")
    add("--max-overlap", type=float, default=0.6, metavar="IOU", help="of two boxes that overlap more, whatever their "
        "classes, the surer one is kept, 0 to 1")  # fmt: skip
    add("--output", required=True, metavar="JSON", type=Path, help="file to write; an existing one is replaced")
    args = parser.parse_args(argv)

    start = time.perf_counter()
    photos = list_images(args.images)
    output = prepare_output(args.output)
    detector = YoloxDetector(args.network, min_score=args.min_score, max_overlap=args.max_overlap)
    content = label_photos(photos, detector, lambda photos: tqdm(photos, "photos"))
    replace_file(output, (json.dumps(content) + "\n").encode())
    num_photos, labelled = len(content["images"]), {item["image_id"] for item in content["annotations"]}
    summary = {"output": str(args.output), "photos": num_photos, "skipped": len(photos) - num_photos}
    summary |= {"without_object": num_photos - len(labelled), "objects": len(content["annotations"])}
    print(json.dumps(summary | {"seconds": round(time.perf_counter() - start, 2)}))


if __name__ == "__main__":
    run_tool(main)
