"""What the model's process does with a photo, with the geometric proof made by hand."""

from __future__ import annotations

import asyncio
import base64
import html
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio
import numpy as np
import pytest
from PIL import Image

from oesir_d2.data import ImageFile
from oesir_d2.engine.provenance import Provenance
from oesir_d2.engine.retrieval import Retriever
from oesir_d2.geometry import Findings, GeometricMatch, PhotoFinding, SplicePart
from oesir_d2.web import jobs
from oesir_d2.web.api import WebService
from oesir_d2.web.page import _make_search, parse_request
from oesir_d2.web.pictures import PictureStore
from oesir_d2.web.queue import JobQueue, Ticket
from oesir_d2.web.results import render_report_frame, render_results
from oesir_d2.web.settings import WebSettings
from oesir_d2.web.uploads import UploadStore
from oesir_d2.web.worker import RefusedError

PART = np.array([[10, 10], [60, 10], [60, 50], [10, 50]], dtype=np.float32)


class AnalyzerOfOneFinding:
    """Says of every query that its first result is the host and that one part of it is nobody's."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever

    def analyze(self, file: ImageFile, box: Any, top_k: Any, progress: Callable[[str, float], None]) -> Provenance:
        found = self._retriever.search(file, box, top_k)
        progress("comparing points", 0.5)
        points = np.stack(np.meshgrid([10.0, 50, 90], [20.0, 60, 100]), axis=-1).reshape(-1, 2)
        match = GeometricMatch(np.eye(3), False, 1.0, 0.0, points, points, 0.999)
        photos = [PhotoFinding(result.image_id) for result in found.results]
        photos[0] = PhotoFinding(photos[0].image_id, "host", match)
        part = SplicePart("unknown source", (10, 10, 60, 50), (PART,), 0.04, None, None, 0.97)
        mask = np.zeros((found.query.height, found.query.width), np.uint8)
        mask[10:50, 10:60] = 255
        return Provenance(found.query, found.results, Findings(tuple(photos), (part,), mask))


@pytest.fixture(scope="module")
def settings(index: Path) -> WebSettings:
    return WebSettings(index=index, max_megapixels=1, hide_paths=True)


@pytest.fixture(scope="module")
def desk(settings: WebSettings) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "ProvenanceAnalyzer", AnalyzerOfOneFinding)
        yield jobs.Desk(settings)


@pytest.fixture
def service() -> WebService:
    return WebService(None, None, PictureStore(10**7), 6, False)  # type: ignore[arg-type]


def test_proof_is_in_the_answer_the_report_and_the_page(
    desk: Any, photos: Path, service: WebService, settings: WebSettings
) -> None:
    told: list[tuple[float, str]] = []
    job = jobs.SearchJob(photos / "coffee.png", "<i>q</i>.png", top_k=2, verify=True, with_report=True)
    answer = desk(job, lambda share, text: told.append((share, text)))
    assert [share for share, _ in told] == sorted(share for share, _ in told)
    assert "comparing points" in [text for _, text in told]
    assert answer.evidence == ["host: 9 inliers, scale 1.00, not rotated", "not proven"]
    assert answer.verdict[0] == "This photo was made from coffee.png."

    content = service.publish(answer)
    assert content["results"][0]["verified"] is True and content["results"][0]["role"] == "host"
    mask = service.pictures.get(content["splice_mask"].rsplit("/", 1)[1])
    with Image.open(io.BytesIO(mask)) as image:
        assert image.format == "PNG" and (np.asarray(image) > 0).sum() == 40 * 50
    with Image.open(photos / "coffee.png") as query:
        assert image.size == query.size

    assert "This photo was made from coffee.png." in answer.report
    assert "<i>" not in answer.report and "&lt;i&gt;q&lt;/i&gt;.png" in answer.report
    (saved,) = re.findall(r"data:application/json;base64,([^\"]+)", answer.report)
    assert json.loads(base64.b64decode(saved))["results"][0]["inliers"] == 9
    for text in (answer.report, json.dumps(content), base64.b64decode(saved).decode()):
        assert str(photos) not in text, "paths are hidden"

    shown = render_results(answer, service)
    assert "host: 9 inliers" in shown and "&lt;i&gt;q" in shown and "<i>" not in shown
    frame = render_report_frame(answer.report)
    (srcdoc,) = re.findall(r'srcdoc="([^"]*)"', frame)
    assert "<" not in srcdoc and 'sandbox="allow-scripts allow-downloads"' in frame


def test_without_proof_nothing_is_said_of_it(desk: Any, photos: Path, service: WebService) -> None:
    answer = desk(jobs.SearchJob(photos / "coffee.png", "q"), lambda *_: None)
    assert answer.verdict == [] and answer.report == "" and answer.splice_mask == b""
    content = service.publish(answer)
    assert "splice_mask" not in content and "verified" not in content["results"][0]
    assert content["results"][0]["image_id"] == "coffee.png"


def test_result_whose_file_is_gone_has_no_thumbnail(index: Path, photos: Path, desk: Any, service: WebService) -> None:
    hidden = photos / "coins.png"
    hidden.rename(photos / "hidden")
    try:
        answer = desk(jobs.SearchJob(photos / "coffee.png", "q", top_k=6, with_report=True), lambda *_: None)
    finally:
        (photos / "hidden").rename(hidden)
    content = service.publish(answer)
    missing = {result["image_id"]: result["thumbnail"] for result in content["results"]}
    assert missing["coins.png"] is None and missing["coffee.png"] is not None
    assert "its file is gone" in render_results(answer, service)


def test_too_many_pixels_are_refused_by_the_label(desk: Any, tmp_path: Path) -> None:
    Image.new("L", (1001, 1000)).save(tmp_path / "large.png")
    for job in (jobs.SearchJob(tmp_path / "large.png", "a.png"), jobs.PreviewJob(tmp_path / "large.png", "a.png")):
        with pytest.raises(RefusedError, match=r"a\.png cannot be read: decompression bomb") as refused:
            desk(job, lambda *_: None)
        assert refused.value.status == 415 and str(tmp_path) not in refused.value.message


@pytest.mark.parametrize("kind", ["refusal", "request"])
def test_messages_to_the_page_are_text_and_no_html(kind: str, tmp_path: Path) -> None:
    """Gradio shows the message of an error as HTML; a photo's name may be in it."""
    hostile = "<img src=x onerror=alert(1)>.png cannot be read"

    async def refuse() -> None:
        def run(_: Ticket) -> None:
            raise RefusedError(415, hostile)

        queue = JobQueue(run, 1, 60)
        uploads = UploadStore(tmp_path, 1, 60)
        try:
            upload = uploads.save(io.BytesIO(b"x"), "x")
            service = WebService(queue, uploads, PictureStore(1), 0, False)
            search = _make_search(service)
            await search(json.dumps({"upload": uploads.keep(upload)}), 1, False, lambda *_, **__: None)
        finally:
            queue.close()
            uploads.close()

    with pytest.raises(gradio.Error) as error:
        if kind == "refusal":
            asyncio.run(refuse())
        else:
            parse_request(json.dumps({"problem": hostile}))
    assert html.unescape(error.value.message) == hostile and "<" not in error.value.message


def test_pictures_are_held_up_to_their_bytes() -> None:
    store = PictureStore(100)
    ids = [store.add(bytes([number]) * 40) for number in range(3)]
    assert store.get(ids[0]) is None and store.get(ids[1]) == b"\1" * 40 and store.get(ids[2]) == b"\2" * 40
    assert store.get(store.add(bytes(1000))) is None and store.get("nothing") is None
    assert len(set(ids)) == 3 and all(len(picture_id) >= 22 for picture_id in ids)
