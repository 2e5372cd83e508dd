"""The HTML report: what it says, that it is well-formed, and how it does in a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mod_components.errors import DataError
from mod_components.evaluation.html import write_html
from mod_components.evaluation.pictures import draw_case, picture_bytes
from tests.evaluation.cases import brain, write_evaluation, write_rows

SCRIPT_CASE = "<script>fetch('http://example.invalid/id')</script>"
DICES = {
    "middle": (0.5, 0.5, 0.5),
    "best & last": (0.9, 0.9, 0.9),
    SCRIPT_CASE: (0.25, 0.25, 0.25),
}
NOTES = {"data": "<b>set</b>", "checkpoint": "models/model.pt", "threshold": 1.23456789}
EMPTY = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source"}
BROWSER_SECONDS = 60
REGIONS = ("tc", "wt", "et")
STATISTICS = ("mean", "std", "median", "ci_low", "ci_high")


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    made = brain()
    figure = draw_case(made["image"], made["label"], made["label"])
    return {
        "best & last": picture_bytes(figure, dpi=40),
        SCRIPT_CASE: picture_bytes(figure, "jpeg", dpi=40),
    }


@pytest.fixture
def report(tmp_path: Path, pictures: dict[str, bytes]) -> Path:
    write_evaluation(tmp_path, DICES, NOTES)
    return write_html(tmp_path, pictures, title="Trial & <error>")


class Page(HTMLParser):
    """Elements with their attributes and text; checks that tags are closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.text += data
            if {"td", "th"} & set(self._open):
                self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_what_the_page_says(report: Path) -> None:
    assert report.name == "report.html"
    assert report.read_text().startswith("<!DOCTYPE html>")
    page = Page(report)
    for text in (
        *("Trial & <error>", "Research only, not to be used for diagnosis", "<b>set</b>"),
        *("Checkpoint", "models/model.pt", "1.23457", "Date of this report"),
    ):
        assert text in page.text
    assert ["Dice", *4 * ["0.500 [0.300, 0.700]std\u00a00.125, median\u00a00.438"]] in page.rows
    assert ["HD95 (mm)", *4 * ["2.5std\u00a00.0, median\u00a02.5"]] in page.rows
    assert ["Sensitivity", "0.500n\u00a01", "0.500n\u00a01", "–", "0.500n\u00a01"] in page.rows
    assert ["middle", "0.500", *3 * ["0.500"], *3 * ["2.5"]] in page.rows
    assert ["middle", "0.500", "0.250", "0.750", "–"] in page.rows


def test_notes_stand_beside_the_facts(tmp_path: Path) -> None:
    notes = {
        **{"Cases": "mine", "cases": "ours", "Mean Dice": 0.25, "date of this report": "never"},
        **{"post-processing": True, "flips": False, "best": None, "data": "set"},
        "weights": "0123456789abcdef 00000000e0000000",
    }
    write_evaluation(tmp_path, {"a": (0.5, 0.5, 0.5)}, notes)
    text = write_html(tmp_path).read_text()
    facts = re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", text)
    date = facts.pop()
    assert date[0] == "Date of this report"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", date[1])
    assert facts == [
        ("Data", "set"),
        ("Cases", "1"),
        ("Mean Dice", "0.500 [0.300, 0.700]"),
        ("Mean HD95 (mm)", "2.5"),
        ("Cases (note)", "mine"),
        ("Cases (note) (note)", "ours"),
        ("Mean Dice (note)", "0.25"),
        ("Date of this report (note)", "never"),
        ("Post-processing", "yes"),
        ("Flips", "no"),
        ("Best", "–"),
        ("Weights", "0123456789abcdef 00000000e0000000"),
    ]


def test_the_worst_come_first(report: Path) -> None:
    page = Page(report)
    names = [row[0] for row in page.rows if row[0] in DICES]
    assert names == 2 * [SCRIPT_CASE, "middle", "best & last"]  # two groups of metrics
    headings = re.findall(r"(\d)\. (.*), mean Dice (.*)\n", page.text)
    assert headings == [("1", SCRIPT_CASE, "0.250"), ("3", "best & last", "0.900")]
    links = [link["href"] for link in page.all("a")]
    assert links == 2 * ["#case-1", "#case-3"]
    assert {link[1:] for link in links if link} == {card["id"] for card in page.all("article")}


