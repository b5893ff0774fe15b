"""Where one part of a query comes from: it is embedded alone, enlarged, and what is found for it is verified."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import cv2
import numpy as np

from oesir_d2.data.images import ImageFile
from oesir_d2.engine.part_proof import PartProof
from oesir_d2.engine.retrieval import Retriever
from oesir_d2.engine.source_photos import SourcePhotos, WorkingPhoto
from oesir_d2.geometry import (
    MIN_INLIERS,
    PART_OPTIONS,
    FeatureOptions,
    GeometricMatch,
    QueryFeatures,
    detect_features_in_box,
    tight_box,
    verify_match,
)
from oesir_d2.index import RegionMatch, SearchResult

MIN_CONFIDENCE = 0.95
"""A match is taken for proof from here on."""

SURE_CONFIDENCE = 0.98
"""And with such a match the search for the source of a part ends."""

MAX_PART_FEATURES = 1000
"""Keypoints of a part that are compared; the strongest."""

# Small objects are enlarged: the network and SIFT see little of what is smaller than their first filters.
_FEATURE_SIDE = 384
_EMBEDDING_SIDE = 320
# Surroundings that the network sees with the object, on each side, as a share of the object's longer side.
_CONTEXT = 0.5
# An object's mask ends at its outline, its keypoints reach a little beyond.
_FEATURE_MARGIN = 2
# A match of so few inliers that no other comparison would name it is evidence only from here on.
_LIKELY = 0.5
# If no matched region holds proof, so many of the best candidates are looked at as a whole.
_WHOLE_PHOTOS = 25
# The matched region of a candidate, enlarged so on each side, is looked at before the whole photo.
_REGION_MARGIN = 0.25


@dataclass(frozen=True)
class PartSources:
    """What was found for one part of a query.

    Attributes:
        results: the candidates, best first by their embeddings; query boxes are in pixels of the original query.
        matches: by image id, those with evidence, at working size; not all of it is proof.
    """

    results: list[SearchResult]
    matches: dict[str, GeometricMatch]

    def best(self) -> tuple[str, GeometricMatch] | None:
        """The photo with the strongest proof, if there is any."""
        return next(iter(self.proven().items()), None)

    def proven(self) -> dict[str, GeometricMatch]:
        """The matches that are proof, the strongest first."""
        found = [(image_id, match) for image_id, match in self.matches.items() if match.confidence >= MIN_CONFIDENCE]
        return dict(sorted(found, key=lambda item: (-item[1].confidence, -item[1].inliers)))

    def unproven(self) -> PartSources:
        """The same without the matches that are proof."""
        weak = {image_id: match for image_id, match in self.matches.items() if match.confidence < MIN_CONFIDENCE}
        return PartSources(self.results, weak)


def detect_part_features(query: WorkingPhoto, part: np.ndarray, options: FeatureOptions) -> QueryFeatures:
    """The keypoints of a part of a query, which is enlarged for it.

    Args:
        query: the query.
        part: (H, W) bool at working size, not empty.
        options: how keypoints are detected.
    """
    height, width = part.shape
    mask = cv2.dilate(part.astype(np.uint8), np.ones((2 * _FEATURE_MARGIN + 1,) * 2, np.uint8))
    x0, y0, x1, y1 = tight_box(part)
    margin = 4 * _FEATURE_MARGIN
    box = max(x0 - margin, 0), max(y0 - margin, 0), min(x1 + margin, width), min(y1 + margin, height)
    options = replace(options, max_features=MAX_PART_FEATURES)
    return QueryFeatures(detect_features_in_box(query.pixels, box, options, _FEATURE_SIDE, mask), width)


def rank_for_part(
    retriever: Retriever, file: ImageFile, query: WorkingPhoto, part: np.ndarray, candidates: int
) -> list[SearchResult]:
    """Search with a part of a query alone.

    Args:
        retriever: the index.
        file: the query, for messages.
        query: its pixels.
        part: (H, W) bool at working size, not empty.
        candidates: results wanted; > 0.
    """
    box = np.array(tight_box(part), dtype=np.float64)
    height, width = part.shape
    margin = _CONTEXT * max(box[2] - box[0], box[3] - box[1])
    lower = np.maximum(np.floor(box[:2] - margin), 0).astype(int)
    upper = np.minimum(np.ceil(box[2:] + margin), [width, height]).astype(int)
    crop = query.pixels[lower[1] : upper[1], lower[0] : upper[0]]
    factor = max(1.0, _EMBEDDING_SIDE / max(crop.shape[:2]))
    size = round(crop.shape[1] * factor), round(crop.shape[0] * factor)
    scale = np.array(size) / (upper - lower)
    inside = np.concatenate([(box[:2] - lower) * scale, (box[2:] - lower) * scale])
    enlarged = cv2.resize(crop, size, interpolation=cv2.INTER_CUBIC)
    embedded = retriever.embedder.embed_pixels(file, enlarged, [np.clip(inside, 0, [*size, *size]).tolist()])
    results = retriever.rank(embedded.embeddings, candidates, explain_away=0.0)
    shown = query.size.box_to_original(box.tolist())
    return [
        replace(result, matches=[RegionMatch(shown, match.database_box, match.score) for match in result.matches])
        for result in results
    ]


def verify_candidates(
    features: QueryFeatures,
    results: list[SearchResult],
    photos: SourcePhotos,
    proof: PartProof,
    skip: Collection[str],
    check: Callable[[float], None],
    stop_when_sure: bool = True,
) -> dict[str, GeometricMatch]:
    """Look for proof among the candidates of a part: in the matched regions, then in whole photos.

    Args:
        features: keypoints of the part.
        results: the candidates, best first.
        photos: the photos of the index.
        proof: weighs what is found.
        skip: image ids that are not looked at.
        check: called before each candidate with the share of the work that is done.
        stop_when_sure: end with the first match that leaves no doubt; else the matched regions of all candidates are
            compared.

    Returns:
        By image id, the matches found, of whatever confidence.
    """
    found: dict[str, GeometricMatch] = {}
    photos.expect(results)
    candidates = [result for result in results if result.image_id not in skip]
    for number, result in enumerate(candidates):
        check(0.8 * number / len(candidates))
        source = photos.features_of(result.image_id)
        region = photos.size_of(result.image_id).box_to_working(result.matches[0].database_box)
        within = verify_match(features, source.inside(region, _REGION_MARGIN), PART_OPTIONS)
        if within is None:
            continue
        beyond = verify_match(features, source, PART_OPTIONS)  # the object may reach beyond the region
        match = proof.find_best(result.image_id, (within, beyond))
        if match is None or not _is_evidence(match):
            continue
        found[result.image_id] = match
        if stop_when_sure and match.confidence >= SURE_CONFIDENCE:
            return found
    if any(match.confidence >= MIN_CONFIDENCE for match in found.values()):
        return found
    for number, result in enumerate(candidates[:_WHOLE_PHOTOS]):
        check(0.8 + 0.2 * number / _WHOLE_PHOTOS)
        if result.image_id in found:
            continue
        match = verify_match(features, photos.features_of(result.image_id), PART_OPTIONS)
        match = proof.find_best(result.image_id, (match,))
        if match is not None and _is_evidence(match):
            found[result.image_id] = match
            if match.confidence >= SURE_CONFIDENCE:
                break
    return found


def _is_evidence(match: GeometricMatch) -> bool:
    return match.inliers >= MIN_INLIERS or match.confidence >= _LIKELY
