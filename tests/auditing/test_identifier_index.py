"""Known identifiers in text, against a slow search and against another writer of dates."""

import datetime
import itertools
import re
import unicodedata
from typing import Any

import pytest
from babel.dates import format_date
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sani.auditing.identifier_index import MIN_DIGITS, MIN_LETTERS, Hit, IdentifierIndex
from sani.corpus.documents import KINDS, Corpus, Document, Span
from sani.demo.clinic import invent_clinic
from sani.values.dates import LANGUAGES

DAY = datetime.date(2021, 3, 25)


def corpus_of(*values: str, subjects: str = "", labels: str = "", kind: Any = "direct") -> Corpus:
    """A document for each value; subjects and labels are single letters."""
    return Corpus(
        [
            Document(
                str(number),
                subjects[number] if subjects else str(number),
                f"<{value}>",
                (Span(1, 1 + len(value), labels[number] if labels else "X", kind),),
            )
            for number, value in enumerate(values)
        ]
    )


def found(text: str, *values: str) -> list[str]:
    """The values that a text holds exactly."""
    hits = IdentifierIndex(corpus_of(*values)).find(text)
    return [values[hit.identifier] for hit in hits if hit.exact]


def loosely(text: str, value: str) -> list[bool]:
    """Whether the value's hit is exact; empty without a hit."""
    return [hit.exact for hit in IdentifierIndex(corpus_of(value)).find(text)]


# --- against a slow and obvious search ------------------------------------------------------------


def slow_tokens(text: str) -> list[tuple[str, int, int]]:
    """Words and numbers with where they stand, character by character."""
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = re.sub(r"\s+", " ", text.lower())
    tokens: list[tuple[str, int, int]] = []
    at = 0
    while at < len(text):
        end = at
        if text[at].isdigit():
            while end < len(text) and text[end].isdigit():
                end += 1
            whole = end
            while whole + 1 < len(text) and text[whole] in ".,'" and text[whole + 1].isdigit():
                whole += 1
                while whole < len(text) and text[whole].isdigit():
                    whole += 1
            first, *rest = re.split("[.,']", text[at:whole])
            signs = {c for c in text[at:whole] if not c.isdigit()}
            begins = at < 2 or not (text[at - 1] in ".,'" and text[at - 2].isdigit())
            thousands = len(first) <= 3 and len(signs) == 1 and {len(r) for r in rest} == {3}
            fraction = first == "0" and text[at + 1 : at + 2] == "." and len(rest) == 1
            if begins and (thousands or fraction):
                end = whole
        elif text[at].isalpha():
            while end < len(text) and text[end].isalpha():
                end += 1
        else:
            at += 1
            continue
        tokens.append((re.sub("[.,']", "", text[at:end]), at, end))
        at = end
    return tokens


def slow_line(tokens: list[tuple[str, int, int]]) -> str:
    """Numbers lose what separates them from their neighbours, words stand one space apart."""
    line = tokens[0][0]
    for (before, _, end), (token, start, _) in itertools.pairwise(tokens):
        joined = (before.isdigit() or token.isdigit()) and start - end <= 3
        line += token if joined else " " + token
    return line


def slow_find(text: str, value: str) -> bool:
    """Whether some run of whole words and numbers reads as the value does."""
    tokens, wanted = slow_tokens(text), slow_line(slow_tokens(value))
    for first in range(len(tokens)):
        for last in range(first + 1, len(tokens) + 1):
            glued = (first > 0 and tokens[first - 1][2] == tokens[first][1]) or (
                last < len(tokens) and tokens[last - 1][2] == tokens[last][1]
            )
            if slow_line(tokens[first:last]) == wanted and (wanted.isdigit() or not glued):
                return True
    return False


