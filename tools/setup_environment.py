"""Prepare the Python environment that `make` runs everything in, and print the path of its Python on stdout.

An environment that has detectron2 already is used as it is: only the packages that it lacks are added. Otherwise .venv
is made beside the Makefile, with the versions of requirements/constraints.txt. A finished environment is left alone, an
interrupted one is completed. Messages go to stderr; a failure gives one line and exit code 2.

The Python that starts this file may be of any version 3, so it keeps to the standard library and to old syntax.
"""

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setup_commands import BUILD, LOG, ROOT, SetupError, probe_version, run_command, run_pip, say

OLDEST, NEWEST = (3, 11), (3, 13)
VENV = ROOT / ".venv"
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
DETECTRON2 = ROOT / "requirements" / "detectron2.txt"
NEEDED_GB = 10
"""Free space to begin with: the finished environment takes 6.3 GB, the downloaded files 3.3 GB while it is made."""

# Modules whose names differ from their packages'.
MODULES = {
    "pillow": "PIL",
    "opencv-python-headless": "cv2",
    "faiss-cpu": "faiss",
    "hydra-core": "hydra",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "setuptools": "pkg_resources",
}
# In an environment that is not ours, torch and what belongs to it are the user's choice.
TORCH_FAMILY = re.compile(r"(torch|torchvision|triton|nvidia-.*|cuda-.*)$")


