"""The trainer of all stages: detectron2's DefaultTrainer with our data, checkpoints and hooks."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, SimpleTrainer, TrainerBase, create_ddp_model
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.solver import build_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from torch import nn

from oesir_d2.data.datasets.retrieval import LABELS as RETRIEVAL_LABELS
from oesir_d2.data.mappers import EmbeddingMapper, MarkUnreadable
from oesir_d2.engine.checkpointing import TrainingCheckpointer
from oesir_d2.engine.frozen_maps import build_frozen_map_loader
from oesir_d2.engine.training_data import (
    build_train_loader,
    build_training_mapper,
    fit_to_training_set,
    load_training_set,
)
from oesir_d2.engine.training_hooks import CountSkippedImages, StopOnNonFiniteLoss, WriteProjection
from oesir_d2.evaluation.evaluators import build_evaluator
from oesir_d2.index.skipped import SKIPPED_FILE
from oesir_d2.modeling import OESIRContrastive, OESIRDistillation
from oesir_d2.modeling.weights import TRUNK_PREFIX

OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}

ONEDNN_BLOCK = 16
"""Channels that oneDNN, which computes torch's convolutions on a CPU, takes at a time."""

logger = logging.getLogger(__name__)


def reorder_for_cpu(model: nn.Module) -> None:
    """Put channels last in the memory of a model, in place: the convolutions of a CPU are a quarter faster so.

    A strided 1x1 convolution of few channels, such as the first shortcut of S1, stays as it was: in this order the
    backward pass that torch 2.14 has for it writes outside of its memory, and the process crashes.
    """
    model.to(memory_format=torch.channels_last)
    for module in model.modules():
        is_strided = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.stride != (1, 1)
        if is_strided and module.in_channels < ONEDNN_BLOCK:
            module.to(memory_format=torch.contiguous_format)


