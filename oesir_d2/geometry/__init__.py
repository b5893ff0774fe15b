"""Geometric proof: local features, verification of matches, localisation of splices. NumPy and OpenCV only."""

from .appearance import compare_appearance, weigh_appearance
from .feature_cache import FeatureCache
from .features import FeatureOptions, LocalFeatures, detect_features, detect_features_in_box
from .findings import Appearance, Doubt, Findings, GeometricMatch, PartKind, PhotoFinding, Role, SplicePart
from .localisation import (
    Comparison,
    compare,
    express_within_query,
    find_hull,
    find_shown_part,
    make_part,
    refine_with_donor,
)
from .regions import RegionOptions, find_regions, tight_box
from .rescaling import PhotoSize, rescale_findings, working_size
from .same_photo import is_same_photo
from .verification import MIN_INLIERS, PART_OPTIONS, QueryFeatures, VerificationOptions, verify_match

__all__ = [
    "MIN_INLIERS",
    "PART_OPTIONS",
    "Appearance",
    "Comparison",
    "Doubt",
    "FeatureCache",
    "FeatureOptions",
    "Findings",
    "GeometricMatch",
    "LocalFeatures",
    "PartKind",
    "PhotoFinding",
    "PhotoSize",
    "QueryFeatures",
    "RegionOptions",
    "Role",
    "SplicePart",
    "VerificationOptions",
    "compare",
    "compare_appearance",
    "detect_features",
    "detect_features_in_box",
    "express_within_query",
    "find_hull",
    "find_regions",
    "find_shown_part",
    "is_same_photo",
    "make_part",
    "refine_with_donor",
    "rescale_findings",
    "tight_box",
    "verify_match",
    "weigh_appearance",
    "working_size",
]
