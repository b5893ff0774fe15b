"""Running a function in a process of its own, to learn how much memory it needs.

The processes are forks of a server that has imported the package and done nothing else: they start fast, and hold
nothing of what the caller did before.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def run_measured(function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    """Call a function in a new process.

    Args:
        function: of a module; it and its arguments can be pickled.
        arguments: what it is called with.

    Returns:
        What it returned, and by how many bytes its resident memory exceeded, at most, what the process had with all
        modules imported. Pages of mapped files count as long as they are resident.

    Raises:
        RuntimeError: the process was killed, for example for want of memory.
        Exception: whatever the function raised.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, function.__module__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        outcome, value = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"a measuring process ended with exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if outcome == "error":
        raise value
    return value


def _run(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        # 5 resets the peak to what is resident now.
        Path("/proc/self/clear_refs").write_text("5")
        before = _read_status("VmRSS")
        value = function(*arguments)
        sender.send(("value", (value, _read_status("VmHWM") - before)))
    except Exception as error:
        sender.send(("error", error))
    sender.close()
    # Threads of libraries do not hold up the end.
    os._exit(0)


def resident_bytes() -> int:
    """Resident memory of this process."""
    return _read_status("VmRSS")


def resident_parts() -> tuple[int, int]:
    """Resident memory of this process: its own, and that of mapped files, which others may share."""
    return _read_status("RssAnon"), _read_status("RssFile")


def _read_status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/self/status has no {field}")
