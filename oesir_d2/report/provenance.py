"""What a provenance report says in words: the verdict, the sources in their order, the evidence for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oesir_d2.geometry import Doubt, Findings, GeometricMatch, PhotoFinding, SplicePart
from oesir_d2.index.results import SearchResult
from oesir_d2.report.drawings import Color, get_region_color
from oesir_d2.report.text import format_count

STRONG_CONFIDENCE = 0.99
FAIR_CONFIDENCE = 0.98
"""Below this, the evidence is called weak: one verified photo in fifty of this confidence would be an accident."""

SOURCES_SHOWN = 8
"""More than so many verified photos, such as the rest of a series, are counted only."""

DOUBT_WORDS: Mapping[Doubt, str] = {
    "no match": "no match",
    "few points agree": "too few points agree",
    "too little to see": "too little to see of it",
    "looks different": "laid over the part, it looks different",
    "other pixels": "it shows the same thing, but not pixel by pixel: perhaps another photo of it",
}

ROLE_WORDS = {
    "host": "the photo that was changed",
    "donor": "a part of this photo was cut from it",
    "near-duplicate": "it shows the same as this photo or as another source",
    "copy-move": "a part of this very photo, copied to another place in it",
}


@dataclass(frozen=True)
class ProvenanceReport:
    """A query with what was proven of it.

    Attributes:
        path: the query photo.
        results: of the search, in their order.
        findings: its photos are those of ``results``.
        content: the answer as JSON, which the page offers to save.
        name: what the query is called, where its path is of no use to the reader; empty to show the path.
    """

    path: str | Path
    results: Sequence[SearchResult]
    findings: Findings
    content: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class ShownSource:
    """A source that the page shows: a verified photo, or another place of the query itself.

    Attributes:
        label: the number that stands on its parts.
        color: of its parts.
        name: of the photo; "this photo itself" for a copy-move.
        path: of its file; None for the query itself.
        role: one of ``ROLE_WORDS``.
        match: the evidence.
        parts: what it explains of the query.
        confidence: in [0, 1], of the match, or of the least certain part.
    """

    label: str
    color: Color
    name: str
    path: str | None
    role: str
    match: GeometricMatch
    parts: tuple[SplicePart, ...]
    confidence: float

    @property
    def is_weak(self) -> bool:
        return self.confidence < FAIR_CONFIDENCE


def list_sources(report: ProvenanceReport) -> list[ShownSource]:
    """The sources to show, numbered: the verified photos in their order, then the copies within the query."""
    findings = report.findings
    sources: list[tuple[str, str | None, str, GeometricMatch, tuple[SplicePart, ...]]] = []
    for result, photo in zip(report.results, findings.photos, strict=True):
        if photo.verified and photo.match is not None:
            parts = tuple(findings.parts[position] for position in photo.parts)
            sources.append((photo.image_id, result.path, photo.role, photo.match, parts))
    sources = sources[:SOURCES_SHOWN]
    for part in findings.parts:
        if part.kind == "copy-move" and part.match is not None:
            sources.append(("this photo itself", None, "copy-move", part.match, (part,)))
    return [
        ShownSource(
            str(index + 1), get_region_color(index), name, path, role, match, parts,
            min([match.confidence, *(part.confidence for part in parts)]),
        )
        for index, (name, path, role, match, parts) in enumerate(sources)
    ]  # fmt: skip


def list_unknown(findings: Findings) -> list[SplicePart]:
    """The parts that no photo of the index explains."""
    return [part for part in findings.parts if part.kind == "unknown source"]


def describe_evidence(match: GeometricMatch) -> str:
    """The evidence in words and numbers.

    >>> import numpy as np
    >>> describe_evidence(GeometricMatch(np.eye(3), False, 0.414, 7.2, np.zeros((82, 2)), np.zeros((82, 2)), 0.99))
    '82 inliers, scale 0.41, rotated 7 degrees clockwise'

    A donor also has a likeness: how its structure and its colours correlate with those of the part.
    """
    degrees = round(abs(match.rotation))
    turn = "not rotated"
    if degrees:
        turn = f"rotated {format_count(degrees, 'degree')}"
        if degrees != 180:
            turn += " clockwise" if match.rotation > 0 else " anticlockwise"
    words = [format_count(match.inliers, "inlier"), f"scale {match.scale:.2f}", turn]
    words += ["mirrored"] * match.flipped
    if match.appearance is not None:
        words.append(f"likeness {max(match.appearance.likeness, 0):.0%}")
    return ", ".join(words)


def describe_doubt(photo: PhotoFinding) -> str:
    """Why a photo is not proven to be a source, in words and numbers."""
    inliers = photo.match.inliers if photo.match is not None else 0
    return f"{format_count(inliers, 'inlier')}; {DOUBT_WORDS[photo.doubt]}" if photo.doubt is not None else ""


def describe_confidence(confidence: float) -> str:
    """How far the evidence carries, in a word and a number; the number is rounded down, so that 1 is never reached."""
    strength = "strong" if confidence >= STRONG_CONFIDENCE else "fair" if confidence >= FAIR_CONFIDENCE else "weak"
    return f"{strength}, confidence {math.floor(1000 * min(confidence, 0.9999)) / 1000:.3f}"


def describe_verdict(report: ProvenanceReport) -> list[str]:
    """What was found, in plain sentences, the most important first."""
    sources = list_sources(report)
    if not sources:
        nothing = "Nothing was proven: no photo of the index could be shown to be a source of this photo."
        return [nothing, *_describe_doubtful(report.findings.photos)]
    sentences = [_describe_sources(sources), *_describe_unknown(list_unknown(report.findings))]
    weak = [source for source in sources if source.is_weak]
    if len(weak) == len(sources):
        sentences.append("The evidence is weak: take it as a hint and look at the points that agree.")
    elif weak:
        labels = _join([source.label for source in weak])
        sentences.append(f"The evidence for number {labels} is weak: take it as a hint.")
    left_out = sum(photo.verified for photo in report.findings.photos) - sum(
        source.path is not None for source in sources
    )
    if left_out > 0:
        sentences.append(f"{format_count(left_out, 'more verified photo is', 'more verified photos are')} not shown.")
    return sentences


def _describe_sources(sources: Sequence[ShownSource]) -> str:
    names = {role: [source.name for source in sources if source.role == role] for role in ROLE_WORDS}
    statements = []
    if names["host"]:
        statements.append(f"was made from {_join(names['host'])}")
    elif names["near-duplicate"] and not names["donor"]:
        statements.append(f"shows the same as {_join(names['near-duplicate'])}")
    if names["donor"]:
        statements.append(f"has a part of {_join(names['donor'])}")
    if names["copy-move"]:
        statements.append("has a part of itself copied to another place")
    return f"This photo {_join(statements)}."


def _describe_doubtful(photos: Sequence[PhotoFinding]) -> list[str]:
    doubts = [photo.doubt for photo in photos if photo.match is not None]
    same_thing = doubts.count("other pixels")
    sentences = []
    if same_thing:
        photos_show = format_count(same_thing, "photo shows", "photos show")
        sentences.append(f"{photos_show} something that it shows, too, but other pixels: perhaps taken another time.")
    if len(doubts) > same_thing:
        photos_have = format_count(len(doubts) - same_thing, "photo has", "photos have")
        sentences.append(f"{photos_have} some points in common with it, but that may be chance.")
    return sentences


def _describe_unknown(parts: Sequence[SplicePart]) -> list[str]:
    if not parts:
        return []
    if len(parts) == 1:
        return ["1 part of it was changed or added, and no photo of the index explains it."]
    return [f"{len(parts):,} parts of it were changed or added, and no photo of the index explains them."]


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
