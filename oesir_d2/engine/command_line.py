"""What every command line shares: its config arguments, where it logs, how it ends on a user's mistake."""

from __future__ import annotations

import argparse
import errno
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import tqdm

USAGE_ERROR = 2
INTERRUPTED = 130


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows every default that there is, and keeps the line breaks of the examples."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)


class ToolParser(argparse.ArgumentParser):
    """An argument parser whose mistakes end like any other of the user's: one line, see :func:`run_tool`."""

    def __init__(self, description: str | None, epilog: str = "") -> None:
        super().__init__(description=description, epilog=epilog, formatter_class=HelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help shows examples")


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool's ``main`` and end the process as DESIGN.md has it.

    A mistake of the user (``ValueError``, or an ``OSError`` such as a missing file or a full disk) gives one line on
    stderr and exit code 2; Ctrl-C gives 130; anything else is our own fault and keeps its traceback.
    """
    name = Path(sys.argv[0]).stem
    logging.basicConfig(level=logging.WARNING, format=f"{name}: %(levelname)s: %(message)s", stream=sys.stderr)
    # Deprecations inside detectron2 and torch are not the user's business.
    warnings.filterwarnings("ignore", module=r"(detectron2|torch|fvcore|iopath)(\.|$)")
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        _fail(f"{name}: interrupted; what was finished is kept", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _fail(f"{name}: error: {_describe_os_error(error)}", USAGE_ERROR)
    except ValueError as error:
        _fail(f"{name}: error: {' '.join(str(error).split())}", USAGE_ERROR)


def _fail(message: str, code: int) -> None:
    tqdm.tqdm.write(message, file=sys.stderr)
    sys.exit(code)


def _describe_os_error(error: OSError) -> str:
    if error.errno is None:
        return " ".join(str(error).split())
    reason = "no space left on the disk" if error.errno == errno.ENOSPC else error.strerror
    return f"{reason}: {error.filename}" if error.filename else f"{reason}"


def add_config_arguments(parser: argparse.ArgumentParser, default: str | None = "oesir_lite0.yaml") -> None:
    """Add ``--config-file`` and the trailing KEY VALUE pairs to a parser."""
    if default is not None:
        parser.add_argument(
            "--config-file",
            default=default,
            metavar="FILE",
            help="a YAML file, or the bare name of one under configs/",
        )
    parser.add_argument(
        "opts",
        nargs="*",
        default=[],
        metavar="KEY VALUE",
        help="config keys to override, e.g. MODEL.OESIR.REGIONS.MAX_REGIONS 30; every key is in oesir_d2/config.py",
    )


def replace_nan(value: Any) -> Any:
    """NaN as None, through dicts and lists: JSON has no NaN, and a figure that no query counts for is no number."""
    if isinstance(value, dict):
        return {key: replace_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
