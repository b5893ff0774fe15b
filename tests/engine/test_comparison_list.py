"""Lists of models: what they say, and how their mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from oesir_d2.engine.comparison_list import read_variants

LIST = """
whitening_dim: 64
shrinkage: 0.5
.shared: &shared
  MODEL.WEIGHTS: "${WEIGHTS_DIR}/a.pth"
  MODEL.OESIR.REGIONS.MAX_REGIONS: 7
variants:
  - name: first
    config: lite0/Base-lite0-RCNN-FPN.yaml
    overrides:
      <<: *shared
      MODEL.OESIR.REGIONS.SCORE_THRESH: 1
      MODEL.OESIR.REGIONS.CLASSES: [0]
      MODEL.OESIR.REGIONS.WHOLE_IMAGE: false
  - name: second-2
    title: The second
    config: oesir_lite0_grid
    whitening_dim: 0
    shrinkage: 0
"""


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_variants_take_what_the_list_gives_them(tmp_path: Path) -> None:
    first, second = read_variants(write(tmp_path / "list.yaml", LIST))

    assert (first.name, first.title, first.whitening_dim, first.shrinkage) == ("first", "first", 64, 0.5)
    assert (second.name, second.title, second.whitening_dim, second.shrinkage) == ("second-2", "The second", 0, 0)
    assert first.needs_weights_dir and not second.needs_weights_dir
    cfg = first.load_config(Path("/some where"))
    assert cfg.MODEL.WEIGHTS == "/some where/a.pth"
    regions = cfg.MODEL.OESIR.REGIONS
    assert (regions.MAX_REGIONS, regions.SCORE_THRESH, regions.CLASSES, regions.WHOLE_IMAGE) == (7, 1.0, [0], False)
    assert second.load_config().MODEL.OESIR.REGIONS.PROPOSER == "GridRegions"


def test_the_list_that_ships_names_every_model_of_the_table() -> None:
    variants = {variant.name: variant for variant in read_variants("comparisons/lite0")}
    configs = {name: variant.load_config(Path("weights")) for name, variant in variants.items()}

    poolers = {configs[f"global-{name}"].MODEL.OESIR.EMBEDDING.POOLER for name in ("spoc", "mac", "rmac", "gem")}
    assert poolers == {"SPoCPooler", "MACPooler", "RMACPooler", "GeMPooler"}
    sources = {name: cfg.MODEL.OESIR.EMBEDDING.SOURCE for name, cfg in configs.items() if name.startswith("detector-")}
    assert set(sources.values()) == {"DetectorSource", "StudentSource", "TeacherSource"}
    students = [configs[f"detector-{name}"].MODEL.OESIR.STUDENT.NAME for name in ("s1", "s2", "s3", "s3-contrastive")]
    assert students == ["StudentS1", "StudentS2", "StudentS3", "StudentS3"]
    regions = [configs[name].MODEL.OESIR.REGIONS for name in sources]
    assert all(options == regions[0] for options in regions), "all detector rows have the same regions"
    assert {configs[name].MODEL.META_ARCHITECTURE for name in sources} == {"OESIR", "CropOESIR"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n", "it has no 'variants', expected a list of at least one"),
        ("variants: []\n", "it has no 'variants'"),
        ("variants: [", "is not valid YAML"),
        ("variants: [7]\n", "variants[0] is 7, expected keys and values: name, title, config, overrides"),
        ("wightening: 3\nvariants: [{name: a, config: b}]\n", "the top level has the key 'wightening'; allowed: whit"),
        ("variants: [{name: a, config: b, weights: c}]\n", "variants[0] has the key 'weights'; allowed: name, title"),
        ("variants: [{name: a}]\n", "variants[0].config is None, expected a text"),
        ("variants: [{name: '../a', config: b}]\n", "variants[0].name is '../a'; allowed: small letters"),
        ("variants: [{name: a, config: b}, {name: a, config: b}]\n", "variants[1].name is 'a', which variants[0] has"),
        ("variants: [{name: a, config: b, overrides: [1]}]\n", "variants[0].overrides is [1], expected config keys"),
        ("variants: [{name: a, config: b, whitening_dim: -1}]\n", "variants[0].whitening_dim is -1; allowed"),
        ("whitening_dim: true\nvariants: [{name: a, config: b}]\n", "variants[0].whitening_dim is True; allowed"),
        ("variants: [{name: a, config: b, shrinkage: .inf}]\n", "variants[0].shrinkage is inf; allowed"),
    ],
)
def test_mistakes_are_named(text: str, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "list.yaml", text)
    with pytest.raises(ValueError) as caught:
        read_variants(path)
    assert words in str(caught.value) and path in str(caught.value)


def test_a_list_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="'nowhere.yaml' not found"):
        read_variants("nowhere.yaml")
