"""The app's own routes: what programs call, and how the page sends photos.

    POST /api/search   file, box, top_k, verify   the JSON of tools/search.py, with each result's thumbnail's address
    POST /api/report   the same                   the report as one HTML page
    POST /api/preview  file                       the photo as a JPEG file
    POST /api/photos   file, file, …              adds photos to the index, where the app was started for it
    POST /api/uploads  file                       keeps a photo for the page's next search
    GET  /api/thumbnails/ID                       a picture that an answer named
    GET  /api/status                              photos in the index, searches that wait

Fields come as multipart/form-data. Every error is ``{"error": message}``: 400 a wrong field, 403 another site's page,
408 an upload too slow, 409 an index that cannot be written, 413 too large, 415 not a photo, 500 our own fault, 503 too
busy, 504 out of time.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from oesir_d2.web.gate import STARTED
from oesir_d2.web.jobs import AddAnswer, AddJob, Preview, PreviewJob, SearchAnswer, SearchJob
from oesir_d2.web.pictures import PictureStore
from oesir_d2.web.queue import JobQueue, JobTimeoutError, QueueFullError
from oesir_d2.web.uploads import Upload, UploadStore
from oesir_d2.web.worker import RefusedError, WorkerDiedError

MAX_FIELDS = 8
MAX_ADDED_FILES = 8
MAX_TOP_K = 100
DEFAULT_TOP_K = 10
FLAGS = {"": False, "0": False, "false": False, "1": True, "true": True}
THUMBNAIL_ROUTE = "/api/thumbnails/"

Box = tuple[float, float, float, float]


class WebService:
    """What the routes and the page share.

    Attributes:
        queue: the line in front of the model.
        uploads: what clients sent.
        pictures: what answers refer to.
        images: photos in the index.
        may_add: whether users may add photos.
    """

    def __init__(
        self, queue: JobQueue, uploads: UploadStore, pictures: PictureStore, images: int, may_add: bool
    ) -> None:
        self.queue = queue
        self.uploads = uploads
        self.pictures = pictures
        self.images = images
        self.may_add = may_add

    def publish(self, answer: SearchAnswer) -> dict[str, Any]:
        """The answer as JSON, its pictures by their addresses; null for a photo that cannot be shown."""
        results = [
            result | {"thumbnail": THUMBNAIL_ROUTE + self.pictures.add(picture) if picture else None}
            for result, picture in zip(answer.content["results"], answer.thumbnails, strict=True)
        ]
        content = answer.content | {"results": results}
        if "splice_mask" in content:
            mask = answer.splice_mask
            content["splice_mask"] = THUMBNAIL_ROUTE + self.pictures.add(mask) if mask else None
        return content


def add_routes(app: FastAPI, service: WebService) -> None:
    """Add the routes to an app, and the form of its errors."""
    router = APIRouter(prefix="/api")
    router.add_api_route("/status", _make_status(service), methods=["GET"])
    router.add_api_route("/thumbnails/{picture_id}", _make_thumbnail(service), methods=["GET"])
    router.add_api_route("/search", _make_search(service), methods=["POST"])
    router.add_api_route("/report", _make_report(service), methods=["POST"])
    router.add_api_route("/preview", _make_preview(service), methods=["POST"])
    router.add_api_route("/uploads", _make_uploads(service), methods=["POST"])
    router.add_api_route("/photos", _make_photos(service), methods=["POST"])
    app.include_router(router)
    app.add_exception_handler(HTTPException, _answer_error)
    app.add_exception_handler(Exception, _answer_failure)


def describe_problem(error: Exception) -> tuple[int, str]:
    """HTTP status and one line for a client about what a job ended with.

    Raises:
        Exception: the error itself, if it is none of the expected ones.
    """
    if isinstance(error, RefusedError):
        return error.status, error.message
    if isinstance(error, QueueFullError):
        return 503, "too many searches are waiting; try again in a moment"
    if isinstance(error, JobTimeoutError):
        return 504, "the search took too long and was ended"
    if isinstance(error, WorkerDiedError):
        return 500, str(error)
    raise error


def parse_box(text: str) -> Box | None:
    """A box from X0,Y0,X1,Y1; None for an empty text.

    Raises:
        RefusedError: it is not four finite numbers.
    """
    if not text.strip():
        return None
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        x0 = y0 = x1 = y1 = math.nan
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise RefusedError(400, f"box {text[:60]!r} is not X0,Y0,X1,Y1, four numbers in pixels")
    return x0, y0, x1, y1


def parse_top_k(text: str) -> int:
    """The number of results wanted.

    Raises:
        RefusedError: it is no whole number in range.
    """
    if not text.strip():
        return DEFAULT_TOP_K
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:6]) <= MAX_TOP_K and len(text) < 6):
        raise RefusedError(400, f"top_k {text[:20]!r} is not allowed, expected 1 to {MAX_TOP_K}")
    return int(text)


def parse_flag(text: str) -> bool:
    """A yes or no; no for an empty text.

    Raises:
        RefusedError: it is neither.
    """
    if text.lower() not in FLAGS:
        raise RefusedError(400, f"verify {text[:20]!r} is not allowed, expected 1 or 0")
    return FLAGS[text.lower()]


async def run_job(service: WebService, job: Any, request: Request) -> Any:
    """Put a job in the line and wait for its answer, unless the client goes away.

    Raises:
        HTTPException: it was refused, took too long or failed.
    """
    try:
        ticket = service.queue.submit(job, request.scope[STARTED])
        async for _ in service.queue.follow(ticket):
            if await request.is_disconnected():
                raise HTTPException(499, "the client went away")
        return ticket.future.result()
    except (RefusedError, QueueFullError, JobTimeoutError, WorkerDiedError) as error:
        status, message = describe_problem(error)
        headers = {"Retry-After": "5"} if status == 503 else None
        raise HTTPException(status, message, headers) from None


@asynccontextmanager
async def read_form(
    request: Request, service: WebService, max_files: int = 1
) -> AsyncIterator[tuple[list[Upload], FormData]]:
    """The files of a request, stored, and its other fields; the files are deleted at the end of the block.

    Raises:
        HTTPException: the request is no form, has no file or too many.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(400, "expected multipart/form-data with the field 'file'")
    uploads: list[Upload] = []
    async with request.form(max_files=max_files, max_fields=MAX_FIELDS, max_part_size=1024) as form:
        try:
            files = [value for value in form.getlist("file") if isinstance(value, UploadFile)]
            if not files:
                raise HTTPException(400, "the field 'file' is missing, expected a photo")
            for file in files:
                uploads.append(await run_in_threadpool(service.uploads.save, file.file, file.filename))
            yield uploads, form
        finally:
            for upload in uploads:
                service.uploads.discard(upload)


