"""The supplement's Figures 1 and 2: every layer, pooling and dimension of several networks on several data sets.

What an analysis took is kept by model, in a folder whose name ends with the hash of the model: vectors in chunks of
photos, whitenings, and the figures of every cell (layer, pooling, dimension, data set). Called again, also after a
crash, it repeats nothing of it; what was made for another model, or with other options, stays beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from oesir_d2.engine.analysis_list import AnalysisModel
from oesir_d2.engine.analysis_ranking import RankingOptions, rank_database
from oesir_d2.engine.analysis_tasks import RetrievalTask
from oesir_d2.engine.kept_results import hash_json, read_kept, write_kept
from oesir_d2.engine.layer_vectors import POOLINGS, AnalysisPhoto, LayerNetwork, extract_vectors, name_kind
from oesir_d2.engine.vector_store import VectorStore
from oesir_d2.evaluation.analysis_table import AnalysisRow
from oesir_d2.files import remove_temporaries
from oesir_d2.index.lock import WriterLock
from oesir_d2.layers import CovarianceAccumulator, PCAWhitening, l2_normalize, load_whitening, save_whitening

logger = logging.getLogger(__name__)

MODELS_FOLDER = "models"
DIMENSIONS = (64, 128, 256, 512, 1024, 2048)
"""Those of the supplement's Figure 1(a)."""

_MOMENTS_CHUNK = 4096


@dataclass(frozen=True)
class AnalysisOptions:
    """The grid.

    Attributes:
        dimensions: of the whitened vectors, in ascending order; 0: not whitened.
        poolings: some of ``POOLINGS``.
        ranking: how databases are ranked.
    """

    dimensions: tuple[int, ...] = DIMENSIONS
    poolings: tuple[str, ...] = tuple(POOLINGS)
    ranking: RankingOptions = RankingOptions()


@dataclass
class Analysis:
    """What an analysis found.

    Attributes:
        rows: the figures, in the order of models, layers, poolings, data sets, dimensions and metrics.
        counts: by model, what :func:`extract_vectors` counted, and cells: ``scored`` now, ``kept`` from before.
        left_out: dimensions that a layer does not have, one line each.
        skipped: by model, why it could not be built: weights that are not there.
    """

    rows: list[AnalysisRow] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def analyze_embeddings(
    models: Sequence[AnalysisModel],
    tasks: Sequence[RetrievalTask],
    fit_photos: Sequence[AnalysisPhoto],
    output: Path,
    options: AnalysisOptions,
    weights_dir: Path | None = None,
    strict: bool = False,
) -> Analysis:
    """Measure the whole grid.

    Args:
        models: the networks.
        tasks: the data sets.
        fit_photos: what whitenings are fitted on; photos that no data set should have.
        output: folder, created if missing.
        options: the grid.
        weights_dir: what stands for ``${WEIGHTS_DIR}`` in the models' overrides.
        strict: refuse a model whose weights are not there, instead of skipping it.

    Raises:
        ValueError: a network that cannot be built, or an output folder that another process works in.
        FileNotFoundError: in strict mode, weights that are not there.
    """
    analysis = Analysis()
    _warn_of_known_photos(tasks, fit_photos)
    networks: dict[str, LayerNetwork] = {}
    for model in models:
        built = _build_network(model, options, weights_dir)
        if isinstance(built, LayerNetwork):
            networks[model.name] = built
            continue
        if strict:
            raise FileNotFoundError(f"model {model.name!r}: {built}")
        logger.warning("model %r is left out: %s", model.name, built)
        analysis.skipped[model.name] = built
    output.mkdir(parents=True, exist_ok=True)
    try:
        lock = WriterLock(output)
    except ValueError as error:
        raise ValueError(f"another analysis works in {output}, or it cannot be written to") from error
    try:
        for folder in (output, *(path for path in output.rglob("*") if path.is_dir())):
            remove_temporaries(folder)
        for name, network in networks.items():
            folder = output / MODELS_FOLDER / f"{name}-{network.key[:12]}"
            _ModelAnalysis(name, network, tasks, fit_photos, folder, options, analysis).run()
    finally:
        lock.release()
    return analysis


