"""Metrics and protocols: how well rankings find what they should find."""

from oesir_d2.evaluation.kept_results import KeptResults
from oesir_d2.evaluation.metrics import compute_average_precision, mean_average_precision, recall_at_k
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
    "SpliceEvaluation",
    "compute_average_precision",
    "evaluate_splice_retrieval",
    "match_database",
    "mean_average_precision",
    "recall_at_k",
    "worst_failures",
]
