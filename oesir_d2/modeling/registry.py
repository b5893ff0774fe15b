"""One way to look a component up by the name that a config gives it."""

from __future__ import annotations

from typing import Any

from detectron2.utils.registry import Registry


def get_registered(registry: Registry, name: str, key: str) -> Any:
    """The object that is registered under a name.

    Args:
        registry: one of the project's registries.
        name: the name to look up.
        key: the config key that gave the name, for the error.

    Raises:
        ValueError: nothing of that name is registered; the message lists what is.
    """
    if name not in registry:
        raise ValueError(f"{key} {name!r} unknown; allowed: {sorted(registered for registered, _ in registry)}")
    return registry.get(name)
