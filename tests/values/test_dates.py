"""Dates: that every writing of a day is read as that day, by all who read dates."""

import datetime
import itertools
import unicodedata
from typing import Literal

import pytest
from babel.dates import format_date, get_month_names

from sani.auditing.cues import CueFinder
from sani.auditing.identifier_index import IdentifierIndex
from sani.corpus.documents import Corpus, Document, Span
from sani.scanning.propagation import propagate
from sani.text.folding import fold_text
from sani.values.date_formats import DateFormats
from sani.values.dates import LANGUAGES, days_in, days_of, find_days, names_a_day, years_of

DAY = datetime.date(2021, 3, 25)
WRITINGS = [
    "25/03/2021", "03/25/2021", "2021-03-25", "25.3.2021", "25. 3. 2021", "25 March 2021",
    "25th of March, 2021", "March 25, 2021", "Mar 25th, 2021", "25-Mar-2021", "25MAR2021",
    "25 de marzo de 2021", "25 de març del 2021", "25. März 2021", "25 mars 2021",
    "25\u00a0mars\u202f2021", "25° marzo 2021", "25 marca 2021", "25 Mart 2021",
    "2021. március 25.",
    unicodedata.normalize("NFD", "25. März 2021"), "2021年3月25日", "25\u201303\u20132021",
    "\uff12\uff15/\uff10\uff13/2021", "25.03.21", "2021/3/25", "2021 Mar 25",
]  # fmt: skip


@pytest.mark.parametrize("text", WRITINGS)
def test_a_day_is_read_off_any_usual_writing(text: str) -> None:
    assert DAY in days_of(f"({text})")
    assert DAY in days_in(f"Thursday, {text}")
    assert any(DAY in days for *_, days in find_days(fold_text(f"seen on {text}, and well")))
    assert DAY not in days_in(text.replace("25", "26").replace("\uff15", "6"))


@pytest.mark.parametrize(
    "value", ["20210325", "25 March", "March 2021", "2021", "31/02/2021", "May"]
)
def test_what_names_no_day_for_certain_is_no_date(value: str) -> None:
    assert days_of(value) == ()


def test_a_value_known_to_be_a_date_is_read_more_freely_than_a_text() -> None:
    assert days_in("the 25th day of the month of March of the year 2021") == {DAY}
    assert days_in("25/03-2021") == {DAY}
    assert days_in("March 2021, room 25 or 26") == set()


def test_day_stands_before_month_and_the_likelier_century_first() -> None:
    assert days_of("03/04/2021") == (datetime.date(2021, 4, 3), datetime.date(2021, 3, 4))
    assert [day.year for day in days_of("25.3.68")] == [2068, 1968]
    assert [day.year for day in days_of("25.3.69")] == [1969, 2069]
    assert years_of("1921") == [1921]


def test_no_name_of_a_month_means_two_months() -> None:
    names: dict[str, int] = {}
    widths: tuple[Literal["wide", "abbreviated"], ...] = ("wide", "abbreviated")
    contexts: tuple[Literal["format", "stand-alone"], ...] = ("format", "stand-alone")
    for language, width, context in itertools.product(LANGUAGES, widths, contexts):
        for month, name in get_month_names(width, context, language).items():
            assert names.setdefault(fold_text(name).rstrip("."), month) == month, name


@pytest.mark.parametrize("language", LANGUAGES)
def test_scan_audit_and_cues_agree_on_the_writings_of_each_language(language: str) -> None:
    for month in range(1, 13):
        day = DAY.replace(month=month)
        iso, text = day.isoformat(), format_date(day, "d MMMM y", locale=language)
        marked = Document("1", "s", f"born {iso}", (Span(5, 15, "DATE"),))
        (found,) = propagate([marked, Document("2", "s", f"on {text}")])[1:]
        assert (3, 3 + len(text)) in {(span.start, span.end) for span in found}, text
        assert [hit.exact for hit in IdentifierIndex(Corpus([marked])).find(f"on {text}")] == [True]
        assert CueFinder(f"{text}: {iso}").cued(len(text) + 2, len(text) + 12, [(0, len(text))])
        assert not CueFinder(f"xxx: {iso}").cued(5, 15, [(0, 3)])


