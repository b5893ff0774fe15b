from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from oesir_d2.index.results import RegionMatch, SearchResult
from oesir_d2.report.drawings import get_region_color
from oesir_d2.report.page import render_page, to_css_color
from oesir_d2.report.search_report import QueryReport, search_section, write_search_report

HOSTILE_NAME = "a <b>&'\"é 日本.png"
OBJECTS = [
    {"box": [10, 10, 30, 50], "score": 0.93, "class": "dog"},
    {"box": [40, 10, 70, 50], "score": 0.71, "class": "cat"},
]


def make_result(rank: int, path: str, *matches: tuple[int, tuple[float, ...], float]) -> SearchResult:
    """A result with matches (object of the query, box in the result, score)."""
    pairs = [RegionMatch(tuple(OBJECTS[index]["box"]), box, score) for index, box, score in matches]
    return SearchResult(rank, f"id-{rank}", path, 1 - rank / 100, pairs)


def is_color(pixel: np.ndarray, color: tuple[int, int, int]) -> bool:
    """Whether a pixel has this colour, up to what JPEG does to it."""
    return bool(np.abs(pixel.astype(int) - color).max() < 40)


def test_every_result_stands_beside_its_query(tmp_path: Path, write_photo, parse_page):
    results = [make_result(rank, write_photo(f"{rank}.png"), (0, (5, 5, 40, 40), 0.9)) for rank in range(1, 6)]
    entries = [
        QueryReport(write_photo("q1.png"), OBJECTS, results),
        QueryReport(write_photo("q2.png"), [], results[:2]),
    ]
    path = tmp_path / "report" / "report.html"
    write_search_report(path, entries, title="Search of <index>", facts={"Photos": "1,109"})
    page = parse_page(path)
    assert len(page.find("article", "query")) == 2
    assert len(page.find("li", "card")) == 7
    assert [page.text.count(f"Rank {rank}") for rank in range(1, 6)] == [2, 2, 1, 1, 1]
    for text in ("Search of <index>", "1,109", "id-4", results[4].path, "0.990", "dog", "cat", "0.930"):
        assert text in page.text
    # Two queries, seven results, and the two crops of each of seven pairs.
    assert len(page.find("img")) == 2 + 7 + 2 * 7
    anchors = {a["id"] for a in page.find("article")}
    assert {a["href"].removeprefix("#") for a in page.find("a")} == anchors


def test_matched_boxes_have_the_color_of_the_query_box(write_photo, parse_page):
    result = make_result(1, write_photo("r.png"), (1, (5, 5, 40, 40), 0.9), (0, (45, 15, 75, 55), 0.8))
    page = parse_page(render_page("t", [search_section([QueryReport(write_photo("q.png"), OBJECTS, [result])])]))
    query, shown = page.pictures()[:2]
    first, second = get_region_color(0), get_region_color(1)
    # The best match belongs to the second object, so that one is number 1.
    assert is_color(query[49, 55], first) and is_color(shown[39, 22], first)
    assert is_color(query[49, 20], second) and is_color(shown[54, 60], second)
    swatches = [(a["style"].split(";")[0]) for a in page.find("span", "swatch")]
    # Legend of the query, then the pairs of the result.
    expected = [first, second, first, second]
    assert swatches == [f"background:{to_css_color(color)}" for color in expected]


def test_whole_photo_is_a_frame_and_hides_nothing(write_photo, parse_page):
    whole = {"box": [0, 0, 80, 60], "score": 1.0, "class": None}
    match = RegionMatch((0, 0, 80, 60), (0, 0, 80, 60), 0.9)
    result = SearchResult(1, "id", write_photo("r.png"), 0.9, [match])
    page = parse_page(render_page("t", [search_section([QueryReport(write_photo("q.png"), [whole], [result])])]))
    framed = page.find("img", "framed")
    assert [a["style"] for a in framed] == [f"border-color:{to_css_color(get_region_color(0))}"] * 2
    assert all(np.abs(picture.astype(int) - 128).max() < 10 for picture in page.pictures())
    assert "1 whole photo" in page.text


def test_crops_show_the_matched_regions(tmp_path: Path, parse_page):
    photo = data.astronaut()
    for name in ("q.png", "r.png"):
        Image.fromarray(photo).save(tmp_path / name)
    match = RegionMatch((180, 0, 280, 100), (300, 200, 420, 260), 0.9)
    result = SearchResult(1, "id", str(tmp_path / "r.png"), 0.9, [match])
    entry = QueryReport(tmp_path / "q.png", [{"box": [180, 0, 280, 100], "score": 1.0, "class": -1}], [result])
    crops = parse_page(render_page("t", [search_section([entry])])).pictures()[2:]
    for crop, expected in zip(crops, (photo[0:100, 180:280], photo[200:260, 300:420])):
        assert crop.shape == expected.shape
        assert np.abs(crop.astype(int) - expected).mean() < 8


