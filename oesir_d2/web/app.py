"""The web app as a whole: the model's process, the line in front of it, the routes, the page, and their end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI
from starlette.types import ASGIApp

from oesir_d2.index import Manifest
from oesir_d2.web.api import MAX_ADDED_FILES, WebService, add_routes
from oesir_d2.web.gate import Gate
from oesir_d2.web.jobs import DeskOpener
from oesir_d2.web.pictures import PictureStore
from oesir_d2.web.queue import JobQueue
from oesir_d2.web.scratch_folder import ScratchFolder
from oesir_d2.web.settings import LOOPBACK_HOSTS, MEGABYTE, WebSettings
from oesir_d2.web.uploads import UploadStore
from oesir_d2.web.worker import Worker

PICTURES_BYTES = 128 * MEGABYTE


class WebApp:
    """Everything that has to be ended again; a context manager.

    Args:
        settings: the limits.

    Attributes:
        asgi: the app for an ASGI server.

    Raises:
        FileNotFoundError, ValueError, OSError: the index cannot be opened, or there is no place for uploads.
    """

    def __init__(self, settings: WebSettings) -> None:
        images = Manifest.load(settings.index).images
        if settings.add_folder is not None:
            settings.add_folder.mkdir(parents=True, exist_ok=True)
        self._worker = Worker(DeskOpener(settings))
        self._worker.start()
        self._scratch = ScratchFolder()
        # Nothing is ever written there: uploads do not reach Gradio.
        os.environ["GRADIO_TEMP_DIR"] = str(self._scratch.path / "gradio")
        self._queue = JobQueue(self._worker.run, settings.max_waiting, settings.timeout)
        self._uploads = UploadStore(self._scratch.path, 2 * settings.max_waiting, settings.timeout)
        pictures = PictureStore(PICTURES_BYTES)
        may_add = settings.add_folder is not None
        self.service = WebService(self._queue, self._uploads, pictures, images, may_add)
        self.asgi = make_asgi_app(settings, self.service)

    def __enter__(self) -> WebApp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the model's process and delete what clients sent."""
        self._queue.close()
        self._worker.stop()
        self._uploads.close()
        self._scratch.delete()


def make_asgi_app(settings: WebSettings, service: WebService) -> ASGIApp:
    """The routes and the page behind their gate."""
    # Both ask machines of the makers otherwise: for the newest version, and for a way to share the app.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    import gradio

    from oesir_d2.web.page import make_page, make_theme

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=_no_lifespan)
    add_routes(app, service)
    page = make_page(settings, service)
    gradio.mount_gradio_app(
        app,
        page,
        path="/",
        theme=make_theme(),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=True,
        allowed_paths=[],
        max_file_size=1,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )
    hosts = (*LOOPBACK_HOSTS, settings.host.lower()) if settings.is_loopback else None
    return Gate(app, settings.max_upload_bytes, MAX_ADDED_FILES, settings.timeout, hosts)


@contextlib.asynccontextmanager
async def _no_lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield
