"""Configs for command lines: found by name, overridden by KEY VALUE pairs, every mistake named."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
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
    cfg = _make_default_config()
    path = find_config(name)
    try:
        # Safe loading: a YAML file from elsewhere must not run code.
        cfg.merge_from_file(str(path), allow_unsafe=False)
    except (AttributeError, TypeError) as error:  # of a file that is empty, a list or plain text
        raise ValueError(f"config file {path} is not valid: it does not hold sections of KEY: VALUE") from error
    except RecursionError as error:
        raise ValueError(f"config file {path} is not valid: it is its own _BASE_") from error
    except (KeyError, AssertionError, ValueError, yaml.YAMLError) as error:
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
    keys = _list_keys(cfg)
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        if key not in keys:
            raise ValueError(f"config key {key!r} does not exist; {_suggest_keys(key, keys)}")
        try:
            cfg.merge_from_list([key, _prepare_value(text, keys[key])])
        except (ValueError, TypeError, AssertionError) as error:
            expected = f"{type(keys[key]).__name__} such as {keys[key]!r}"
            raise ValueError(f"config key {key} is {text!r}, expected {expected}") from error


def is_override_key(word: str) -> bool:
    """Whether a word of a command line is, or is meant to be, the KEY of an override.

    It is if there is such a key; also if it looks like a misspelt one (``RETRIEVAL.TOPK``) and is no file, since a
    photo may be called ``TEST.JPG``.
    """
    known = _default_keys()
    if word in known:
        return True
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+", word) or os.path.lexists(word):
        return False
    section = word.split(".")[0]
    return any(key.startswith(f"{section}.") for key in known)


@cache
def _default_keys() -> frozenset[str]:
    return frozenset(_list_keys(_make_default_config()))


def _make_default_config() -> CfgNode:
    cfg = get_cfg()
    add_oesir_config(cfg)
    # detectron2's default is a GPU, whether there is one or not.
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    return cfg


def _list_keys(cfg: CfgNode, prefix: str = "") -> dict[str, Any]:
    """Every key of a config with its value, sections left out."""
    keys: dict[str, Any] = {}
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            keys.update(_list_keys(value, f"{prefix}{name}."))
        else:
            keys[prefix + name] = value
    return keys


def _suggest_keys(key: str, keys: Iterable[str]) -> str:
    close = difflib.get_close_matches(key.upper(), keys, cutoff=0.8)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return "oesir_d2/config.py lists those of oesir_d2, all others are detectron2's"


def _prepare_value(text: str, current: Any) -> Any:
    """A value as ``merge_from_list``, which evaluates text as a literal, takes it for a key that has ``current``."""
    if isinstance(current, float) and re.fullmatch(r"[+-]?[0-9]+", text):
        return float(text)  # else 1 would be refused where 1.0 is meant
    if isinstance(current, str):
        return repr(text)  # else a folder called 2024 would be refused as a number
    return text


def _first_line(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__
