"""A photo is proof for a part of a query if its keypoints agree with the part's and it also looks like the part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from oesir_d2.data.images import UnreadableImageError
from oesir_d2.engine.source_photos import SourcePhotos, WorkingPhoto
from oesir_d2.geometry import GeometricMatch, find_hull, weigh_appearance

# By how many pixels the hull of the inliers is enlarged: the keypoints see so far.
_RIM = 4


@dataclass(frozen=True)
class PartProof:
    """Weighs the matches of photos with one part of a query.

    Attributes:
        query: the query.
        photos: the photos of the index.
        part: (H, W) bool at working size, not empty; None where nobody knows its outline. What lies between the inliers
            of a match then stands for it, which may speak against the match, but not for it: there they agree anyway.
        host_id: the photo that the query is known to be made from, if one is.
    """

    query: WorkingPhoto
    photos: SourcePhotos
    part: np.ndarray | None = None
    host_id: str | None = None

    def find_best(self, image_id: str, matches: Iterable[GeometricMatch | None]) -> GeometricMatch | None:
        """The surest of the matches of one photo, with its appearance.

        Args:
            image_id: the photo.
            matches: from it to the query, at working size.

        Returns:
            The surest; None if there is no match, or the photo is not there any more: then nobody can look at it.
        """
        found = [match for match in matches if match is not None]
        if not found:
            return None
        try:
            source = self.photos.load(image_id).pixels
        except UnreadableImageError:  # its keypoints are cached, but the photo is gone by now
            return None
        weighed = [self._weigh(match, source, image_id == self.host_id) for match in found]
        return max(weighed, key=lambda match: (match.confidence, match.inliers))

    def _weigh(self, match: GeometricMatch, source: np.ndarray, is_known: bool) -> GeometricMatch:
        if self.part is not None:
            return weigh_appearance(self.query.pixels, source, match, self.part, is_known)
        hull = find_hull(match, self.query.pixels.shape[:2], _RIM)
        weighed = weigh_appearance(self.query.pixels, source, match, hull, is_known)
        return replace(weighed, confidence=min(match.confidence, weighed.confidence))
