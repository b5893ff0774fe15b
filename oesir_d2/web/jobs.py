"""What the model's process does: look at a photo, search with it, add photos to the index.

Jobs and answers are plain values, since they go from one process to the other. Messages for a client name the photo by
its label, never by a path of this machine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oesir_d2.data.images import DecodedImage, ImageFile, UnreadableImageError, read_image
from oesir_d2.engine.command_line import set_up_messages
from oesir_d2.engine.indexing import build_index
from oesir_d2.engine.provenance import Provenance, ProvenanceAnalyzer
from oesir_d2.engine.retrieval import QueryResult, Retriever
from oesir_d2.report import LabelledBox, QueryReport, draw_display_photo, facts_section, render_page, search_section
from oesir_d2.report.linking import link_matches
from oesir_d2.report.provenance import ProvenanceReport, describe_evidence, describe_verdict
from oesir_d2.report.provenance_page import SLIDER_SCRIPT, TITLE, provenance_section
from oesir_d2.web.added_photos import open_copies
from oesir_d2.web.settings import MEGAPIXEL, WebSettings
from oesir_d2.web.thumbnails import draw_picture, draw_result, encode_jpeg, encode_png
from oesir_d2.web.worker import RefusedError

PREVIEW_LONG_SIDE = 1280

logger = logging.getLogger(__name__)

ReportProgress = Callable[[float, str], None]


@dataclass(frozen=True)
class PreviewJob:
    """Show a photo that a browser cannot show itself."""

    path: Path
    label: str


@dataclass(frozen=True)
class Preview:
    """A photo as a JPEG file of at most ``PREVIEW_LONG_SIDE`` pixels.

    Attributes:
        width, height: of the original after its EXIF rotation, the frame of boxes.
    """

    picture: bytes
    width: int
    height: int


@dataclass(frozen=True)
class SearchJob:
    """Search with a photo.

    Attributes:
        box: XYXY in pixels of the photo after its EXIF rotation; None for the whole photo with all its regions.
        top_k: results wanted; None for the config's number.
        verify: prove by geometry what was found, and show where the photo was changed.
        with_report: make the report's page as well.
    """

    path: Path
    label: str
    box: tuple[float, float, float, float] | None = None
    top_k: int | None = None
    verify: bool = False
    with_report: bool = False


@dataclass(frozen=True)
class SearchAnswer:
    """What a search found.

    Attributes:
        content: as ``tools/search.py --json`` writes it.
        query_picture: the query with its regions, a JPEG file.
        thumbnails: one JPEG file a result, the matched regions drawn in the query's colours; empty for a file that
            cannot be read any more.
        evidence: one line a result about its geometry; empty if it was not looked at.
        verdict: what was proven, in sentences; empty if nothing was to be.
        splice_mask: a PNG file of the query's size, white where it was changed; empty if there is none.
        report: the report's page; empty if it was not asked for.
    """

    content: dict[str, Any]
    query_picture: bytes
    thumbnails: list[bytes]
    evidence: list[str]
    verdict: list[str]
    splice_mask: bytes = b""
    report: str = ""


@dataclass(frozen=True)
class AddJob:
    """Add photos to the index: (path, label) of each."""

    photos: tuple[tuple[Path, str], ...]


@dataclass(frozen=True)
class AddAnswer:
    """What became of the photos.

    Attributes:
        added: ids of the photos that are in the index now, one for each readable photo.
        refused: (label, reason) of the others.
        images: photos in the index now.
    """

    added: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    images: int = 0


@dataclass(frozen=True)
class DeskOpener:
    """Opens the index in the model's process (see :class:`oesir_d2.web.worker.Worker`)."""

    settings: WebSettings

    def __call__(self) -> Callable[[Any, ReportProgress], Any]:
        set_up_messages("web")
        return Desk(self.settings)