PIECES = ["ana", "Ruiz", "GARCÍA", "García", "ruiz", "no", "1", "12", "345", "6789", "0", "x"]
SIGNS = ["", " ", " ", " ", "-", ".", ",", "'", ", ", "\n", "(", ") ", "  ", " - - ", "_", "@"]
strings = st.lists(
    st.tuples(st.sampled_from(PIECES), st.sampled_from(SIGNS)), min_size=1, max_size=4
).map(lambda pairs: "".join(itertools.chain(*pairs)))
texts = st.lists(st.tuples(strings, st.sampled_from(SIGNS)), max_size=6).map(
    lambda pairs: "".join(itertools.chain(*pairs))
)


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_every_value_is_found_where_a_slow_search_finds_it_and_nowhere_else(data: Any) -> None:
    values = data.draw(st.lists(strings, min_size=1, max_size=6))
    date = re.compile(r"\D*\d\d? ?([-.]) ?\d\d?\1(\d\d|\d{4})\D*")
    assume(not any(map(date.fullmatch, values)))  # dates have a rule of their own
    own = st.sampled_from(values).map(lambda value: f" {value} ")
    text = "".join(data.draw(st.lists(st.one_of(strings, own), max_size=6)))
    lines = {value: slow_line(slow_tokens(value)) for value in values}
    index = IdentifierIndex(corpus_of(*values))
    long_enough = [
        line
        for line in dict.fromkeys(lines.values())
        if len(line.replace(" ", "")) >= (MIN_DIGITS if line.isdigit() else MIN_LETTERS)
    ]
    expected = [
        any(slow_find(text, value) for value in values if lines[value] == line)
        for line in long_enough
    ]
    exact = {hit.identifier for hit in index.find(text) if hit.exact}
    assert len(index) == len(long_enough)
    assert exact == {number for number, holds in enumerate(expected) if holds}


@pytest.mark.parametrize("kinds", [("direct",), ("direct", "indirect")])
def test_every_identifier_of_a_clinic_is_found_in_its_own_note_or_counted_as_too_short(
    kinds: Any,
) -> None:
    clinic = invent_clinic(patients=12, seed=5)
    index = IdentifierIndex(clinic, kinds=kinds)
    subjects = sorted({document.subject_id for document in clinic})
    short: dict[Any, Any] = {label: set() for label in index.too_short}
    for document in clinic:
        hits = {hit.identifier: hit.exact for hit in index.find(document.text)}
        for span in document.spans:
            if span.kind not in kinds:
                continue
            alone = index.find(document.value(span))
            whole = [
                hit.identifier
                for hit in alone
                if hit.exact
                and span.label in index.identifiers[hit.identifier].labels
                and subjects.index(document.subject_id)
                in index.identifiers[hit.identifier].subjects
            ]
            if whole:
                assert all(hits[number] for number in whole)
            else:
                short[span.label].add(document.value(span))
    assert {label: len(values) for label, values in short.items()} == index.too_short
    assert ("AGE" in short) == ("indirect" in kinds)


# --- case, spacing, punctuation, diacritics -------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "José García-Pérez",
        "JOSÉ GARCÍA PÉREZ",
        "jose garcia perez",
        "José\u00a0García\n   Pérez,",
        unicodedata.normalize("NFD", "(José García-Pérez)"),
        "José Gar\u00adcía\u2010Pérez",
        "\uff2a\uff4f\uff53\uff45\u0301 García Pérez",
        "Paciente:José García·Pérez.",
    ],
)
def test_a_name_is_found_in_any_case_spacing_punctuation_and_with_or_without_accents(
    text: str,
) -> None:
    assert found(text, "José García Pérez") == ["José García Pérez"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Łukasz Żółć", "LUKASZ ZOLC"),
        ("Y\u0131ld\u0131z", "YILDIZ"),
        ("Strauß", "STRAUSS"),
        ("O\u2019Brien", "o'brien"),
        ("Анна Ёлкина", "АННА ЕЛКИНА"),  # noqa: RUF001
        ("张三丰", "病人张三丰今天入院"),
        ("김철수", "김철수는 왔다"),
        ("राम कुमार", "श्री राम कुमार जी"),
        ("۱۲۳۴۵۶۷", "1234567"),
    ],
)
def test_other_scripts_and_letters_are_folded_or_split_as_they_are_written(
    value: str, text: str
) -> None:
    assert found(text, value) == [value]