class _ModelAnalysis:
    """The part of an analysis that concerns one model; adds to what was found."""

    def __init__(
        self,
        name: str,
        network: LayerNetwork,
        tasks: Sequence[RetrievalTask],
        fit_photos: Sequence[AnalysisPhoto],
        folder: Path,
        options: AnalysisOptions,
        analysis: Analysis,
    ) -> None:
        self._name, self._network, self._tasks = name, network, tasks
        self._folder, self._options, self._analysis = folder, options, analysis
        self._store = VectorStore(folder / "vectors")
        photos = [photo for task in tasks for photo in task.photos] + list(fit_photos)
        self._counts = extract_vectors(network, photos, self._store) | {"scored": 0, "kept": 0}
        self._fit_keys = self._list_readable(fit_photos)
        if not self._fit_keys:
            raise ValueError(f"none of the {len(fit_photos)} photos could be read: there is nothing to fit a PCA on")
        self._fit_key = hash_json([network.key, self._fit_keys])

    def run(self) -> None:
        """Score every cell that is not scored yet."""
        analysis = self._analysis
        kinds = [(layer, pooling) for layer in self._network.channels for pooling in self._options.poolings]
        for layer, pooling in tqdm(kinds, desc=f"Cells of {self._name}", unit="layer"):
            whitening = self._fit_whitening(layer, pooling)
            dimensions = [dimension for dimension in self._options.dimensions if dimension <= whitening.output_dim]
            self._tell_left_out(layer, pooling, whitening.output_dim)
            analysis.rows += self._score(layer, pooling, dimensions, whitening)
        analysis.counts[self._name] = self._counts

    def _list_readable(self, photos: Sequence[AnalysisPhoto]) -> list[str]:
        """The distinct keys of the photos that could be read, in order."""
        return [key for key in dict.fromkeys(photo.key for photo in photos) if key in self._store.places]

    def _fit_whitening(self, layer: str, pooling: str) -> PCAWhitening:
        """The whitening to the most dimensions that are asked for; one fit serves all of them."""
        path = self._folder / "whitening" / f"{layer}-{pooling}.safetensors"
        most = max(1, *self._options.dimensions)
        key = hash_json([self._fit_key, most])
        try:
            whitening, metadata = load_whitening(path)
            if metadata.get("key") == key:
                return whitening
        except (FileNotFoundError, ValueError):
            pass
        vectors = torch.from_numpy(self._store.load(name_kind(layer, pooling), self._fit_keys))
        moments = CovarianceAccumulator(vectors.shape[1])
        for chunk in vectors.split(_MOMENTS_CHUNK):
            moments.update(chunk)
        whitening = PCAWhitening.fit_largest(moments, most)
        path.parent.mkdir(exist_ok=True)
        source = f"analysis of embeddings, {self._name} {layer} {pooling}"
        save_whitening(path, whitening, {"source": source, "count": moments.count, "key": key})
        return whitening

    def _score(self, layer: str, pooling: str, dimensions: Sequence[int], whitening: PCAWhitening) -> list[AnalysisRow]:
        """The figures of a layer's cells."""
        embeddings = _Embeddings(self._store, name_kind(layer, pooling), whitening)
        rows = []
        for task in self._tasks:
            for dimension in dimensions:
                key = hash_json([self._fit_key, layer, pooling, dimension, task.key, asdict(self._options.ranking)])
                # With the key in its name: what was measured with other options stays.
                path = self._folder / "cells" / task.name / f"{layer}-{pooling}-{dimension}-{key[:12]}.json"
                metrics = read_kept(path, key)
                self._counts["scored" if metrics is None else "kept"] += 1
                if metrics is None:
                    metrics = write_kept(path, key, self._score_cell(task, dimension, embeddings))
                where = (self._name, layer, pooling, dimension, task.name)
                rows += [AnalysisRow(*where, metric, value) for metric, value in metrics.items()]
        return rows

    def _score_cell(self, task: RetrievalTask, dimension: int, embeddings: _Embeddings) -> dict[str, float]:
        places = self._store.places
        readable = [position for position, photo in enumerate(task.database) if photo.key in places]
        queries = [query.key for query in task.queries if query.key in places]
        normalizes = self._options.ranking.normalization != "none"
        found = rank_database(
            embeddings.get(queries, dimension),
            embeddings.get([task.database[position].key for position in readable], dimension),
            embeddings.get(self._fit_keys if normalizes else [], dimension),
            self._options.ranking,
        )
        positions = np.array(readable, dtype=np.int64)
        rankings, scores = [], []
        for query in task.queries:
            order, of_query = next(found) if query.key in places else (np.zeros(0, dtype=np.int64), np.zeros(0))
            rankings.append(positions[order])
            scores.append(of_query)
        return task.score(rankings, scores)

    def _tell_left_out(self, layer: str, pooling: str, most: int) -> None:
        missing = [dimension for dimension in self._options.dimensions if dimension > most]
        if not missing:
            return
        channels, photos = self._network.channels[layer], len(self._fit_keys)
        if most == min(channels, photos - 1):
            pooling = "every pooling"
            reason = f"{channels} channels" if channels < photos else f"{photos} photos to fit on"
        else:
            reason = f"the vectors to fit on vary in {most} directions only"
        line = f"{self._name} {layer}, {pooling}: no {', '.join(map(str, missing))} dimensions, for {reason}"
        if line not in self._analysis.left_out:
            self._analysis.left_out.append(line)


