"""Train a detector, a student on a frozen detector, embeddings by pairs of views, or a teacher on landmarks.

The config says which; the flags are detectron2's. Writes checkpoints, metrics.json, TensorBoard events and log.txt to
OUTPUT_DIR; photos that cannot be read are skipped and listed there in skipped.jsonl. The last line of stdout is JSON.
"""

from __future__ import annotations

from collections.abc import Sequence

from oesir_d2.engine.command_line import run_tool
from oesir_d2.engine.training import launch_training, parse_train_arguments

EXAMPLES = """examples:
  train_net.py --config-file lite0/distill_S3.yaml MODEL.WEIGHTS detector.pth OUTPUT_DIR output/s3 \\
      DATASETS.OESIR.PHOTOS "[['photos', 'my/photos']]"
      distil a student from any folder of photos, on the frozen detector of MODEL.WEIGHTS
  the same with --resume
      goes on from the last checkpoint in OUTPUT_DIR, after an interruption for example
  train_net.py --config-file detectors/faster_rcnn_R50_FPN.yaml --num-gpus 8 \\
      DATASETS.OESIR.COCO "[['objects', 'instances.json', 'images']]"
      train a detector on COCO-format boxes with eight GPUs
  two machines: add --num-machines 2 --machine-rank 0 (1 on the other) --dist-url tcp://HOST:PORT
"""


def main(argv: Sequence[str] | None = None) -> None:
    launch_training(parse_train_arguments(argv, __doc__, EXAMPLES))


if __name__ == "__main__":
    run_tool(main)
