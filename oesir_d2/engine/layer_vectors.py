"""Photos in, pooled vectors out: every layer of a network and every pooling, in one forward pass of each photo.

Shape shorthand: n photos, C channels of a layer, H x W pixels.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from tqdm import tqdm

from oesir_d2.data.images import ImageFile, UnreadableImageError
from oesir_d2.data.mappers import EmbeddingMapper
from oesir_d2.engine.analysis_list import AnalysisModel
from oesir_d2.engine.kept_results import hash_file, hash_json
from oesir_d2.engine.model_info import describe_config, hash_tensors
from oesir_d2.engine.model_loading import load_model
from oesir_d2.engine.read_ahead import read_ahead
from oesir_d2.engine.vector_store import VectorStore
from oesir_d2.modeling import POOLER_REGISTRY, DetectorTaps, LayerTaps, TeacherTaps, build_teacher

logger = logging.getLogger(__name__)

POOLINGS = {"SPoC": "SPoCPooler", "MAC": "MACPooler", "R-MAC": "RMACPooler", "GeM": "GeMPooler"}
"""The supplement's poolings, by the names of its tables, and the poolers that do them."""

PHOTOS_A_CHUNK = 32
"""Photos whose vectors are written together: at most so many are passed again after a crash."""

_READ_AHEAD = 4


@dataclass(frozen=True)
class AnalysisPhoto:
    """A photo of an analysis.

    Attributes:
        path: the file.
        sha256: of its content.
        query_box: the part of it that the network sees, as :class:`EmbeddingMapper` has it; None: all.
    """

    path: Path
    sha256: str
    query_box: tuple[float, ...] | None = None

    @classmethod
    def of(cls, file: ImageFile, query_box: Sequence[float] | None = None) -> AnalysisPhoto:
        return cls(file.path, hash_file(file.path), None if query_box is None else tuple(query_box))

    @property
    def key(self) -> str:
        """Tells what the network sees: files of the same content are one photo."""
        return self.sha256 if self.query_box is None else f"{self.sha256} {list(self.query_box)}"


class LayerNetwork:
    """A network that pools all its tapped layers in one pass.

    Args:
        model: the network and its layers.
        cfg: its config.
        poolings: some of ``POOLINGS``.

    Attributes:
        key: the hash of all that decides its vectors.
        channels: C of each layer, by its name in tables.

    Raises:
        ValueError, FileNotFoundError: a network that cannot be built, or layers that it does not have.
    """

    def __init__(self, model: AnalysisModel, cfg: CfgNode, poolings: Sequence[str] = tuple(POOLINGS)) -> None:
        # As of an Embedder: what oneDNN keeps for each layer and each size of photo would take a gigabyte.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
        self._device = cfg.MODEL.DEVICE
        self._taps = _build_taps(model, cfg).to(self._device).eval()
        self._layers = model.layers
        self._poolers = {name: POOLER_REGISTRY.get(POOLINGS[name])(cfg).to(self._device) for name in poolings}
        self._mapper = EmbeddingMapper(cfg)
        self.channels = {label: self._taps.shapes[layer].channels for label, layer in model.layers.items()}
        weights = hash_tensors(self._taps.state_dict())
        self.key = hash_json([describe_config(cfg), model.network, weights, model.layers, list(poolings)])

    def read(self, photo: AnalysisPhoto) -> dict[str, Any] | UnreadableImageError:
        """The network's input, as detectron2's mappers give it, or why there is none."""
        try:
            return self._mapper({"file_name": str(photo.path), "query_box": photo.query_box})
        except UnreadableImageError as error:
            return error

    @torch.inference_mode()
    def compute_maps(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """The maps of a photo (3, H, W): by the network's name of the layer, (1, C, h, w)."""
        return self._taps(image.to(self._device))

    @torch.inference_mode()
    def pool(self, image: torch.Tensor) -> dict[str, np.ndarray]:
        """The vectors of a photo (3, H, W): by "layer/pooling", (C,) float32, not normalised."""
        height, width = image.shape[1:]
        maps = self.compute_maps(image)
        vectors = {}
        for label, layer in self._layers.items():
            stride = self._taps.shapes[layer].stride
            for name, pooler in self._poolers.items():
                pooled = pooler(maps[layer], [(height / stride, width / stride)])[0]
                vectors[name_kind(label, name)] = pooled.float().cpu().numpy()
        return vectors


def name_kind(layer: str, pooling: str) -> str:
    """What a layer's vectors are called in a :class:`VectorStore`."""
    return f"{layer}/{pooling}"


def extract_vectors(network: LayerNetwork, photos: Iterable[AnalysisPhoto], store: VectorStore) -> dict[str, int]:
    """Pass those photos through the network whose vectors are not stored yet.

    Args:
        network: of the store.
        photos: in any number of repetitions; each is passed once.
        store: gets the vectors.

    Returns:
        How many photos there are, how many were passed now, and how many cannot be read.
    """
    distinct = {photo.key: photo for photo in photos}
    missing = [photo for key, photo in distinct.items() if key not in store.places]
    keys: list[str] = []
    rows: list[dict[str, np.ndarray]] = []
    counts = {"photos": len(distinct), "passed": 0, "unreadable": 0}

    def write() -> None:
        if keys:
            store.add(keys, {kind: np.stack([row[kind] for row in rows]) for kind in rows[0]})
            keys.clear()
            rows.clear()

    mapped_photos = read_ahead(missing, network.read, _READ_AHEAD)
    done = len(distinct) - len(missing)
    progress = tqdm(mapped_photos, desc="Pooling layers", unit="photo", total=len(distinct), initial=done)
    for photo, mapped in progress:
        if isinstance(mapped, UnreadableImageError):
            logger.warning("%s", mapped)
            counts["unreadable"] += 1
            continue
        rows.append(network.pool(mapped["image"]))
        keys.append(photo.key)
        counts["passed"] += 1
        if len(keys) == PHOTOS_A_CHUNK:
            write()
    write()
    return counts


def _build_taps(model: AnalysisModel, cfg: CfgNode) -> LayerTaps:
    layers = list(dict.fromkeys(model.layers.values()))
    if model.network == "teacher":
        return TeacherTaps(build_teacher(cfg), layers)
    return DetectorTaps(load_model(cfg), layers)
