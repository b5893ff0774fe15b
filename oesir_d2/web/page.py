"""The page that people use: a photo, a box around the suspicious object, the results and the report."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import gradio as gr

from oesir_d2.web.api import MAX_ADDED_FILES, MAX_TOP_K, WebService, describe_problem
from oesir_d2.web.jobs import SearchAnswer, SearchJob
from oesir_d2.web.queue import JobTimeoutError, QueueFullError
from oesir_d2.web.results import render_report_frame, render_results
from oesir_d2.web.settings import WebSettings
from oesir_d2.web.worker import RefusedError, WorkerDiedError

TITLE = "Where does this photo come from?"
# Fonts of the reader's own machine: Gradio's would be asked of another one.
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif")
MONO_FONTS = ("ui-monospace", "Menlo", "DejaVu Sans Mono", "monospace")
PREPARE_JS = "async (text, top_k, verify) => [await window.oesirPicker.prepare(), top_k, verify]"
# Room for the progress bar, in place of results that are not this search's.
CLEAR_JS = "() => '<div class=\"searching\"></div>'"
MAX_EVENTS = 256
MAX_PROBLEM_LENGTH = 300
# Gradio puts a tracker of its own in the place of a default of this kind.
PROGRESS = gr.Progress()


def make_page(settings: WebSettings, service: WebService) -> gr.Blocks:
    """The page's components and what they do."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(f"<h1>{TITLE}</h1>", elem_classes="heading")
        with gr.Tab("Search"):
            _add_search(settings, service)
        if service.may_add:
            with gr.Tab("Add photos"):
                gr.HTML(
                    html_template=_read("adder.html"),
                    css_template=_read("picker.css"),
                    js_on_load=_read_script("adder.js", settings),
                )
    # How many may wait is for the line in front of the model to decide, in which the API's callers stand as well.
    page.queue(max_size=MAX_EVENTS, default_concurrency_limit=None, api_open=False)
    return page


def make_theme() -> gr.themes.Base:
    """The page's looks: Gradio's own, in the colours of the reports."""
    blue = gr.themes.Color(*("#eef6fb", "#d6e9f5", "#b0d4ea", "#7cc4f0", "#4aa3d8", "#2383bd", "#0b5f94", "#0a507c",
                             "#084265", "#06304a", "#041f30"))  # fmt: skip
    theme = gr.themes.Default(primary_hue=blue, neutral_hue="zinc", font=FONTS, font_mono=MONO_FONTS)
    # Gradio's own grey is too pale to be read on white.
    return theme.set(body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_400")


def _add_search(settings: WebSettings, service: WebService) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=320):
            gr.HTML(
                html_template=_read("picker.html"),
                css_template=_read("picker.css"),
                js_on_load=_read_script("picker.js", settings),
                elem_id="picker",
            )
            top_k = gr.Slider(1, MAX_TOP_K, value=10, step=1, label="Results")
            verify = gr.Checkbox(True, label="Prove it", info="Compares the photos point by point; takes longer.")
            button = gr.Button("Search", variant="primary", elem_id="search")
        with gr.Column(scale=3, min_width=320):
            with gr.Tabs():
                with gr.Tab("Results"):
                    results = gr.HTML(_read("welcome.html"), css_template=_read("results.css"), elem_id="results")
                with gr.Tab("Report"):
                    report = gr.HTML(
                        render_report_frame(""), css_template=_read("results.css"), js_on_load=_read("report.js"),
                        elem_id="report",
                    )  # fmt: skip
    request = gr.Textbox(visible=False)
    button.click(None, None, results, js=CLEAR_JS, show_progress="hidden", queue=False, api_visibility="private").then(
        _make_search(service), [request, top_k, verify], [results, report],
        js=PREPARE_JS, show_progress_on=results, concurrency_limit=None, api_visibility="private",
    )  # fmt: skip


def _make_search(service: WebService) -> Callable[..., Any]:
    async def search(request: str, top_k: float, verify: bool, progress: gr.Progress = PROGRESS) -> tuple[str, str]:
        """Search with the photo that the page has just sent.

        Args:
            request: JSON, ``{"upload": id, "box": [x0, y0, x1, y1] or null}``, or ``{"problem": why there is none}``.
            top_k: results wanted.
            verify: prove what was found by its geometry.
        """
        upload_id, box = parse_request(request)
        upload = service.uploads.take(upload_id)
        if upload is None:
            raise _make_error("This photo is not held any more; choose it again.")
        try:
            count = min(max(int(top_k), 1), MAX_TOP_K)
            job = SearchJob(upload.path, upload.label, box, count, bool(verify), with_report=True)
            ticket = service.queue.submit(job)
            async for share, text in service.queue.follow(ticket):
                progress(share, desc=text)
            answer: SearchAnswer = ticket.future.result()
        except (RefusedError, QueueFullError, JobTimeoutError, WorkerDiedError) as error:
            raise _make_error(describe_problem(error)[1]) from None
        finally:
            service.uploads.discard(upload)
        return render_results(answer, service), render_report_frame(answer.report)

    return search


def parse_request(text: str) -> tuple[str, tuple[float, float, float, float] | None]:
    """Id and box of what the page's script sent.

    Raises:
        gr.Error: the script tells of a problem, or somebody else sent something else.
    """
    try:
        content = json.loads(text)
        problem = str(content.get("problem", ""))[:MAX_PROBLEM_LENGTH]
        upload_id, box = content.get("upload", ""), content.get("box")
        corners = None if box is None else [float(value) for value in box]
    except (AttributeError, ValueError, TypeError, RecursionError):
        problem = "This request was not understood."
    if not problem and not (isinstance(upload_id, str) and (corners is None or len(corners) == 4)):
        problem = "This request was not understood."
    if problem:
        raise _make_error(problem)
    return upload_id, None if corners is None else (corners[0], corners[1], corners[2], corners[3])


def _make_error(message: str) -> gr.Error:
    """A message for the user, in which a file may be named; Gradio would take it for HTML."""
    return gr.Error(html.escape(message), print_exception=False)


def _read(name: str) -> str:
    return files("oesir_d2.web").joinpath("static", name).read_text("utf-8")


def _read_script(name: str, settings: WebSettings) -> str:
    limits = f"const MAX_UPLOAD_BYTES = {settings.max_upload_bytes}, MAX_FILES = {MAX_ADDED_FILES};\n"
    return limits + _read(name)
