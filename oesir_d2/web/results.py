"""What the page shows of an answer: cards with thumbnails, and the report in a frame of its own."""

from __future__ import annotations

import base64
import json
from typing import Any

from oesir_d2.report.page import escape, render_name
from oesir_d2.report.text import format_score
from oesir_d2.web.api import THUMBNAIL_ROUTE, WebService
from oesir_d2.web.jobs import SearchAnswer


def render_results(answer: SearchAnswer, service: WebService) -> str:
    """The query and its results as HTML."""
    content = service.publish(answer)
    query = THUMBNAIL_ROUTE + service.pictures.add(answer.query_picture)
    cards = "".join(
        _render_card(result, evidence) for result, evidence in zip(content["results"], answer.evidence, strict=True)
    )
    verdict = ""
    if answer.verdict:
        first, *others = answer.verdict
        verdict = f'<p class="notice"><strong>{escape(first)}</strong> {escape(" ".join(others))}</p>'
    found = f'<ol class="cards">{cards}</ol>' if cards else '<p class="notice">Nothing was found.</p>'
    return f"""<div class="found">
{verdict}
<figure class="query"><img src="{query}" alt="The query with its regions"><figcaption>{render_name(content["query"])}
{len(content["objects"])} region{"s" * (len(content["objects"]) != 1)} searched for</figcaption></figure>
<p class="note">A numbered box of a photo matches the query's box of the same number and colour. No score is a proof.
<a class="button" download="results.json" href="{make_json_uri(content)}">Download JSON</a></p>
{found}
</div>"""


def make_json_uri(content: dict[str, Any]) -> str:
    """JSON as a ``data:`` URI, for a link that saves it."""
    # Thumbnails live as long as the app; what is saved lives longer.
    kept = [{key: value for key, value in result.items() if key != "thumbnail"} for result in content["results"]]
    text = json.dumps(content | {"results": kept}, indent=1)
    return "data:application/json;base64," + base64.b64encode(text.encode("ascii")).decode("ascii")


def render_report_frame(report: str) -> str:
    """The report's page in a frame that can neither reach the app nor run anything but its own scripts."""
    if not report:
        return '<p class="notice">The report of a search is shown here.</p>'
    # No allow-same-origin: the report is a stranger to the app, even if a photo's name should get the better of it.
    return (
        '<p class="note"><button type="button" class="button download-report">Download report</button></p>'
        f'<iframe class="report" title="Report" sandbox="allow-scripts allow-downloads" srcdoc="{escape_all(report)}">'
        "</iframe>"
    )


def escape_all(text: str) -> str:
    """A whole page as the value of an attribute."""
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def _render_card(result: dict[str, Any], evidence: str) -> str:
    if result["thumbnail"]:
        picture = f'<img src="{escape(result["thumbnail"])}" alt="" loading="lazy">'
    else:
        picture = '<p class="missing">This photo cannot be shown: its file is gone or damaged.</p>'
    proof = f'<p class="proof">{escape(evidence)}</p>' if evidence else ""
    path = render_name(result["path"], "path") if result["path"] else ""
    return (
        f'<li class="card"><div class="picture">{picture}</div><div class="words">'
        f'<p class="rank"><b>Rank {result["rank"]}</b> <span>{format_score(result["score"])}</span></p>'
        f"{render_name(result['image_id'])}{proof}{path}</div></li>"
    )
