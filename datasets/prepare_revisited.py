"""Convert the published ground truth of revisited Oxford or Paris, a pickle, to JSON, once.

Nothing in the pickle is run: one that holds more than plain containers, numbers, texts and numpy arrays is refused.
The last line of stdout is JSON: {"output", "queries", "database"}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from oesir_d2.data.datasets.revisited import convert_ground_truth
from oesir_d2.engine.command_line import ToolParser, prepare_output, run_tool

EXAMPLES = """examples:
  prepare_revisited.py --ground-truth gnd_roxford5k.pkl --output roxford5k.json
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--ground-truth", required=True, metavar="PKL", type=Path, help="gnd_roxford5k.pkl or gnd_rparis6k.pkl")
    add("--output", required=True, metavar="JSON", type=Path, help="file to write; an existing one is replaced")
    args = parser.parse_args(argv)
    counts = convert_ground_truth(args.ground_truth, prepare_output(args.output))
    print(json.dumps({"output": str(args.output)} | counts))


if __name__ == "__main__":
    run_tool(main)
