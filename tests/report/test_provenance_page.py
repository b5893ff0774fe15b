"""The page of a proof: what it says, what it links, and that the pictures show the evidence where it lies."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data

from oesir_d2.data.images import DecodedImage
from oesir_d2.geometry import Appearance, Findings, GeometricMatch, PhotoFinding, SplicePart
from oesir_d2.index.results import SearchResult
from oesir_d2.report.drawings import get_region_color
from oesir_d2.report.overlays import choose_spread, draw_correspondences, draw_warped, find_label_place, map_points
from oesir_d2.report.page import to_css_color
from oesir_d2.report.provenance import (
    ProvenanceReport,
    describe_confidence,
    describe_doubt,
    describe_evidence,
    describe_verdict,
)
from oesir_d2.report.provenance_page import write_provenance_report

HOSTILE_NAME = "<img src=x onerror=alert(1)>&\"'.png"
# The coffee photo at 0.4 of its size, turned, at the left lower part of the query.
DONOR_TO_QUERY = np.vstack([cv2.getRotationMatrix2D((300, 200), -20, 0.4), [0, 0, 1]])
DONOR_TO_QUERY = np.array([[1, 0, -170], [0, 1, 150], [0, 0, 1]]) @ DONOR_TO_QUERY
PART_IN_DONOR = np.array([[150, 80], [450, 80], [450, 330], [150, 330]], dtype=np.float64)


def make_match(transform: np.ndarray, points: np.ndarray, confidence: float = 0.999, **changed: Any) -> GeometricMatch:
    """A match whose points agree with its transform exactly."""
    values = {"flipped": False, "scale": 0.4, "rotation": 20.0} | changed
    query_points = map_points(transform, points).astype(np.float32)
    return GeometricMatch(
        transform=transform, query_points=query_points, source_points=points.astype(np.float32), confidence=confidence,
        **values,
    )  # fmt: skip


def make_part(kind: Any, polygon: np.ndarray, match: GeometricMatch | None, **changed: Any) -> SplicePart:
    values = {"area": 0.05, "source_id": None, "confidence": 0.985} | changed
    box = (*polygon.min(axis=0).tolist(), *polygon.max(axis=0).tolist())
    return SplicePart(kind=kind, box=box, polygons=(polygon.astype(np.float32),), match=match, **values)


@pytest.fixture
def report(tmp_path: Path, rng: np.random.Generator) -> ProvenanceReport:
    """The coffee cup pasted into the astronaut photo, one more part that nobody knows, and one that was copied."""
    host, donor = data.astronaut(), data.coffee()
    query = host.copy()
    part = np.zeros(donor.shape[:2], np.uint8)
    cv2.fillPoly(part, [PART_IN_DONOR.astype(np.int32)], 1)
    warped = cv2.warpPerspective(donor, DONOR_TO_QUERY, (512, 512))
    inside = cv2.warpPerspective(part, DONOR_TO_QUERY, (512, 512)) > 0
    query[inside] = warped[inside]
    for name, pixels in (("query", query), ("host", host), ("donor", donor)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    host_match = make_match(np.eye(3), rng.uniform(0, 500, (340, 2)), scale=1.0, rotation=0.0)
    donor_match = make_match(DONOR_TO_QUERY, rng.uniform((150, 80), (450, 330), (82, 2)))
    copy = np.array([[1.0, 0, 100], [0, 1, -50], [0, 0, 1]])
    copy_match = make_match(copy, rng.uniform((300, 400), (340, 440), (20, 2)), scale=1.0, rotation=0.0)
    parts = (
        make_part("donor", map_points(DONOR_TO_QUERY, PART_IN_DONOR), donor_match, source_id="donor.png"),
        make_part("unknown source", np.array([[400.0, 20], [450, 20], [450, 90]]), None),
        make_part("copy-move", np.array([[400.0, 350], [440, 350], [440, 390], [400, 390]]), copy_match),
    )
    results = [
        SearchResult(1, "host.png", str(tmp_path / "host.png"), 0.9, []),
        SearchResult(2, "donor.png", str(tmp_path / "donor.png"), 0.5, []),
        SearchResult(3, "other.png", str(tmp_path / "other.png"), 0.4, []),
    ]
    weak = make_match(np.eye(3), rng.uniform(0, 500, (5, 2)), confidence=0.2)
    photos = (
        PhotoFinding("host.png", "host", host_match),
        PhotoFinding("donor.png", "donor", donor_match, (0,)),
        PhotoFinding("other.png", "unverified", weak),
    )
    content = {"query": "q", "results": [{"image_id": HOSTILE_NAME}]}
    return ProvenanceReport(tmp_path / "query.png", results, Findings(photos, parts), content)


def replace_findings(report: ProvenanceReport, photos: Any, parts: Any = (), **changed: Any) -> ProvenanceReport:
    results = [result for result in report.results if result.image_id in {photo.image_id for photo in photos}]
    return ProvenanceReport(report.path, results, Findings(tuple(photos), tuple(parts)), report.content, **changed)


@pytest.fixture
def write(tmp_path: Path, parse_page: Callable[..., Any]) -> Callable[..., Any]:
    """Writes a page and takes it apart; what it lets be saved and its script are attributes of their own."""

    def write_page(*reports: ProvenanceReport) -> Any:
        write_provenance_report(tmp_path / "out" / "report.html", reports, {"Photos searched": 708})
        source = (tmp_path / "out" / "report.html").read_text("utf-8")
        (script,) = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
        saved = re.findall(r' href="data:application/json;base64,([^"]+)"', source)
        (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', source)
        # The policy lets the browser run this one script.
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert policy.startswith("default-src 'none'; ") and policy.endswith(f"script-src 'sha256-{digest}'")
        page = parse_page(re.sub(r'<script>.*</script>| href="data:[^"]+"', "", source, flags=re.DOTALL))
        page.script, page.saved = script, saved
        return page

    return write_page


def test_page_tells_every_source_with_its_evidence(report: ProvenanceReport, write: Any) -> None:
    page = write(report)
    assert "This photo was made from host.png, has a part of donor.png and has a part of itself copied" in page.text
    assert "1 part of it was changed or added, and no photo of the index explains it." in page.text
    assert "82 inliers, scale 0.40, rotated 20 degrees clockwise; fair, confidence 0.985" in page.text
    assert "340 inliers, scale 1.00, not rotated; strong, confidence 0.999" in page.text
    assert "unknown source: differs from the host, 5.0% of the photo" in page.text
    assert "Found, but not proven: other.png (5 inliers; too few points agree)." in page.text
    assert "weak" not in page.text and "708" in page.text
    assert len(page.find("article", "source")) == 3 and len(page.find("div", "slider")) == 2
    assert len(page.find("input")) == 2 and ".slider input" in page.script


def test_parts_are_links_to_their_place_in_the_source(report: ProvenanceReport, write: Any) -> None:
    page = write(report, report)
    identities = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    targets = [a["href"].removeprefix("#") for a in page.find("a") if "href" in a]
    assert set(targets) <= identities and {"source-1-2", "source-2-2", "proof-1", "unknown-2"} <= set(targets)
    areas = page.find("a", "area")
    colors = [area["style"].removeprefix("--color:") for area in areas[:3]]
    assert colors == [*(to_css_color(get_region_color(index)) for index in (1, 2)), "#e6005c"]
    # The query's own outline first, then the same in the source, where it was cut out.
    outlines = [polygon["points"] for polygon in page.find("polygon")]
    in_query = np.array([point.split(",") for point in outlines[0].split()], dtype=float)
    assert np.abs(in_query - map_points(DONOR_TO_QUERY, PART_IN_DONOR)).max() < 0.1
    in_source = np.array([point.split(",") for point in outlines[4].split()], dtype=float)
    assert np.abs(in_source - PART_IN_DONOR).max() < 0.2


def test_answer_can_be_saved_as_json(report: ProvenanceReport, write: Any) -> None:
    page = write(report)
    assert json.loads(base64.b64decode(page.saved[0])) == report.content
    assert not page.find("img", "x") and all(a.get("src", "data:").startswith("data:image") for a in page.find("img"))


@pytest.mark.parametrize("photos", [(), ("other.png",)])
def test_page_says_plainly_that_nothing_was_found(photos: Any, report: ProvenanceReport, write: Any) -> None:
    left = [photo for photo in report.findings.photos if photo.image_id in photos]
    page = write(replace_findings(report, left))
    assert "Nothing was proven: no photo of the index could be shown to be a source of this photo." in page.text
    assert ("1 photo has some points in common with it, but that may be chance." in page.text) == bool(photos)
    assert not page.find("article", "source")


def test_page_tells_another_photo_of_the_same_thing_from_chance(report: ProvenanceReport, write: Any) -> None:
    points = np.arange(52, dtype=float).reshape(26, 2)
    match = make_match(np.eye(3), points, scale=1.0, rotation=0.0, appearance=Appearance(1.0, 900, 0.7, 0.65))
    page = write(replace_findings(report, [PhotoFinding("other.png", match=match)]))
    assert "1 photo shows something that it shows, too, but other pixels: perhaps taken another time." in page.text
    assert "chance" not in page.text
    assert "other.png (26 inliers; it shows the same thing, but not pixel by pixel" in page.text


def test_weak_evidence_is_called_weak(report: ProvenanceReport, write: Any, rng: np.random.Generator) -> None:
    weak = make_match(DONOR_TO_QUERY, rng.uniform(100, 300, (9, 2)), confidence=0.9)
    donor = PhotoFinding("donor.png", "donor", weak)
    alone = replace_findings(report, [donor])
    assert describe_verdict(alone)[1].startswith("The evidence is weak")
    both = replace_findings(report, [report.findings.photos[0], donor])
    assert describe_verdict(both)[-1] == "The evidence for number 2 is weak: take it as a hint."
    assert "weak, confidence 0.900" in write(both).text


def test_many_near_duplicates_are_counted(report: ProvenanceReport, tmp_path: Path) -> None:
    match = report.findings.photos[0].match
    photos = tuple(PhotoFinding(f"{number}.png", "near-duplicate", match) for number in range(11))
    results = [SearchResult(number + 1, photo.image_id, "p", 0.9, []) for number, photo in enumerate(photos)]
    verdict = describe_verdict(ProvenanceReport(tmp_path / "query.png", results, Findings(photos)))
    assert verdict[0].startswith("This photo shows the same as 0.png, 1.png, ")
    assert verdict[-1] == "3 more verified photos are not shown."


def test_sources_that_are_gone_and_hostile_names_do_no_harm(report: ProvenanceReport, write: Any) -> None:
    gone = [SearchResult(1, HOSTILE_NAME, "/nowhere/" + HOSTILE_NAME, 0.9, [])]
    findings = Findings((PhotoFinding(HOSTILE_NAME, "host", report.findings.photos[0].match),))
    page = write(ProvenanceReport(report.path, gone, findings, name=HOSTILE_NAME))
    assert "This photo cannot be shown" in page.text and HOSTILE_NAME in page.text
    assert all("onerror" not in image for image in page.find("img"))
    missing = write(ProvenanceReport("/nowhere/q.png", report.results, report.findings))
    assert "q.png: the file does not exist" in missing.text


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"scale": 0.414, "rotation": 7.4}, "82 inliers, scale 0.41, rotated 7 degrees clockwise"),
        ({"scale": 2.0, "rotation": -1.2}, "82 inliers, scale 2.00, rotated 1 degree anticlockwise"),
        ({"scale": 1.0, "rotation": -0.4, "flipped": True}, "82 inliers, scale 1.00, not rotated, mirrored"),
        ({"scale": 1.0, "rotation": 180.0}, "82 inliers, scale 1.00, rotated 180 degrees"),
    ],
)
def test_evidence_in_words(changed: dict[str, Any], words: str) -> None:
    assert describe_evidence(make_match(np.eye(3), np.zeros((82, 2)), **changed)) == words


def test_likeness_and_doubts_in_words() -> None:
    match = make_match(
        np.eye(3), np.zeros((6, 2)), scale=1.0, rotation=168.0, appearance=Appearance(1.0, 900, -0.093, -0.1)
    )
    assert describe_evidence(match) == "6 inliers, scale 1.00, rotated 168 degrees clockwise, likeness 0%"
    assert describe_doubt(PhotoFinding("a", match=match)) == "6 inliers; laid over the part, it looks different"
    hidden = replace(match, appearance=Appearance(0.2, 900, 0.9, 0.9))
    assert describe_doubt(PhotoFinding("a", match=hidden)) == "6 inliers; too little to see of it"
    other = PhotoFinding("a", match=replace(match, appearance=Appearance(1.0, 900, 0.75, 0.7)))
    assert describe_doubt(other).startswith("6 inliers; it shows the same thing, but not pixel by pixel")
    points = np.zeros((5, 2))
    alike = make_match(np.eye(3), points, scale=1.0, rotation=168.0, appearance=Appearance(1.0, 900, 0.926, 0.9))
    assert describe_doubt(PhotoFinding("a", match=alike)) == "5 inliers; too few points agree"
    assert describe_evidence(alike).endswith("likeness 93%")


def test_confidence_is_never_said_to_be_certain() -> None:
    assert describe_confidence(1.0) == "strong, confidence 0.999"
    assert describe_confidence(0.98999) == "fair, confidence 0.989"
    assert describe_confidence(0.0) == "weak, confidence 0.000"


def test_warped_source_lies_on_the_query_where_it_was_pasted() -> None:
    """Against skimage's own warping, for photos that are shown smaller than they are."""
    from skimage.transform import ProjectiveTransform, warp

    donor = np.kron(data.coffee(), np.ones((2, 2, 1), np.uint8))  # 1200 x 800: shown at 640
    query = np.zeros((900, 1000, 3), np.uint8)
    transform = DONOR_TO_QUERY @ np.diag([1.2, 1.2, 1])
    shown = draw_warped(DecodedImage(donor, 1200, 800), DecodedImage(query, 1000, 900), transform)
    assert shown.shape == (576, 640, 3)
    expected = warp(donor, ProjectiveTransform(transform).inverse, output_shape=(900, 1000), preserve_range=True)
    covered = warp(np.ones((800, 1200)), ProjectiveTransform(transform).inverse, output_shape=(900, 1000))
    expected = cv2.resize(expected, (640, 576), interpolation=cv2.INTER_AREA)
    inside = cv2.erode(cv2.resize(covered, (640, 576)), np.ones((9, 9))) > 0.99
    assert inside.sum() > 10_000
    assert np.abs(shown.astype(float) - expected)[inside].mean() < 8
    outside = cv2.dilate(cv2.resize(covered, (640, 576)), np.ones((9, 9))) < 0.01
    assert np.ptp(shown[outside]) == 0


