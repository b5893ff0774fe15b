"""A training run in a process of its own: what it holds of memory, seeds and log files ends with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection

from oesir_d2.engine.training import launch_training, parse_train_arguments


def train_in_process(arguments: Sequence[str]) -> None:
    """Do what ``train_net.py`` does with these arguments; what it writes to stdout goes to stderr.

    Raises:
        ValueError: a mistake that the run found.
        ChildProcessError: it ended otherwise than it should, for want of memory for example.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    # No daemon: it starts the workers of its data loader.
    process = context.Process(target=_train, args=(list(arguments), sender), name="training")
    process.start()
    sender.close()
    try:
        try:
            mistake = receiver.recv()
        except EOFError:
            mistake = None
        process.join()
    finally:
        if process.is_alive():
            process.terminate()
            process.join()
    if mistake is not None:
        raise ValueError(mistake)
    if process.exitcode:
        ended = f"by signal {-process.exitcode}" if process.exitcode < 0 else f"with exit code {process.exitcode}"
        raise ChildProcessError(f"the training process ended {ended}")


def _train(arguments: list[str], sender: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Of the parent's stdout, whose last line is its own.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    warnings.filterwarnings("ignore", module=r"(detectron2|torch|fvcore|iopath)(\.|$)")
    try:
        launch_training(parse_train_arguments(arguments))
    except (ValueError, OSError) as error:
        sender.send(str(error))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)  # the parent got it too, and says so


def _end_with_parent() -> None:
    """Else a run whose parent was killed would go on, beside the one that is started in its place."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "started as a child"
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
