"""A browser without a window, driven as a reader would."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aigtool.output import replacing
from aigtool.report.page import render
from aigtool.report.sources import Results

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")


class Browser:
    """Opens pages from disk, and tells what they asked for and complained about."""

    def __init__(self, webdriver: Any, driver: Any) -> None:
        self.webdriver, self.driver = webdriver, driver

    def open(self, page: Path, width: int = 1280, scheme: str = "light", media: str = "") -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        preferred = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"media": media, "features": preferred}
        )
        self.driver.get_log("performance")
        self.driver.get_log("browser")
        self.driver.get(page.as_uri())
        folded = ":not(.run:not([open]) .plot)"
        self.until(lambda: not self.texts(f".plot:not(.js-plotly-plot){folded}"))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def actions(self) -> Any:
        """Return what mouse and keys are told to do."""
        return self.webdriver.ActionChains(self.driver)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """Return what elements hold, also where it is scrolled out of sight."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        found: list[str] = self.run(script, selector)
        return found

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what the plotting library does in its own time."""
        self.webdriver.support.ui.WebDriverWait(self.driver, 60).until(lambda _: condition())

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> set[str]:
        """Return the addresses asked for since the page was opened, but for those of data."""
        events = (json.loads(e["message"])["message"] for e in self.driver.get_log("performance"))
        urls = (
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        )
        return {url for url in urls if not url.startswith("data:")}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    pytest.importorskip("selenium.webdriver.support.ui")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    server = shutil.which("chromedriver")
    if program is None or server is None:
        pytest.skip("no chromium with its chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(server))
    yield Browser(webdriver, driver)
    driver.quit()


def write_page(results: Results, path: Path) -> Path:
    """Write a page of results that were made."""
    with replacing(path) as temporary:
        temporary.write_text(render(results, "made", "aigtool report made"), encoding="utf-8")
    return path
