"""Fit the PCA whitening of a model on the regions of photos, and write it as safetensors."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from oesir_d2.data import list_images
from oesir_d2.engine.command_line import ToolParser, add_config_arguments, prepare_output, run_tool, whole_number
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.whitening_fit import choose_photos, fit_whitening
from oesir_d2.layers import save_whitening

EXAMPLES = """examples:
  fit_whitening.py --images photos/ --output whitening.safetensors
  build_index.py --images archive/ --output archive.index MODEL.OESIR.EMBEDDING.WHITENING whitening.safetensors

Use photos that no evaluation uses. Some hundred are enough for 512 dimensions, since every photo has dozens of regions;
a whitening learned on whole images alone is useless for regions.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    parser.add_argument("--images", required=True, metavar="DIR_OR_LIST", help="a folder or a text file of paths")
    parser.add_argument("--output", required=True, metavar="FILE", type=Path, help="the .safetensors file to write")
    parser.add_argument(
        "--dimension",
        type=whole_number(1),
        metavar="D",
        help="dimensions to keep (default: MODEL.OESIR.EMBEDDING.WHITENING_DIM of the config)",
    )
    parser.add_argument(
        "--max-images", type=whole_number(1), default=10_000, metavar="N", help="photos drawn at random at most"
    )
    parser.add_argument(
        "--source", metavar="TEXT", help="what the photos are, for the file (default: their folder's name)"
    )
    parser.add_argument(
        "--shrinkage", type=float, default=0.0, metavar="S", help="added to every variance, as a share of their mean"
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of the draw")
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    if args.output.suffix != ".safetensors":
        raise ValueError(f"--output is {str(args.output)!r}; its name must end in .safetensors")
    if not 0 <= args.shrinkage < math.inf:
        raise ValueError(f"--shrinkage is {args.shrinkage}; allowed: a finite number of at least 0")

    cfg = load_config(args.config_file, args.opts)
    dimension = cfg.MODEL.OESIR.EMBEDDING.WHITENING_DIM if args.dimension is None else args.dimension
    files = choose_photos(list_images(args.images), args.max_images, args.seed)
    output = prepare_output(args.output)
    whitening, counts = fit_whitening(cfg, files, dimension, args.shrinkage)
    source = args.source or Path(args.images).resolve().name
    facts = {"source": source, "count": counts["regions"], "config": args.config_file}
    save_whitening(output, whitening, facts | counts | {"shrinkage": args.shrinkage, "seed": args.seed})
    print(json.dumps({"output": str(args.output), "dimension": dimension} | counts))


if __name__ == "__main__":
    run_tool(main)
