"""Lists of models as YAML files: a name, a config and its overrides each, and what a kind of list adds to them.

Models may share overrides by YAML's anchors and merge keys; a top-level key that begins with "." is a place for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from detectron2.config import CfgNode

from oesir_d2.engine.config_loading import find_config, load_config

WEIGHTS_DIR = "${WEIGHTS_DIR}"
"""Stands in a list for the folder that a user names."""

MODEL_KEYS = ("name", "title", "config", "overrides")


@dataclass(frozen=True)
class ListedModel:
    """One model of a list.

    Attributes:
        name: unique in its list; the name of its folder.
        title: what readers see.
        config: a path, or a bare name under configs/.
        overrides: KEY VALUE KEY VALUE …; may hold :data:`WEIGHTS_DIR`.
    """

    name: str
    title: str
    config: str
    overrides: tuple[str, ...] = ()

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


Model = TypeVar("Model", bound=ListedModel)


def read_list(name: str, parse: Callable[[Any], list[Model]]) -> list[Model]:
    """Read a list of models.

    Args:
        name: a path, or a bare name under configs/.
        parse: makes the models from the file's content; a ``ValueError`` of its is told with the file's name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a list.
    """
    path = find_config(name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"list of models {path} is not valid YAML: {' '.join(str(error).split())}") from error
    try:
        return parse(content)
    except ValueError as error:
        raise ValueError(f"list of models {path}: {error}") from error


def split_list(content: Any, key: str) -> tuple[list[Any], dict[str, Any]]:
    """The items under the key of a list, and what else stands at its top level but the places for shared overrides.

    Raises:
        ValueError: there are none.
    """
    if not isinstance(content, dict) or not isinstance(content.get(key), list) or not content[key]:
        raise ValueError(f"it has no {key!r}, expected a list of at least one")
    shared = {name: value for name, value in content.items() if not str(name).startswith(".") and name != key}
    return content[key], shared


def parse_model(item: Any, place: str, more_keys: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a :class:`ListedModel` from one item of a list.

    Args:
        item: the parsed YAML.
        place: what error messages call it.
        more_keys: keys that it may have besides; the caller parses them.

    Raises:
        ValueError: naming the key and the value that is wrong.
    """
    allowed = (*MODEL_KEYS, *more_keys)
    if not isinstance(item, dict):
        raise ValueError(f"{place} is {item!r:.80}, expected keys and values: {', '.join(allowed)}")
    check_keys(item, allowed, place)
    name, config = (get_text(item, key, place) for key in ("name", "config"))
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"{place}.name is {name!r}; allowed: small letters and digits in words joined by '-'")
    overrides = item.get("overrides") or {}
    if not isinstance(overrides, dict) or not all(isinstance(key, str) for key in overrides):
        raise ValueError(f"{place}.overrides is {overrides!r:.80}, expected config keys with their values")
    words = tuple(word for key, value in overrides.items() for word in (key, _to_word(value)))
    title = get_text(item, "title", place) if "title" in item else name
    return {"name": name, "title": title, "config": config, "overrides": words}


def check_unique_names(models: Sequence[ListedModel], key: str) -> None:
    """Refuse two models of one name, which would share a folder."""
    names = [model.name for model in models]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ValueError(f"{key}[{i}].name is {name!r}, which {key}[{names.index(name)}] has already")


def check_keys(item: dict[str, Any], allowed: Sequence[str], place: str) -> None:
    """Refuse keys that a list does not know."""
    unknown = [key for key in item if key not in allowed]
    if unknown:
        raise ValueError(f"{place} has the key {unknown[0]!r}; allowed: {', '.join(allowed)}")


def get_text(item: dict[str, Any], key: str, place: str) -> str:
    """A text that must be there and not be empty."""
    value = item.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{place}.{key} is {value!r:.80}, expected a text")
    return value


def select_models(models: Sequence[Model], names: Sequence[str]) -> list[Model]:
    """Those of the models that ``--only`` names, in the order of the list; all if it names none.

    Raises:
        ValueError: a name that the list does not have.
    """
    known = [model.name for model in models]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"--only names {unknown[0]!r}, which the list does not have; it has {', '.join(known)}")
    return [model for model in models if not names or model.name in names]


def _to_word(value: Any) -> str:
    """A YAML value as a word of a command line."""
    return value if isinstance(value, str) else repr(value)
