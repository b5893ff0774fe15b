"""Configs by name, overrides, and one clear line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from oesir_d2.engine import config_loading
from oesir_d2.engine.config_loading import CONFIGS_DIR, apply_overrides, find_config, is_override_key, load_config


@pytest.fixture
def write_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a YAML file to write, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine.yaml"


def test_config_is_found_by_bare_name_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("oesir_lite0_grid.yaml", "oesir_lite0_grid", str(CONFIGS_DIR / "oesir_lite0_grid.yaml")):
        assert find_config(name).samefile(CONFIGS_DIR / "oesir_lite0_grid.yaml")
        assert load_config(name).MODEL.OESIR.REGIONS.PROPOSER == "GridRegions"


def test_file_of_the_working_directory_comes_before_one_of_the_project(write_config: Path) -> None:
    mine = write_config.with_name("oesir_lite0_grid.yaml")
    mine.write_text("MODEL: {META_ARCHITECTURE: Mine}\nVERSION: 2\n")
    assert load_config("oesir_lite0_grid.yaml").MODEL.META_ARCHITECTURE == "Mine"


def test_own_file_may_build_on_one_of_the_project(write_config: Path) -> None:
    write_config.write_text(f"_BASE_: {CONFIGS_DIR / 'oesir_R50.yaml'}\nMODEL: {{RESNETS: {{DEPTH: 101}}}}\n")
    cfg = load_config("mine.yaml")
    assert cfg.MODEL.RESNETS.DEPTH == 101 and cfg.MODEL.OESIR.TEACHER.NAME == "ResNet50Teacher"


def test_configs_come_with_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = tmp_path / "oesir_d2" / "configs"
    packaged.mkdir(parents=True)
    (packaged / "installed.yaml").write_text("MODEL: {META_ARCHITECTURE: OESIR}\nVERSION: 2\n")
    monkeypatch.setattr(config_loading, "CONFIGS_DIR", tmp_path / "no-repository")
    monkeypatch.setattr(config_loading, "_PACKAGED_CONFIGS_DIR", packaged)
    assert load_config("installed").MODEL.META_ARCHITECTURE == "OESIR"
    with pytest.raises(FileNotFoundError, match="there are installed.yaml"):
        find_config("other")


@pytest.mark.parametrize("name", ["nothing.yaml", "nothing", "", ".", "students", "no/such/oesir_lite0_grid.yaml"])
def test_unknown_config_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"oesir_R50\.yaml.*oesir_lite0\.yaml") as raised:
        load_config(name)
    assert repr(name) in str(raised.value)


def test_device_is_the_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, device in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert load_config("oesir_lite0_grid.yaml").MODEL.DEVICE == device
    assert load_config("oesir_lite0_grid.yaml", ["MODEL.DEVICE", "cpu"]).MODEL.DEVICE == "cpu"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("MODEL: [", ""),
        ("MODEL: {NOBODY: 1}", "MODEL.NOBODY"),
        ("MODEL: {OESIR: {REGIONS: {MAX_REGIONS: many}}}", "MAX_REGIONS"),
        ("MODEL: 7", "sections of KEY: VALUE"),
        ("- a\n- list\n", ""),
        ("just text", ""),
        ("", ""),
        ("VERSION: 99", "99"),
        ("_BASE_: mine.yaml", "_BASE_"),
        ("\x00", ""),
    ],
)
def test_broken_file_is_refused_by_name(text: str, words: str, write_config: Path) -> None:
    write_config.write_text(text)
    with pytest.raises(ValueError, match=rf"config file mine\.yaml is not valid: .*{words}") as raised:
        load_config("mine.yaml")
    assert "\n" not in str(raised.value)


def test_file_that_is_no_text_is_refused_by_name(write_config: Path) -> None:
    write_config.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"config file mine\.yaml is not valid"):
        load_config("mine.yaml")


def test_missing_base_is_named(write_config: Path) -> None:
    write_config.write_text("_BASE_: nowhere.yaml")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_config("mine.yaml")


@pytest.mark.parametrize("base", ["", "_BASE_: evil.yaml\n"])
def test_code_in_yaml_is_refused_and_never_runs(base: str, write_config: Path) -> None:
    trace = write_config.with_name("trace")
    call = f"MODEL: !!python/object/apply:os.mkdir ['{trace}']\n"
    write_config.with_name("evil.yaml").write_text(call)
    write_config.write_text(base or call)
    with pytest.raises(ValueError, match=r"config file mine\.yaml is not valid: .*python/object"):
        load_config("mine.yaml")
    assert not trace.exists()


@pytest.fixture
def cfg() -> CfgNode:
    return load_config("oesir_lite0_grid.yaml")


def test_overrides_are_applied_in_their_order(cfg: CfgNode) -> None:
    regions = "MODEL.OESIR.REGIONS"
    pairs = [f"{regions}.MAX_REGIONS", "7", f"{regions}.GRID_LEVELS", "[2, 4]", f"{regions}.WHOLE_IMAGE", "False"]
    apply_overrides(cfg, [*pairs, f"{regions}.MAX_REGIONS", "9"])
    options = cfg.MODEL.OESIR.REGIONS
    assert (options.MAX_REGIONS, list(options.GRID_LEVELS), options.WHOLE_IMAGE) == (9, [2, 4], False)


def test_whole_number_will_do_where_a_fraction_may_stand(cfg: CfgNode) -> None:
    apply_overrides(cfg, ["RETRIEVAL.EXPLAIN_AWAY", "0", "MODEL.OESIR.EMBEDDING.GEM_P", "4"])
    assert (cfg.RETRIEVAL.EXPLAIN_AWAY, cfg.MODEL.OESIR.EMBEDDING.GEM_P) == (0.0, 4.0)


@pytest.mark.parametrize("text", ["2024", "None", "[a]", "a b", "1e3", "", "über/größe.pth", "a'b\"c", "True"])
def test_text_is_taken_as_it_is(text: str, cfg: CfgNode) -> None:
    apply_overrides(cfg, ["MODEL.WEIGHTS", text])
    assert cfg.MODEL.WEIGHTS == text


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["MODEL.WEIGHTS"], "'MODEL.WEIGHTS' has no value"),
        (["INDEX.FACTORY", "Flat", "RETRIEVAL.TOP_K"], "'RETRIEVAL.TOP_K' has no value"),
        (["MODEL.OESIR.REGIONS.MAX_REGION", "3"], "MAX_REGION' does not exist; did you mean MODEL.OESIR.REGIONS.MAX_R"),
        (["model.weights", "x"], "'model.weights' does not exist; did you mean MODEL.WEIGHTS"),
        (["MODEL.OESIR", "3"], "'MODEL.OESIR' does not exist"),
        (["MODEL.WEIGHTS.X", "3"], "'MODEL.WEIGHTS.X' does not exist"),
        (["", "3"], "'' does not exist"),
        (["RETRIEVAL.TOP_K", "many"], "RETRIEVAL.TOP_K is 'many', expected int such as 10"),
        (["RETRIEVAL.TOP_K", "1.5"], "RETRIEVAL.TOP_K is '1.5', expected int such as 10"),
        (["RETRIEVAL.TOP_K", ""], "RETRIEVAL.TOP_K is '', expected int such as 10"),
        (["RETRIEVAL.EXPLAIN_AWAY", "off"], "RETRIEVAL.EXPLAIN_AWAY is 'off', expected float such as 1.0"),
        (["MODEL.OESIR.REGIONS.WHOLE_IMAGE", "maybe"], "WHOLE_IMAGE is 'maybe', expected bool such as True"),
        (["MODEL.OESIR.REGIONS.GRID_LEVELS", "3"], r"GRID_LEVELS is '3', expected list such as \[1, 2, 3, 5\]"),
        (["MODEL.OESIR.REGIONS.GRID_LEVELS", "[1,"], r"GRID_LEVELS is '\[1,', expected list"),
    ],
)
def test_wrong_override_is_refused_by_name(opts: list[str], words: str, cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        apply_overrides(cfg, opts)
    assert "\n" not in str(raised.value)


def test_words_of_a_command_line_that_are_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "TEST.JPG").touch()
    for word in ("MODEL.WEIGHTS", "RETRIEVAL.TOP_K", "RETRIEVAL.TOPK", "MODEL.OESIR.NOBODY"):
        assert is_override_key(word), word
    for word in ("TEST.JPG", "photo.jpg", "PHOTO.JPG", "MODEL", "--top-k", "MODEL.weights", "", "a/MODEL.WEIGHTS"):
        assert not is_override_key(word), word
