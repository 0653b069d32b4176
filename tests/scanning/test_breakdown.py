"""Errors of a scan by language and label, and the page that shows them."""

import re
from html import unescape
from pathlib import Path

from sani.corpus.documents import Document, Span
from sani.scanning.breakdown import Breakdown, BreakdownRow, write_mistakes
from sani.scanning.evaluation import evaluate

# Ana Lima is covered whole, Bo Ruiz & Co by half, 4711 not at all; "stable" is no identifier.
ENGLISH = "The patient Ana Lima was seen with Bo Ruiz, and the number is 4711. She is stable."
GERMAN = "Der Patient Kurt Weil ist in gutem Zustand und wird nach Hause entlassen."


def span(text: str, value: str, label: str = "NAME", source: str = "annotation") -> Span:
    start = text.index(value)
    return Span(start, start + len(value), label, "direct", source)


def sample() -> tuple[list[Document], list[list[Span]]]:
    gold = [
        Document("1", "1", ENGLISH, (
            span(ENGLISH, "Ana Lima", "PATIENT"), span(ENGLISH, "Bo Ruiz"),
            span(ENGLISH, "4711", "MRN"),
        )),
        Document("2", "2", GERMAN, (span(GERMAN, "Kurt Weil"),)),
    ]  # fmt: skip
    english = [span(ENGLISH, v, "NAME", "ner") for v in ("Ana Lima was", "Bo", "stable")]
    return gold, [english, [span(GERMAN, "Kurt Weil", "NAME", "ner")]]


def test_every_language_and_label_has_a_row() -> None:
    gold, predicted = sample()
    assert evaluate(gold, predicted).breakdown.rows == [
        BreakdownRow("English", "MRN", gold=1),
        BreakdownRow("English", "NAME", gold=2, whole=1, predicted=3, right=2),
        BreakdownRow("German", "NAME", gold=1, whole=1, predicted=1, right=1),
    ]


def test_the_page_shows_each_error_by_sort_and_is_its_owners_alone(tmp_path: Path) -> None:
    gold, predicted = sample()
    path = tmp_path / "private" / "errors.html"
    path.parent.mkdir()
    path.write_text("an older page")
    write_mistakes(evaluate(gold, predicted).breakdown, path)
    assert path.stat().st_mode & 0o777 == 0o600
    missed, part, wrong = path.read_text().split("<h2>")[1:]
    for section, value in ((missed, "4711"), (part, "Bo Ruiz"), (wrong, "stable")):
        assert re.findall("<mark>(.*?)</mark>", section) == [value]
    assert "the number is " in missed


def test_text_cannot_end_an_element_of_the_page(tmp_path: Path) -> None:
    text = "Seen: </td><script>x</script> & co"
    breakdown = Breakdown()
    breakdown.add(Document("1", "1", text, (span(text, "<script>x</script>"),)), [])
    write_mistakes(breakdown, tmp_path / "errors.html")
    page = (tmp_path / "errors.html").read_text()
    assert "<script" not in page
    assert unescape(page).count("<script>x</script>") == 1
