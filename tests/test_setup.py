"""The set-up without its downloads: which Python it takes, what it repairs, what it tells, and what gets packaged."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def setup_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The module of the set-up, working on an empty folder instead of this repository."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    module = importlib.import_module("setup_environment")
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "BUILD", tmp_path / "build")
    return module


def write_script(path: Path, line: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return path


def test_placeholders_of_version_managers_are_passed_over(
    setup_environment: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_script(tmp_path / "first/python3.13", "echo 'not installed' >&2; exit 127")
    write_script(tmp_path / "first/python3.12", "echo 3 9")
    wanted = write_script(tmp_path / "second/python3.12", "echo 3 12")
    write_script(tmp_path / "second/python3.11", "echo 3 11")
    monkeypatch.setenv("PATH", f"{tmp_path / 'first'}:{tmp_path / 'second'}")
    assert setup_environment.find_supported_python() == str(wanted)


def test_no_supported_python_gives_one_line_and_exit_code_2(
    setup_environment: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(setup_environment, "NEWEST", (3, 10))
    monkeypatch.setattr(setup_environment, "OLDEST", (3, 10))
    assert setup_environment.main() == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    assert "python3.10" in output.err


def test_interrupted_package_is_forgotten_and_others_are_kept(setup_environment: ModuleType, tmp_path: Path) -> None:
    packages = tmp_path / ".venv/lib/python3.12/site-packages"
    for name in ("whole-1.0.dist-info", "half-1.0.dist-info"):
        (packages / name).mkdir(parents=True)
        (packages / name / "METADATA").touch()
    (packages / "whole-1.0.dist-info/INSTALLER").touch()
    setup_environment.remove_half_installed()
    assert [path.name for path in packages.iterdir()] == ["whole-1.0.dist-info"]


def test_full_disk_is_refused_before_anything_is_made(
    setup_environment: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(setup_environment.shutil, "disk_usage", lambda path: usage._replace(free=2_500_000_000))
    with pytest.raises(setup_environment.SetupError, match=r"2\.5 GB"):
        setup_environment.make_venv(tmp_path / ".venv/bin/python")
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("output", "returncode", "words"),
    [
        ("ERROR: Could not install packages: [Errno 28] No space left on device", 1, "disk is full"),
        ("WARNING: Retrying ... NameResolutionError(...)\nERROR: No matching distribution found", 1, "network"),
        ("Collecting torch", -9, "SIGKILL"),
        ("Collecting x\nERROR: No matching distribution found for x\n", 1, "No matching distribution found for x"),
        ("", 1, "details in"),
    ],
)
def test_failures_are_told_in_one_line(setup_environment: ModuleType, output: str, returncode: int, words: str) -> None:
    explain_failure = importlib.import_module("setup_commands").explain_failure
    message = explain_failure(output, returncode)
    assert words in message
    assert "\n" not in message


def test_every_requirement_is_pinned(setup_environment: ModuleType) -> None:
    get_name = setup_environment.get_name
    constraints = (REPOSITORY / "requirements/constraints.txt").read_text().splitlines()
    pinned = {get_name(line) for line in constraints if re.match(r"[\w.-]+==[\w.]+$", line)}
    required = subprocess.run(
        [sys.executable, "-c", "import setuptools; setuptools.setup = lambda **k: print(*k['install_requires'], "
         "*k['extras_require']['dev'], sep='\\n'); import runpy; runpy.run_path('setup.py')"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert len(required) > 20
    assert {get_name(requirement) for requirement in required} <= pinned


def test_wheel_has_the_configs_and_the_weights(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("oesir_d2", "configs"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    shutil.copy(REPOSITORY / "setup.py", source)
    (source / "oesir_d2/weights").mkdir(exist_ok=True)
    (source / "oesir_d2/weights/small.safetensors").touch()
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {path.relative_to(source).as_posix() for path in (source / "configs").rglob("*.yaml")}
    assert configs and {f"oesir_d2/{name}" for name in configs} <= names
    modules = {path.relative_to(source).as_posix() for path in (source / "oesir_d2").rglob("*.py")}
    assert modules <= names, f"folders without __init__.py: {modules - names}"
    assert "oesir_d2/weights/small.safetensors" in names
    assert not any(name.startswith(("tests", "tools", "configs")) for name in names)
