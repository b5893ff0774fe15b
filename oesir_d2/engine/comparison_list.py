"""The list of models that a comparison sets side by side: a YAML file of names, configs and overrides.

::

    whitening_dim: 512            # of every variant that does not say otherwise; 0 fits none
    shrinkage: 0.0
    variants:
      - name: s3                  # names its folder: small letters, digits and -
        title: "Detector regions, S3"
        config: lite0/Base-lite0-RCNN-FPN.yaml
        overrides:
          MODEL.WEIGHTS: "${WEIGHTS_DIR}/S3.pth"
          MODEL.OESIR.EMBEDDING.SOURCE: "StudentSource"
        whitening_dim: 256

Variants may share overrides by YAML's anchors and merge keys; a top-level key that begins with "." is a place for them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from oesir_d2.engine.config_loading import find_config, load_config

WEIGHTS_DIR = "${WEIGHTS_DIR}"
"""Stands in a list for the folder that a user names."""

_DEFAULTS: dict[str, Any] = {"whitening_dim": 0, "shrinkage": 0.0}
_VARIANT_KEYS = ("name", "title", "config", "overrides", *_DEFAULTS)


@dataclass(frozen=True)
class Variant:
    """One model of a comparison.

    Attributes:
        name: unique in its list; the name of its folder.
        title: what readers see.
        config: a path, or a bare name under configs/.
        overrides: KEY VALUE KEY VALUE …; may hold :data:`WEIGHTS_DIR`.
        whitening_dim: dimensions of the whitening to fit, unless the model brings one; 0 fits none.
        shrinkage: of that fit, see :meth:`PCAWhitening.fit`.
    """

    name: str
    title: str
    config: str
    overrides: tuple[str, ...] = ()
    whitening_dim: int = 0
    shrinkage: float = 0.0

    @property
    def needs_weights_dir(self) -> bool:
        """Whether some of its weights lie in a folder that the user is to name."""
        return any(WEIGHTS_DIR in word for word in self.overrides)

    def load_config(self, weights_dir: Path | None = None) -> CfgNode:
        """The model's config, with the folder of its weights put in.

        Raises:
            FileNotFoundError, ValueError: as :func:`load_config`.
        """
        words = self.overrides
        if weights_dir is not None:
            words = tuple(word.replace(WEIGHTS_DIR, str(weights_dir)) for word in words)
        return load_config(self.config, words)


def read_variants(name: str) -> list[Variant]:
    """Read a list of models.

    Args:
        name: a path, or a bare name under configs/.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a list; the message names the variant, the key and the value.
    """
    path = find_config(name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"list of models {path} is not valid YAML: {' '.join(str(error).split())}") from error
    try:
        return _parse_list(content)
    except ValueError as error:
        raise ValueError(f"list of models {path}: {error}") from error


def _parse_list(content: Any) -> list[Variant]:
    if not isinstance(content, dict) or not isinstance(content.get("variants"), list) or not content["variants"]:
        raise ValueError("it has no 'variants', expected a list of at least one")
    shared = {key: value for key, value in content.items() if not str(key).startswith(".") and key != "variants"}
    _check_keys(shared, tuple(_DEFAULTS), "the top level")
    defaults = _DEFAULTS | shared
    variants = [_parse_variant(item, defaults, f"variants[{i}]") for i, item in enumerate(content["variants"])]
    names = [variant.name for variant in variants]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ValueError(f"variants[{i}].name is {name!r}, which variants[{names.index(name)}] has already")
    return variants


def _parse_variant(item: Any, defaults: dict[str, Any], place: str) -> Variant:
    if not isinstance(item, dict):
        raise ValueError(f"{place} is {item!r:.80}, expected keys and values: {', '.join(_VARIANT_KEYS)}")
    _check_keys(item, _VARIANT_KEYS, place)
    name, config = (_get_text(item, key, place) for key in ("name", "config"))
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"{place}.name is {name!r}; allowed: small letters and digits in words joined by '-'")
    overrides = item.get("overrides") or {}
    if not isinstance(overrides, dict) or not all(isinstance(key, str) for key in overrides):
        raise ValueError(f"{place}.overrides is {overrides!r:.80}, expected config keys with their values")
    words = [word for key, value in overrides.items() for word in (key, _to_word(value))]
    numbers = defaults | {key: item[key] for key in _DEFAULTS if key in item}
    dimension, shrinkage = numbers["whitening_dim"], numbers["shrinkage"]
    if type(dimension) is not int or dimension < 0:
        raise ValueError(f"{place}.whitening_dim is {dimension!r}; allowed: a whole number of at least 0 (none)")
    if type(shrinkage) not in (int, float) or not 0 <= shrinkage < math.inf:
        raise ValueError(f"{place}.shrinkage is {shrinkage!r}; allowed: a finite number of at least 0")
    title = _get_text(item, "title", place) if "title" in item else name
    return Variant(name, title, config, tuple(words), dimension, float(shrinkage))


def _check_keys(item: dict[str, Any], allowed: tuple[str, ...], place: str) -> None:
    unknown = [key for key in item if key not in allowed]
    if unknown:
        raise ValueError(f"{place} has the key {unknown[0]!r}; allowed: {', '.join(allowed)}")


def _get_text(item: dict[str, Any], key: str, place: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{place}.{key} is {value!r:.80}, expected a text")
    return value


def _to_word(value: Any) -> str:
    """A YAML value as a word of a command line."""
    return value if isinstance(value, str) else repr(value)
