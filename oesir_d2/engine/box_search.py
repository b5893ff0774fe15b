"""The sources of what a box shows: its object's, and the photo that lies around the object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from oesir_d2.data.images import ImageFile
from oesir_d2.engine.host_search import VerifiedPhoto, WholeQueryVerifier
from oesir_d2.engine.part_proof import PartProof
from oesir_d2.engine.part_search import PartSources, detect_part_features, rank_for_part, verify_candidates
from oesir_d2.engine.provenance_answer import ProvenPhoto
from oesir_d2.engine.retrieval import Retriever
from oesir_d2.engine.source_photos import SourcePhotos, WorkingPhoto
from oesir_d2.geometry import detect_features

MAX_QUERY_FEATURES = 1000
"""Keypoints of the whole query that are compared with photos; the strongest."""

# Photos that lie over most of the query: the host and its near-duplicates.
_MAX_HOSTS = 4


@dataclass(frozen=True)
class BoxSources:
    """What was found for a box.

    Attributes:
        mask: (H, W) bool at working size, the box.
        hosts: photos that lie over most of the query, the one that explains most of it first.
        proven: all other photos that are proven by what lies in the box, the surest first.
        candidates: what was compared with the box, and the evidence that is no proof.
    """

    mask: np.ndarray
    hosts: list[VerifiedPhoto]
    proven: list[ProvenPhoto]
    candidates: PartSources


def make_query_verifier(query: WorkingPhoto, photos: SourcePhotos) -> WholeQueryVerifier:
    """What compares photos with the whole query."""
    options = replace(photos.options, max_features=MAX_QUERY_FEATURES)
    return WholeQueryVerifier(query, detect_features(query.pixels, options), photos)


def search_box(
    retriever: Retriever,
    photos: SourcePhotos,
    file: ImageFile,
    query: WorkingPhoto,
    box: Sequence[float],
    candidates: int,
    check: Callable[[float], None],
) -> BoxSources:
    """Search with what a box shows, and verify what is found.

    Args:
        retriever: the index.
        photos: its photos.
        file: the query, for messages.
        query: its pixels.
        box: XYXY in pixels of the working query.
        candidates: photos verified; > 0.
        check: called again and again with the share of the work that is done.
    """
    mask = _paint_box(box, query.pixels.shape[:2])
    features = detect_part_features(query, mask, photos.options)
    results = rank_for_part(retriever, file, query, mask, candidates)
    # The corners of a box show what lies around the object, so the first proof need not be that of the object.
    proof = PartProof(query, photos)
    matches = verify_candidates(features, results, photos, proof, skip=(), check=check, stop_when_sure=False)
    sources = PartSources(results, matches)
    by_id = {result.image_id: result for result in results}
    proven = [ProvenPhoto(by_id[image_id], match) for image_id, match in sources.proven().items()]
    # A match within a box tells badly how a photo lies over all the rest.
    compared = sorted(matches, key=lambda image_id: -matches[image_id].confidence)
    hosts = make_query_verifier(query, photos).find_hosts([by_id[image_id] for image_id in compared], _MAX_HOSTS)
    host_ids = {host.result.image_id for host in hosts}
    proven = [photo for photo in proven if photo.result.image_id not in host_ids]
    return BoxSources(mask, hosts, proven, sources.unproven())


def _paint_box(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """A box as a mask (H, W) bool of at least one pixel."""
    height, width = size
    x0, y0 = (min(int(value), side - 1) for value, side in zip(box[:2], (width, height), strict=True))
    x1, y1 = max(x0 + 1, round(box[2])), max(y0 + 1, round(box[3]))
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask
