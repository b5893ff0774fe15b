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

What all lists of models have in common is in ``model_list``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from oesir_d2.engine.model_list import (
    ListedModel,
    check_keys,
    check_unique_names,
    parse_model,
    read_list,
    split_list,
)

_DEFAULTS: dict[str, Any] = {"whitening_dim": 0, "shrinkage": 0.0}


@dataclass(frozen=True)
class Variant(ListedModel):
    """One model of a comparison.

    Attributes:
        whitening_dim: dimensions of the whitening to fit, unless the model brings one; 0 fits none.
        shrinkage: of that fit, see :meth:`PCAWhitening.fit`.
    """

    whitening_dim: int = 0
    shrinkage: float = 0.0


def read_variants(name: str) -> list[Variant]:
    """Read a list of models.

    Args:
        name: a path, or a bare name under configs/.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a list; the message names the variant, the key and the value.
    """
    return read_list(name, _parse_list)


def _parse_list(content: Any) -> list[Variant]:
    items, shared = split_list(content, "variants")
    check_keys(shared, tuple(_DEFAULTS), "the top level")
    variants = [_parse_variant(item, _DEFAULTS | shared, f"variants[{i}]") for i, item in enumerate(items)]
    check_unique_names(variants, "variants")
    return variants


def _parse_variant(item: Any, defaults: dict[str, Any], place: str) -> Variant:
    fields = parse_model(item, place, tuple(_DEFAULTS))
    numbers = defaults | {key: item[key] for key in _DEFAULTS if key in item}
    dimension, shrinkage = numbers["whitening_dim"], numbers["shrinkage"]
    if type(dimension) is not int or dimension < 0:
        raise ValueError(f"{place}.whitening_dim is {dimension!r}; allowed: a whole number of at least 0 (none)")
    if type(shrinkage) not in (int, float) or not 0 <= shrinkage < math.inf:
        raise ValueError(f"{place}.shrinkage is {shrinkage!r}; allowed: a finite number of at least 0")
    return Variant(**fields, whitening_dim=dimension, shrinkage=float(shrinkage))