@pytest.mark.parametrize(
    "text",
    ["Marianne", "Annabel", "JoAnna", "An na", "Annas", "xAnna", "Anna1", "1Anna"],
)
def test_a_name_is_not_found_inside_a_longer_word_or_in_pieces(text: str) -> None:
    assert found(text, "Anna") == []


def test_words_that_differ_in_a_vowel_sign_alone_are_not_the_same() -> None:
    assert found("रीमा", "रामा") == []


def test_a_name_with_its_words_turned_around_is_a_looser_hit_unless_it_is_another_value() -> None:
    assert loosely("Pérez Gómez, Ana", "Ana Pérez Gómez") == [False]
    assert loosely("Ana Pérez Gómez", "Pérez Gómez, Ana") == [False]
    assert loosely("Gómez Ana", "Ana Pérez Gómez") == []
    assert found("Thomas Martin", "Martin Thomas", "Thomas Martin") == ["Thomas Martin"]
    two = IdentifierIndex(corpus_of("Martin Thomas", "Thomas Martin"))
    assert two.find("Thomas Martin") == [Hit(1, exact=True)]


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["415-555-1234", "(415) 555 1234", "415.555.1234", "4155551234", "+1 (415) 555-1234",
     "tel4155551234", "415\n555\n1234", "no. 415 5551234;"],
)  # fmt: skip
def test_a_number_is_found_with_any_separators(text: str) -> None:
    assert found(text, "(415) 555-1234") == ["(415) 555-1234"]


@settings(max_examples=200)
@given(
    st.from_regex(r"[0-9]{5,12}", fullmatch=True),
    st.from_regex(r"[0-9]{0,3}", fullmatch=True),
    st.from_regex(r"[0-9]{0,3}", fullmatch=True),
)
def test_a_number_is_never_found_inside_a_longer_one(value: Any, before: Any, behind: Any) -> None:
    text = f"record {before}{value}{behind}, seen"
    inside = (before + value + behind) != value
    assert found(text, value) == ([] if inside else [value])


@pytest.mark.parametrize("text", ["1,234,567", "1.234.567", "1'234'567.50", "0.234567"])
def test_a_number_is_not_found_behind_a_thousands_separator_or_a_decimal_point(text: str) -> None:
    assert found(text, "234567") == []
    assert found("234.567 / 12345678,45,male", "234567", "12345678") == ["234567", "12345678"]


def test_letters_of_a_number_count_and_what_separates_them_does_not() -> None:
    assert found("DNI 12.345.678-Z", "12345678Z") == ["12345678Z"]
    assert found("DNI 12345678-Y and 12345678ZZ", "12345678Z") == []
    assert found("MRN12345678 x", "12345678") == ["12345678"]


# --- dates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["25/03/2021", "2021-03-25", "25 de marzo de 2021", "March 25, 2021", "25.3.2021",
     "25. 3. 2021", "25-Mar-2021", "25MAR2021", "Mar 25th, 2021", "1 or 25th of March, 2021",
     "25 de març del 2021", "25\u202fmars\u00a02021", "2021/3/25", "2021年3月25日", "20210325",
     "20210325083000", "2021-03-25T08:30:00Z", "el 25/MAR/2021.", "2021 Mar 25"],
)  # fmt: skip
@pytest.mark.parametrize("value", ["2021-03-25", "25/3/2021", "25 March 2021"])
def test_a_date_is_found_in_any_usual_writing(value: str, text: str) -> None:
    assert found(text, value) == [value]
    assert loosely(text.replace("25", "26"), value) == []
    assert loosely(text.replace("2021", "2012"), value) == []


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("format", ["medium", "long", "d MMMM y", "d LLLL y", "dd-LLL-yyyy"])
def test_a_date_is_found_as_each_language_writes_it(language: str, format: str) -> None:
    index = IdentifierIndex(corpus_of(*(f"2021-{month:02}-25" for month in range(1, 13))))
    for month in range(1, 13):
        text = format_date(DAY.replace(month=month), format, locale=language)
        assert index.find(f"({text})") == [Hit(month - 1, exact=True)], text


