"""How fast photos are embedded, stage by stage, in ratios to what the machine itself does in the same run."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from oesir_d2.data.images import ImageFile
from oesir_d2.engine.embedder import Embedder
from oesir_d2.engine.inference import PRECISIONS
from oesir_d2.engine.network_work import MachineRates, bound_milliseconds, count_convolutions, time_in_turns
from oesir_d2.engine.parallel_indexing import Build, launch_build
from oesir_d2.engine.process_launch import ProcessLayout
from oesir_d2.engine.timing import time_side_by_side
from oesir_d2.modeling.embedding_source import EMBEDDING_MAP, DetectorSource


@dataclass(frozen=True)
class ExtractionFigures:
    """What embedding costs on one machine, as means over the photos of medians over the rounds.

    Attributes:
        stages: milliseconds a photo: ``decode``, ``detect`` (backbone, RPN, box head, choice of regions), ``source``
            (student or teacher; not there where the embedding map is the detector's own), ``pool`` (regions and the
            whole image, whitening included) and ``model`` (all but the decoding).
        stages_in_products: the same in matrix products, 1024 x 1024 in the model's precision, of the same run.
        network_share: the floating-point rate of the convolutions of the trunk (the backbone's, or a teacher without
            one), as a share of the matrix product's rate.
        bandwidth_share: the least time that its maps and weights take through memory, as a share of its time; where
            they stay in the caches it can exceed 1.
        bound_share: the least time by both limits, layer by layer, as a share of its time.
        end_to_end: photos from files to embeddings, in time relative to the model's alone on the same batches.
        product_gflops, copy_gbytes: the machine's own rates, for the record.
        threads, device, precision, batch_size, photos, rounds, load: what was measured; ``load`` is the number of
            processes that wanted to run, at the beginning.
    """

    stages: dict[str, float]
    stages_in_products: dict[str, float]
    network_share: float
    bandwidth_share: float
    bound_share: float
    end_to_end: float
    product_gflops: float
    copy_gbytes: float
    threads: int
    device: str
    precision: str
    batch_size: int
    photos: int
    rounds: int
    load: float


@torch.inference_mode()
def measure_extraction(
    cfg: CfgNode, files: Sequence[ImageFile], rounds: int = 5, clock: Callable[[], float] = time.perf_counter
) -> ExtractionFigures:
    """Measure the stages of extraction on some photos, as ``MODEL.OESIR.EXTRACTION`` has them done.

    Args:
        cfg: the model's config.
        files: the photos; a dozen of the collection's sizes will do.
        rounds: timed rounds, after one that is not.
        clock: gives seconds. On a processor that others use as well, ``time.process_time`` tells what one thread would
            take alone; what the end-to-end time then has of decoding is not hidden behind the model.

    Raises:
        UnreadableImageError: one of the photos cannot be read.
        ValueError, FileNotFoundError: as :class:`Embedder`; or there are no photos.
    """
    load = os.getloadavg()[0]
    embedder = Embedder(cfg)
    model, options = embedder.model, cfg.MODEL.OESIR.EXTRACTION
    rates = MachineRates(model.device, PRECISIONS[options.PRECISION])
    photos = [embedder.decode(file) for file in files]
    stages = _make_stages(embedder, photos)
    network, run_network = _find_network(embedder)
    wait = partial(torch.cuda.synchronize, model.device) if model.device.type == "cuda" else None
    number = {id(photo): file for photo, file in zip(photos, files, strict=True)}
    functions: dict[str, Callable[[dict[str, Any]], Any]] = {
        **stages,
        "decode": lambda x: embedder.decode(number[id(x)]),
        "network": run_network,
        "product": rates.multiply,
        "copy": rates.copy,
    }
    ms = time_side_by_side(functions, photos, rounds, synchronize=wait, clock=clock)
    per_ms, bytes_per_ms = rates.operations / ms["product"], rates.bytes / ms["copy"]
    work = [count_convolutions(network, partial(run_network, x)) for x in photos]
    operations = statistics.fmean(sum(w.operations for w in of_photo) for of_photo in work)
    moved = statistics.fmean(sum(w.bytes for w in of_photo) for of_photo in work)
    named = {name: ms[name] for name in ("decode", *stages)}
    return ExtractionFigures(
        stages=named,
        stages_in_products={name: value / ms["product"] for name, value in named.items()},
        network_share=operations / ms["network"] / per_ms,
        bandwidth_share=moved / bytes_per_ms / ms["network"],
        bound_share=statistics.fmean(bound_milliseconds(w, per_ms, bytes_per_ms) for w in work) / ms["network"],
        end_to_end=_measure_end_to_end(embedder, files, rounds, clock),
        product_gflops=per_ms / 1e6,
        copy_gbytes=bytes_per_ms / 1e6,
        threads=torch.get_num_threads(),
        device=str(model.device),
        precision=options.PRECISION,
        batch_size=options.BATCH_SIZE,
        photos=len(files),
        rounds=rounds,
        load=load,
    )


def _make_stages(embedder: Embedder, photos: Sequence[dict[str, Any]]) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """The stages that run on a decoded photo; what a stage takes from those before it is computed ahead."""
    model = embedder.model
    has_detector = model.proposal_generator is not None
    maps: dict[int, tuple[dict[str, torch.Tensor], list[torch.Tensor], list[tuple[int, int]]]] = {}
    for x in photos:
        images = model.preprocess_image([x])
        regions = model.inference([x], do_postprocess=False)
        boxes = [r.pred_boxes.tensor[: len(r) - model.whole_image] for r in regions]
        maps[id(x)] = (model.compute_features([x], images.tensor), boxes, images.image_sizes)

    def pool(x: dict[str, Any]) -> None:
        features, boxes, sizes = maps[id(x)]
        model.roi_heads.embedding_head.embed_regions(features[EMBEDDING_MAP], boxes, sizes)
        model.roi_heads.embedding_head.embed_images(features[EMBEDDING_MAP], sizes)

    stages: dict[str, Callable[[dict[str, Any]], Any]] = {}
    if has_detector:
        stages["detect"] = lambda x: model.detect([x])
    if not isinstance(model.embedding_source, DetectorSource):
        stages["source"] = lambda x: model.embedding_source([x["image"].to(model.device)], maps[id(x)][0])
    return stages | {"pool": pool, "model": lambda x: model([x])}


def _find_network(embedder: Embedder) -> tuple[torch.nn.Module, Callable[[dict[str, Any]], Any]]:
    """The network of most convolutions, and how to run it on a photo: the backbone's trunk, or else the teacher."""
    model = embedder.model
    if not model.backbone.output_shape():
        source = model.embedding_source
        return source, lambda x: source([x["image"].to(model.device)], {})
    network = getattr(model.backbone, "bottom_up", model.backbone)
    return network, lambda x: network(model.preprocess_image([x]).tensor)