def test_large_photos_are_embedded_at_display_size(write_photo, parse_page):
    result = make_result(1, write_photo("r.png", 2000, 500))
    entry = QueryReport(write_photo("q.png", 600, 1200), [], [result])
    query, shown = parse_page(render_page("t", [search_section([entry])])).pictures()
    assert query.shape[:2] == (640, 320) and shown.shape[:2] == (120, 480)


def test_boxes_fit_photos_that_are_rotated_and_decoded_at_reduced_size(tmp_path: Path, parse_page):
    # A file of 4000 x 2000 pixels, which EXIF orientation 6 turns into a photo of 2000 x 4000 with the red part on top.
    pixels = np.full((2000, 4000, 3), 128, np.uint8)
    pixels[:, :1000] = (200, 0, 0)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(tmp_path / "large.jpg", exif=exif, quality=95)
    path = str(tmp_path / "large.jpg")
    red_part = (0.0, 0.0, 2000.0, 1000.0)
    result = SearchResult(1, "id", path, 0.9, [RegionMatch(red_part, red_part, 0.9)])
    entry = QueryReport(path, [{"box": red_part, "score": 1.0, "class": None}], [result])
    query, shown, *crops = parse_page(render_page("t", [search_section([entry])])).pictures()
    assert query.shape[:2] == (640, 320) and shown.shape[:2] == (480, 240)
    assert is_color(query[158, 160], get_region_color(0)) and is_color(query[140, 160], (200, 0, 0))
    assert is_color(query[165, 160], (128, 128, 128))
    assert [crop.shape[:2] for crop in crops] == [(60, 120)] * 2
    assert all(np.abs(crop.astype(int) - (200, 0, 0)).max(axis=2).mean() < 10 for crop in crops)


def test_hostile_names_are_shown_and_do_nothing(write_photo, parse_page):
    path = write_photo(HOSTILE_NAME)
    result = SearchResult(1, HOSTILE_NAME, path, 0.9, [])
    entry = QueryReport(path, [{"box": [1, 1, 9, 9], "score": 0.5, "class": "<i>dog"}], [result])
    page = parse_page(render_page("t", [search_section([entry], heading="<u>")]))
    assert page.text.count(HOSTILE_NAME) == 4 and "<i>dog" in page.text and "<u>" in page.text
    assert not page.find("b") and not page.find("i") and not page.find("u")


def test_photos_that_cannot_be_read_are_replaced_by_the_reason(tmp_path: Path, write_photo, parse_page):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff not a photo")
    results = [
        make_result(1, str(tmp_path / "gone.png"), (0, (0, 0, 9, 9), 0.9)),
        make_result(2, str(tmp_path / "broken.jpg"), (1, (0, 0, 9, 9), 0.8)),
        make_result(3, str(tmp_path), (1, (0, 0, 9, 9), 0.8)),
        make_result(4, write_photo("fine.png"), (1, (0, 0, 9, 9), 0.8)),
    ]
    page = parse_page(render_page("t", [search_section([QueryReport(tmp_path / "q.png", OBJECTS, results)])]))
    assert len(page.find("p", "missing")) == 4
    assert "gone.png: the file does not exist" in page.text and "broken.jpg: " in page.text
    assert len(page.find("li", "card")) == 4
    # What is left to show is the last result with the crop of its match.
    assert len(page.find("img")) == 2


def test_report_says_plainly_when_nothing_was_found(write_photo, parse_page):
    page = parse_page(render_page("t", [search_section([QueryReport(write_photo("q.png"), [], [])])]))
    assert "Nothing was found" in page.text and "No object was found in this photo" in page.text
    assert not page.find("li", "card")
    assert "No photo was searched for" in parse_page(render_page("t", [search_section([])])).text


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 3000), (3000, 2)])
def test_extreme_photos_do_not_break_the_page(width: int, height: int, write_photo, parse_page):
    path = write_photo("extreme.png", width, height)
    box = (0.0, 0.0, float(width), float(height))
    match = RegionMatch(box, (0.0, 0.0, 0.5, 0.5), 0.9)
    entry = QueryReport(path, [{"box": box, "score": 1.0, "class": None}], [SearchResult(1, "id", path, 0.9, [match])])
    page = parse_page(render_page("t", [search_section([entry])]))
    assert page.text.count(f"{width} × {height} pixels") == 2


def test_regions_that_are_not_drawn_are_counted(write_photo, parse_page):
    objects = [{"box": [i, 0, i + 5, 5], "score": 1.0, "class": None} for i in range(0, 60, 5)]
    page = parse_page(render_page("t", [search_section([QueryReport(write_photo("q.png"), objects, [])])]))
    assert "12 regions searched for; those without a match shown here are not drawn." in page.text
