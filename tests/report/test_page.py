from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from skimage import data

from oesir_d2.report.page import (
    encode_data_uri,
    escape,
    facts_section,
    render_image,
    render_name,
    render_page,
    render_table,
    write_page,
)

HOSTILE = "<b>\"x\" & 'y' é日本 </script>.jpg"


def test_page_is_well_formed_and_self_contained(parse_page):
    sections = [facts_section({"Photos": "1,109", HOSTILE: HOSTILE}), ["<p>", escape(HOSTILE), "</p>"]]
    page = parse_page(render_page(HOSTILE, sections))
    assert page.text.count(HOSTILE) == 5  # twice as title, twice in the facts, once in the section
    assert not page.find("b")
    policies = [a["content"] for a in page.find("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert any(a.get("name") == "viewport" for a in page.find("meta"))


def test_page_adapts_to_dark_mode_and_narrow_windows():
    page = render_page("title", [])
    assert "prefers-color-scheme: dark" in page and "@media (max-width" in page


def test_written_page_is_the_rendered_one(tmp_path: Path):
    path = tmp_path / "new folder" / "page.html"
    write_page(path, "title é", [facts_section({"Photos": 3}), ["<p>text</p>"]])
    assert path.read_text("utf-8") == render_page("title é", [facts_section({"Photos": 3}), ["<p>text</p>"]])
    assert list(path.parent.iterdir()) == [path]


def test_sections_stand_in_the_order_given(parse_page):
    page = parse_page(render_page("title", [["<p>one</p>", "<p>two</p>"], [], ["<p>three</p>"]]))
    assert page.text.endswith("onetwothree")


def test_failed_section_leaves_the_old_page_alone(tmp_path: Path):
    path = tmp_path / "page.html"
    path.write_text("old")

    def failing_section() -> Iterator[str]:
        yield "<p>begun"
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_page(path, "title", [failing_section()])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_as_target_is_refused(tmp_path: Path):
    with pytest.raises(FileExistsError, match="is a folder"):
        write_page(tmp_path, "title", [])


def test_names_that_are_not_utf8_can_be_written(tmp_path: Path):
    name = os.fsdecode(b"caf\xe9\x07.jpg")
    write_page(tmp_path / "page.html", name, [[render_name(name)]])
    assert "caf\\udce9\\x07.jpg" in (tmp_path / "page.html").read_text("utf-8")


def test_image_is_a_jpeg_close_to_the_photo(parse_page):
    photo = data.astronaut()[:200, :300]
    before = photo.copy()
    page = parse_page(render_image(photo, HOSTILE, frame=(230, 159, 0)))
    (attributes,) = page.find("img", "framed")
    assert (attributes["alt"], attributes["width"], attributes["height"]) == (HOSTILE, "300", "200")
    assert "#e69f00" in attributes["style"]
    assert np.abs(page.pictures()[0].astype(int) - photo).mean() < 6
    np.testing.assert_array_equal(photo, before)


def test_thin_colored_lines_survive_the_jpeg(parse_page):
    photo = data.astronaut()[:200, :300].copy()
    photo[100:103] = (230, 159, 0)
    shown = parse_page(render_image(photo, "line")).pictures()[0]
    assert np.abs(np.median(shown[101], axis=0) - (230, 159, 0)).max() < 20


def test_lower_quality_gives_a_smaller_file():
    photo = data.astronaut()
    assert len(encode_data_uri(photo, quality=40)) < len(encode_data_uri(photo)) < photo.nbytes / 5


def test_table_has_headers_for_columns_and_rows(parse_page):
    page = parse_page(render_table(("Figure", "Percent"), [("mAP", "61.2"), (HOSTILE, 3)]))
    assert [a["scope"] for a in page.find("th")] == ["col", "col", "row", "row"]
    assert page.text.startswith("FigurePercentmAP61.2") and HOSTILE in page.text


def test_no_facts_give_no_section():
    assert "".join(facts_section({}, "Facts")) == ""
