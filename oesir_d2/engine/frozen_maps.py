"""The maps of what does not learn while a student does, computed once for some crops of every photo and kept on disk.

Detector and teacher take most of the time of a distillation on a CPU, and give the same maps for the same crop. Crops
that are taken again and again are less of a variety than new ones; how many each photo has is
``MODEL.OESIR.DISTILLATION.CACHED_CROPS``.

A folder holds shards, each whole or not there, so that a run that was killed goes on with the next one::

    frozen_maps/
        shards.json         the key of all that decides the maps
        000000.safetensors  the crops and their maps, float16, one row each; the header has the photos' names
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.utils.data import Dataset
from tqdm import tqdm

from oesir_d2.data.training_mappers import TrainingMapper
from oesir_d2.engine.kept_results import hash_json, read_kept, write_kept
from oesir_d2.engine.model_info import hash_tensors
from oesir_d2.files import remove_temporaries, replace_file
from oesir_d2.modeling import OESIRDistillation

FOLDER = "frozen_maps"
KEY_FILE = "shards.json"
CROPS_PER_SHARD = 64
BATCH_SIZE = 16
FEATURE_PREFIX = "features."

logger = logging.getLogger(__name__)


def build_frozen_map_loader(
    cfg: CfgNode, model: OESIRDistillation, dataset_dicts: Sequence[dict[str, Any]], mapper: TrainingMapper
) -> Iterable[list[dict[str, Any]]]:
    """Compute the maps that are not there yet, and give endless batches of them.

    Several processes share the work; all read all shards.

    Args:
        model: with the weights of its detector loaded.
        dataset_dicts: of the photos.
        mapper: gives a crop of a photo, one size for all, or None for a photo that cannot be read.

    Returns:
        Batches of ``file_name``, ``image`` (3, S, S) uint8, ``features``, by name (C, h, w) float16, and
        ``teacher_map`` (C', h', w') float16.

    Raises:
        OSError: the maps cannot be written.
        ValueError: not one photo can be read.
    """
    folder = Path(cfg.OUTPUT_DIR) / FOLDER
    write_shards(cfg, model, dataset_dicts, mapper, folder)
    comm.synchronize()
    crops = FrozenCrops(folder)
    if not len(crops):
        raise ValueError(f"none of the {len(dataset_dicts)} training photos can be read; {folder} has no crop")
    return build_detection_train_loader(
        crops,
        mapper=None,
        sampler=None,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=False,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def write_shards(
    cfg: CfgNode,
    model: OESIRDistillation,
    dataset_dicts: Sequence[dict[str, Any]],
    mapper: TrainingMapper,
    folder: Path,
) -> None:
    """Write this process's part of the shards, but for those that an earlier run of the same config has written."""
    count = cfg.MODEL.OESIR.DISTILLATION.CACHED_CROPS
    if comm.is_main_process():
        _prepare_folder(folder, _make_key(cfg, model, dataset_dicts))
    comm.synchronize()
    seed = max(cfg.SEED, 0)
    # Every shard has crops of other photos, and some crops of one photo lie in different shards.
    items = [item for _ in range(count) for item in dataset_dicts]
    starts = range(0, len(items), CROPS_PER_SHARD)
    names = [folder / f"{number:06d}.safetensors" for number in range(len(starts))]
    missing = [(number, path) for number, path in enumerate(names) if not path.exists()]
    missing = missing[comm.get_rank() :: comm.get_world_size()]
    was_training = model.training
    model.eval()
    for number, path in tqdm(missing, "maps that do not change", unit="shard", disable=not comm.is_main_process()):
        seed_all_rng(seed + number)
        shard = items[starts[number] : starts[number] + CROPS_PER_SHARD]
        crops = [crop for crop in map(mapper, shard) if crop is not None]
        _write_shard(cfg, model, crops, path)
    model.train(was_training)
    # What comes after is random in the same way whether shards had to be written or not.
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())


def _write_shard(cfg: CfgNode, model: OESIRDistillation, crops: list[dict[str, Any]], path: Path) -> None:
    parts = []
    for start in range(0, len(crops), BATCH_SIZE):
        batch = crops[start : start + BATCH_SIZE]
        with torch.autocast(model.device.type, torch.bfloat16, enabled=cfg.SOLVER.AMP.ENABLED):
            features, teacher_map = model.compute_frozen_maps(batch)
        part = {FEATURE_PREFIX + name: value for name, value in features.items()} | {"teacher_map": teacher_map}
        part = {name: value.half().cpu().contiguous() for name, value in part.items()}
        parts.append(part | {"image": torch.stack([crop["image"] for crop in batch])})
    tensors = {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else ())}
    header = {"file_names": json.dumps([str(crop["file_name"]) for crop in crops])}
    replace_file(path, save(tensors, header))


def _prepare_folder(folder: Path, key: str) -> None:
    """Make the folder, without shards of anything else and what a killed run left unfinished."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    if read_kept(folder / KEY_FILE, key) is None:
        stale = list(folder.glob("*.safetensors"))
        if stale:
            logger.warning(
                "%d shard(s) of %s are of another config, other weights or photos: made anew", len(stale), folder
            )
        for path in stale:
            path.unlink()
        write_kept(folder / KEY_FILE, key, {})


def _make_key(cfg: CfgNode, model: OESIRDistillation, dataset_dicts: Sequence[dict[str, Any]]) -> str:
    """Of all that decides the maps."""
    frozen = {f"backbone.{name}": value for name, value in model.backbone.state_dict().items()}
    frozen |= {f"teacher.{name}": value for name, value in model.teacher.state_dict().items()}
    return hash_json(
        {
            "weights": hash_tensors(frozen),
            "features": list(model.embedding_source.student.in_features),
            "layer": [cfg.MODEL.OESIR.TEACHER.NAME, cfg.MODEL.OESIR.TEACHER.LAYER, model.teacher_scale],
            "crops": [cfg.MODEL.OESIR.DISTILLATION.CACHED_CROPS, max(cfg.SEED, 0), CROPS_PER_SHARD],
            "input": cfg.INPUT.dump(),
            "bfloat16": cfg.SOLVER.AMP.ENABLED,
            "photos": [str(item["file_name"]) for item in dataset_dicts],
        }
    )


class FrozenCrops(Dataset):
    """The crops of a folder of shards, read from disk as they are asked for.

    Raises:
        ValueError: a shard is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._rows: list[tuple[Path, int, str]] = []
        # Opened once: to map a file anew takes longer than to read a row of it.
        self._shards: dict[Path, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with _open_shard(path) as shard:
                file_names = json.loads(shard.metadata()["file_names"])
            self._rows += [(path, row, name) for row, name in enumerate(file_names)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, row, file_name = self._rows[index]
        shard = self._open(path)
        tensors = {name: shard.get_slice(name)[row] for name in shard.keys()}
        crop: dict[str, Any] = {"file_name": file_name, "features": {}}
        for name, value in tensors.items():
            if name.startswith(FEATURE_PREFIX):
                crop["features"][name.removeprefix(FEATURE_PREFIX)] = value
            else:
                crop[name] = value
        return crop

    def _open(self, path: Path) -> Any:
        if path not in self._shards:
            self._shards[path] = _open_shard(path)
        return self._shards[path]


def _open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and the next run makes it anew") from error