class BFloat16Trainer(SimpleTrainer):
    """What detectron2's AMPTrainer is on a GPU, for a CPU: in bfloat16, which needs no scaling of losses."""

    def run_step(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            super().run_step()


class OESIRTrainer(DefaultTrainer):
    """Trains what the config's meta-architecture trains: a detector, a student, or a teacher on landmarks.

    Unlike a DefaultTrainer it writes checkpoints that a crash cannot break and loads them without unpickling code,
    skips and counts photos that cannot be read, stops at a loss that is no number, and runs on the CPU, too, with
    several processes.

    Args:
        cfg: its data sets must be registered, see :func:`register_datasets`, and OUTPUT_DIR must exist.

    Raises:
        ValueError: a config that cannot be trained.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's own would build its checkpointer, and cannot wrap a model on the CPU.
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        is_on_gpu = torch.device(cfg.MODEL.DEVICE).type == "cuda"
        dataset_dicts = load_training_set(cfg)
        cfg = fit_to_training_set(cfg, dataset_dicts)
        data_loader = self.build_train_loader(cfg, dataset_dicts)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        if not is_on_gpu:
            reorder_for_cpu(model)
        model = create_ddp_model(model, broadcast_buffers=False, **({} if is_on_gpu else {"device_ids": None}))
        if cfg.MODEL.OESIR.DISTILLATION.CACHED_CROPS < 0:
            count = cfg.MODEL.OESIR.DISTILLATION.CACHED_CROPS
            raise ValueError(f"MODEL.OESIR.DISTILLATION.CACHED_CROPS is {count}; allowed: 0 (none) or more")
        mixed = AMPTrainer if is_on_gpu else BFloat16Trainer
        self._trainer = (mixed if cfg.SOLVER.AMP.ENABLED else SimpleTrainer)(model, data_loader, optimizer)
        self._dataset_dicts = dataset_dicts
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = TrainingCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def train(self) -> Any:
        """Train to the last iteration; before, compute the maps that are to be computed once only."""
        if self.cfg.MODEL.OESIR.DISTILLATION.CACHED_CROPS and isinstance(self.checkpointer.model, OESIRDistillation):
            mapper = build_training_mapper(self.cfg, self._dataset_dicts)
            self._trainer.data_loader = build_frozen_map_loader(
                self.cfg, self.checkpointer.model, self._dataset_dicts, mapper
            )
        return super().train()

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint of OUTPUT_DIR, or start from ``MODEL.WEIGHTS``.

        Raises:
            FileNotFoundError: the weights are not there.
            ValueError: the weights cannot be read, do not fit the run that is to go on, or leave a frozen detector
                without its own.
        """
        resume = resume and self.checkpointer.has_checkpoint()
        if not resume and comm.is_main_process():
            (Path(self.cfg.OUTPUT_DIR) / SKIPPED_FILE).unlink(missing_ok=True)
        super().resume_or_load(resume)
        if resume:
            self._check_resumed()
        elif isinstance(self.checkpointer.model, OESIRDistillation):
            self._check_start("backbone.")
        elif isinstance(self.checkpointer.model, OESIRContrastive):
            self._check_start("backbone.", "embedding_source.student.")
            self._check_whitening()

    def _check_resumed(self) -> None:
        """A run must not go on with a part of its model anew, such as the classes of other data."""
        for name, in_checkpoint, in_model in self.checkpointer.incompatible.incorrect_shapes:
            raise ValueError(
                f"the last checkpoint of OUTPUT_DIR {self.cfg.OUTPUT_DIR!r} is of another config or other data: "
                f"{name!r} has shape {in_checkpoint}, now expected {in_model}; resume with what the run began with"
            )

    def _check_start(self, *prefixes: str) -> None:
        """A student must not learn on features that nobody trained because a checkpoint is of another network."""
        names = [name for name, _ in self.checkpointer.model.named_parameters() if name.startswith(prefixes)]
        if not self.cfg.MODEL.WEIGHTS:
            if names:
                logger.warning("MODEL.WEIGHTS is empty: what is not trained here stays as it was built, %s", names[0])
            return
        # This trunk has its weights already when the checkpoint comes, and a checkpoint may leave it out.
        has_own = (TRUNK_PREFIX,) if self.cfg.MODEL.OESIR.EFFICIENTNET.WEIGHTS else ()
        missing = [
            name
            for name in self.checkpointer.incompatible.missing_keys  # those of another shape are among them
            # The zoo's older checkpoints do not count batches, and nothing here does.
            if name.startswith(prefixes) and not name.startswith(has_own) and not name.endswith("_batches_tracked")
        ]
        if missing:
            part = "detector" if missing[0].startswith("backbone.") else "student"
            raise ValueError(
                f"MODEL.WEIGHTS {self.cfg.MODEL.WEIGHTS!r} do not fit the {part}: {len(missing)} tensors of its "
                f"{missing[0].split('.')[0]} are missing or of another shape, {missing[0]!r} the first"
            )

    def _check_whitening(self) -> None:
        """What the contrastive stage trains must have a start."""
        whitening = self.checkpointer.model.roi_heads.embedding_head.whitening
        if whitening is not None and not whitening.fitted:
            raise ValueError(
                "the contrastive stage starts from a whitening; set MODEL.OESIR.EMBEDDING.WHITENING to a file of "
                "tools/fit_whitening.py, or MODEL.WEIGHTS to a checkpoint with one"
            )

    def build_hooks(self) -> list[HookBase | None]:
        folder = Path(self.cfg.OUTPUT_DIR)
        hooks = [StopOnNonFiniteLoss(), CountSkippedImages(folder), *super().build_hooks()]
        model = self.checkpointer.model
        if isinstance(model, OESIRContrastive) and model.roi_heads.embedding_head.whitening is not None:
            source = f"contrastive stage on {', '.join(self.cfg.DATASETS.TRAIN)}"
            batch_size = self.cfg.SOLVER.IMS_PER_BATCH
            hooks.append(WriteProjection(model.roi_heads.embedding_head.whitening, folder, source, batch_size))
        return hooks

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model, say how much of it is trained.

        Raises:
            ValueError: a component that is not registered, or a model without anything to train.
        """
        if cfg.MODEL.META_ARCHITECTURE not in META_ARCH_REGISTRY:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r} unknown; allowed here: "
                "'OESIR' (trains the detector), 'OESIRDistillation' (trains the student), 'OESIRContrastive' (trains "
                "student and projection on pairs), 'LandmarkClassifier' (trains the teacher on landmarks)"
            )
        model = build_model(cfg)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if not trained:
            raise ValueError(f"a {cfg.MODEL.META_ARCHITECTURE} of this config has no weights to train")
        total = sum(p.numel() for p in model.parameters())
        logger.info("Training %d of %d weights of a %s", trained, total, cfg.MODEL.META_ARCHITECTURE)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer that ``SOLVER.OESIR.OPTIMIZER`` names, with detectron2's keys for rates, decay and clipping.

        Raises:
            ValueError: an unknown name.
        """
        name = cfg.SOLVER.OESIR.OPTIMIZER
        if name == "SGD":
            return build_optimizer(cfg, model)
        if name not in OPTIMIZERS:
            raise ValueError(f"SOLVER.OESIR.OPTIMIZER {name!r} unknown; allowed: {['SGD', *OPTIMIZERS]}")
        parameters = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        return maybe_add_gradient_clipping(cfg, OPTIMIZERS[name])(parameters, lr=cfg.SOLVER.BASE_LR)

    @classmethod
    def build_train_loader(
        cls, cfg: CfgNode, dataset_dicts: list[dict[str, Any]] | None = None
    ) -> Iterable[list[dict[str, Any]]]:
        return build_train_loader(cfg, dataset_dicts)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        mapper: EmbeddingMapper | MarkUnreadable = EmbeddingMapper(cfg)
        if MetadataCatalog.get(dataset_name).get("evaluator_type") in RETRIEVAL_LABELS:
            mapper = MarkUnreadable(mapper)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluator of the data set's kind.

        Raises:
            ValueError: as :func:`oesir_d2.evaluation.evaluators.build_evaluator`.
        """
        return build_evaluator(cfg, dataset_name)