def test_lines_join_the_same_points() -> None:
    grey = DecodedImage(np.full((100, 200, 3), 128, np.uint8), 400, 200)  # decoded at half its size
    color = (230, 159, 0)
    sheet = draw_correspondences(grey, grey, np.array([[99.5, 99.5]]), np.array([[299.5, 19.5]]), color)
    # The line from (50, 50) of the left photo to (150, 10) of the right one, which begins at 200 + 16.
    marked = np.abs(sheet.astype(int) - color).max(axis=2) < 60
    rows, columns = np.nonzero(marked)
    assert columns.min() == pytest.approx(47, abs=2) and columns.max() == pytest.approx(216 + 150 + 3, abs=2)
    slope, intercept = np.polyfit(columns, rows, 1)
    assert slope == pytest.approx((10 - 50) / (216 + 150 - 50), abs=0.01)
    assert intercept + 50 * slope == pytest.approx(50, abs=1)


def test_few_points_stand_for_many() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(0, 1, (1000, 2)), [[100, 100], [-100, 50]]])
    chosen = choose_spread(points, 5)
    assert len(set(chosen.tolist())) == 5 and {1000, 1001} <= set(chosen.tolist())
    assert choose_spread(points[:3], 5).tolist() == [0, 1, 2] and len(choose_spread(points[:0], 5)) == 0


def test_number_stands_inside_its_part() -> None:
    crescent = np.array([[0, 0], [100, 0], [100, 100], [0, 100], [0, 90], [90, 90], [90, 10], [0, 10]])
    x, y = find_label_place([np.array([[200, 200], [202, 200], [202, 202]]), crescent])
    assert cv2.pointPolygonTest(crescent.astype(np.float32), (x, y), False) > 0
    assert find_label_place([np.array([[5.0, 5.0]])]) == pytest.approx((5, 5), abs=1)