@pytest.mark.parametrize("language", ["en", "de", "es", "fr", "it", "pt", "pl"])
def test_decoys_read_the_month_names_that_the_others_read(language: str) -> None:
    days = [DAY.replace(month=month) for month in range(1, 13)]
    values = [format_date(day, "d MMMM y", locale=language) for day in days]
    formats = DateFormats(values, languages=[language], month_first=False)
    assert formats.days is not None
    first, last = formats.days
    assert first <= days[0] <= days[-1] <= last
    for value in values:
        (date,) = formats.find(value)
        assert (date.start, date.end) == (0, len(value))
        assert date.kinds == "dny"


# --- which dates name a day -----------------------------------------------------------------------

WITHOUT_YEAR = [
    "25/03", "3/25", "3 / 25", "25.03.", "25.3.", "25.12", "03-25", "11-25", "25 March",
    "March 25th", "25 de marzo", "25. März", "25 mars", "le 1er mars", "Mar 25", "25-mar",
    "25MAR", "3月25日", "3월 25일", "from 12 to 15 March", "3/25 at 14:00", "25.03. morgens",
    "December 25, 10:30", "29/02", "the 3rd of April", "5 de ago",
    "14h 25 mars", "10: 25 March", "25.03 am Abend",
]  # fmt: skip
OTHER_WRITINGS = [
    "25032021", "03252021", "20210325", "250321", "210325", "20210325101500", "25.XII.2021",
    "25-III-21", "25/03-2021", "2021-03-25T10:00", "21-22 March 2020",
]  # fmt: skip
READ_IN_TWO_WAYS = ["03/21", "March 21", "201203", "1/2", "10.12"]
NO_DAY = [
    "2021", "'21", "the 1990s", "2020-2021", "March", "March 2021", "March '21", "marzo de 2021",
    "03/2021", "3/2021", "2021-03", "2021/03", "202103", "1/2020-3/2021", "Q1 2021", "winter 2020",
    "14:30", "10.30 Uhr", "12.30 p.m.", "8:30 am", "10h30", "8 h 30", "10 am",
    "10:30 in March 2021",
    "two days", "3 days", "5 days ago", "3-4 weeks", "10-12 weeks", "2-3 días",
    "2.5 years", "hace 2 días", "tonight", "last week", "Monday", "in 2 weeks", "day 3",
    "POD 3", "40 weeks", "the 25th", "32/13",
]  # fmt: skip


@pytest.mark.parametrize("value", [*WRITINGS, *WITHOUT_YEAR, *OTHER_WRITINGS, *READ_IN_TWO_WAYS])
def test_a_day_of_a_month_is_named_with_or_without_its_year(value: str) -> None:
    assert names_a_day(value)


@pytest.mark.parametrize("value", NO_DAY)
def test_years_months_times_of_day_and_relative_times_name_no_day(value: str) -> None:
    assert not names_a_day(value)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_writing_of_a_language_is_told_from_that_without_the_day(language: str) -> None:
    for month in range(1, 13):
        day = DAY.replace(month=month)
        for written in ("short", "medium", "long", "full", "d MMMM", "MMMM d", "d. MMM", "dd/MM"):
            text = format_date(day, written, locale=language)
            assert names_a_day(text), text
        for written in ("MMMM y", "MMM y", "MMMM", "MM/y", "y-MM", "y", "EEEE"):
            text = format_date(day, written, locale=language)
            assert not names_a_day(text), text


@pytest.mark.parametrize("language", ["en", "de", "es", "fr"])
def test_what_decoys_take_for_a_date_with_a_day_names_a_day(language: str) -> None:
    """The two readers of dates agree, whatever order a label's own dates suggest."""
    days = [DAY + datetime.timedelta(37 * number) for number in range(40)]
    for written in (
        "d MMMM y",
        "dd.MM.y",
        "MM/dd/yy",
        "ddMMy",
        "yMMdd",
        "d MMMM",
        "dd-MM",
        "dd.MM.",
    ):
        values = sorted({format_date(day, written, locale=language) for day in days})
        formats = DateFormats(values, languages=[language], month_first=False)
        for value in values:
            assert not any("d" in date.kinds for date in formats.find(value)) or names_a_day(value)
