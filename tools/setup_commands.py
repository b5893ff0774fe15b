"""Commands of the set-up: run one, keep its output, and say in one line what stopped it.

Like tools/setup_environment.py it may be started by an old Python: standard library and old syntax only.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
LOG = BUILD / "setup.log"

# What the output of pip says, and what it means.
KNOWN_FAILURES = (
    ("No space left on device", "the disk is full"),
    ("DO NOT MATCH THE HASHES", "a downloaded file does not have the sha256 that requirements/ states"),
    (
        "Failed to establish a new connection|NewConnectionError|NameResolutionError|Name or service not known|"
        "Temporary failure in name resolution|Network is unreachable|Connection refused|ConnectTimeout|Read timed out|"
        "ProxyError|CERTIFICATE_VERIFY_FAILED",
        "pip cannot reach its package index; check the network, the proxy and the settings of pip",
    ),
    ("externally-managed-environment", "this Python belongs to the operating system; activate a virtual environment"),
    ("No module named pip", "this Python has no pip; run `python -m ensurepip` in its environment"),
)


class SetupError(Exception):
    """What stops the set-up, as one line for the user."""


def run_pip(python: Path, *arguments: str, temporary: "Path | None" = None) -> None:
    """Run pip in the repository.

    Args:
        python: the Python whose environment pip works on.
        arguments: of pip.
        temporary: where pip keeps its temporary files, instead of the system's folder for them.

    Raises:
        SetupError: if pip fails.
    """
    environment = dict(os.environ)
    if temporary is not None:
        environment["TMPDIR"] = str(temporary)
    run_command([str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments], environment)


def run_command(command: list, environment: "dict | None" = None) -> str:
    """Run a command in the repository. Its output goes to the log; on a terminal, one line shows how far pip is.

    Returns:
        The output, stdout and stderr together.

    Raises:
        SetupError: if the command fails.
    """
    BUILD.mkdir(exist_ok=True)
    lines = []
    with open(LOG, "a", encoding="utf-8", buffering=1) as log:
        log.write("$ {}\n".format(" ".join(command)))
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        for line in process.stdout:
            log.write(line)
            lines.append(line)
            if line.startswith(("Collecting", "Installing")):
                show_progress(line.strip()[:76])
    show_progress("")
    if process.wait() != 0:
        raise SetupError(explain_failure("".join(lines), process.returncode))
    return "".join(lines)


def explain_failure(output: str, returncode: int) -> str:
    """One line about a command that failed, from its output and its exit status (negative: the signal)."""
    for pattern, meaning in KNOWN_FAILURES:
        if re.search(pattern, output):
            return f"{meaning} (details in {LOG})"
    if returncode < 0:
        return f"a command was ended by {signal.Signals(-returncode).name}; the next run continues"
    errors = [line.strip() for line in output.split("\n") if line.lower().startswith("error")]
    return f"{(errors or output.strip().split(chr(10)))[-1]} (details in {LOG})"


def probe_version(python: str) -> "tuple | None":
    """Major and minor version of a Python; None if it does not run."""
    code = "import sys; print(*sys.version_info[:2])"
    try:
        result = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return None
    return tuple(int(number) for number in result.stdout.split()) if result.returncode == 0 else None


def show_progress(text: str) -> None:
    """Replace the last line of a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


def say(message: str) -> None:
    print(f"set-up: {message}", file=sys.stderr, flush=True)