def main() -> int:
    try:
        if not OLDEST <= sys.version_info[:2] <= NEWEST:
            return subprocess.call([find_supported_python(), __file__])
        in_venv = VENV.exists() and Path(sys.prefix).resolve() == VENV.resolve()
        print(prepare_own_environment() if has_module("detectron2") and not in_venv else prepare_venv())
    except (SetupError, OSError) as error:
        print(f"set-up failed: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("set-up interrupted; the next run continues it", file=sys.stderr)
        return 130
    return 0


def find_supported_python() -> str:
    """The newest supported Python on PATH, for when the one that runs this is too old or too new."""
    running = "{}.{}".format(*sys.version_info[:2])
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        # Each folder of PATH: the first python3.x may be a version manager's placeholder that does not run.
        for folder in os.get_exec_path():
            path = os.path.join(folder, f"python3.{minor}")
            if probe_version(path) == (3, minor):
                say(f"Python {running} is not supported; using {path}")
                return path
    wanted = f"python3.{OLDEST[1]} to python3.{NEWEST[1]}"
    raise SetupError(f"Python {running} is not supported and PATH has none of {wanted}; name one: make PYTHON=...")


def prepare_venv() -> Path:
    """Make or complete .venv; returns its Python."""
    python = VENV / "bin" / "python"
    stamp = VENV / "oesir_d2.stamp"
    digest = compute_digest()
    if is_finished(python, stamp, digest):
        return python
    with exclusive():
        if is_finished(python, stamp, digest):  # by a run that this one waited for
            return python
        remove_stamp(stamp)
        make_venv(python)
        remove_half_installed()
        # pip's own files on the disk of .venv: a small /tmp is no obstacle, and what is ready is moved in one step.
        temporary = VENV / "tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        say(f"installing the pinned packages into {VENV} (once, some minutes)")
        pinned = ["--constraint", str(CONSTRAINTS)]
        # The build tool first, so that the packages that come as sources are built with the pinned one, too.
        run_pip(python, "install", *pinned, "setuptools", temporary=temporary)
        run_pip(python, "install", *pinned, "--no-build-isolation", "--editable", ".[dev]", temporary=temporary)
        install_detectron2(python, temporary)
        shutil.rmtree(temporary, ignore_errors=True)
        finish(python, stamp, digest)
    return python


def prepare_own_environment() -> Path:
    """Add to the running Python's environment, which has detectron2, the packages that it lacks."""
    python = Path(sys.executable)
    stamp = BUILD / "setup.stamp"
    digest = compute_digest(sys.prefix, sys.version)
    if is_finished(python, stamp, digest):
        return python
    with exclusive():
        remove_stamp(stamp)
        say(f"{python} has detectron2: adding only the packages that it lacks")
        isolation = ["--no-build-isolation"] if has_module("setuptools") else []
        run_pip(python, "install", "--no-deps", *isolation, "--editable", ".")
        missing = list_missing_requirements()
        if missing:
            say(f"installing {', '.join(missing)}")
            install_beside_installed(python, missing)
        finish(python, stamp, digest)
    return python


def make_venv(python: Path) -> None:
    """Make .venv unless it is there and runs; give it pip."""
    version = probe_version(str(python))
    if version is None:
        if not (has_module("venv") and has_module("ensurepip")):
            hint = f"on Debian or Ubuntu install python3.{sys.version_info[1]}-venv"
            raise SetupError(f"{sys.executable} has no venv module; {hint}")
        free_gb = shutil.disk_usage(ROOT).free / 1e9
        if free_gb < NEEDED_GB:
            raise SetupError(f"{ROOT} has {free_gb:.1f} GB of free disk space, the set-up needs {NEEDED_GB}")
        say(f"making {VENV} with {sys.executable}")
        base = getattr(sys, "_base_executable", sys.executable)
        run_command([base, "-m", "venv", "--clear", str(VENV)])
    elif not OLDEST <= version <= NEWEST:
        raise SetupError("{} has Python {}.{}, which is not supported; remove that folder".format(VENV, *version))
    if subprocess.call([str(python), "-c", "import pip"], stderr=subprocess.DEVNULL):
        run_command([str(python), "-m", "ensurepip", "--upgrade", "--default-pip"])


def remove_half_installed() -> None:
    """Let pip forget a package of .venv whose installation was interrupted, so that it is installed again.

    pip writes a package's INSTALLER file after all of its other files, but takes a package without one for complete.
    """
    for metadata in VENV.glob("lib/python3*/site-packages/*.dist-info"):
        if not (metadata / "INSTALLER").exists():
            shutil.rmtree(metadata)


def install_detectron2(python: Path, temporary: Path) -> None:
    """Install the pinned detectron2 wheel, which pip checks against its sha256, unless .venv has it or upstream's own.

    Its tag names CPython 3.10 because of a compiled part that is not needed here, so pip is told to take it for that
    version and to put it where this Python looks.
    """
    pinned = re.search("sal-detectron2==([^ ]+)", DETECTRON2.read_text()).group(1)
    code = (
        "import sysconfig, importlib.util, importlib.metadata as m;"
        "versions = {d.metadata['Name']: d.version for d in m.distributions()};"
        "found = importlib.util.find_spec('detectron2');"
        f"print(bool(found and ('detectron2' in versions or versions.get('sal-detectron2') == '{pinned}')));"
        "print(sysconfig.get_path('purelib'))"
    )
    installed, purelib = run_command([str(python), "-c", code]).split("\n")[:2]
    if installed == "True":
        return
    run_pip(
        python,
        *("install", "--no-deps", "--only-binary=:all:", "--python-version=3.10", "--implementation=cp", "--abi=none"),
        *("--platform=any", "--upgrade", "--target", purelib, "--require-hashes", "--requirement", str(DETECTRON2)),
        temporary=temporary,
    )


def list_missing_requirements() -> list:
    """The requirements of the package and of its extra "dev" whose modules the running Python does not find."""
    import importlib.metadata  # newer than some of the Pythons that may start this file

    missing = []
    for requirement in importlib.metadata.requires("oesir_d2"):
        specifier, _, marker = requirement.partition(";")
        name = get_name(specifier)
        if (not marker or "dev" in marker) and not has_module(MODULES.get(name, name.replace("-", "_"))):
            missing.append(specifier.strip())
    return missing


def install_beside_installed(python: Path, missing: list) -> None:
    """Install packages without changing the version of any other, in their pinned versions if those fit."""
    import importlib.metadata

    names = {get_name(requirement) for requirement in missing}
    installed = {}
    for distribution in importlib.metadata.distributions():
        name = get_name(distribution.metadata["Name"] or "")
        # A version that pip would not understand as a constraint cannot be held.
        if name not in names and re.match(r"[0-9][0-9a-z.+!]*$", distribution.version):
            installed[name] = f"{name}=={distribution.version}"
    pins = [line for line in CONSTRAINTS.read_text().split("\n") if line and not line.startswith("#")]
    pins = [pin for pin in pins if get_name(pin) not in installed and not TORCH_FAMILY.match(get_name(pin))]
    constraints = BUILD / "constraints.txt"
    try:
        constraints.write_text("\n".join([*installed.values(), *pins]))
        run_pip(python, "install", "--constraint", str(constraints), *missing)
    except SetupError:
        say("the pinned versions do not fit into this environment; leaving the choice to pip")
        constraints.write_text("\n".join(installed.values()))
        run_pip(python, "install", "--constraint", str(constraints), *missing)


def finish(python: Path, stamp: Path, digest: str) -> None:
    """Check the environment and mark it as finished."""
    if not has_all_modules(python):
        raise SetupError(f"{python} lacks modules although pip reported success; its output is in {LOG}")
    stamp.write_text(digest)
    say("the environment is ready")


def remove_stamp(stamp: Path) -> None:
    """Forget the last finished state before it is changed, so that an interrupted change is never taken for it."""
    if stamp.exists():
        stamp.unlink()


def is_finished(python: Path, stamp: Path, digest: str) -> bool:
    return stamp.exists() and stamp.read_text() == digest and has_all_modules(python)


def has_all_modules(python: Path) -> bool:
    code = (
        "import sys; from importlib.util import find_spec;"
        "sys.exit(not all(map(find_spec, ('oesir_d2', 'detectron2', 'torch', 'faiss', 'skimage', 'pytest'))))"
    )
    try:
        # Outside of the repository, where oesir_d2 is found only if it is installed.
        return subprocess.call([str(python), "-c", code], cwd="/", stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def compute_digest(*more: str) -> str:
    """A hash of everything that the environment's content depends on."""
    digest = hashlib.sha256("\0".join([str(ROOT), *more]).encode())
    for path in [ROOT / "setup.py", *sorted(CONSTRAINTS.parent.glob("*.txt"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def get_name(requirement: str) -> str:
    """The normalised name of a requirement such as "PyYAML==6.0"."""
    return re.sub(r"[-_.]+", "-", re.match(r"\s*([\w.-]*)", requirement).group(1)).lower()


@contextlib.contextmanager
def exclusive() -> "contextlib.AbstractContextManager":
    """Let one set-up at a time change an environment; another waits."""
    import fcntl

    BUILD.mkdir(exist_ok=True)
    with open(BUILD / "setup.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
