"""The protocol of provenance: are the right photos confirmed, no wrong ones, and does the mask lie on the splice?

The module needs neither a model nor an index. Shape shorthand: H, W of a spliced image.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from oesir_d2.geometry import Findings


@dataclass(frozen=True)
class ProvenanceRow:
    """How one query fared.

    Attributes:
        file_name: the spliced image.
        host_confirmed: whether its host was given the role of the host; None if no host is named.
        donors_confirmed: share of its donors that were given the role of a donor; None if no donor is named.
        wrong: photos that were confirmed, in whatever role, and are no source of the query.
        mask_iou: intersection over union of the mask and the true mask; 0 without a mask, None if the truth is
            not known.
        mask_f1: the same as an F1 score.
        copy_recognised: whether the largest part was recognised as copied within the photo; None if the query is no
            copy-move.
    """

    file_name: str
    host_confirmed: bool | None
    donors_confirmed: float | None
    wrong: tuple[str, ...]
    mask_iou: float | None
    mask_f1: float | None
    copy_recognised: bool | None = None


def score_provenance(
    file_name: str,
    findings: Findings,
    host: str | None,
    donors: Collection[str],
    true_mask: np.ndarray | None,
    is_copy_move: bool = False,
) -> ProvenanceRow:
    """Score what was found out about one query.

    Args:
        file_name: the spliced image.
        findings: about it.
        host: the host's image id in the findings, "" for one that they cannot name; None if the splices name none.
        donors: the donors' image ids, one entry a donor, "" for each that the findings cannot name: it counts as one
            that was not found.
        true_mask: (H, W) bool, what was pasted; None if it is not known.
        is_copy_move: whether something was copied within the query.
    """
    roles = {photo.image_id: photo.role for photo in findings.photos if photo.verified}
    wrong = tuple(image_id for image_id in roles if image_id != host and image_id not in donors)
    iou, f1 = (None, None) if true_mask is None else score_mask(findings.mask, true_mask)
    return ProvenanceRow(
        file_name=file_name,
        host_confirmed=None if host is None else roles.get(host) == "host",
        donors_confirmed=float(np.mean([roles.get(donor) == "donor" for donor in donors])) if donors else None,
        wrong=wrong,
        mask_iou=iou,
        mask_f1=f1,
        copy_recognised=findings.parts[:1] != () and findings.parts[0].kind == "copy-move" if is_copy_move else None,
    )


def score_mask(mask: np.ndarray | None, true_mask: np.ndarray) -> tuple[float, float]:
    """Intersection over union, and F1, of two masks; both are 1 if neither marks anything.

    Args:
        mask: (H, W), not 0 where the splice is; None is an empty one.
        true_mask: (H, W), the same.

    Raises:
        ValueError: if their shapes differ.
    """
    if mask is None:
        mask = np.zeros(true_mask.shape, bool)
    if mask.shape != true_mask.shape:
        raise ValueError(f"the mask has shape {mask.shape}, the true mask {true_mask.shape}")
    common = np.count_nonzero((mask != 0) & (true_mask != 0))
    total = np.count_nonzero(mask) + np.count_nonzero(true_mask)
    if total == 0:
        return 1.0, 1.0
    return common / (total - common), 2 * common / total


def summarise_provenance(rows: Sequence[ProvenanceRow]) -> Mapping[str, float]:
    """The metrics of a set, in percent; NaN where no query counts.

    - ``host_confirmed``, ``donor_confirmed``: recall of the true roles; a query with two donors of which one is found
      counts one half.
    - ``false_accept``: share of the queries for which a photo was confirmed that is no source.
    - ``copy_recognised``: share of the copy-moves that were recognised as such.
    - ``mask_iou``, ``mask_f1``: means over the queries whose host was confirmed and whose true mask is known.
    - ``mask_iou_all``, ``mask_iou_min``: mean over all queries of a known mask, and the lowest IoU where the host was
      confirmed.
    """
    hosts = [row for row in rows if row.host_confirmed and row.mask_iou is not None]
    ious = [row.mask_iou for row in hosts]
    return {
        "host_confirmed": _mean_percent([row.host_confirmed for row in rows]),
        "donor_confirmed": _mean_percent([row.donors_confirmed for row in rows]),
        "false_accept": _mean_percent([bool(row.wrong) for row in rows]),
        "copy_recognised": _mean_percent([row.copy_recognised for row in rows]),
        "mask_iou": _mean_percent(ious),
        "mask_f1": _mean_percent([row.mask_f1 for row in hosts]),
        "mask_iou_all": _mean_percent([row.mask_iou for row in rows]),
        "mask_iou_min": 100 * min((iou for iou in ious if iou is not None), default=float("nan")),
    }


def _mean_percent(values: Sequence[float | bool | None]) -> float:
    known = [float(value) for value in values if value is not None]
    return 100 * float(np.mean(known)) if known else float("nan")
