"""What every command line shares: its config arguments, where it logs, how it ends on a user's mistake."""

from __future__ import annotations

import argparse
import errno
import logging
import math
import os
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from oesir_d2.engine.config_loading import is_override_key

USAGE_ERROR = 2
INTERRUPTED = 130
TERMINATED = 143


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows every default that there is, and keeps the line breaks of the examples."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default is not None and action.default is not False and action.default != []
        return super()._get_help_string(action) if has_default else action.help


class ToolParser(argparse.ArgumentParser):
    """An argument parser whose mistakes end like any other of the user's: one line, see :func:`run_tool`.

    With :func:`add_config_arguments` it takes KEY VALUE pairs too. argparse itself would give pairs that follow an
    option of several values, such as ``--query``, to that option; here they are taken out first, wherever they stand.
    """

    def __init__(self, description: str | None, epilog: str = "") -> None:
        super().__init__(description=description, epilog=epilog, formatter_class=HelpFormatter, allow_abbrev=False)
        self.takes_overrides = False
        # What begins like a number below zero is a value, as in --box -5,0,10,10: its tool says what is wrong with it.
        self._negative_number_matcher = re.compile(r"-\.?[0-9]")

    def parse_args(self, args: Sequence[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        words = list(sys.argv[1:] if args is None else args)
        if not self.takes_overrides:
            return super().parse_args(words)
        others, overrides = split_overrides(words)
        namespace = super().parse_args(others)
        namespace.opts = [*namespace.opts, *overrides]
        return namespace

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help shows examples")


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line without its KEY VALUE pairs, and the pairs, each in their order.

    A VALUE may be anything, a number below zero included. The last KEY may lack its VALUE.
    """
    others: list[str] = []
    overrides: list[str] = []
    for word in words:
        if len(overrides) % 2 or is_override_key(word):
            overrides.append(word)
        else:
            others.append(word)
    return others, overrides


def add_config_arguments(parser: ToolParser, default: str | None = "oesir_lite0.yaml") -> None:
    """Add ``--config-file`` and the KEY VALUE pairs to a parser.

    Args:
        parser: the tool's.
        default: the config file if none is named; None for a tool whose config comes from elsewhere.
    """
    if default is not None:
        parser.add_argument(
            "--config-file",
            default=default,
            metavar="FILE",
            help="a YAML file, or the bare name of one under configs/",
        )
    # What lands here is no KEY that there is; as an override it is refused by name.
    parser.add_argument(
        "opts",
        nargs="*",
        default=[],
        metavar="KEY VALUE",
        help="config keys to override, e.g. MODEL.OESIR.REGIONS.MAX_REGIONS 30; every key is in oesir_d2/config.py",
    )
    parser.takes_overrides = True


def whole_number(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least ``least``."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed, expected a whole number of at least {least}")
        return number

    return parse


def parse_named_paths(words: Sequence[str], flag: str = "--splices") -> dict[str, Path]:
    """Words NAME=FILE as paths by name.

    Raises:
        ValueError: a word of another form, or a name that is given twice.
    """
    paths: dict[str, Path] = {}
    for word in words:
        name, separator, path = word.partition("=")
        if not separator or not path or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ValueError(f"{flag} is {word!r}, expected NAME=JSON with a NAME of letters, digits, _ and -")
        if name in paths:
            raise ValueError(f"{flag} names {name!r} twice")
        paths[name] = Path(path)
    return paths


def prepare_output(path: Path) -> Path:
    """Make the folder of a file that is to be written, and fail before the work, not after it, if it cannot be.

    Returns:
        The path with its links resolved: a file that is renamed into place would replace the link itself.

    Raises:
        OSError: the path is a folder or a device, or its folder cannot be made or written to.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "expected the name of a file to write, this is none", str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "expected a folder, this is a file", str(path.parent)) from error
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    return path


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which is to unwind as Ctrl-C does, so that what is finished gets written."""


def run_tool(main: Callable[[], None]) -> NoReturn:
    """Run a tool's ``main`` and end the process as DESIGN.md has it.

    A mistake of the user (``ValueError``, or an ``OSError`` such as a missing file or a full disk) gives one line on
    stderr and exit code 2; Ctrl-C gives 130 and SIGTERM 143, as a shell reports them; anything else is our own fault
    and keeps its traceback.
    """
    name = Path(sys.argv[0]).stem
    set_up_messages(name)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with logging_redirect_tqdm():  # else a message would stand in the line of a progress bar
            main()
        sys.stdout.flush()
        code, message = 0, ""
    except _Terminated:
        code, message = TERMINATED, "terminated"
    except KeyboardInterrupt:
        code, message = INTERRUPTED, "interrupted"
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does; there is nobody left to tell.
        code, message = 0, ""
    except OSError as error:
        code, message = USAGE_ERROR, f"error: {_describe_os_error(error)}"
    except ValueError as error:
        code, message = USAGE_ERROR, f"error: {' '.join(str(error).split())}"
    if message:
        tqdm.tqdm.write(f"{name}: {message}", file=sys.stderr)
    _close_stdout()
    sys.exit(code)


def set_up_messages(name: str) -> None:
    """What a process writes to stderr: the package's warnings under a tool's name."""
    logging.basicConfig(level=logging.WARNING, format=f"{name}: %(levelname)s: %(message)s", stream=sys.stderr)
    # Deprecations inside detectron2 and torch are not the user's business.
    warnings.filterwarnings("ignore", module=r"(detectron2|torch|fvcore|iopath)(\.|$)")
    logging.getLogger("torch.fx").setLevel(logging.ERROR)
    # It tells of every process that it ends after one has failed; what has failed is told in any case.
    logging.getLogger("torch.multiprocessing").setLevel(logging.ERROR)


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


def _close_stdout() -> None:
    """Write what stdout still holds; if that fails, drop it, or Python would complain about it once more at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _describe_os_error(error: OSError) -> str:
    reason = " ".join(str(error.strerror or error).split())
    return f"{error.filename}: {reason}" if error.filename else reason


def replace_nan(value: Any) -> Any:
    """NaN as None, through dicts and lists: JSON has no NaN, and a figure that no query counts for is no number."""
    if isinstance(value, dict):
        return {key: replace_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
