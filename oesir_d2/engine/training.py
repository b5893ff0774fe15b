"""A training run from its command line: checked in this process, then run in as many as it asks for."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessRaisedException

from oesir_d2.engine.command_line import replace_nan, split_overrides
from oesir_d2.engine.config_loading import find_config, load_config
from oesir_d2.engine.inference import prepare_model
from oesir_d2.engine.model_loading import load_model
from oesir_d2.engine.process_launch import check_devices, find_mistake
from oesir_d2.engine.trainer import OESIRTrainer
from oesir_d2.engine.training_data import register_datasets
from oesir_d2.index import read_skipped


def parse_train_arguments(
    argv: Sequence[str] | None, description: str | None = None, epilog: str | None = None
) -> argparse.Namespace:
    """detectron2's usual flags; ``--config-file`` may be a bare name under configs/.

    Returns:
        With ``config_file`` as the path of the file.

    Raises:
        ValueError: a wrong flag, or no config.
        FileNotFoundError: there is no such config.
    """
    parser = default_argument_parser(epilog)
    parser.description = description
    parser.error = _refuse
    # detectron2 takes all that follows the first override for overrides; here a flag may stand anywhere.
    words, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(words)
    if not args.config_file:
        raise ValueError("--config-file is missing; allowed: a YAML file, or the bare name of one under configs/")
    args.config_file = str(find_config(args.config_file))
    args.opts = [*(args.opts or []), *overrides]
    return args


def launch_training(args: argparse.Namespace) -> None:
    """Train, or evaluate with ``--eval-only``, in ``--num-gpus`` processes on each of ``--num-machines``.

    The main process ends by printing one JSON object.

    Raises:
        ValueError: a mistake in the config, or a loss that became NaN, in whichever process it was found.
        FileNotFoundError: data or weights that are not there.
    """
    cfg = load_config(args.config_file, args.opts)
    check_devices(cfg, args.num_gpus)
    if args.eval_only and not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty; --eval-only needs one or more names of data sets")
    # Again in every process; here it finds mistakes before there are many.
    register_datasets(cfg)
    try:
        launch(_run, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))
    except (ProcessRaisedException, ValueError) as error:
        mistake = find_mistake(str(error))
        if mistake is None:
            raise
        raise ValueError(mistake) from error


def _run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    cfg.freeze()
    register_datasets(cfg)
    # It warns of a machine that has CUDA's compiler and no GPU, when detectron2 describes the environment.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="oesir_d2")
    start = time.perf_counter()
    if args.eval_only:
        model = load_model(cfg)
        # As the tools run it, so that they get the same figures to the last digit.
        prepare_model(cfg, model)
        report = dict(OESIRTrainer.test(cfg, model))
    else:
        trainer = OESIRTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
        report = {
            "iterations": trainer.iter,
            "weights": trainer.checkpointer.get_checkpoint_file(),
            "skipped": len(read_skipped(cfg.OUTPUT_DIR)),
        }
    if comm.is_main_process():
        print(json.dumps(replace_nan(report | {"seconds": round(time.perf_counter() - start, 1)})), flush=True)


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"{message}; --help shows examples")
