"""The page in a browser: what it shows, and what it does when it is poked."""

import base64
import re
from pathlib import Path

import pytest

from aigtool.report.heatmaps import class_heatmap
from aigtool.report.page import write_report
from aigtool.report.sources import Results
from aigtool.report.words import interval
from tests.marks import but_slow
from tests.report.conftest import Browser, write_page
from tests.report.made import SCRIPT, made_trace, tables_of, write_all, write_run

HEATMAP = ".heatmap table"
NAMES = f"{HEATMAP} tbody th"
GATE = 3  # columns before the first gate: class, images, mean
TIP = "#tip:not([hidden])"


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of one of everything, with a class, a run and a file of a dangerous name."""
    folder = tmp_path_factory.mktemp("whole")
    write_all(folder)
    write_run(folder / "<img src=x onerror=alert(1)>")
    write_report([folder], folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="session")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of the heatmap of ten classes."""
    return write_page(_of(10, 8, 20), tmp_path_factory.mktemp("ten") / "page.html")


def _of(classes: int, gates: int, images: int) -> Results:
    return Results(analyses={"look": tables_of(made_trace(classes, gates, images))})


def _press(browser: Browser, *keys: str) -> None:
    browser.actions().send_keys(*keys).perform()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", but_slow([390, 1280, 1920], [1280]))
def test_it_opens_from_disk_and_asks_nobody(
    browser: Browser, whole: Path, width: int, scheme: str
) -> None:
    browser.open(whole, width, scheme)
    assert browser.complaints() == []
    assert browser.requests() == {whole.as_uri()}
    assert browser.run("return document.documentElement.scrollWidth") <= width
    [paper, ink] = browser.run(
        "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        ".map(c => c.match(/\\d+/g).slice(0, 3).reduce((sum, v) => sum + Number(v), 0))"
    )
    assert (paper < ink) == (scheme == "dark")
    charts = browser.run("return document.querySelectorAll('.plot .main-svg').length")
    assert charts >= len(browser.texts(".plot")) == 17
    assert whole.stat().st_size < 6e6


def test_names_are_text_wherever_they_stand(browser: Browser, whole: Path) -> None:
    browser.open(whole)
    assert browser.complaints() == []
    assert SCRIPT in browser.texts(NAMES)
    assert SCRIPT in browser.texts(".album h4")
    assert any("<img src=x onerror=alert(1)>" in name for name in browser.texts("#training h3"))
    assert browser.run("return document.images.length") == 1
    assert browser.run("return document.scripts.length") == len(browser.texts("script"))
    assert all("alert" not in text for text in browser.texts("script:not([type])")[1:])


