"""Landmark mode: the classes that make regions are one list, and it is the list of its comments."""

from __future__ import annotations

import re

import pytest

from oesir_d2.engine.config_loading import CONFIGS_DIR, load_config

# Class ids by name, as the official list has them; not copied from the config.
OFFICIAL = {
    "Tower": 66, "Bronze sculpture": 122, "Office building": 129, "Fountain": 130, "Tree house": 194, "House": 240,
    "Lighthouse": 289, "Bust": 306, "Sculpture": 358, "Skyscraper": 378, "Building": 461, "Convenience store": 473,
    "Castle": 486,
}  # fmt: skip


def test_classes_are_those_of_their_names() -> None:
    text = (CONFIGS_DIR / "landmarks" / "oesir_R50.yaml").read_text(encoding="utf-8")
    named = {name: int(number) for number, name in re.findall(r"^ +- (\d+)  # (.+)$", text, re.MULTILINE)}
    assert named == OFFICIAL
    assert sorted(load_config("landmarks/oesir_R50.yaml").MODEL.OESIR.REGIONS.CLASSES) == sorted(OFFICIAL.values())


@pytest.mark.parametrize("name", ["oesir_R50", "oesir_ft_R50", "oesir_lite0"])
def test_nothing_is_explained_away(name: str) -> None:
    cfg = load_config(f"landmarks/{name}.yaml")
    assert cfg.RETRIEVAL.EXPLAIN_AWAY == 0
    assert cfg.MODEL.OESIR.REGIONS.WHOLE_IMAGE


def test_fine_tuning_changes_the_teacher_alone() -> None:
    plain, tuned = load_config("landmarks/oesir_R50.yaml"), load_config("landmarks/oesir_ft_R50.yaml")
    tuned.MODEL.OESIR.TEACHER.WEIGHTS = plain.MODEL.OESIR.TEACHER.WEIGHTS
    tuned.OUTPUT_DIR = plain.OUTPUT_DIR
    assert tuned == plain
