"""One job in several processes, on one machine or many: how they are asked for and started, how their end is told."""

from __future__ import annotations

import argparse
import multiprocessing
import re
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import launch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from tqdm import tqdm

from oesir_d2.engine.command_line import ToolParser, set_up_messages, whole_number

# What a user can mend; all else keeps its traceback.
_MISTAKES = (
    "ValueError|FileNotFoundError|NonFiniteLossError|UnreadableImageError|ConnectionError|OSError|PermissionError"
)


@dataclass(frozen=True)
class ProcessLayout:
    """How many processes there are, and which of them this machine starts.

    Attributes:
        processes: on each machine; with MODEL.DEVICE cuda, one a GPU.
        machines: number of machines, all of which run the same command.
        machine_rank: which of them this is, in [0, machines).
        url: where all of them meet, "tcp://HOST:PORT" of the first machine; "auto" on a single one.
    """

    processes: int = 1
    machines: int = 1
    machine_rank: int = 0
    url: str = "auto"

    @property
    def total(self) -> int:
        """Processes on all machines together."""
        return self.processes * self.machines

    def check(self, cfg: CfgNode) -> None:
        """Raise ``ValueError`` for a layout that cannot be."""
        if self.machine_rank >= self.machines:
            raise ValueError(
                f"--machine-rank is {self.machine_rank}; allowed with --num-machines {self.machines}: "
                f"0 to {self.machines - 1}"
            )
        is_address = re.fullmatch(r"tcp://.+:\d+", self.url) is not None
        if not is_address and (self.machines > 1 or self.url != "auto"):
            raise ValueError(
                f"--dist-url is {self.url!r}; allowed: 'tcp://HOST:PORT' of the first machine, or 'auto' on one alone"
            )
        if self.total > 1:
            check_devices(cfg, self.processes)


def check_devices(cfg: CfgNode, num_gpus: int) -> None:
    """Raise ``ValueError`` if there are more processes than GPUs: detectron2 gives each one, if there are any."""
    available = torch.cuda.device_count()
    if cfg.MODEL.DEVICE.startswith("cuda") and max(1, num_gpus) > available or num_gpus > available > 0:
        raise ValueError(
            f"--num-gpus is {num_gpus} and MODEL.DEVICE {cfg.MODEL.DEVICE!r}, but torch finds {available} GPUs here; "
            "with MODEL.DEVICE cpu, --num-gpus is the number of processes"
        )


def add_launch_arguments(parser: ToolParser) -> None:
    """Add detectron2's flags for several processes to a tool's parser; :func:`get_layout` reads them."""
    parser.add_argument(
        "--num-gpus",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="GPUs on each machine, one process each; with MODEL.DEVICE cpu, the number of processes",
    )
    parser.add_argument("--num-machines", type=whole_number(1), default=1, metavar="M", help="machines that take part")
    parser.add_argument(
        "--machine-rank", type=whole_number(0), default=0, metavar="R", help="which of them this is, 0 to M - 1"
    )
    parser.add_argument(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="where they meet: tcp://HOST:PORT of machine 0, the same for all",
    )


def get_layout(args: argparse.Namespace) -> ProcessLayout:
    """The layout that a command line asks for."""
    return ProcessLayout(args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)


def launch_processes(function: Callable[..., None], layout: ProcessLayout, args: tuple[Any, ...]) -> None:
    """Run a function in all processes of this machine, through detectron2's ``launch``; returns when all are done.

    Should one of them fail, the others are told to end.

    Raises:
        ValueError: a user's mistake, in whichever process it was found.
        ChildProcessError: a process was killed.
    """
    others = set(multiprocessing.active_children())
    _keep_progress_bars_to_threads()
    try:
        launch(_run_in_process, layout.processes, layout.machines, layout.machine_rank, layout.url, (function, args))
    except ProcessRaisedException as error:
        mistake = find_mistake(str(error))
        if mistake is None:
            raise
        raise ValueError(mistake) from error
    except ProcessExitedException as error:
        how = f"was killed by {error.signal_name}" if error.signal_name else f"ended with exit code {error.exit_code}"
        raise ChildProcessError(f"process {error.error_index} of {layout.processes} {how}") from error
    finally:
        # Where this process itself was told to end; else Python would wait for them.
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()


def find_mistake(text: str) -> str | None:
    """The message of a mistake that another process found: what comes back from there holds its traceback as text."""
    match = re.search(rf"^[\w.]*(?:{_MISTAKES}): (.*)\Z", text.strip(), re.MULTILINE)
    return match[1] if match and "Traceback (most recent call last)" in text else None


def _run_in_process(function: Callable[..., None], args: tuple[Any, ...]) -> None:
    set_up_messages(Path(sys.argv[0]).stem)
    _keep_progress_bars_to_threads()
    # As Ctrl-C, so that what is finished gets written when another process has failed.
    signal.signal(signal.SIGTERM, _interrupt)
    function(*args)
    if dist.is_initialized():
        # Its threads must not be running any more when Python ends.
        dist.destroy_process_group()


def _keep_progress_bars_to_threads() -> None:
    """Else tqdm makes a semaphore for other processes, and Python complains of it when this one is killed."""
    tqdm.set_lock(threading.RLock())


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
