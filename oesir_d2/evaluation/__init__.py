"""Metrics and protocols: how well rankings find what they should find."""

from oesir_d2.evaluation.kept_results import KeptResults
from oesir_d2.evaluation.metrics import compute_average_precision, mean_average_precision, recall_at_k
from oesir_d2.evaluation.region_coverage import RegionCoverage, compute_iou, measure_region_coverage
from oesir_d2.evaluation.splice_protocol import (
    QueryRow,
    SpliceEvaluation,
    evaluate_splice_retrieval,
    match_database,
    worst_failures,
)

__all__ = [
    "KeptResults",
    "QueryRow",
    "RegionCoverage",
    "SpliceEvaluation",
    "compute_average_precision",
    "compute_iou",
    "evaluate_splice_retrieval",
    "match_database",
    "mean_average_precision",
    "measure_region_coverage",
    "recall_at_k",
    "worst_failures",
]
