"""The report in a real browser: themes, widths, print, screen reader; no network, no error."""

import base64
import itertools
import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.browser import CHROMIUM, DESK, PAPER, PHONE, Browser
from tests.support.reports import HOSTILE, corpus_of, finished_run

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, _, _ = finished_run(tmp_path_factory.mktemp("browser") / "run", corpus_of(40, 6))
    return folder.path / "report.html"


def test_a_page_that_misbehaves_is_found_out(browser: Browser, tmp_path: Path) -> None:
    """The positive control of everything below."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<body style='width: 3000px'><img src='http://127.0.0.1:9/x.png'>"
        "<script>console.error('no')</script>"
    )
    browser.open(bad, DESK)
    assert "http://127.0.0.1:9/x.png" in browser.requests
    assert any("no" in complaint for complaint in browser.complaints)
    assert browser.value("document.documentElement.scrollWidth") > 1280


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE])
def test_it_opens_without_error_or_request_and_nothing_is_cut_off(
    browser: Browser, page: Path, tmp_path: Path, theme: str, size: tuple[int, int]
) -> None:
    browser.open(page, size, theme)
    browser.screenshot(tmp_path / f"{theme}-{size[0]}.png")
    assert browser.complaints == []
    assert browser.requests == [page.as_uri()]
    assert browser.value("document.documentElement.scrollWidth") <= size[0]
    assert browser.value("document.scripts.length") == 0
    assert HOSTILE in browser.value("document.body.innerText")
    texts = browser.value("[...document.querySelectorAll('svg text')].map(t => t.textContent)")
    assert any(HOSTILE in text for text in texts)


def test_the_first_screen_holds_verdict_figures_and_what_was_not_tested(
    browser: Browser, page: Path
) -> None:
    browser.open(page, DESK)
    for selector in (".verdict", ".first table", "#untested + ul"):
        box = f"document.querySelector('{selector}').getBoundingClientRect()"
        assert browser.value(f"{box}.top") >= 0
        assert 0 < browser.value(f"{box}.bottom") <= DESK[1]


def test_no_figure_of_the_first_screen_is_broken_over_lines(browser: Browser, page: Path) -> None:
    browser.open(page, DESK)
    lines = browser.value(
        "[...document.querySelectorAll('.first td')].map(t => { const r = document.createRange();"
        "r.selectNodeContents(t); return r.getClientRects().length; })"
    )
    assert set(lines) == {1}


def test_on_a_phone_every_cell_of_every_table_is_on_the_screen_behind_its_columns_name(
    browser: Browser, page: Path
) -> None:
    outside = (
        "[...document.querySelectorAll('table')].flatMap(t => [...t.querySelectorAll('tbody th,"
        "tbody td')].filter(c => c.getBoundingClientRect().right > innerWidth + 1 || "
        "c.scrollWidth > c.clientWidth + 1).map(c => t.caption.innerText + ': ' + c.innerText))"
    )
    browser.open(page, PHONE)
    assert browser.value("document.querySelectorAll('.wide').length") > 10
    assert browser.value(outside) == []
    before = browser.value(
        "[...document.querySelectorAll('.wide td')].map(c => "
        "[getComputedStyle(c, '::before').content, JSON.stringify(c.dataset.head)])"
    )
    assert len(before) > 100
    assert all(shown == f'{name[:-1]}: "' for shown, name in before)


def test_a_wide_screen_has_the_table_beside_its_chart(browser: Browser, page: Path) -> None:
    for size, beside in ((DESK, False), ((2560, 1440), True)):
        browser.open(page, size)
        places = browser.value(
            "[...document.querySelectorAll('.charted')].map(s => ['svg', 'table'].map(name => "
            "s.querySelector(name).getBoundingClientRect())).map(([c, t]) => [c.right, t.left])"
        )
        assert len(places) == 7
        assert all((table >= chart) == beside for chart, table in places)
    assert browser.value("document.querySelector('main').getBoundingClientRect().width") > 1900


AXE = find_spec("axe_core_python")
WCAG = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")


def violations(browser: Browser) -> list[str]:
    """Return what axe-core finds against WCAG 2.2 AA on the open page: rule and first element."""
    assert AXE is not None
    assert AXE.origin is not None
    browser.value(Path(AXE.origin).with_name("axe.min.js").read_text(encoding="utf-8") + "; 1")
    options = {"runOnly": {"type": "tag", "values": WCAG}, "preload": False}
    found = browser.value(
        f"axe.run(document, {json.dumps(options)}).then(r => r.violations.map(v => v.id + ': ' + "
        "v.nodes.length + ', ' + v.nodes[0].html.slice(0, 200)))"
    )
    return list(found)


@pytest.mark.skipif(AXE is None, reason="axe-core-python is not installed")
def test_axe_core_finds_no_violation_of_wcag_aa(
    browser: Browser, page: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='x.png'><p style='color: #ccc; background: #fff'>faint text</p>")
    browser.open(bad, DESK)
    rules = {violation.split(":")[0] for violation in violations(browser)}
    assert {"image-alt", "color-contrast", "html-has-lang", "document-title"} <= rules
    for size in (DESK, PHONE):
        for theme in ("light", "dark"):
            browser.open(page, size, theme)
            assert violations(browser) == [], (size, theme)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast of two colours written as rgb(r, g, b)."""

    def luminance(colour: str) -> float:
        shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return float(sum(w * s for w, s in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_charts_stand_out_from_the_page_in_both_themes(
    browser: Browser, page: Path, theme: str
) -> None:
    browser.open(page, DESK, theme)
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21.0)
    paper = browser.value("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 20, 23)"}[theme]
    for selector in ("td", "p", "a[href]", "footer p", "th"):
        colour = browser.value(f"getComputedStyle(document.querySelector('{selector}')).color")
        assert contrast(colour, paper) >= 4.5
    fills = browser.value(
        "[...new Set([...document.querySelectorAll('svg text, svg use, svg path')]"
        ".map(e => getComputedStyle(e)).filter(s => s.fillOpacity == 1 && s.opacity == 1)"
        ".flatMap(s => [s.fill, s.stroke]).filter(c => c.startsWith('rgb(')))]"
    )
    assert len(fills) >= 5
    unthemed = {"rgb(0, 0, 0)"}  # SVG's default, of shapes that are not painted
    assert {c for c in fills if contrast(c, paper) < 3.0} <= unthemed


def test_a_screen_reader_finds_headings_tables_and_named_charts(
    browser: Browser, page: Path
) -> None:
    browser.open(page, DESK)
    nodes = browser.ask("Accessibility.getFullAXTree")["nodes"]
    named: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            name = str(node.get("name", {}).get("value", ""))
            named.setdefault(str(node["role"]["value"]), []).append(name)
    assert len(named["image"]) == 7
    assert all("the table below has the figures" in name for name in named["image"])
    assert len(named["table"]) > 15
    assert all(named["table"])
    assert "rowheader" in named
    assert "columnheader" in named
    assert "What was not tested" in named["heading"]
    levels = browser.value("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))


def test_it_prints_on_paper_with_whole_tables(browser: Browser, page: Path, tmp_path: Path) -> None:
    browser.open(page, PAPER, "dark", media="print")
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    wide = "[...document.querySelectorAll('table, svg')].map(t => t.getBoundingClientRect().right)"
    assert max(browser.value(wide)) <= PAPER[0] + 1
    printed = browser.ask("Page.printToPDF", preferCSSPageSize=True)
    pdf = base64.b64decode(printed["data"])
    (tmp_path / "report.pdf").write_bytes(pdf)
    assert pdf.startswith(b"%PDF-")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 30
