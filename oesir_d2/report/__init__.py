"""What a person looks at: drawings on photos, contact sheets and self-contained HTML pages.

The pages are made of sections (``search_section``, ``provenance_section``, ``metrics_section``, ``failure_section``,
``facts_section``), which ``write_page`` joins in any choice and order.
"""

from oesir_d2.report.contact_sheet import CaptionedPhoto, draw_contact_sheet, write_contact_sheet
from oesir_d2.report.drawings import LabelledBox, draw_boxes, draw_display_photo, get_region_color
from oesir_d2.report.failure_cases import make_failure_cases
from oesir_d2.report.failure_report import (
    FailureCase,
    RankedPhoto,
    TrueSource,
    failure_section,
    metrics_section,
    write_failure_report,
)
from oesir_d2.report.page import facts_section, render_page, write_page
from oesir_d2.report.provenance import ProvenanceReport
from oesir_d2.report.provenance_page import provenance_section, write_provenance_report
from oesir_d2.report.search_report import QueryReport, search_section, write_search_report

__all__ = [
    "CaptionedPhoto",
    "FailureCase",
    "LabelledBox",
    "ProvenanceReport",
    "QueryReport",
    "RankedPhoto",
    "TrueSource",
    "draw_boxes",
    "draw_contact_sheet",
    "draw_display_photo",
    "facts_section",
    "failure_section",
    "get_region_color",
    "make_failure_cases",
    "metrics_section",
    "provenance_section",
    "render_page",
    "search_section",
    "write_contact_sheet",
    "write_failure_report",
    "write_page",
    "write_provenance_report",
    "write_search_report",
]
