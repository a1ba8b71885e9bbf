"""The explorer's page in headless Chromium: real pointers, clicks, touches and keys, and nothing in the console."""

import csv
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.explore.pages import make_page, packs
from tests.vector_tables import EVIL

pytest.importorskip("selenium")
pytest.importorskip("faiss")
pytest.importorskip("sklearn")

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.support.ui import Select

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="no chromium and chromedriver"),
]
_MARGIN = 26  # of the map, as in page/map.js


class Browser:
    """A page in a browser.

    Args:
        page: the page.
        downloads: folder for what the page saves.
        width, height: of the window, in pixels.
        touch: whether it is a touch screen.
    """

    def __init__(self, page: Path, downloads: Path, width: int = 1280, height: int = 860, touch: bool = False) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(flag)
        options.add_argument(f"--window-size={width},{height}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        if touch:
            metrics = {"width": width, "height": height, "pixelRatio": 2.0, "touch": True}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        content, arrays = packs(page)["stars"]
        self.ids = content["ids"]
        self.near = arrays["neighbours"].reshape(len(self.ids), -1)
        self._places = arrays["view0"].reshape(-1, 2) / 65_535

    def open(self, page: Path, theme: str = "light") -> None:
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.get(page.as_uri())
        self.wait(lambda: self.js("return document.documentElement.dataset.firstPicture"))

    def js(self, code: str) -> Any:
        return self.driver.execute_script(code)

    def get(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def text(self, name: str) -> str:
        return str(self.js(f"return document.getElementById({name!r}).textContent"))

    def wait(self, true: Callable[[], object]) -> None:
        end = time.monotonic() + 20
        while not true():
            assert time.monotonic() < end, "waited for 20 s"
            time.sleep(0.02)

    def drawn(self, star: int) -> bool:
        """Whether a star's light curve is drawn."""
        return self.js("return document.documentElement.dataset.drawn") == str(star)

    def place(self, star: int) -> tuple[int, int]:
        """Where a star is on the map as it is at first, in pixels from the map's centre."""
        size = self.get("marks").size
        x, y = self._places[star]
        return round((x - 0.5) * (size["width"] - 2 * _MARGIN)), round((0.5 - y) * (size["height"] - 2 * _MARGIN))

    def alone(self) -> list[int]:
        """Stars by how far their nearest neighbour on the map is, the loneliest first: a click there is theirs."""
        places = np.array([self.place(star) for star in range(len(self.ids))], dtype=float)
        away = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(len(places), np.inf))
        away = np.where(np.isnan(away), np.inf, away)
        return [int(star) for star in np.argsort(-away.min(1))]

    def point(self, star: int, click: bool = False) -> None:
        actions = ActionChains(self.driver).move_to_element_with_offset(self.get("marks"), *self.place(star))
        (actions.click() if click else actions).perform()

    def keys(self, keys: str) -> None:
        ActionChains(self.driver).send_keys(keys).perform()

    def problems(self) -> list[dict[str, Any]]:
        """What the console shows."""
        return list(self.driver.get_log("browser"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_page(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def _desktop(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(page, tmp_path_factory.mktemp("downloads"))
    yield browser
    browser.driver.quit()


@pytest.fixture
def desktop(_desktop: Browser, page: Path) -> Browser:
    _desktop.open(page)
    return _desktop


def ink(browser: Browser, canvas: str) -> int:
    """The pixels of a canvas that are not transparent."""
    return int(
        browser.js(
            f"const c = document.getElementById({canvas!r});"
            "const copy = new OffscreenCanvas(c.width, c.height).getContext('2d', {willReadFrequently: true});"
            "copy.drawImage(c, 0, 0);"
            "const d = copy.getImageData(0, 0, c.width, c.height).data;"
            "let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n;"
        )
    )


def test_hover_click_neighbours_and_folds(desktop: Browser) -> None:
    assert desktop.get("nothing").is_displayed()
    assert ink(desktop, "points") > 500
    one, other = desktop.alone()[:2]
    desktop.point(one)
    desktop.wait(lambda: desktop.drawn(one))
    assert desktop.text("name") == desktop.ids[one]
    assert desktop.ids[one] in desktop.text("tip")
    assert desktop.text("kept") == ""
    assert min(ink(desktop, "raw"), ink(desktop, "folded")) > 300
    assert "30 points" in desktop.text("raw-title")
    assert "0.7000 days (from the table)" in desktop.text("fold-title")
    desktop.point(one, click=True)
    assert desktop.text("kept") == "pinned"
    desktop.point(other)
    desktop.wait(lambda: desktop.drawn(other))
    ActionChains(desktop.driver).move_to_element(desktop.get("title")).perform()
    desktop.wait(lambda: desktop.drawn(one))  # the pinned star is back
    near = desktop.driver.find_elements("css selector", "#neighbours button")
    assert [button.find_element("tag name", "b").text for button in near] == [desktop.ids[i] for i in desktop.near[one]]
    near[2].click()
    desktop.wait(lambda: desktop.drawn(int(desktop.near[one][2])))
    desktop.driver.find_element("css selector", "[data-fold='2']").click()
    desktop.wait(lambda: "1.400 days" in desktop.text("fold-title"))
    assert desktop.problems() == []


def test_search_and_a_hostile_id(desktop: Browser) -> None:
    search = desktop.get("search")
    search.send_keys("STAR2")
    hits = [hit.text for hit in desktop.driver.find_elements("css selector", "#hits li")]
    assert hits[:2] == ["star2", "star20"]
    search.send_keys("\n")
    desktop.wait(lambda: desktop.drawn(2))
    search.clear()
    search.send_keys("onerror")
    desktop.driver.find_element("css selector", "#hits li").click()
    desktop.wait(lambda: desktop.drawn(0))
    assert desktop.text("name") == EVIL
    assert desktop.js("return document.images.length") == 0
    search.send_keys("nobody")
    assert desktop.driver.find_element("css selector", "#hits li").text == "no such id"
    assert desktop.problems() == []


def test_lasso_and_the_ids_that_are_saved(desktop: Browser, tmp_path: Path) -> None:
    places = np.array([desktop.place(star) for star in range(len(desktop.ids))])
    left, bottom, right, top = *(places.min(0) - 12), int(np.median(places[:, 0])), places[:, 1].max() + 12
    corners = [(left, bottom), (right, bottom), (right, top), (left, top), (left, bottom)]
    desktop.get("lasso").click()
    actions = ActionChains(desktop.driver, duration=20)
    actions.move_to_element_with_offset(desktop.get("marks"), *map(int, corners[0])).click_and_hold()
    for before, after in itertools.pairwise(corners):
        actions.move_by_offset(int(after[0]) - int(before[0]), int(after[1]) - int(before[1]))
    actions.release().perform()
    inside = {desktop.ids[i] for i in np.flatnonzero(places[:, 0] < right - 2)}
    edge = {desktop.ids[i] for i in np.flatnonzero(np.abs(places[:, 0] - right) <= 2)}
    desktop.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    desktop.get("save").click()
    desktop.wait((tmp_path / "selected.csv").exists)
    with (tmp_path / "selected.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert inside <= {row["id"] for row in rows} <= inside | edge
    assert {row["band"] for row in rows} == {"V"}
    assert desktop.text("count") == f"{len(rows)} selected"
    desktop.get("clear").click()
    assert not desktop.get("selection").is_displayed()
    assert desktop.problems() == []


def test_keys(desktop: Browser) -> None:
    marks = desktop.get("marks")
    desktop.point(desktop.alone()[0], click=True)
    first = desktop.text("name")
    desktop.keys("1")
    star = desktop.ids.index(first)
    assert desktop.text("name") == desktop.ids[desktop.near[star][0]]
    desktop.keys("b")
    assert desktop.text("name") == first
    desktop.keys("x")
    assert desktop.text("count") == "1 selected"
    marks.send_keys("\ue014")  # right
    right = desktop.text("name")
    marks.send_keys("\ue012")  # left
    assert right != first or desktop.text("name") != first
    desktop.keys("f")
    assert desktop.driver.find_element("css selector", "[data-fold='2']").get_attribute("aria-pressed") == "true"
    desktop.keys("/")
    desktop.keys("t")  # is typed, not obeyed
    assert desktop.get("search").get_attribute("value") == "t"
    assert desktop.js("return document.documentElement.dataset.theme") == "light"
    desktop.keys("\ue00c")  # Escape
    desktop.keys("?")
    assert desktop.get("keys").is_displayed()
    desktop.get("close-keys").click()
    assert not desktop.get("keys").is_displayed()
    desktop.keys("\ue00c")
    assert desktop.get("nothing").is_displayed()
    assert desktop.problems() == []


def test_colours_legend_and_theme(desktop: Browser, page: Path) -> None:
    names = [option.text for option in Select(desktop.get("colour")).options]
    assert names == ["label", "band", "n_points", "anomaly score", "period", "colour", "note"]
    all_points = ink(desktop, "points")
    desktop.driver.find_element("css selector", "#legend button").click()
    desktop.wait(lambda: ink(desktop, "points") < all_points)
    for name in names:
        Select(desktop.get("colour")).select_by_visible_text(name)
        assert desktop.text("legend") != ""
    assert "percentile" not in desktop.text("legend")
    Select(desktop.get("colour")).select_by_visible_text("colour")
    assert "from its 2nd to its 98th percentile" in desktop.text("legend")
    back = "return getComputedStyle(document.body).backgroundColor"
    light = desktop.js(back)
    desktop.get("theme").click()
    dark = desktop.js(back)
    assert sum(map(int, dark[4:-1].split(", "))) < 100 < sum(map(int, light[4:-1].split(", ")))
    desktop.open(page, "dark")
    assert desktop.js(back) == dark
    assert desktop.problems() == []


def test_a_small_touch_screen(page: Path, tmp_path: Path) -> None:
    browser = Browser(page, tmp_path, 360, 740, touch=True)
    try:
        browser.open(page)
        assert browser.js("return document.documentElement.scrollWidth") == 360
        star = browser.alone()[0]
        x, y = browser.place(star)
        finger = PointerInput("touch", "finger")
        actions = ActionBuilder(browser.driver, mouse=finger)
        actions.pointer_action.move_to(browser.get("marks"), x, y).pointer_down().pointer_up()
        actions.perform()
        browser.wait(lambda: browser.drawn(star))
        assert browser.text("kept") == "pinned"
        for button in browser.driver.find_elements("css selector", ".tools button, .buttons button"):
            assert button.rect["x"] >= 0
            assert button.rect["x"] + button.rect["width"] <= 360
            assert button.rect["height"] >= 36
        assert browser.problems() == []
    finally:
        browser.driver.quit()
