"""What the report tests share: synthetic photos, and a parser that holds a page to what every page promises."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

VOID_ELEMENTS = {"meta", "img", "br", "hr", "link", "input"}


class ParsedPage(HTMLParser):
    """A page taken apart: its elements with their attributes, its text, its pictures.

    Raises AssertionError where a page is not well-formed or asks for anything outside its file.
    """

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self._open: list[str] = []
        self._texts: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open, f"{self._open} are never closed"
        assert "http://" not in source and "https://" not in source and "url(" not in source and "@import" not in source

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        assert len(attributes) == len(attrs), f"<{tag}> has an attribute twice"
        assert tag not in {"script", "link", "iframe", "object", "embed"}
        assert not any(name.startswith("on") for name in attributes), f"<{tag}> runs a script"
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
        self.elements.append((tag, attributes))
        if tag not in VOID_ELEMENTS:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self._texts.append(data)

    @property
    def text(self) -> str:
        """All text that a reader sees, white space as single blanks."""
        return " ".join("".join(self._texts).split())

    def find(self, tag: str, css_class: str | None = None) -> list[dict[str, str]]:
        """Attributes of the elements of this tag, of those with this class if one is given."""
        found = [attributes for name, attributes in self.elements if name == tag]
        return [a for a in found if css_class is None or css_class in a.get("class", "").split()]

    def pictures(self) -> list[np.ndarray]:
        """The embedded photos, (H, W, 3) uint8 RGB, in the order of the page."""
        return [decode_data_uri(attributes["src"]) for attributes in self.find("img")]


def decode_data_uri(source: str) -> np.ndarray:
    kind, content = source.split(",", 1)
    assert kind == "data:image/jpeg;base64"
    return np.array(Image.open(io.BytesIO(base64.b64decode(content, validate=True))))


@pytest.fixture
def parse_page() -> Callable[[str | Path], ParsedPage]:
    """Parses a page that is given as its file or as its source."""
    return lambda page: ParsedPage(page.read_text("utf-8") if isinstance(page, Path) else page)


@pytest.fixture
def write_photo(tmp_path: Path) -> Callable[..., str]:
    """Writes a photo of one grey, so that every coloured pixel of a report is drawn, and returns its path."""

    def write(name: str, width: int = 80, height: int = 60, grey: int = 128) -> str:
        path = tmp_path / name
        Image.new("RGB", (width, height), (grey, grey, grey)).save(path, format="PNG")
        return str(path)

    return write
