"""Lists of networks for an analysis: what they say, and how their mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from oesir_d2.engine.analysis_list import read_analysis_models

LIST = """
models:
  - name: first
    title: The first
    network: teacher
    config: oesir_lite0.yaml
    layers: [conv4_1, conv5_3]
  - name: second
    network: detector
    config: oesir_lite0.yaml
    overrides: {MODEL.WEIGHTS: "${WEIGHTS_DIR}/a.pth"}
    layers: {conv5_2: res5, p5: p5}
"""


def test_networks_take_what_the_list_gives_them(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text(LIST)
    first, second = read_analysis_models(str(path))
    assert (first.title, first.network, first.layers) == ("The first", "teacher", {"conv4_1": "conv4_1"} | first.layers)
    assert list(first.layers) == ["conv4_1", "conv5_3"]
    assert (second.network, second.layers, second.needs_weights_dir) == (
        "detector",
        {"conv5_2": "res5", "p5": "p5"},
        True,
    )
    assert second.load_config(Path("/here")).MODEL.WEIGHTS == "/here/a.pth"


@pytest.mark.parametrize("name", ["layers_lite0", "layers_R50"])
def test_the_lists_that_ship_have_the_paper_s_layers(name: str) -> None:
    models = {model.name: model for model in read_analysis_models(f"comparisons/{name}")}
    layers = [*(f"conv4_{i}" for i in range(1, 7)), *(f"conv5_{i}" for i in range(1, 4))]
    assert list(models["classification"].layers) == layers
    assert {model.network for model in models.values()} == {"teacher", "detector"}
    for model in models.values():
        model.load_config(Path("weights"))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("network: teacher", "network: student", r"models\[0\].network is 'student'; allowed: teacher, detector"),
        ("network: teacher", "", r"models\[0\].network is None"),
        ("[conv4_1, conv5_3]", "[]", r"models\[0\].layers is \{\}"),
        ("[conv4_1, conv5_3]", "conv4_1", r"models\[0\].layers is 'conv4_1'"),
        ("[conv4_1, conv5_3]", "[a, a]", r"models\[0\].layers names 'a' twice"),
        ("[conv4_1, conv5_3]", "[../a]", r"models\[0\].layers has '../a'"),
        ("name: second", "name: first", r"models\[1\].name is 'first', which models\[0\] has already"),
        ("title: The first", "colour: red", "has the key 'colour'; allowed: name, title, config, overrides, network"),
        ("models:", "networks:", "has no 'models'"),
    ],
)
def test_mistakes_are_named(old: str, new: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    assert old in LIST
    path.write_text(LIST.replace(old, new))
    with pytest.raises(ValueError, match=words):
        read_analysis_models(str(path))
