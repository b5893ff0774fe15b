"""The page in a real browser: a photo, a box, the right source first, the JSON saved; wide and narrow windows.

Needs Debian's packages chromium and chromium-driver; `make test-browser` runs it (see CONTRIBUTING.md).
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = pytest.mark.browser

CHROMIUM = "/usr/bin/chromium"
DRIVER = "/usr/bin/chromedriver"
WAIT_SECONDS = 40
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


class Page:
    """The app's page in a browser window."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        self._wait = WebDriverWait(driver, WAIT_SECONDS)
        driver.get(url)
        self.find("#picker .file")

    def find(self, selector: str, shown: bool = False) -> Any:
        """The first element of a CSS selector, as soon as it is there, and shown if that is wanted."""

        def look(driver: webdriver.Chrome) -> Any:
            found = driver.find_elements(By.CSS_SELECTOR, selector)
            return found[0] if found and (found[0].is_displayed() or not shown) else False

        return self._wait.until(look, f"nothing is there for {selector}")

    def choose(self, path: Path) -> None:
        self.find("#picker .file").send_keys(str(path))
        self.find("#picker .stage", shown=True)

    def draw_box(self, left: float, top: float, right: float, bottom: float) -> None:
        """Drag over the photo; the corners are shares of its width and height."""
        stage = self.find("#picker .stage")
        width, height = stage.size["width"], stage.size["height"]
        start = (round((left - 0.5) * width), round((top - 0.5) * height))
        way = (round((right - left) * width), round((bottom - top) * height))
        actions = ActionChains(self.driver)
        actions.move_to_element_with_offset(stage, *start).click_and_hold().move_by_offset(*way).release().perform()

    def read_box(self) -> list[float]:
        return [float(self.find(f"#picker .{name}").get_attribute("value")) for name in ("x0", "y0", "x1", "y1")]

    def search(self) -> list[str]:
        """Press the button; the ids of the results, best first."""
        # Every answer has new addresses for its pictures.
        address = "return document.querySelector('#results .query img')?.src"
        old = self.driver.execute_script(address)
        self.find("#search").click()
        self._wait.until(lambda driver: driver.execute_script(address) not in (old, None), "no new results came")
        self.find("#results .card", shown=True)
        return [card.text for card in self.driver.find_elements(By.CSS_SELECTOR, "#results .card bdi:first-of-type")]

    def open_tab(self, name: str) -> None:
        for tab in self.driver.find_elements(By.CSS_SELECTOR, "button[role=tab]"):
            if tab.text == name:
                tab.click()
                return
        raise AssertionError(f"there is no tab {name}")

    def measure_overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        script = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return int(self.driver.execute_script(script))

    def save_screenshot(self, name: str) -> None:
        """Save what is shown where the environment says so, for a person to look at."""
        folder = os.environ.get("SCREENSHOTS")
        if folder:
            data = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": False})["data"]
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(data))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    for path in (CHROMIUM, DRIVER):
        assert Path(path).exists(), f"{path} is missing: apt-get install chromium chromium-driver"
    downloads = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    browser.downloads = downloads
    yield browser
    browser.quit()