class Desk:
    """Does the jobs, with the model and the index that it holds.

    Args:
        settings: of the app.
    """

    def __init__(self, settings: WebSettings) -> None:
        self._settings = settings
        self._retriever = Retriever(settings.index, settings.opts)
        self._analyzer = ProvenanceAnalyzer(self._retriever)
        if settings.add_folder is not None:
            self._clear_copies(settings.add_folder)

    def __call__(self, job: Any, report_progress: ReportProgress) -> Any:
        if isinstance(job, SearchJob):
            return self._search(job, report_progress)
        if isinstance(job, PreviewJob):
            return self._preview(job)
        assert isinstance(job, AddJob), job
        return self._add(job, report_progress)

    def _clear_copies(self, folder: Path) -> None:
        """Delete what a process that was ended in the middle of adding photos has copied in vain."""
        try:
            with open_copies(folder, self._settings.index, self._find_indexed):
                pass
        except OSError as error:
            logger.warning("Copies of photos that were not added may be left in %s: %s", folder, error)

    def _find_indexed(self, image_ids: Collection[str]) -> set[str]:
        missing = set(image_ids)
        # What was added last lies at the end; a large index has too many records to read them all.
        for record in reversed(self._retriever.index.images):
            if not missing:
                break
            missing.discard(record.image_id)
        return set(image_ids) - missing

    def _read(self, path: Path, label: str) -> DecodedImage:
        try:
            return read_image(path, max_pixels=self._settings.max_megapixels * MEGAPIXEL, reduce_to=PREVIEW_LONG_SIDE)
        except UnreadableImageError as error:
            raise RefusedError(415, f"{label} cannot be read: {error.reason}") from None

    def _preview(self, job: PreviewJob) -> Preview:
        photo = self._read(job.path, job.label)
        return Preview(
            encode_jpeg(draw_display_photo(photo.pixels, long_side=PREVIEW_LONG_SIDE)), photo.width, photo.height
        )

    def _search(self, job: SearchJob, report_progress: ReportProgress) -> SearchAnswer:
        report_progress(0.05, "reading the photo")
        photo = self._read(job.path, job.label)
        check_box(job.box, photo)
        found = self._find(job, report_progress)
        report_progress(0.85, "drawing what was found")
        content = self._describe(job, found)
        regions, links = link_matches(content["objects"], found.results)
        query_boxes = [LabelledBox(region.box, region.color, str(region.number)) for region in regions]
        proof = make_proof(job, found, content)
        mask = None if isinstance(found, QueryResult) else found.findings.mask
        report = ""
        if job.with_report:
            report_progress(0.9, "writing the report")
            report = self._write_report(job, found, content, proof)
        return SearchAnswer(
            content=content,
            query_picture=draw_picture(photo, query_boxes, PREVIEW_LONG_SIDE // 2),
            thumbnails=[draw_result(result, matches) for result, matches in zip(found.results, links, strict=True)],
            evidence=list_evidence(found),
            verdict=describe_verdict(proof) if proof else [],
            splice_mask=b"" if mask is None else encode_png(mask),
            report=report,
        )

    def _find(self, job: SearchJob, report_progress: ReportProgress) -> QueryResult | Provenance:
        report_progress(0.15, "looking for its parts in the index")
        file = ImageFile(job.label, job.path)
        try:
            if not job.verify:
                return self._retriever.search(file, job.box, job.top_k)

            def tell(stage: str, share: float) -> None:
                report_progress(0.15 + 0.7 * share, stage)

            return self._analyzer.analyze(file, job.box, job.top_k, progress=tell)
        except UnreadableImageError as error:
            raise RefusedError(415, f"{job.label} cannot be read: {error.reason}") from None

    def _describe(self, job: SearchJob, found: QueryResult | Provenance) -> dict[str, Any]:
        content = found.to_dict() | {"query": job.label}
        if not self._settings.shows_paths:
            for result in content["results"]:
                result["path"] = ""
        return content

    def _write_report(
        self,
        job: SearchJob,
        found: QueryResult | Provenance,
        content: dict[str, Any],
        proof: ProvenanceReport | None,
    ) -> str:
        shows_paths = self._settings.shows_paths
        facts = {"Query": job.label, "Photos searched": f"{len(self._retriever.index.images):,}"}
        entry = QueryReport(job.path, content["objects"], found.results, name=job.label)
        sections = [facts_section(facts)]
        if proof:
            sections.append(provenance_section(proof, show_paths=shows_paths))
        sections.append(search_section([entry], heading="All that was found" if proof else "", show_paths=shows_paths))
        return render_page(TITLE, sections, script=SLIDER_SCRIPT if proof else "")

    def _add(self, job: AddJob, report_progress: ReportProgress) -> AddAnswer:
        folder = self._settings.add_folder
        assert folder is not None, "photos are added to an app that was started without a folder for them"
        files: dict[str, ImageFile] = {}
        refused = []
        try:
            with open_copies(folder, self._settings.index, self._find_indexed) as keep_photo:
                for number, (path, label) in enumerate(job.photos):
                    report_progress(0.5 * number / len(job.photos), f"reading photo {number + 1} of {len(job.photos)}")
                    try:
                        self._read(path, label)
                    except RefusedError as error:
                        refused.append((label, error.message))
                    else:
                        file = keep_photo(path)
                        files[file.image_id] = file
                if files:
                    report_progress(0.5, "adding to the index")
                    self._extend_index(list(files.values()))
        except BlockingIOError:
            raise RefusedError(
                409, "the photos could not be added: another process adds some, try again later"
            ) from None
        return AddAnswer(list(files), refused, len(self._retriever.index.images))

    def _extend_index(self, files: list[ImageFile]) -> None:
        try:
            build_index(self._retriever.cfg, files, self._retriever.index.path)
        except (ValueError, OSError) as error:
            # The error names folders of this machine, which is for its owner to read.
            logger.warning("Photos could not be added: %s", error)
            is_full = isinstance(error, OSError)
            reason = "there is no room for them" if is_full else "another process writes the index, try again later"
            raise RefusedError(409, f"the photos could not be added: {reason}") from None
        finally:
            self._retriever.reopen()


def make_proof(job: SearchJob, found: QueryResult | Provenance, content: dict[str, Any]) -> ProvenanceReport | None:
    """What the report says of the geometry; None if nobody looked at it."""
    if isinstance(found, QueryResult):
        return None
    return ProvenanceReport(job.path, found.results, found.findings, content, name=job.label)


def list_evidence(found: QueryResult | Provenance) -> list[str]:
    """One line a result about its geometry."""
    if isinstance(found, QueryResult):
        return [""] * len(found.results)
    return [
        f"{photo.role}: {describe_evidence(photo.match)}" if photo.verified and photo.match else "not proven"
        for photo in found.findings.photos
    ]


def check_box(box: tuple[float, float, float, float] | None, photo: DecodedImage) -> None:
    """Refuse a box that does not lie in the photo."""
    if box is None:
        return
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= photo.width and 0 <= y0 < y1 <= photo.height):
        shown = ",".join(f"{value:g}" for value in box)
        raise RefusedError(
            400,
            f"box {shown} does not lie in the photo; allowed: X0,Y0,X1,Y1 in pixels with "
            f"0 <= X0 < X1 <= {photo.width} and 0 <= Y0 < Y1 <= {photo.height}",
        )
