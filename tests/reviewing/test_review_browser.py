"""The review in a real browser: by keyboard and by mouse, from the page to the gold sample."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sani.corpus.documents import Corpus, Document, Span
from sani.reviewing.outcome import apply_review
from sani.reviewing.page import write_page
from tests.support.browser import CHROMIUM, DESK, SECONDS, Browser

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]
# Offsets of JavaScript differ from those of Python behind the first sign; a carriage return and
# the end of a script must survive HTML.
TEXT = "\U0001f642 </script><b>Seen\r\nin May.</b> Ana Ruiz came with Zed Moss & son."
# Codes of the keys that have no text.
CODES = {
    "ArrowDown": 40, "ArrowUp": 38, "ArrowLeft": 37, "ArrowRight": 39, "Delete": 46, "Tab": 9,
    "End": 35, "Home": 36,
}  # fmt: skip
SHIFT = 8
CARET = "offsetOf(getSelection().focusNode, getSelection().focusOffset)"


def corpus() -> Corpus:
    def span(value: str) -> Span:
        start = TEXT.index(value)
        return Span(start, start + len(value), "NAME", source="ner", score=0.9)

    return Corpus([Document("0", "s", TEXT, (span("May"), span("Ana Ruiz")))])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Path:
    """The page, open; what it saves goes into its folder."""
    path = tmp_path / "review.html"
    write_page(corpus(), path)
    browser.ask("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.open(path, DESK)
    return path


def press(browser: Browser, key: str, *, times: int = 1, held: int = 0) -> None:
    code = CODES.get(key, ord(key[0].upper()))
    text = {"text": key} if len(key) == 1 and not held else {}
    for _ in range(times):
        same = {"key": key, "windowsVirtualKeyCode": code, "modifiers": held}
        browser.ask("Input.dispatchKeyEvent", type="keyDown", **same, **text)
        browser.ask("Input.dispatchKeyEvent", type="keyUp", **same)


def drag(browser: Browser, value: str) -> None:
    """Select a text with the mouse, from its first to its last character."""
    box: Any = browser.value(
        "(() => { const walker = document.createTreeWalker("
        "document.getElementById('text'), NodeFilter.SHOW_TEXT);"
        "for (let node = walker.nextNode(); node; node = walker.nextNode()) {"
        f"const start = node.data.indexOf({json.dumps(value)});"
        "if (start < 0) continue; const range = document.createRange();"
        f"range.setStart(node, start); range.setEnd(node, start + {len(value)});"
        "const box = range.getBoundingClientRect();"
        "return [box.left, box.right, (box.top + box.bottom) / 2]; } })()"
    )
    left, right, middle = box
    places = (("mousePressed", left + 1), ("mouseMoved", right - 1), ("mouseReleased", right - 1))
    for kind, across in places:
        browser.ask("Input.dispatchMouseEvent", type=kind, x=across, y=middle, button="left",
                    buttons=1, clickCount=1)  # fmt: skip


def marks(browser: Browser) -> list[str]:
    shown: list[str] = browser.value(
        "[...document.querySelectorAll('#text mark')].map(m => m.textContent)"
    )
    return shown


def saved(browser: Browser, page: Path) -> Path:
    """Press the key that saves, and wait for the file."""
    path = page.with_name("review.json")
    press(browser, "s")
    deadline = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(0.05)
    return path


def test_it_opens_without_error_or_request_and_shows_the_text_as_it_is(
    browser: Browser, page: Path
) -> None:
    press(browser, "d")
    assert browser.value("document.getElementById('text').textContent") == TEXT
    assert marks(browser) == ["May", "Ana Ruiz"]
    assert browser.complaints == []
    assert browser.requests == [page.as_uri()]


def test_a_script_that_is_not_the_page_s_own_does_not_run(browser: Browser, page: Path) -> None:
    """The second fence behind the escaping."""
    browser.value(
        "(() => { const made = document.createElement('div');"
        "made.innerHTML = '<img src=x onerror=\"window.broken = 1\">'; document.body.append(made);"
        "const script = document.createElement('script'); script.textContent = 'window.broken = 2';"
        "document.body.append(script); fetch('http://127.0.0.1:9/').catch(() => 0); })()"
    )
    assert browser.value("window.broken === undefined")
    assert len(browser.complaints) >= 3


def test_by_keyboard_a_value_is_struck_and_a_missed_name_added(
    browser: Browser, page: Path
) -> None:
    press(browser, "v")
    press(browser, "ArrowDown")  # from "Ana Ruiz" to "May": both occur once
    press(browser, "x")
    assert "1 of 2 values struck" in browser.value("document.getElementById('status').innerText")
    press(browser, "d")
    assert marks(browser) == ["Ana Ruiz"]
    browser.value("document.getElementById('text').focus()")
    press(browser, "Home")
    while browser.value(CARET) < TEXT.index("Zed"):
        press(browser, "ArrowRight")
    press(browser, "ArrowRight", times=len("Zed Moss"), held=SHIFT)
    assert browser.value("getSelection().toString()") == "Zed Moss"
    press(browser, "1")
    press(browser, "c")
    outcome = apply_review(corpus(), saved(browser, page))
    assert [outcome.gold[0].value(span) for span in outcome.gold[0].spans] == [
        "Ana Ruiz",
        "Zed Moss",
    ]
    assert outcome.allowed == ("May",)
    assert (outcome.recall.hits, outcome.recall.trials) == (1, 2)
    assert (outcome.scanned.precision.hits, outcome.scanned.precision.trials) == (1, 2)
    assert "Ruiz" not in page.with_name("review.json").read_text()


def test_by_mouse_a_name_is_added_and_a_wrong_finding_deleted(browser: Browser, page: Path) -> None:
    press(browser, "d")
    drag(browser, "Zed Moss")
    browser.value("document.querySelector('#labels button').click()")
    assert marks(browser) == ["May", "Ana Ruiz", "Zed Moss"]
    browser.value("document.querySelector('#text mark').focus()")
    press(browser, "Delete")
    assert marks(browser) == ["Ana Ruiz", "Zed Moss"]
    press(browser, "z")
    assert marks(browser) == ["May", "Ana Ruiz", "Zed Moss"]
    press(browser, "x")  # nothing is chosen after an undo
    assert marks(browser) == ["May", "Ana Ruiz", "Zed Moss"]
    browser.value("document.querySelector('#text mark').focus()")
    press(browser, "x")
    outcome_file = saved(browser, page)
    assert [one["complete"] for one in json.loads(outcome_file.read_text())["documents"]] == [False]
    outcome_file.unlink()
    press(browser, "c")
    outcome = apply_review(corpus(), saved(browser, page))
    assert [outcome.gold[0].value(span) for span in outcome.gold[0].spans] == [
        "Ana Ruiz",
        "Zed Moss",
    ]
    assert outcome.allowed == ()


def test_a_saved_review_is_gone_on_with(browser: Browser, page: Path) -> None:
    press(browser, "v")
    press(browser, "x")  # "Ana Ruiz"
    press(browser, "d")
    press(browser, "c")
    first = saved(browser, page).read_text()
    browser.open(page, DESK)
    browser.value(f"restore({json.dumps(first)})")
    assert "1 of 1 documents complete" in browser.value(
        "document.getElementById('status').innerText"
    )
    press(browser, "d")
    assert marks(browser) == ["May"]
    browser.value('restore(\'{"version": 1, "digest": "0"}\')')
    assert "no review of these documents" in browser.value(
        "document.getElementById('status').innerText"
    )
