"""Metrics and protocols: how well rankings find what they should find."""

from oesir_d2.evaluation.kept_results import KeptResults
from oesir_d2.evaluation.metrics import compute_average_precision, mean_average_precision, recall_at_k
from oesir_d2.evaluation.pair_metrics import micro_average_precision, recall_at_precision
from oesir_d2.evaluation.provenance_protocol import (
    ProvenanceRow,
    score_mask,
    score_provenance,
    summarise_provenance,
)
from oesir_d2.evaluation.region_coverage import RegionCoverage, compute_iou, measure_region_coverage
from oesir_d2.evaluation.revisited import (
    RevisitedEvaluation,
    RevisitedQuery,
    average_figures,
    collect_revisited_queries,
    evaluate_revisited,
    score_ranking,
)
from oesir_d2.evaluation.splice_protocol import (
    QueryRow,
    SpliceEvaluation,
    evaluate_splice_retrieval,
    match_database,
    worst_failures,
)
from oesir_d2.evaluation.tie_order import order_ties_against

__all__ = [
    "KeptResults",
    "ProvenanceRow",
    "QueryRow",
    "RegionCoverage",
    "RevisitedEvaluation",
    "RevisitedQuery",
    "SpliceEvaluation",
    "average_figures",
    "collect_revisited_queries",
    "compute_average_precision",
    "compute_iou",
    "evaluate_revisited",
    "evaluate_splice_retrieval",
    "match_database",
    "mean_average_precision",
    "measure_region_coverage",
    "micro_average_precision",
    "order_ties_against",
    "recall_at_k",
    "recall_at_precision",
    "score_mask",
    "score_provenance",
    "score_ranking",
    "summarise_provenance",
    "worst_failures",
]
