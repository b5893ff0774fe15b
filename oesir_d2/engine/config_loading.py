"""Configs for command lines: found by name, overridden by KEY VALUE pairs, every mistake named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from detectron2.config import CfgNode, get_cfg

from oesir_d2.config import add_oesir_config

CONFIGS_DIR = Path(__file__).resolve().parents[2] / "configs"
_PACKAGED_CONFIGS_DIR = Path(__file__).resolve().parents[1] / "configs"


def find_config(name: str) -> Path:
    """The config file of a path or of a bare name under configs/, its .yaml optional.

    Raises:
        FileNotFoundError: there is none; the message lists the configs that exist.
    """
    candidates = [Path(name)]
    for folder in (CONFIGS_DIR, _PACKAGED_CONFIGS_DIR):
        candidates += [folder / name, folder / f"{name}.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    folder = CONFIGS_DIR if CONFIGS_DIR.is_dir() else _PACKAGED_CONFIGS_DIR
    known = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))
    raise FileNotFoundError(f"config file {name!r} not found; under configs/ there are {', '.join(known)}")


def load_config(name: str, opts: Sequence[str] = ()) -> CfgNode:
    """Detectron2's defaults, ours, a file, then the overrides.

    Args:
        name: a path, or a bare name under configs/.
        opts: KEY VALUE KEY VALUE …

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: broken YAML, or a key or a value that does not exist.
    """
    cfg = get_cfg()
    add_oesir_config(cfg)
    path = find_config(name)
    try:
        # Safe loading: a YAML file from elsewhere must not run code.
        cfg.merge_from_file(str(path), allow_unsafe=False)
    except (KeyError, AssertionError, TypeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config file {path} is not valid: {_first_line(error)}") from error
    apply_overrides(cfg, opts)
    return cfg


def apply_overrides(cfg: CfgNode, opts: Sequence[str]) -> None:
    """Apply KEY VALUE pairs to a config, in place, and check the names of keys and the types of values.

    Raises:
        ValueError: an odd number of words, an unknown key, or a value of another type.
    """
    if len(opts) % 2:
        raise ValueError(f"overrides come as KEY VALUE pairs; {opts[-1]!r} has no value")
    try:
        cfg.merge_from_list(list(opts))
    except (KeyError, AssertionError, AttributeError, TypeError, SyntaxError) as error:
        raise ValueError(f"override {' '.join(opts)!r} is not valid: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__