def _measure_end_to_end(
    embedder: Embedder, files: Sequence[ImageFile], rounds: int, clock: Callable[[], float]
) -> float:
    """Photos from files to embeddings, in time relative to the model on the same batches with the photos in memory."""
    decoded = [(file, embedder.decode(file)) for file in files]

    def embed_files() -> None:
        for _ in embedder.embed_all(files):
            pass

    def embed_decoded() -> None:
        for _ in embedder.embed_decoded(decoded):
            pass

    seconds = time_in_turns({"files": embed_files, "decoded": embed_decoded}, rounds + 1, clock)
    # The first round warms up.
    return statistics.median(seconds["files"][1:]) / statistics.median(seconds["decoded"][1:])


def measure_processes(cfg: CfgNode, images: str, processes: int = 2, rounds: int = 3) -> dict[str, Any]:
    """How much faster several processes build an index than one, each with a core and a thread of its own.

    Args:
        cfg: the model's config, for the CPU.
        images: the collection, as :func:`list_images` takes it.
        processes: at most the cores of this machine.
        rounds: timed builds of either kind, in turns.

    Returns:
        ``speedup``, the median over the rounds; ``processes``; ``seconds`` of every build by number of processes; and
        ``load`` at the beginning.

    Raises:
        ValueError: there are fewer cores.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < processes:
        raise ValueError(f"--processes is {processes}; allowed here: at most {len(cores)}, the number of cores")
    load, seconds = os.getloadavg()[0], {1: [], processes: []}
    threads = torch.get_num_threads()
    for _ in range(rounds):
        for count in seconds:
            os.sched_setaffinity(0, cores[:count])
            torch.set_num_threads(1)
            try:
                with tempfile.TemporaryDirectory() as folder:
                    build = Build(cfg, images, Path(folder) / "index", strict=True)
                    summary = launch_build(build, ProcessLayout(count))
            finally:
                os.sched_setaffinity(0, cores)
                torch.set_num_threads(threads)
            assert summary is not None, "this is the first machine"
            seconds[count].append(summary.seconds)
    ratios = [one / many for one, many in zip(seconds[1], seconds[processes], strict=True)]
    return {"speedup": statistics.median(ratios), "processes": processes, "seconds": seconds, "load": load}