def test_an_open_date_is_read_both_ways_and_reported_as_a_looser_hit() -> None:
    assert loosely("seen 03/04/2021", "03/04/2021") == [True]
    assert loosely("seen 3.4.2021", "03/04/2021") == [True]
    for text in ("2021-04-03", "3 April 2021", "March 4, 2021"):
        assert loosely(text, "03/04/2021") == [False]
        assert loosely("on 03/04/2021", text) == [False]
    assert loosely("5 April 2021", "03/04/2021") == []


def test_a_year_of_two_digits_leaves_the_century_open() -> None:
    assert loosely("25.3.21", "25/03/21") == [True]
    assert loosely("25 March 2021", "25.3.21") == [False]
    assert loosely("1921-03-25", "25.3.21") == [False]
    assert loosely("25.3.'21", "2021-03-25") == [False]
    assert loosely("25.3.22", "2021-03-25") == []


def test_dates_that_share_their_digits_are_not_the_same_date() -> None:
    assert loosely("11/2/2021", "1/12/2021") == []
    assert loosely("1.25/03/2021 and 25/03/20210", "25/03/2021") == []


def test_what_is_no_date_is_searched_as_a_number() -> None:
    assert found("99/99/2021", "99-99-2021") == ["99-99-2021"]
    assert found("31.02.2021", "31/02/2021") == ["31/02/2021"]
    assert found("born 12 April 1963", "19630412") == [], "a record number is no date"


# --- whose it is ----------------------------------------------------------------------------------


def test_a_shared_value_is_one_identifier_of_all_who_share_it() -> None:
    index = IdentifierIndex(
        corpus_of("Smith", "smith", "SMITH", "Jones", subjects="baac", labels="PQPP")
    )
    assert len(index) == 2
    assert index.identifiers[0].subjects == (0, 1)
    assert index.identifiers[0].labels == ("P", "Q")
    assert index.find("Smith and Smith, SMITH!") == [Hit(0, exact=True)]


def test_writings_of_one_date_are_one_identifier() -> None:
    index = IdentifierIndex(corpus_of("2021-03-25", "25/03/2021", "March 25, 2021"))
    assert [identifier.subjects for identifier in index.identifiers] == [(0, 1, 2)]


def test_values_of_other_kinds_are_not_searched_for() -> None:
    corpus = corpus_of("Springfield", kind="indirect")
    assert not len(IdentifierIndex(corpus))
    assert IdentifierIndex(corpus).find("in Springfield") == []
    assert IdentifierIndex(corpus, kinds=KINDS).find("in Springfield") == [Hit(0, exact=True)]


def test_a_value_that_is_too_short_is_counted_by_label_and_not_searched_for() -> None:
    index = IdentifierIndex(
        corpus_of("Ann", "A. N.", "1234", "--", "ann", "Anna", "12345", "12-a", labels="NNMMNNMM")
    )
    assert len(index) == 2
    assert index.too_short == {"M": 3, "N": 2}
    assert index.find("Ann A.N. 1234 -- 12-a") == []


def test_an_index_shows_no_value() -> None:
    index = IdentifierIndex(corpus_of("Zebulon Quartz"))
    shown = repr(index) + repr(index.identifiers) + repr(index.find("zebulon quartz"))
    assert "zebulon" not in shown.lower()
