"""From a photo to the photos that it was made from, with proof: search, verify, localise, search again.

The host is found first: of the photos that are most similar to the query the one that lies over most of it. Where the
query differs from it, something was pasted, and each such part gets a search of its own, in which the host's matches
drown nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from oesir_d2.data.images import ImageFile, UnreadableImageError
from oesir_d2.engine.box_search import make_query_verifier, search_box
from oesir_d2.engine.embedder import EmbeddedImage
from oesir_d2.engine.explained_parts import HostRemainder, explain_by_donors
from oesir_d2.engine.host_search import VerifiedPhoto
from oesir_d2.engine.part_analysis import PartAnalyzer
from oesir_d2.engine.part_search import PartSources
from oesir_d2.engine.provenance_answer import Evidence, ProvenPhoto, make_answer
from oesir_d2.engine.retrieval import QueryResult, Retriever
from oesir_d2.engine.source_photos import SourcePhotos, WorkingPhoto, load_working_photo
from oesir_d2.files import replace_file
from oesir_d2.geometry import Findings, rescale_findings
from oesir_d2.index import EmbeddingIndex, SearchResult
from oesir_d2.structures import ImageEmbeddings

ProgressCallback = Callable[[str, float], None]
"""Called as ``progress(stage, share)``: a few words such as "searching", and how much of all is done, in [0, 1]."""

# Hosts: the first result, then the photos that are most similar as a whole, then the most similar regions.
_WHOLE_CANDIDATES = 4
_PLAIN_CANDIDATES = 10
# A near-duplicate of the host is, as a whole, nearly as similar to the query as the host itself.
_ALIKE = 0.8


@dataclass(frozen=True)
class Provenance:
    """The answer to one query with its proof.

    Attributes:
        query: the query with its regions.
        results: re-ranked by the evidence: the host, the donors, near-duplicates, then what is unverified; of a box,
            the donors before the host. Those of the second search have the query box of the part that they were found
            with.
        findings: the evidence; ``findings.photos`` are parallel to ``results``.
    """

    query: EmbeddedImage
    results: list[SearchResult]
    findings: Findings

    def to_dict(self, splice_mask: str | None = None) -> dict[str, Any]:
        """As JSON, in the form of DESIGN.md section 4.

        Args:
            splice_mask: path of the file that the caller wrote ``findings.mask`` to, if it did.
        """
        content = QueryResult(self.query, self.results).to_dict()
        for result, photo in zip(content["results"], self.findings.photos, strict=True):
            result |= photo.to_dict()
        parts = [part.to_dict() for part in self.findings.parts]
        return content | {"splice_mask": splice_mask, "parts": parts}


class ProvenanceAnalyzer:
    """Finds the photos that a query was made from and proves it.

    Not thread-safe: one analysis at a time.

    Args:
        retriever: the open index; its photos are read from their paths when their keypoints are not cached yet.
        candidates: photos verified for each search, that of the whole query and that of each pasted object; > 0.
    """

    def __init__(self, retriever: Retriever, candidates: int = 100) -> None:
        if candidates < 1:
            raise ValueError(f"candidates is {candidates}, expected at least 1")
        self._retriever = retriever
        self._candidates = candidates
        self._index: EmbeddingIndex | None = None

    def analyze(
        self,
        file: ImageFile,
        box: Sequence[float] | None = None,
        top_k: int | None = None,
        aggregate: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> Provenance:
        """Search with one photo and verify what is found.

        Args:
            file: the query.
            box: look for the source of this part alone: XYXY in pixels of the file after its EXIF rotation.
            top_k: results wanted; cfg.RETRIEVAL.TOP_K if not given. Verified photos are never cut off.
            aggregate: name of an aggregator; cfg.RETRIEVAL.AGGREGATE if not given.
            progress: told what is going on. What it raises ends the analysis.

        Raises:
            UnreadableImageError: the query cannot be read.
            ValueError: an argument out of its range.
        """
        tell = progress or (lambda stage, share: None)
        if self._index is not self._retriever.index:  # opened anew since the last query
            self._index = self._retriever.index
            self._photos = SourcePhotos(self._index, self._retriever.cfg.INPUT.OESIR.MAX_PIXELS)
        tell("searching", 0.0)
        embedded = self._retriever.embedder.embed(file, None if box is None else [box])
        ranked = self._retriever.rank(embedded.embeddings, top_k, aggregate)
        self._photos.begin_query()
        self._photos.expect(ranked)
        query = load_working_photo(file.path, self._retriever.cfg.INPUT.OESIR.MAX_PIXELS)
        if not ranked:  # an empty index
            return Provenance(embedded, [], Findings())
        if box is not None:
            evidence = self._analyze_box(file, query, query.size.box_to_working(box), tell)
        else:
            evidence = self._analyze_whole(file, query, embedded.embeddings, ranked, aggregate, tell)
        wanted = self._retriever.cfg.RETRIEVAL.TOP_K if top_k is None else top_k
        results, findings = make_answer(ranked, evidence, wanted)
        sizes = {photo.image_id: self._photos.size_of(photo.image_id) for photo in findings.photos}
        tell("done", 1.0)
        return Provenance(embedded, results, rescale_findings(findings, query.size, sizes))

    def _analyze_whole(
        self,
        file: ImageFile,
        query: WorkingPhoto,
        embeddings: ImageEmbeddings,
        ranked: list[SearchResult],
        aggregate: str | None,
        tell: ProgressCallback,
    ) -> Evidence:
        tell("looking for the host", 0.2)
        verifier = make_query_verifier(query, self._photos)
        similar = self._retriever.rank(_largest_region(embeddings), _WHOLE_CANDIDATES, explain_away=0.0)
        similar = [result for result in similar if result.score >= _ALIKE * similar[0].score]
        hosts = verifier.find_hosts([*ranked[:1], *similar], wanted=_WHOLE_CANDIDATES)
        if not hosts:
            plain = self._retriever.rank(embeddings, _PLAIN_CANDIDATES, aggregate, explain_away=0.0)
            hosts = verifier.find_hosts([*ranked[:_PLAIN_CANDIDATES], *plain], wanted=1)
        if hosts:
            others = [ProvenPhoto(photo.result, photo.match) for photo in hosts[1:]]
            remainder = self._remainder(file, query, hosts[0])
            return remainder.explain(others, lambda stage, share: tell(stage, 0.4 + 0.6 * share))
        tell("looking for donors", 0.4)
        deep = self._retriever.rank(embeddings, self._candidates, aggregate)
        found = verifier.find_any(deep, lambda share: tell("looking for donors", 0.4 + 0.6 * share))
        matches = {photo.result.image_id: photo.match for photo in found}
        sources = PartSources([photo.result for photo in found], matches)
        proven = sources.proven()
        donors = [ProvenPhoto(photo.result, photo.match) for photo in found if photo.result.image_id in proven]
        parts, duplicates = explain_by_donors(query, donors, self._photos)
        return Evidence(query.pixels.shape[:2], None, duplicates, parts, [sources.unproven()])

    def _analyze_box(
        self, file: ImageFile, query: WorkingPhoto, box: Sequence[float], tell: ProgressCallback
    ) -> Evidence:
        """The source of what a box shows, and its host, if the box shows that as well."""
        tell("searching with the box", 0.2)
        found = search_box(
            self._retriever,
            self._photos,
            file,
            query,
            box,
            self._candidates,
            check=lambda share: tell("verifying", 0.3 + 0.4 * share),
        )
        if found.hosts:
            others = [ProvenPhoto(photo.result, photo.match) for photo in found.hosts[1:]]
            remainder = self._remainder(file, query, found.hosts[0])
            evidence = remainder.explain(
                [*found.proven, *others], lambda stage, share: tell(stage, 0.7 + 0.3 * share), found.mask
            )
        else:
            parts, duplicates = explain_by_donors(query, found.proven, self._photos)
            evidence = Evidence(query.pixels.shape[:2], None, duplicates, parts)
        return replace(evidence, searches=[found.candidates], host_first=False)

    def _remainder(self, file: ImageFile, query: WorkingPhoto, host: VerifiedPhoto) -> HostRemainder:
        analyzer = PartAnalyzer(self._retriever, self._photos, file, query, host, self._candidates)
        return HostRemainder(query, self._photos, analyzer, host)


def save_mask(mask: np.ndarray, path: Path) -> None:
    """Write a mask, (H, W) uint8, as a PNG file; missing folders are made.

    Raises:
        OSError: if it cannot be written.
    """
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, format="PNG")
    replace_file(path, stream.getvalue())


def analyze_all(
    analyzer: ProvenanceAnalyzer,
    files: Iterable[ImageFile],
    top_k: int | None = None,
    aggregate: str | None = None,
    box: Sequence[float] | None = None,
) -> Iterator[tuple[ImageFile, Provenance | UnreadableImageError]]:
    """Analyse many photos, in order; those that cannot be read yield the reason.

    Args:
        analyzer: what analyses them.
        files, top_k, aggregate, box: see ``ProvenanceAnalyzer.analyze``.
    """
    for file in files:
        try:
            yield file, analyzer.analyze(file, box, top_k, aggregate)
        except UnreadableImageError as error:
            yield file, error


def _largest_region(embeddings: ImageEmbeddings) -> ImageEmbeddings:
    """The whole photo, or the largest region of a model without it, as the only region."""
    areas = np.prod(embeddings.boxes[:, 2:] - embeddings.boxes[:, :2], axis=1)
    chosen = [int(areas.argmax())] if len(areas) else []
    return ImageEmbeddings(
        embeddings.image_id,
        embeddings.vectors[chosen],
        embeddings.boxes[chosen],
        embeddings.scores[chosen],
        embeddings.classes[chosen],
    )
