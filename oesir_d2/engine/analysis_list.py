"""The list of networks whose layers an analysis compares: a YAML file.

::

    models:
      - name: classification      # names its folder: small letters, digits and -
        title: "ImageNet classifier"
        network: teacher          # the config's teacher; or "detector", the backbone of its detector
        config: oesir_lite0.yaml
        layers: [conv4_1, conv5_3]
      - name: detection
        network: detector
        config: oesir_lite0.yaml
        layers: {conv5_2: res5}   # what the figures call the layer: what the network calls it

The layers are those of ``TeacherTaps`` and ``DetectorTaps``. What all lists of models have in common is in
``model_list``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from oesir_d2.engine.model_list import (
    ListedModel,
    check_keys,
    check_unique_names,
    get_text,
    parse_model,
    read_list,
    split_list,
)

NETWORKS = ("teacher", "detector")


@dataclass(frozen=True)
class AnalysisModel(ListedModel):
    """One network of an analysis.

    Attributes:
        network: one of ``NETWORKS``.
        layers: the network's name of each layer, by the name in tables and figures, in their order.
    """

    network: str = "teacher"
    layers: dict[str, str] = field(default_factory=dict)


def read_analysis_models(name: str) -> list[AnalysisModel]:
    """Read a list of networks.

    Args:
        name: a path, or a bare name under configs/.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a list; the message names the model, the key and the value.
    """
    return read_list(name, _parse_list)


def _parse_list(content: Any) -> list[AnalysisModel]:
    items, shared = split_list(content, "models")
    check_keys(shared, (), "the top level")
    models = [_parse_model(item, f"models[{i}]") for i, item in enumerate(items)]
    check_unique_names(models, "models")
    return models


def _parse_model(item: Any, place: str) -> AnalysisModel:
    fields = parse_model(item, place, ("network", "layers"))
    network = get_text(item, "network", place)
    if network not in NETWORKS:
        raise ValueError(f"{place}.network is {network!r}; allowed: {', '.join(NETWORKS)}")
    layers = item.get("layers")
    if isinstance(layers, list):
        repeated = [name for i, name in enumerate(layers) if name in layers[:i]]
        if repeated:
            raise ValueError(f"{place}.layers names {repeated[0]!r} twice")
        layers = {name: name for name in layers}
    if not isinstance(layers, dict) or not layers:
        raise ValueError(f"{place}.layers is {layers!r:.80}, expected names of layers")
    for label, layer in layers.items():
        # They become names of files.
        if not isinstance(label, str) or not re.fullmatch(r"[A-Za-z0-9_]+", label) or not isinstance(layer, str):
            raise ValueError(f"{place}.layers has {label!r}: {layer!r}; allowed: letters, digits and _")
    return AnalysisModel(**fields, network=network, layers=dict(layers))
