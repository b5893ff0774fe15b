"""Which part of a query each proven photo explains: beside its host, or where no host is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from oesir_d2.data.images import UnreadableImageError
from oesir_d2.engine.host_search import VerifiedPhoto
from oesir_d2.engine.part_analysis import AnalysedPart, PartAnalyzer, find_points_within
from oesir_d2.engine.part_search import PartSources
from oesir_d2.engine.provenance_answer import Evidence, ProvenPhoto
from oesir_d2.engine.source_photos import SourcePhotos, WorkingPhoto
from oesir_d2.geometry import find_shown_part, make_part

# A part that both of two photos explain shows what they have in common.
_SAME_PART = 0.5
# A donor of what the host does not explain has so many of its inliers there.
_MIN_WITHIN = 0.5
# And each of its regions holds so many of them.
_MIN_OF_REGION = 0.1
# A region lies in a box if so much of it does, or if it fills so much of the box.
_IN_BOX = 0.5

Check = Callable[[str, float], None]


@dataclass(frozen=True)
class HostRemainder:
    """What a host leaves unexplained of a query, and whatever else is known to be in it.

    Args:
        query: the query.
        photos: the photos of the index.
        analyzer: traces single parts beside the host.
        host: the host.
    """

    query: WorkingPhoto
    photos: SourcePhotos
    analyzer: PartAnalyzer
    host: VerifiedPhoto

    def explain(self, others: Sequence[ProvenPhoto], check: Check, box: np.ndarray | None = None) -> Evidence:
        """Find the source of each region that the host does not explain.

        Args:
            others: photos that are proven besides, the surest first; each gets the regions that hold its inliers.
            check: called before each region that gets a search of its own with a few words and the share of the work
                that is done.
            box: (H, W) bool: regions elsewhere get no search and are no parts; everywhere if not given.
        """
        regions = self.host.comparison.find_edits()
        donors, others = self._place(others, regions)
        parts = [part for part in donors if part is not None]
        left = [
            region
            for region, part in zip(regions, donors, strict=True)
            if part is None and (box is None or _lies_in(region, box))
        ]
        for number, region in enumerate(left):
            stage = f"tracing part {number + 1} of {len(left)}"
            start, length = number / len(left), 1 / len(left)
            check(stage, start)
            parts.append(
                self.analyzer.analyze(region, lambda share, s=stage, a=start, n=length: check(s, a + n * share))
            )
        covered = self.host.comparison.agrees
        for part in parts:
            covered = covered | part.mask
        sources = {part.part.source_id for part in parts}
        others = [photo for photo in others if photo.result.image_id not in sources]
        more, duplicates = explain_by_donors(self.query, others, self.photos, covered)
        proven = ProvenPhoto(self.host.result, self.host.match)
        return Evidence(covered.shape, proven, duplicates, [*parts, *more], is_edited=bool(regions))

    def _place(
        self, others: Sequence[ProvenPhoto], regions: list[np.ndarray]
    ) -> tuple[list[AnalysedPart | None], list[ProvenPhoto]]:
        """The regions that hold the inliers of photos, as parts of these, and the photos that have none."""
        parts: list[AnalysedPart | None] = [None] * len(regions)
        rest = []
        for photo in others:
            within = [find_points_within(photo.match.query_points, region) for region in regions]
            share = np.logical_or.reduce(within).mean() if within else 0.0
            free = [
                number
                for number, inside in enumerate(within)
                if inside.mean() >= _MIN_OF_REGION and parts[number] is None
            ]
            if share < _MIN_WITHIN or not free:
                rest.append(photo)
                continue
            for number in free:
                parts[number] = self.analyzer.place(regions[number], photo.result, photo.match)
        return parts, rest


def explain_by_donors(
    query: WorkingPhoto, found: Sequence[ProvenPhoto], photos: SourcePhotos, covered: np.ndarray | None = None
) -> tuple[list[AnalysedPart], list[ProvenPhoto]]:
    """Where no host tells the outline: each donor shows the part around its matches that agrees with it.

    Args:
        query: the query.
        found: proven photos, the surest first.
        photos: the photos of the index.
        covered: (H, W) bool, what is explained already; nothing if not given.

    Returns:
        The parts, and the photos that show what is explained already.
    """
    duplicates = []
    parts: list[AnalysedPart] = []
    covered = np.zeros(query.pixels.shape[:2], bool) if covered is None else covered.copy()
    for photo in found:
        image_id = photo.result.image_id
        try:
            source = photos.load(image_id).pixels
        except UnreadableImageError:  # it went away just now
            continue
        shown = find_shown_part(query.pixels, source, photo.match)
        if np.count_nonzero(shown & covered) > _SAME_PART * np.count_nonzero(shown):
            duplicates.append(photo)
            continue
        shown &= ~covered
        covered |= shown
        part = make_part(shown, "donor", photo.match.confidence, image_id, photo.match)
        parts.append(AnalysedPart(shown, part, PartSources([photo.result], {})))
    return parts, duplicates


def _lies_in(region: np.ndarray, box: np.ndarray) -> bool:
    return np.count_nonzero(region & box) >= _IN_BOX * min(np.count_nonzero(region), np.count_nonzero(box))
