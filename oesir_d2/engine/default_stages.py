"""The stages that train the embedded default, from a detection set to the file that ships: a list, line by line.

A stage that changes is a line of :data:`STAGES` that changes. A stage runs if the one that is asked for needs it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

OUTPUTS = {"train": "model_final.pth", "whitening": "whitening.safetensors", "export": "oesir_lite0.safetensors"}
"""What a stage of each kind leaves in its folder."""

DATA = ("detection_set", "photos", "cutouts")
"""What a stage can be trained on: the composed set; all photos; objects and regions to cut out of them."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: of its folder.
        kind: "train" as train_net.py does it, fit a "whitening", or "export" weights.
        config: its config, a bare name under configs/.
        data: one of :data:`DATA`, for "train"; a whitening is fitted on all photos.
        weights: the "train" stage whose weights it begins with, or fits a whitening for, or exports.
        whitening: the "whitening" stage whose whitening it begins with, or learns by.
        whitening_key: the key that names this whitening.
        overrides: KEY VALUE pairs beyond the config; a user cannot change them.
        shrinkage: of a whitening.
        seed: added to that of the run.
    """

    name: str
    kind: Literal["train", "whitening", "export"]
    config: str
    data: str = ""
    weights: str = ""
    whitening: str = ""
    whitening_key: str = "MODEL.OESIR.EMBEDDING.WHITENING"
    overrides: tuple[str, ...] = ()
    shrinkage: float = 0.0
    seed: int = 0

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages that come before it."""
        return tuple(name for name in (self.weights, self.whitening) if name)


# What is fitted later must not stand in an earlier checkpoint, unfitted.
_UNWHITENED = ("MODEL.OESIR.EMBEDDING.WHITENING_DIM", "0")
_GRID = (
    *("MODEL.OESIR.REGIONS.PROPOSER", "GridRegions", "MODEL.OESIR.REGIONS.GRID_LEVELS", "[1, 2, 3, 5]"),
    *("MODEL.OESIR.REGIONS.MAX_REGIONS", "100"),
)


def _make_contrastive(name: str, config: str, student: str) -> tuple[Stage, Stage]:
    """Stage four of a student: the whitening that it begins with, and the training."""
    whitening = f"{student}_whitening"
    untrained = ("MODEL.META_ARCHITECTURE", "OESIR")
    return (
        Stage(whitening, "whitening", config, weights=student, overrides=untrained),
        Stage(name, "train", config, data="cutouts", weights=student, whitening=whitening),
    )


def _make_expand11(name: str) -> Stage:
    """A student of the teacher's map inside block 11, which learns it whitened."""
    return Stage(
        f"{name}_expand11",
        "train",
        f"lite0/distill_{name}_expand11.yaml",
        data="photos",
        weights="detector",
        whitening="expand11_whitening",
        whitening_key="MODEL.OESIR.DISTILLATION.WHITENING",
        overrides=_UNWHITENED,
    )


def _prolong(stage: Stage, iterations: int) -> Stage:
    """A training that goes on where another ended, with other crops, the learning rate up and down again."""
    overrides = (*stage.overrides, "SOLVER.MAX_ITER", str(iterations))
    return replace(stage, name=f"{stage.name}_long", weights=stage.name, overrides=overrides, seed=stage.seed + 1)


_S3_EXPAND11 = _make_expand11("S3")


STAGES = (
    Stage("detector", "train", "lite0/detector.yaml", data="detection_set", overrides=_UNWHITENED),
    # The students, beside the default: they are part of no file that ships.
    Stage("S1", "train", "lite0/distill_S1.yaml", data="photos", weights="detector", overrides=_UNWHITENED),
    Stage("S2", "train", "lite0/distill_S2.yaml", data="photos", weights="detector", overrides=_UNWHITENED),
    Stage("S3", "train", "lite0/distill_S3.yaml", data="photos", weights="detector", overrides=_UNWHITENED),
    *_make_contrastive("contrastive", "lite0/contrastive.yaml", student="S3"),
    # The same of the map that retrieves best, between conv4 and conv5.
    Stage(
        "expand11_whitening",
        "whitening",
        "lite0/distill_S3_expand11.yaml",
        weights="detector",
        overrides=(
            *("MODEL.META_ARCHITECTURE", "OESIR", "MODEL.OESIR.EMBEDDING.SOURCE", "TeacherSource"),
            *("MODEL.OESIR.EMBEDDING.WHITENING_DIM", "512"),
        ),
    ),
    _make_expand11("S1"),
    _make_expand11("S2"),
    _S3_EXPAND11,
    _prolong(_S3_EXPAND11, iterations=16000),
    *_make_contrastive("contrastive_S3_expand11", "lite0/contrastive_S3_expand11.yaml", student="S3_expand11_long"),
    # With a finer map for small objects.
    Stage("S3_fine", "train", "lite0/distill_S3_fine.yaml", data="photos", weights="detector", overrides=_UNWHITENED),
    *_make_contrastive("contrastive_fine", "lite0/contrastive_fine.yaml", student="S3_fine"),
    # Joined by the trunk's maps instead of the pyramid's.
    Stage("S3_trunk", "train", "lite0/distill_S3_trunk.yaml", data="photos", weights="detector", overrides=_UNWHITENED),
    *_make_contrastive("contrastive_S3_trunk", "lite0/contrastive_S3_trunk.yaml", student="S3_trunk"),
    # The default: the trunk's own maps under a projection that begins as a whitening. A grid shows it more of a photo
    # than the detector's regions do.
    Stage("whitening", "whitening", "oesir_lite0.yaml", weights="detector", overrides=_GRID),
    Stage(
        "projection",
        "train",
        "lite0/contrastive_trunk.yaml",
        data="cutouts",
        weights="detector",
        whitening="whitening",
    ),
    Stage("export", "export", "oesir_lite0.yaml", weights="projection"),
)


def select_stages(asked: Collection[str] = (), stages: Sequence[Stage] = STAGES) -> list[Stage]:
    """The stages that the exports and those that are asked for need, in their order.

    Args:
        asked: names of stages.
        stages: all there are; each stands after those that it needs.

    Raises:
        ValueError: a name that no stage has.
    """
    by_name = {stage.name: stage for stage in stages}
    unknown = [name for name in asked if name not in by_name]
    if unknown:
        raise ValueError(f"there is no stage {unknown[0]!r}; allowed: {', '.join(list_optional(stages))}")
    needed: set[str] = set()
    for stage in reversed(stages):
        if stage.kind == "export" or stage.name in asked or stage.name in needed:
            needed |= {stage.name, *stage.needs}
    return [stage for stage in stages if stage.name in needed]


def list_optional(stages: Sequence[Stage] = STAGES) -> list[str]:
    """The names of the trainings that run only if they are asked for."""
    needed = {stage.name for stage in select_stages((), stages)}
    return [stage.name for stage in stages if stage.kind == "train" and stage.name not in needed]


def check_stages(stages: Sequence[Stage]) -> None:
    """Assert that a list of stages fits together."""
    kinds: dict[str, str] = {}
    for stage in stages:
        assert stage.name not in kinds, f"two stages are called {stage.name!r}"
        assert (stage.data in DATA) if stage.kind == "train" else not stage.data, f"{stage.name}: data {stage.data!r}"
        assert stage.weights == "" or kinds.get(stage.weights) == "train", f"{stage.name}: weights {stage.weights!r}"
        assert stage.whitening == "" or kinds.get(stage.whitening) == "whitening", f"{stage.name}: {stage.whitening!r}"
        kinds[stage.name] = stage.kind
