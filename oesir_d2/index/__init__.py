"""The index: an on-disk collection of region embeddings, and exact search for images in it. numpy and FAISS only."""

from .aggregate import AGGREGATORS, get_aggregator, register_aggregator
from .budget import Budget
from .compatibility import EmbeddingModelInfo
from .manifest import Manifest, SegmentInfo, check_compatible
from .object_index import FaissObjectIndex, ObjectIndex, build_object_index, check_factory
from .query_expansion import expand_queries
from .reader import EmbeddingIndex
from .records import ImageRecord
from .results import RegionMatch, SearchResult, round_box
from .score_normalization import compute_background_scores, normalize_scores
from .set_search import SetSearcher
from .skipped import SkippedFile, SkippedFiles, read_skipped
from .stored_object_index import object_index_path, open_object_index, refresh_object_index
from .tuning import tune_object_index
from .verification import find_damage
from .writer import IndexWriter

__all__ = [
    "AGGREGATORS",
    "Budget",
    "EmbeddingIndex",
    "EmbeddingModelInfo",
    "FaissObjectIndex",
    "ImageRecord",
    "IndexWriter",
    "Manifest",
    "ObjectIndex",
    "RegionMatch",
    "SearchResult",
    "SegmentInfo",
    "SetSearcher",
    "SkippedFile",
    "SkippedFiles",
    "build_object_index",
    "check_compatible",
    "check_factory",
    "compute_background_scores",
    "expand_queries",
    "find_damage",
    "get_aggregator",
    "normalize_scores",
    "object_index_path",
    "open_object_index",
    "read_skipped",
    "refresh_object_index",
    "register_aggregator",
    "round_box",
    "tune_object_index",
]
