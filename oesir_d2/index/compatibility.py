"""Whether two sets of embeddings may be compared: they must come from the same model, used in the same way."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class EmbeddingModelInfo:
    """Everything that decides what an image's embeddings are.

    Attributes:
        config: the model's configuration by dotted keys, values as JSON has them, without the references to weights.
        references: where the weights lie, by config key. They are not compared: a file may move, its hash tells.
        weights_sha256: SHA-256 of the weights.
        whitening_sha256: SHA-256 of the whitening, "" if there is none.
        preprocessing: how a file becomes the network's input; keys and values as JSON has them, e.g.
            ``{"max_long_side": 1024, "input_format": "RGB"}``.
        dimension: D, the length of an embedding.
    """

    config: dict[str, Any]
    references: dict[str, str]
    weights_sha256: str
    whitening_sha256: str
    preprocessing: dict[str, Any]
    dimension: int


def describe_differences(index: EmbeddingModelInfo, model: EmbeddingModelInfo) -> list[str]:
    """Name what differs between the model of an index and the one at hand, with both values; [] if nothing does."""
    differences = []
    for name, in_index, in_model in (
        ("dimension", index.dimension, model.dimension),
        ("weights", index.weights_sha256, model.weights_sha256),
        ("whitening", index.whitening_sha256, model.whitening_sha256),
    ):
        if in_index != in_model:
            differences.append(f"{name} (index: {_show_hash(in_index)}, model: {_show_hash(in_model)})")
    # Only one of the two has been through JSON, where a tuple becomes a list.
    steps_of_index, steps_of_model = (json.loads(json.dumps(info.preprocessing)) for info in (index, model))
    for key in sorted({*steps_of_index, *steps_of_model}):
        in_index, in_model = steps_of_index.get(key), steps_of_model.get(key)
        if in_index != in_model:
            differences.append(f"preprocessing {key} (index: {_shorten(in_index)}, model: {_shorten(in_model)})")
    # A key that only the model has came with a newer version; its default is what the index was built with.
    keys_of_index, keys_of_model = (json.loads(json.dumps(info.config)) for info in (index, model))
    for key, in_index in sorted(keys_of_index.items()):
        in_model = keys_of_model.get(key)
        if in_index != in_model:
            differences.append(f"{key} (index: {_shorten(in_index)}, model: {_shorten(in_model)})")
    return differences


def _show_hash(value: str | int) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value[:12]}…" if value else "none"


def _shorten(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}…"
