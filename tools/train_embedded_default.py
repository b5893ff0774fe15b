"""Train the embedded default again: from photos, annotations and a network for pseudo-labels to the file that ships.

OUTPUT gets a folder a step. A step that is finished is not repeated; an interrupted run, started again with the same
arguments, goes on where it was, a training from its last checkpoint. What each step learned from is recorded, and a
step that was made from something else is not overwritten: delete its folder to have it made again. Only the photos that
prepare_split.py puts on the side "train" are used. A training writes its log to stderr and to its folder. The last line
of stdout is JSON: {"weights", "sha256", "bytes", "steps", "seconds"}; steps has what each step reports.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from oesir_d2.engine.command_line import ToolParser, add_config_arguments, run_tool, whole_number
from oesir_d2.engine.default_data import TrainingMaterial
from oesir_d2.engine.default_stages import STAGES, list_optional
from oesir_d2.engine.embedded_default import TrainingOptions, train_embedded_default

EXAMPLES = """examples:
  train_embedded_default.py --annotations instances.json --annotated coco/ --photos photos/ --network yolox_nano.onnx \\
      --output trained/
  train_embedded_default.py ... --output trained/ --students S1 S2 S3
      trains the students on the same detector, too; compare_models.py --weights-dir trained/weights compares them
  train_embedded_default.py ... --count 50 --output try/ SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 2
      tries every step in minutes; the weights are worth nothing

oesir_d2/engine/default_stages.py lists the stages.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--annotations", required=True, metavar="JSON", type=Path, help="COCO annotations with outlines")
    add("--annotated", required=True, metavar="DIR", type=Path, help="photos of the annotations")
    add("--photos", required=True, metavar="DIR_OR_LIST", type=Path, help="photos without annotations")
    add("--network", required=True, metavar="ONNX", type=Path, help="an export of YOLOX, see pseudo_label.py")
    add("--cutouts", metavar="DIR_OR_LIST", type=Path, help="images with transparency, as more objects to paste")
    add("--students", nargs="+", choices=list_optional(), default=[], help="stages beside those of the default")
    add("--held-out", type=float, default=TrainingMaterial.held_out, metavar="SHARE", help="of the photos, 0 to 1")
    add("--count", type=whole_number(1), default=TrainingMaterial.count, help="composed photos of the detection set")
    add("--num-gpus", type=whole_number(1), default=1, metavar="N", help="processes of a training, as train_net.py's")
    add("--seed", type=whole_number(0), default=0, metavar="N", help="of the detection set and of every training")
    add("--output", required=True, metavar="DIR", type=Path, help="folder: new, empty, or of an interrupted run")
    add_config_arguments(parser, default=None)
    args = parser.parse_args(argv)

    start = time.perf_counter()
    material = TrainingMaterial(
        annotations=args.annotations,
        annotated=args.annotated,
        plain=args.photos,
        network=args.network,
        cutouts=args.cutouts,
        held_out=args.held_out,
        count=args.count,
        seed=args.seed,
    )
    options = TrainingOptions(tuple(args.students), args.num_gpus, args.seed, tuple(args.opts))
    reports = train_embedded_default(material, args.output, options)
    (exported,) = (reports[stage.name] for stage in STAGES if stage.kind == "export")
    summary = {key: exported[key] for key in ("weights", "sha256", "bytes")} | {"steps": reports}
    print(json.dumps(summary | {"seconds": round(time.perf_counter() - start, 1)}))


if __name__ == "__main__":
    run_tool(main)
