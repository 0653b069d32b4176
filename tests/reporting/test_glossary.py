"""Each word of the report leads to its meaning; each table has a sentence on how to read it."""

import re
from pathlib import Path

import pytest

from sani.reporting.contents import chapters
from sani.reporting.glossary import PLAIN, Links, glossary
from sani.reporting.page import render
from sani.reporting.readings import READINGS, reading_of
from sani.reporting.schema import Report
from tests.support.reports import corpus_of, finished_run


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    _, _, report = finished_run(tmp_path_factory.mktemp("run") / "run", corpus_of(40, 6))
    return report


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Uncued and cued ones", ["cued"]),  # the second use in a section is no link
        ("seen in (1000, 0.5), or (n, p)-discoverable", ["(n, p)"]),
        ("recited greedily", ["greedy"]),
        ("first of the swapped", ["swapped"]),
        ("The onion, ripples and exposure", ["onion", "ripple", "exposure"]),
        ("a crippled database, precued", []),  # parts of other words
        ("the log-ratio to the base", ["log-ratio to the base"]),
    ],
)
def test_a_word_in_any_form_leads_to_its_entry(text: str, words: list[str]) -> None:
    links = Links()
    links.section()
    linked = links.linked(text.lower())
    assert list(links.used) == words
    assert len(re.findall('<a class="word"', linked)) == len(words)
    assert re.sub("<.*?>", "", linked) == text.lower()


def test_what_a_label_holds_is_escaped() -> None:
    links = Links()
    assert links.linked("<b>cued</b> & <i>") == (
        '&lt;b&gt;<a class="word" href="#word-'
        f'{list(glossary()).index("cued")}">cued</a>&lt;/b&gt; &amp; &lt;i&gt;'
    )


def test_each_section_links_each_word_that_it_uses_and_the_page_explains_it(
    report: Report,
) -> None:
    page = render(report, "report.html.jinja")
    targets = set(re.findall(r'href="#(word-\d+)"', page))
    entries = re.findall(r'<dt id="(word-\d+)">(.*?)</dt><dd>(.+?)</dd>', page)
    assert {number for number, _, _ in entries} == targets
    words = {word for _, word, _ in entries}
    assert {"onion", "ripple", "cued", "(n, p)", "exposure", "swapped", "greedy", "AUC"} <= words
    assert not words & PLAIN
    for section in re.findall(r"<section.*?</section>", page, flags=re.S):
        for word in ("uncued", "exposure", "swapped", "onion"):
            plain = re.sub(
                r"<a class=\"word\".*?</a>|<title.*?</svg>|data-head=\"[^\"]*\"",
                "",
                section,
                flags=re.S,
            )
            used_in_text = re.search(rf"(?<![\w-]){word}(?![\w-])", plain)
            assert not used_in_text or f">{word}</a>" in section or word == "uncued", word


def test_every_table_and_chart_has_a_sentence_on_how_to_read_it(report: Report) -> None:
    page = render(report, "report.html.jinja")
    sections = [s for part in chapters(report).values() for s in part if s.rows]
    assert len(sections) > 15
    for section in sections:
        assert reading_of(section.key) in re.sub("<a class.*?>|</a>", "", page).replace(
            "&#39;", "'"
        )
    assert reading_of("worst-direct") == READINGS["worst"]
    for sentence in READINGS.values():
        assert sentence.endswith(".")


def test_every_section_that_can_have_a_table_has_such_a_sentence() -> None:
    source = "".join(
        path.read_text(encoding="utf-8") for path in Path("sani/reporting").glob("*.py")
    )
    keys = set(re.findall(r'Section\(\s*f?"([\w{}-]+)",\s*"', source))
    keys -= {"scan", "figures", "differ"}  # no table; sani report --compare, which is no page
    assert {"attacks", "onion", "leak-at-k"} <= keys
    assert keys - {"occurrences"} <= set(READINGS)