@pytest.fixture(params=[1400, 390], ids=["wide", "narrow"])
def page(request: pytest.FixtureRequest, driver: webdriver.Chrome, app: Any) -> Iterator[Page]:
    metrics = {"width": request.param, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get_log("browser")
    yield Page(driver, app.url)
    complaints = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not complaints, complaints


@pytest.fixture
def splice(photos: Path, tmp_path: Path) -> tuple[Path, tuple[float, float, float, float]]:
    """A part of the coffee photo, shrunken, in the astronaut photo, and where it lies as shares of the sides."""
    with Image.open(photos / "astronaut.png") as host, Image.open(photos / "coffee.png") as donor:
        spliced = host.convert("RGB")
        piece = donor.convert("RGB").resize((120, round(120 * donor.height / donor.width)))
    spliced.paste(piece, (8, 150))
    spliced.save(tmp_path / "splice.png")
    width, height = spliced.size
    box = (8 / width, 150 / height, 128 / width, min(1.0, (150 + piece.height) / height))
    return tmp_path / "splice.png", box


def test_box_finds_the_pasted_objects_source_and_the_json_is_saved(
    page: Page, request: pytest.FixtureRequest, splice: Any
) -> None:
    width = request.node.callspec.id
    page.save_screenshot(f"{width}-start")
    path, box = splice
    page.choose(path)
    assert page.search()[0] == "astronaut.png", "all of the photo: its host"
    page.draw_box(*box)
    drawn = page.read_box()
    with Image.open(path) as image:
        expected = [value * side for value, side in zip(box, image.size * 2, strict=True)]
    assert drawn == pytest.approx(expected, abs=2)
    page.save_screenshot(f"{width}-box")
    assert page.search()[0] == "coffee.png"
    pictures = page.driver.find_elements(By.CSS_SELECTOR, "#results img")
    shown = [picture for picture in pictures if picture.get_attribute("loading") != "lazy"]
    assert shown and all(int(picture.get_attribute("naturalWidth")) > 0 for picture in shown)
    assert page.measure_overflow() == 0
    page.save_screenshot(f"{width}-results")

    content = save(page, "a[download]")
    assert content["query"] == "splice.png" and content["objects"][0]["box"] == drawn
    assert content["results"][0]["image_id"] == "coffee.png"

    page.open_tab("Report")
    frame = page.find("#report iframe", shown=True)
    page.driver.switch_to.frame(frame)
    assert "This photo has a part of coffee.png." in page.find("main").text
    script = "const i = document.querySelector('.slider input'); i.value = 20; i.dispatchEvent(new Event('input'));"
    page.driver.execute_script(script)
    assert page.find(".slider").get_attribute("style").endswith("--split: 20%;"), "the report's own script runs"
    assert save(page, ".save")["parts"][0]["source"] == "coffee.png"
    page.driver.switch_to.default_content()
    assert page.measure_overflow() == 0
    page.save_screenshot(f"{width}-report")


def save(page: Page, selector: str) -> Any:
    """Click on what saves a JSON file, and read the file."""
    downloads: Path = page.driver.downloads
    for old in downloads.iterdir():
        old.unlink()
    page.find(selector, shown=True).click()
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        # Chromium holds the name by an empty file until the download beside it is complete.
        for path in downloads.glob("*.json"):
            if path.stat().st_size and not list(downloads.glob("*.crdownload")):
                return json.loads(path.read_text())
        time.sleep(0.1)
    raise AssertionError(f"nothing was saved by {selector}")


def test_photo_that_the_browser_does_not_show_and_numbers_for_its_box(page: Page, photos: Path, tmp_path: Path) -> None:
    with Image.open(photos / "chelsea.png") as image:
        image.save(tmp_path / "chelsea.tif")
        width, height = image.size
    page.choose(tmp_path / "chelsea.tif")
    for name, value in zip(("x0", "y0", "x1", "y1"), (10, 20, width - 10, height - 5), strict=True):
        page.find(f"#picker .{name}").send_keys(str(value), "\t")
    frame, stage = page.find("#picker .box", shown=True).rect, page.find("#picker .stage").rect
    assert frame["width"] / stage["width"] == pytest.approx((width - 20) / width, abs=0.02)
    assert page.search()[0] == "chelsea.png"
    page.find("#picker .clear").click()
    assert not page.find("#picker .box").is_displayed()


def test_files_that_are_no_photos_are_told_on_the_page(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no photo")
    page.find("#picker .file").send_keys(str(tmp_path / "notes.png"))
    assert "notes.png cannot be read" in page.find("#picker .message", shown=True).text
    # The browser logs the refusal that was asked for.
    page.driver.get_log("browser")
    page.find("#search").click()
    assert "Choose a photo first" in page.find(".toast-body", shown=True).text


def test_name_of_a_photo_is_text_in_messages(page: Page, tmp_path: Path) -> None:
    large = tmp_path / "<b>'large'.png"
    Image.new("L", (2500, 2000)).save(large)
    page.choose(large)
    page.find("#search").click()
    message = page.find(".toast-body", shown=True).text
    assert f"{large.name} cannot be read: decompression bomb" in message
