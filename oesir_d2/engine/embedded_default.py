"""Training the embedded default again, from photos to the file that ships: the data, then the stages, each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from oesir_d2.data.images import list_images
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.default_data import DefaultData, TrainingMaterial
from oesir_d2.engine.default_stages import OUTPUTS, STAGES, Stage, check_stages, select_stages
from oesir_d2.engine.kept_results import hash_json
from oesir_d2.engine.recorded_steps import RecordedSteps
from oesir_d2.engine.training_process import train_in_process
from oesir_d2.engine.weight_export import export_weights
from oesir_d2.engine.whitening_fit import fit_whitening
from oesir_d2.index.lock import WriterLock
from oesir_d2.layers import save_whitening


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
        asked: stages beside those of the default, see ``default_stages.list_optional``.
        num_gpus: processes of a training, as ``train_net.py`` has it.
        seed: of every training.
        opts: KEY VALUE pairs for the configs of all stages.
    """

    asked: tuple[str, ...] = ()
    num_gpus: int = 1
    seed: int = 0
    opts: tuple[str, ...] = ()


def train_embedded_default(
    material: TrainingMaterial, output: Path, options: TrainingOptions, stages: Sequence[Stage] = STAGES
) -> dict[str, dict[str, Any]]:
    """Train the embedded default and export its weights.

    Every step keeps what it makes in a folder of its own below ``output``, and is not repeated when it is finished; a
    training that was interrupted goes on from its last checkpoint. ``output/weights`` names the weights of every
    training, as ``compare_models.py --weights-dir`` takes them.

    Args:
        material: photos and labels.
        output: folder, created if missing.
        options: how.
        stages: the list to take stages from.

    Returns:
        By step, what it reports; an export its ``weights`` and their ``sha256``.

    Raises:
        FileExistsError: the folder holds steps that were made from something else.
        FileNotFoundError, ValueError: a mistake in the material, the options or a config, found before the work; or
            in data, found by a step.
        ChildProcessError: a training ended otherwise than it should.
    """
    check_stages(stages)
    chosen = select_stages(options.asked, stages)
    data = DefaultData(material)
    settings = data.describe()
    for stage in chosen:
        settings[stage.name] = _describe(stage, options, settings)
    steps = RecordedSteps(output, settings)
    try:
        lock = WriterLock(output)
    except ValueError as error:
        raise ValueError(f"another process trains in {output}, or it cannot be written to") from error
    try:
        reports = data.make(steps)
        progress = tqdm(chosen, "stages")
        for stage in progress:
            progress.set_postfix_str(stage.name)
            work = _Work(stage, data, steps, options)
            reports[stage.name] = steps.run(stage.name, OUTPUTS[stage.kind], work)
            if stage.kind == "train":
                _link_weights(output, stage)
    finally:
        lock.release()
    return reports


def _describe(stage: Stage, options: TrainingOptions, settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What decides the outcome of a stage: its config, what it begins with, and its data."""
    cfg = load_config(stage.config, [*options.opts, *stage.overrides])
    # What another stage gives in the place of the config's does not count, and neither does the machine.
    if stage.weights:
        cfg.MODEL.WEIGHTS = ""
    if stage.whitening or stage.kind != "train":
        cfg.MODEL.OESIR.EMBEDDING.WHITENING = ""
    cfg.MODEL.DEVICE = cfg.OUTPUT_DIR = ""
    cfg.DATALOADER.NUM_WORKERS = 0
    described: dict[str, Any] = {"config": cfg.dump(), "kind": stage.kind}
    described |= {name: hash_json(settings[name]) for name in stage.needs}
    if stage.kind == "train":
        described["seed"] = options.seed
    if stage.kind == "whitening":
        described["shrinkage"] = stage.shrinkage
    if stage.data == "detection_set":
        described["detection_set"] = hash_json(settings["detection_set"])
    elif stage.kind != "export":
        described["photos"] = hash_json(settings["photos"])
    if stage.data == "cutouts":
        described["annotations"] = settings["detection_set"]["annotations"]
    return described


class _Work:
    """What a stage does, given its folder."""

    def __init__(self, stage: Stage, data: DefaultData, steps: RecordedSteps, options: TrainingOptions) -> None:
        self._stage, self._data, self._steps, self._options = stage, data, steps, options

    def __call__(self, folder: Path) -> dict[str, Any]:
        work = {"train": self._train, "whitening": self._fit_whitening, "export": self._export}[self._stage.kind]
        return work(folder)

    def _train(self, folder: Path) -> dict[str, Any]:
        flags = ["--config-file", self._stage.config, "--num-gpus", str(self._options.num_gpus), "--resume"]
        data = self._data.name_overrides(self._stage.data, self._steps)
        run = ["SEED", str(self._options.seed + self._stage.seed), "OUTPUT_DIR", str(folder)]
        try:
            train_in_process([*flags, *self._name_inputs(), *data, *run])
        except (ValueError, ChildProcessError) as error:
            raise type(error)(f"stage {self._stage.name}: {error}") from error
        return {"weights": str(folder / OUTPUTS["train"])}

    def _fit_whitening(self, folder: Path) -> dict[str, Any]:
        stage = self._stage
        cfg = load_config(stage.config, self._name_inputs())
        files = list_images(self._steps.locate("photos"))
        whitening, counts = fit_whitening(cfg, files, cfg.MODEL.OESIR.EMBEDDING.WHITENING_DIM, stage.shrinkage)
        facts = {"source": "the photos to learn from", "count": counts["regions"], "config": stage.config}
        save_whitening(folder / OUTPUTS["whitening"], whitening, facts | counts | {"shrinkage": stage.shrinkage})
        return counts

    def _export(self, folder: Path) -> dict[str, Any]:
        path = folder / OUTPUTS["export"]
        opts = [*self._options.opts, *self._stage.overrides]
        facts = export_weights(self._locate(self._stage.weights), path, self._stage.config, opts)
        return {"weights": str(path)} | facts

    def _name_inputs(self) -> list[str]:
        """The KEY VALUE pairs of a stage, with the files that it begins with. Of two values, the later one counts."""
        words = [*self._options.opts, *self._stage.overrides]
        if self._stage.weights:
            words += ["MODEL.WEIGHTS", str(self._locate(self._stage.weights))]
        if self._stage.whitening:
            whitening = self._steps.locate(self._stage.whitening) / OUTPUTS["whitening"]
            words += [self._stage.whitening_key, str(whitening)]
        return words

    def _locate(self, name: str) -> Path:
        return self._steps.locate(name) / OUTPUTS["train"]


def _link_weights(output: Path, stage: Stage) -> None:
    """Name a training's weights ``weights/STAGE.pth``."""
    link = output / "weights" / f"{stage.name}.pth"
    link.parent.mkdir(exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(Path("..", stage.name, OUTPUTS["train"]))