def test_a_name_in_a_chart_is_text(browser: Browser, tmp_path: Path) -> None:
    write_all(tmp_path)
    attack = tmp_path / "attack" / "attack.json"
    attack.write_text(attack.read_text().replace('"dense"', '"<b>a&amp;b</b>"'))
    write_report([tmp_path / "attack"], tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert "<b>a&amp;b</b>" in browser.texts(".legendtext")
    browser.find(".plot").click()
    _press(browser, "\ue015")  # down: the second curve
    [label] = filter(None, browser.texts(".chart output"))
    assert label.startswith("<b>a&amp;b</b>, epsilon 0: 92.0 % (85.0 to 95.9 %)")
    browser.until(lambda: browser.texts(".hovertext") == [label])


def test_headings_sort(browser: Browser, ten: Path) -> None:
    heatmap = class_heatmap(tables_of(made_trace(10, 8, 20)))
    browser.open(ten)
    assert browser.texts(NAMES) == [heatmap["rows"][row] for row in heatmap["order"]]
    head = browser.driver.find_elements("css selector", f"{HEATMAP} thead th")
    counts = [row[2] for row in heatmap["executed"]]
    head[GATE + 2].click()
    shown = browser.texts(NAMES)
    assert [counts[heatmap["rows"].index(name)] for name in shown] == sorted(counts)[::-1]
    assert head[GATE + 2].get_attribute("aria-sort") == "descending"
    assert "by gate layer1.2, highest first" in browser.texts(".controls output")[0]
    head[GATE + 2].click()
    shown = browser.texts(NAMES)
    assert [counts[heatmap["rows"].index(name)] for name in shown] == sorted(counts)
    assert head[GATE + 2].get_attribute("aria-sort") == "ascending"
    head[0].click()
    assert browser.texts(NAMES) == [f"class {number}" for number in range(10)]
    browser.find("select").send_keys("likeness")
    assert browser.texts(NAMES) == [heatmap["rows"][row] for row in heatmap["order"]]


def test_rows_are_filtered(browser: Browser, ten: Path) -> None:
    browser.open(ten)
    browser.find("input").send_keys("CLASS 3")
    assert browser.texts(NAMES) == ["class 3"]
    assert browser.texts(".controls output") == ["Rows: 1 found of 10"]
    browser.find("input").send_keys("x")
    assert browser.texts(NAMES) == []
    browser.find("input").send_keys("\ue003" * 8)  # backspace
    assert len(browser.texts(NAMES)) == 10


def test_the_table_is_reached_by_tab_after_its_rows_changed(browser: Browser, ten: Path) -> None:
    browser.open(ten)
    browser.run("arguments[0].querySelector('th').focus()", browser.find(HEATMAP))
    _press(browser, "\ue015")  # down into the rows, of which one is reached by Tab now
    field = browser.find("input")
    field.send_keys("class 3")
    reached = browser.texts(f"{HEATMAP} [tabindex='0']")
    assert reached == ["class"]


@pytest.mark.slow
def test_the_cell_with_the_focus_is_never_behind_the_headings(
    browser: Browser, tmp_path: Path
) -> None:
    browser.open(write_page(_of(60, 54, 3), tmp_path / "page.html"), width=390)
    browser.run("arguments[0].querySelector('th').focus()", browser.find(HEATMAP))
    _press(browser, *["\ue015"] * 50, *["\ue014"] * 30, *["\ue013"] * 40, *["\ue012"] * 24)
    hidden = browser.run(
        "const at = document.activeElement.getBoundingClientRect();"
        "const head = arguments[0].tHead.rows[0].cells[0].getBoundingClientRect();"
        "return [at.top >= head.bottom - 1, at.left >= head.right - 1]",
        browser.find(HEATMAP),
    )
    assert hidden == [True, True]


def test_a_cell_tells_class_gate_rate_and_count(browser: Browser, ten: Path) -> None:
    heatmap = class_heatmap(tables_of(made_trace(10, 8, 20)))
    count = heatmap["executed"][4][6]
    told = f"class class 4, gate layer3.6: {5 * count:.1f} %, {count} of 20 images; "
    low, high = interval(count, 20).split(" to ")
    told += f"95 % interval {low} % to {high}"
    browser.open(ten)
    row = browser.texts(NAMES).index("class 4") + 1
    cell = browser.find(f"{HEATMAP} tbody tr:nth-child({row}) td:nth-child({GATE + 7})")
    assert cell.text == str(round(5 * count))
    mouse = browser.actions()
    mouse.move_to_element(cell).perform()
    assert browser.find(TIP).text == told
    mouse.move_to_element(browser.find("h1")).perform()
    assert not browser.driver.find_elements("css selector", TIP)
    # The same by keyboard: from the first heading down and along.
    browser.run("arguments[0].querySelector('th').focus()", browser.find(HEATMAP))
    _press(browser, *["\ue015"] * row, *["\ue014"] * (GATE + 6))
    assert browser.find(TIP).text == told
    _press(browser, "\ue00c")  # escape
    assert not browser.driver.find_elements("css selector", TIP)
    _press(browser, *["\ue013"] * row, "\ue007")  # up to the heading, enter
    assert "by gate layer3.6, highest first" in browser.texts(".controls output")[0]


def test_points_of_curves_tell_their_values(browser: Browser, whole: Path) -> None:
    browser.open(whole)
    plot = browser.find("#sweeps .plot")
    browser.run("arguments[0].scrollIntoView({block: 'center'})", plot)
    points = plot.find_elements("css selector", ".trace.scatter")[2]
    browser.actions().move_to_element(points.find_elements("css selector", ".point")[1]).perform()
    browser.until(lambda: bool(browser.texts("#sweeps .hovertext")))
    [said] = browser.texts("#sweeps .hovertext")
    assert re.fullmatch(r"flops 0.[46], mean of 1: 80.0 %, 80 of 100 right, 1.\d+ GFLOPs", said)
    assert said in browser.texts("#sweeps .chart li")


def test_many_runs_are_folded_away(browser: Browser, tmp_path: Path) -> None:
    for number in range(4):
        write_run(tmp_path / f"run{number}")
    write_report([tmp_path], tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert browser.run("return document.querySelectorAll('.run[open]').length") == 0
    assert browser.texts(".js-plotly-plot") == []
    browser.find(".run:nth-of-type(2) > summary").click()
    browser.until(lambda: len(browser.texts(".js-plotly-plot")) == len(browser.texts(".plot")) / 4)
    plot, drawing = browser.find(".run[open] .plot"), browser.find(".run[open] .main-svg")
    assert drawing.size["width"] == pytest.approx(plot.size["width"], abs=1)
    assert plot.size["width"] > 200
    assert browser.complaints() == []


def test_an_image_tells_what_it_took(browser: Browser, whole: Path) -> None:
    browser.open(whole)
    image = browser.find(".album li")
    browser.run("arguments[0].focus()", image)
    assert "of 6 blocks" in browser.find(TIP).text
    _press(browser, "\ue014")
    assert browser.run("return document.activeElement === arguments[0].nextElementSibling", image)


@pytest.mark.parametrize(
    ("classes", "gates", "images"),
    [
        pytest.param(1, 8, 1, marks=pytest.mark.slow),
        (2, 54, 3),
        pytest.param(10, 150, 2, marks=pytest.mark.slow),
        (1000, 54, 1),
    ],
)
def test_any_number_of_classes_and_gates(
    browser: Browser, classes: int, gates: int, images: int, tmp_path: Path
) -> None:
    browser.open(write_page(_of(classes, gates, images), tmp_path / "page.html"), width=390)
    assert browser.complaints() == []
    assert browser.run("return document.documentElement.scrollWidth") == 390
    assert len(browser.texts(f"{HEATMAP} thead th")) == GATE + gates
    assert len(browser.texts(NAMES)) == min(classes, 100)
    assert len(browser.texts(".album h4")) == min(classes, 20)
    if classes > 100:
        before = browser.texts(NAMES)
        browser.find(".pages button:last-child").click()
        assert not set(before) & set(browser.texts(NAMES))
        assert "Rows: 101 to 200 of 1000" in browser.texts(".controls output")[0]


def test_a_network_without_gates_and_a_folder_without_traces(
    browser: Browser, tmp_path: Path
) -> None:
    write_run(tmp_path / "dense", gates=0)
    write_report([tmp_path], tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert browser.complaints() == []
    assert browser.texts(HEATMAP) == []
    assert browser.texts(".cards b") == ["not measured"] * 8


def test_it_prints(browser: Browser, whole: Path) -> None:
    browser.open(whole, width=700, scheme="dark", media="print")  # A4 less its margins
    assert browser.run("return document.documentElement.scrollWidth") <= 700
    assert not browser.find("nav").is_displayed()
    assert browser.run("return getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    printed = browser.driver.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert base64.b64decode(printed).count(b"/Type /Page\n") > 1
