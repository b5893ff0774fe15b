"""The list of stages: it fits together, its configs load, and only what is needed is chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.default_stages import STAGES, Stage, check_stages, list_optional, select_stages

TOY = (
    Stage("a", "train", "a.yaml", data="photos"),
    Stage("b", "train", "b.yaml", data="photos", weights="a"),
    Stage("w", "whitening", "b.yaml", weights="b"),
    Stage("c", "train", "c.yaml", data="cutouts", weights="b", whitening="w"),
    Stage("out", "export", "a.yaml", weights="a"),
)


def test_stages_fit_together_and_there_is_one_export() -> None:
    check_stages(STAGES)
    assert [stage.kind for stage in STAGES].count("export") == 1


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_configs_load_with_their_overrides(stage: Stage) -> None:
    cfg = load_config(stage.config, stage.overrides)
    # What is trained on must have a place in the config; a whitening is fitted on an OESIR.
    if stage.kind == "train":
        names = {"detection_set": ["objects"], "photos": ["photos"], "cutouts": ["objects", "regions"]}
        assert list(cfg.DATASETS.TRAIN) == names[stage.data]
    else:
        assert cfg.MODEL.META_ARCHITECTURE == "OESIR"
        assert cfg.MODEL.OESIR.EMBEDDING.WHITENING_DIM > 0


def test_whitening_and_what_begins_with_it_are_of_one_shape() -> None:
    by_name = {stage.name: stage for stage in STAGES}
    for stage in (stage for stage in STAGES if stage.whitening):
        other = by_name[stage.whitening]
        own, fitted = (load_config(item.config, item.overrides).MODEL.OESIR for item in (stage, other))
        if stage.whitening_key == "MODEL.OESIR.EMBEDDING.WHITENING":
            assert own.EMBEDDING == fitted.EMBEDDING and other.weights == stage.weights
        else:
            first = stage
            while first.weights != other.weights:  # it goes on where another ended
                first = by_name[first.weights]
            # A student that learns by a whitening is not whitened by it: its regions are the teacher's.
            assert own.TEACHER == fitted.TEACHER and fitted.EMBEDDING.SOURCE == "TeacherSource"
            for key in ("POOLER", "REGION_POOLING", "GEM_P"):
                assert own.EMBEDDING[key] == fitted.EMBEDDING[key]


def test_only_what_is_needed_runs() -> None:
    assert [stage.name for stage in select_stages((), TOY)] == ["a", "out"]
    assert [stage.name for stage in select_stages(["b"], TOY)] == ["a", "b", "out"]
    assert [stage.name for stage in select_stages(["c"], TOY)] == ["a", "b", "w", "c", "out"]
    assert list_optional(TOY) == ["b", "c"]
    with pytest.raises(ValueError, match="no stage 'd'; allowed: b, c"):
        select_stages(["d"], TOY)
    assert {"S1", "S2", "S3"} <= set(list_optional())


@pytest.mark.parametrize(
    "stage",
    [
        replace(TOY[1], name="a"),
        replace(TOY[1], weights="w"),
        replace(TOY[1], weights="later"),
        replace(TOY[1], whitening="a"),
        replace(TOY[1], data=""),
        replace(TOY[4], data="photos"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(stage: Stage) -> None:
    with pytest.raises(AssertionError):
        check_stages([TOY[0], stage])


def test_prolonged_training_goes_on_with_other_crops() -> None:
    by_name = {stage.name: stage for stage in STAGES}
    first, long = by_name["S3_expand11"], by_name["S3_expand11_long"]
    assert long.weights == first.name and long.seed != first.seed
    own, before = (load_config(stage.config, stage.overrides) for stage in (long, first))
    assert own.SOLVER.MAX_ITER > before.SOLVER.MAX_ITER
    own.SOLVER.MAX_ITER = before.SOLVER.MAX_ITER
    assert own == before