def get_text(form: FormData, name: str) -> str:
    """A field that is text; "" if it is missing or a file."""
    value = form.get(name, "")
    return value if isinstance(value, str) else ""


def _make_search_job(upload: Upload, form: FormData, with_report: bool) -> SearchJob:
    try:
        box, top_k = parse_box(get_text(form, "box")), parse_top_k(get_text(form, "top_k"))
        verify = parse_flag(get_text(form, "verify"))
    except RefusedError as error:
        raise HTTPException(error.status, error.message) from None
    return SearchJob(upload.path, upload.label, box, top_k, verify, with_report)


def _make_status(service: WebService) -> Callable[[], Awaitable[Response]]:
    async def status() -> Response:
        return JSONResponse({"images": service.images, "waiting": service.queue.waiting, "may_add": service.may_add})

    return status


def _make_thumbnail(service: WebService) -> Callable[[str], Awaitable[Response]]:
    async def thumbnail(picture_id: str) -> Response:
        picture = service.pictures.get(picture_id)
        if picture is None:
            raise HTTPException(404, "this picture is not held any more; search again")
        kind = "image/png" if picture.startswith(b"\x89PNG") else "image/jpeg"
        return Response(picture, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})

    return thumbnail


def _make_search(service: WebService) -> Callable[[Request], Awaitable[Response]]:
    async def search(request: Request) -> Response:
        async with read_form(request, service) as (uploads, form):
            answer: SearchAnswer = await run_job(service, _make_search_job(uploads[0], form, False), request)
        # ASCII, so that a name which is not valid Unicode survives.
        return Response(json.dumps(service.publish(answer)), media_type="application/json")

    return search


def _make_report(service: WebService) -> Callable[[Request], Awaitable[Response]]:
    async def report(request: Request) -> Response:
        async with read_form(request, service) as (uploads, form):
            answer: SearchAnswer = await run_job(service, _make_search_job(uploads[0], form, True), request)
        return HTMLResponse(answer.report, headers={"Content-Disposition": 'attachment; filename="report.html"'})

    return report


def _make_preview(service: WebService) -> Callable[[Request], Awaitable[Response]]:
    async def preview(request: Request) -> Response:
        async with read_form(request, service) as (uploads, _):
            shown: Preview = await run_job(service, PreviewJob(uploads[0].path, uploads[0].label), request)
        size = {"X-Photo-Width": str(shown.width), "X-Photo-Height": str(shown.height)}
        return Response(shown.picture, media_type="image/jpeg", headers=size)

    return preview


def _make_uploads(service: WebService) -> Callable[[Request], Awaitable[Response]]:
    async def uploads(request: Request) -> Response:
        async with read_form(request, service) as (files, _):
            return JSONResponse({"upload": service.uploads.keep(files[0])})

    return uploads


def _make_photos(service: WebService) -> Callable[[Request], Awaitable[Response]]:
    async def photos(request: Request) -> Response:
        if not service.may_add:
            raise HTTPException(403, "this app was not started for adding photos")
        async with read_form(request, service, MAX_ADDED_FILES) as (uploads, _):
            job = AddJob(tuple((upload.path, upload.label) for upload in uploads))
            answer: AddAnswer = await run_job(service, job, request)
        service.images = answer.images
        refused = [{"file": label, "error": reason} for label, reason in answer.refused]
        return JSONResponse({"added": answer.added, "refused": refused, "images": answer.images})

    return photos


async def _answer_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _answer_failure(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"our own fault: {type(error).__name__}"}, 500)
