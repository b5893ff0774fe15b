"""Folders for what an evaluation keeps on disk until its figures are there, and the ones that killed runs left."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
from pathlib import Path

_PREFIX = ".tmp-evaluation-"


def make_scratch_folder(folder: str | Path | None) -> tempfile.TemporaryDirectory:
    """Make a folder that is gone when the object is, and delete those of processes that are gone.

    Args:
        folder: where; None is the system's own place, where nothing is looked for.
    """
    # A process id says something on its own machine only.
    machine = re.sub("[^A-Za-z0-9.]", "_", socket.gethostname())
    for left in Path(folder).glob(f"{_PREFIX}*") if folder is not None else ():
        owner = re.fullmatch(rf"{re.escape(_PREFIX + machine)}-(\d+)-\w+", left.name)
        if owner and not _is_running(int(owner[1])):
            # Other processes of this run may be at it, too.
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{machine}-{os.getpid()}-", dir=folder)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
