"""Starts the command lines of tools/ as processes without importing torch for each: a process that forks itself.

Run as a script, with the paths of the tools as arguments. It imports what they import, once, and answers each line of
stdin, a JSON object, with one on stdout:

    {"tool": path, "argv": [...], "cwd": path, "stdout": path, "stderr": path, "file_size_limit": bytes or null}
        starts the tool in a process of its own and answers {"pid": ...}
    {"wait": pid}
        answers {"exit_code": ...}, negative for a signal, as subprocess has it, or null while the process runs
"""

from __future__ import annotations

import gc
import json
import os
import resource
import runpy
import signal
import sys
import traceback
from typing import Any, NoReturn


def main() -> None:
    for path in sys.argv[1:]:
        runpy.run_path(path, run_name="imported")
    # What is there now stays shared with the children.
    gc.freeze()
    print(json.dumps("ready"), flush=True)
    # Unbuffered: what a child inherits must not hold requests that are not its own.
    while line := read_line():
        request = json.loads(line)
        if "wait" in request:
            pid, status = os.waitpid(request["wait"], os.WNOHANG)
            answer = {"exit_code": os.waitstatus_to_exitcode(status) if pid else None}
        else:
            pid = os.fork()
            if pid == 0:
                run_tool(**request)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


def read_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return b""
        line += byte
    return line


def run_tool(tool: str, argv: list[str], cwd: str, stdout: str, stderr: str, file_size_limit: int | None) -> NoReturn:
    """Become the tool. Whatever it raises ends this process as it would end the tool's own."""
    # Tests that a shell started in the background ignore Ctrl-C, and their children would, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    for descriptor, path, flags in ((0, os.devnull, os.O_RDONLY), (1, stdout, os.O_WRONLY), (2, stderr, os.O_WRONLY)):
        opened = os.open(path, flags | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    if file_size_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))
    sys.argv = [tool, *argv]
    code: Any = 0
    try:
        runpy.run_path(tool, run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # To tear down all that torch has set up takes longer than most of the tools' runs.
    os._exit(code or 0)


if __name__ == "__main__":
    main()
