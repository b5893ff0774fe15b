"""The index: an on-disk collection of region embeddings, and exact search for images in it. numpy and FAISS only."""

from .aggregate import AGGREGATORS, get_aggregator, register_aggregator
from .compatibility import EmbeddingModelInfo
from .manifest import Manifest, SegmentInfo, check_compatible
from .object_index import FaissObjectIndex, ObjectIndex, build_object_index, check_factory
from .reader import EmbeddingIndex
from .results import RegionMatch, SearchResult, round_box
from .segments import ImageRecord
from .set_search import SetSearcher
from .skipped import SkippedFile, SkippedFiles, read_skipped
from .writer import IndexWriter

__all__ = [
    "AGGREGATORS",
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
    "get_aggregator",
    "read_skipped",
    "register_aggregator",
    "round_box",
]