class _Embeddings:
    """The embeddings of one layer and pooling, at several dimensions; photos are whitened once, at the largest."""

    def __init__(self, store: VectorStore, kind: str, whitening: PCAWhitening) -> None:
        self._store, self._kind, self._whitening = store, kind, whitening
        self._pooled: dict[tuple[str, ...], torch.Tensor] = {}
        self._projected: dict[tuple[str, ...], torch.Tensor] = {}

    def get(self, keys: Sequence[str], dimension: int) -> np.ndarray:
        """(n, dimension) float32 of n photos, L2-normalised; dimension 0: as they were pooled."""
        group = tuple(keys)
        if not group:
            return np.zeros((0, dimension or self._whitening.input_dim), dtype=np.float32)
        if group not in self._pooled:
            self._pooled[group] = torch.from_numpy(self._store.load(self._kind, keys))
            self._projected[group] = self._whitening.project(self._pooled[group])
        vectors = self._projected[group][:, :dimension] if dimension else self._pooled[group]
        return l2_normalize(vectors).numpy()


def _build_network(model: AnalysisModel, options: AnalysisOptions, weights_dir: Path | None) -> LayerNetwork | str:
    """A network, or why its weights are not there."""
    try:
        cfg = model.load_config(weights_dir)
        if weights_dir is None and model.needs_weights_dir:
            return "its weights are in ${WEIGHTS_DIR}; name that folder by --weights-dir"
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"model {model.name!r}: {error}") from error
    try:
        return LayerNetwork(model, cfg, options.poolings)
    except FileNotFoundError as error:
        return str(error)
    except ValueError as error:
        raise ValueError(f"model {model.name!r}: {error}") from error


def _warn_of_known_photos(tasks: Sequence[RetrievalTask], fit_photos: Sequence[AnalysisPhoto]) -> None:
    fitted = {photo.key for photo in fit_photos}
    for task in tasks:
        known = len(fitted & {photo.key for photo in task.photos})
        if known:
            logger.warning("%d of the photos to fit on are in the data set %r: its figures flatter", known, task.name)
