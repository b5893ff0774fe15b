"""Which evaluator a data set gets: the one registered under the ``evaluator_type`` of its metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.utils.registry import Registry

from oesir_d2.evaluation.retrieval_evaluator import CopyEvaluator, RevisitedEvaluator, SpliceEvaluator
from oesir_d2.index import get_aggregator
from oesir_d2.structures import NO_CLASS

EVALUATOR_REGISTRY = Registry("EVALUATOR")
EVALUATOR_REGISTRY.__doc__ = """
Evaluators by the ``evaluator_type`` of the data sets that they are for. The registered object is called with
``obj(cfg, dataset_name)`` and returns a DatasetEvaluator whose figures are percent: ``{task: {metric: float}}``.
"""


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """The evaluator of a registered data set.

    Raises:
        ValueError: a kind of data set that cannot be evaluated.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in EVALUATOR_REGISTRY:
        allowed = sorted(name for name, _ in EVALUATOR_REGISTRY)
        raise ValueError(
            f"DATASETS.TEST {dataset_name!r} cannot be evaluated: it is a set of the kind {kind!r}; allowed: {allowed}"
        )
    return EVALUATOR_REGISTRY.get(kind)(cfg, dataset_name)


def build_retrieval_options(cfg: CfgNode) -> dict[str, Any]:
    """The options that all retrieval evaluators take from a config.

    Raises:
        ValueError: an aggregator that is not registered, or a negative depth.
    """
    get_aggregator(cfg.RETRIEVAL.AGGREGATE)
    if cfg.RETRIEVAL.EVALUATION_DEPTH < 0:
        raise ValueError(f"RETRIEVAL.EVALUATION_DEPTH is {cfg.RETRIEVAL.EVALUATION_DEPTH}; allowed: 0 or more")
    return {
        "aggregate": cfg.RETRIEVAL.AGGREGATE,
        "explain_away": cfg.RETRIEVAL.EXPLAIN_AWAY,
        "depth": cfg.RETRIEVAL.EVALUATION_DEPTH,
        "factory": cfg.INDEX.FACTORY,
        "folder": cfg.OUTPUT_DIR,
    }


@EVALUATOR_REGISTRY.register()
def revisited(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """Revisited Oxford and Paris."""
    return RevisitedEvaluator(DatasetCatalog.get(dataset_name), **build_retrieval_options(cfg))


@EVALUATOR_REGISTRY.register()
def splice_retrieval(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """Spliced photos and their sources."""
    return SpliceEvaluator(DatasetCatalog.get(dataset_name), **build_retrieval_options(cfg))


@EVALUATOR_REGISTRY.register()
def copy_detection(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """Edited photos and their originals."""
    return CopyEvaluator(DatasetCatalog.get(dataset_name), **build_retrieval_options(cfg))


@EVALUATOR_REGISTRY.register()
def coco(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """COCO's average precision of the detections among the regions.

    Raises:
        ValueError: a model whose regions are no detections.
    """
    if cfg.MODEL.OESIR.REGIONS.PROPOSER != "DetectorRegions":
        raise ValueError(
            f"average precision is of detections; MODEL.OESIR.REGIONS.PROPOSER is "
            f"{cfg.MODEL.OESIR.REGIONS.PROPOSER!r}, allowed: 'DetectorRegions'"
        )
    # The compiled implementation is not in every installation of detectron2. A cached conversion of the annotations
    # would outlive a change of the keys that decide on classes.
    return DetectionEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR, use_fast_impl=False, allow_cached_coco=False)


class DetectionEvaluator(COCOEvaluator):
    """COCO's evaluator, for which the whole image among the regions is no detection."""

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        detections = []
        for output in outputs:
            instances = output["instances"]
            detections.append({"instances": instances[instances.pred_classes != NO_CLASS]})
        super().process(inputs, detections)