def test_pictures_and_plots_are_in_the_page(report: Path, pictures: dict[str, bytes]) -> None:
    images = Page(report).all("img")
    assert len(images) == 3 + 2  # a plot for each metric
    assert all(image["alt"] for image in images)
    assert images[0]["alt"] == (
        "Dice of the cases by region: TC median 0.500, from 0.250 to 0.900; "
        "WT median 0.500, from 0.250 to 0.900; ET median 0.500, from 0.250 to 0.900."
    )
    assert images[2]["alt"] is not None
    assert images[2]["alt"].endswith("ET undefined.")
    for image, (case, kind) in zip(
        images[3:], ((SCRIPT_CASE, "jpeg"), ("best & last", "png")), strict=True
    ):
        head, data = str(image["src"]).split(",")
        assert head == f"data:image/{kind};base64"
        assert base64.b64decode(data) == pictures[case]
        assert case in str(image["alt"])


def test_accessible_and_closed(report: Path) -> None:
    page = Page(report)
    assert page.all("html") == [{"lang": "en"}]
    assert all(head.get("scope") in ("row", "col", "colgroup") for head in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = [a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a]
    assert set(labels) <= set(ids)
    for attributes in (attributes for _, attributes in page.elements):
        for name in ("src", "href"):
            assert str(attributes.get(name, "#")).startswith(("data:", "#"))
    assert len(page.all("script")) == 1
    assert "url(" not in report.read_text()


def test_without_pictures_and_intervals(tmp_path: Path) -> None:
    write_evaluation(tmp_path, {"a": (0.5, 0.5, 0.5)}, {})
    regions = ("TC", "WT", "ET", "mean")
    write_rows(tmp_path / "metrics_summary.csv", [{"region": r, "dice_mean": 0.5} for r in regions])
    page = Page(write_html(tmp_path))
    assert page.all("article") == []
    assert "with pictures" not in page.text
    assert ["Dice", *4 * ["0.500"]] in page.rows
    assert ["HD95 (mm)", *4 * ["–"]] in page.rows


def test_what_does_not_fit_is_named(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    with pytest.raises(DataError, match=r"metrics_per_case\.csv: no such file"):
        write_html(tmp_path)
    write_evaluation(tmp_path, {"a": (0.5, 0.5, 0.5)}, {})
    with pytest.raises(
        DataError, match=r"no case <script>.*, best & last, .*evaluate and draw the same"
    ):
        write_html(tmp_path, pictures)
    with pytest.raises(ValueError, match="must be PNG or JPEG files; not so: Scans of case a"):
        write_html(tmp_path, {"a": b"GIF89a"})
    assert not (tmp_path / "report.html").exists()


# In the page it finds out what only a browser knows.
FINDINGS = """
<script>addEventListener("load", () => {
  const heads = document.querySelectorAll("table.cases")[0].querySelectorAll("th button");
  const order = () => [...document.querySelector("table.cases tbody").rows]
    .map((row) => row.cells[0].textContent);
  const orders = [order()];
  for (const button of [heads[1], heads[1], heads[0]]) { button.click(); orders.push(order()); }
  const found = {
    widths: [...document.images].map((image) => image.naturalWidth),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    scripts: document.querySelectorAll("script").length,
    orders,
  };
  const place = document.createElement("pre");
  place.id = "findings";
  place.textContent = JSON.stringify(found);
  document.body.append(place);
});</script>
"""


def browse(path: Path, folder: Path, width: int = 1200) -> tuple[str, list[str], list[str]]:
    """A page's content when it has loaded, the console's lines and the addresses asked for."""
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser is None:
        pytest.skip("no chromium, chromium-browser or google-chrome is installed")
    ran = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *(f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900"),
            *("--enable-logging=stderr", f"--log-net-log={folder / 'net.json'}"),
            # nobody listens there: no request gets out
            *("--proxy-server=http://127.0.0.1:9", "--proxy-bypass-list=<-loopback>"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--timeout=20000", "--dump-dom", path.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=BROWSER_SECONDS,
        check=True,
    )
    console = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    return ran.stdout, console, requests_of_pages(folder / "net.json")


def requests_of_pages(net_log: Path) -> list[str]:
    """Addresses that pages asked for; the browser's own errands have no origin."""
    events = json.loads(net_log.read_text())["events"]
    parameters = [event.get("params", {}) for event in events]
    return [
        found["url"]
        for found in parameters
        if re.match("(http|ws)s?:", found.get("url", ""))
        and found.get("initiator", "not an origin") != "not an origin"
    ]


def test_the_browser_test_sees_errors_and_requests(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!DOCTYPE html><title>x</title><img src='http://example.invalid/x.png'>"
        "<script>fetch('https://fonts.example/f'); console.error('a complaint'); missing()</script>"
    )
    _, console, requests = browse(page, tmp_path)
    assert any("a complaint" in line for line in console)
    assert any("missing is not defined" in line for line in console)
    assert {"http://example.invalid/x.png", "https://fonts.example/f"} <= set(requests)


def test_a_browser_shows_it_without_a_request_or_a_complaint(report: Path, tmp_path: Path) -> None:
    dom, console, requests = browse(report, tmp_path)
    assert "Research only" in dom
    assert console == []
    assert requests == []


@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_every_picture_and_sorts(report: Path, tmp_path: Path, width: int) -> None:
    text = report.read_text()
    copy = report.with_name("copy.html")
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    assert len(policy.findall(text)) == 1  # it would forbid the script of this test
    copy.write_text(policy.sub("", text).replace("</body>", f"{FINDINGS}</body>"))
    dom, console, requests = browse(copy, tmp_path, width)
    assert (console, requests) == ([], [])
    place = re.search(r'<pre id="findings">(.*?)</pre>', dom, re.DOTALL)
    assert place is not None
    found = json.loads(unescape(place[1]))
    assert len(found["widths"]) == 5
    assert min(found["widths"]) > 100
    assert found["overflow"] == 0  # wide tables scroll, the page does not
    assert found["scripts"] == 2  # the page's and this test's
    by_name = ["best & last", "middle"]
    worst_first = [SCRIPT_CASE, "middle", "best & last"]
    assert found["orders"][2] == worst_first[::-1]
    assert found["orders"][3] in ([SCRIPT_CASE, *by_name], [*by_name, SCRIPT_CASE])  # by locale


MEASURES = """
<script>addEventListener("load", () => {
  for (const group of document.querySelectorAll("details")) group.open = true;
  const found = [...document.querySelectorAll(".scroll")].map((box) => ({
    needed: box.scrollWidth,
    width: box.clientWidth,
    first: Math.max(...[...box.querySelectorAll("tbody th")].map((cell) => cell.offsetWidth)),
    name: Math.max(...[...box.querySelectorAll("tbody th")].map((cell) => cell.scrollWidth)),
  }));
  const place = document.createElement("pre");
  place.id = "findings";
  place.textContent = JSON.stringify({
    boxes: found,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  });
  document.body.append(place);
});</script>
"""


@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_long_names_and_full_tables(tmp_path: Path, width: int) -> None:
    notes = {"weights": " ".join(["0123456789abcdef"] * 5), "long": "x" * 2000}
    write_evaluation(tmp_path, {"case_" + "long" * 100: (0.5, 0.5, 0.5)}, notes)
    columns = [f"{key}_{region}" for key in ("sensitivity", "lesion_hd95") for region in REGIONS]
    write_rows(
        tmp_path / "metrics_per_case.csv", [{"case": "x" * 400, **dict.fromkeys(columns, 1)}]
    )
    summary = [
        {"region": region, "n": 300}
        | {
            f"{key}_{name}": value
            for key, value in (("lesion_hd95", 123.4), ("sensitivity", 0.857))
            for name in STATISTICS
        }
        | {"lesion_hd95_n": 276, "sensitivity_n": 276}
        for region in ("TC", "WT", "ET", "mean")
    ]
    write_rows(tmp_path / "metrics_summary.csv", summary)
    report = write_html(tmp_path)
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.read_text())
    report.write_text(text.replace("</body>", f"{MEASURES}</body>"))
    dom, _, _ = browse(report, tmp_path, width)
    place = re.search(r'<pre id="findings">(.*?)</pre>', dom, re.DOTALL)
    assert place is not None
    found = json.loads(unescape(place[1]))
    assert found["overflow"] == 0
    for box in found["boxes"]:
        assert 50 < box["name"] <= box["first"] < 0.5 * box["width"]
    if width == 1200:
        assert found["boxes"][0]["needed"] <= found["boxes"][0]["width"]
