"""Dates as text has them: month names, and the days that a written date may mean.

Scan, audit and cues read dates here, so that they agree on which writings are one date, and on
which name a day. Decoys
(`sani.values.date_formats`) take the month names and the rule for years of two digits from here.
Text is read folded (`sani.text.folding`). Month names are those of Unicode CLDR, by Babel.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Iterable, Iterator
from functools import cache

from babel import Locale

from sani.text.folding import LETTER, fold_text

LANGUAGES = (
    "bg", "ca", "cs", "da", "de", "el", "en", "en_GB", "es", "et", "fi", "fr", "hu", "it", "nb",
    "nl", "pl", "pt", "ro", "ru", "sk", "sl", "sv", "tr", "uk",
)  # fmt: skip
"""Languages whose month names are read; no two of them call different months by one name."""
MORE_MONTH_NAMES = {
    "j\u00e4nner": 1, "jaenner": 1, "j\u00e4nn": 1, "feber": 2, "feb": 2,
    "maerz": 3, "m\u00e4r": 3, "mrz": 3,
    "setiembre": 9, "sept": 9,
}  # fmt: skip
"""Names of months that Unicode CLDR lacks: of Austria and Spain, and short ones."""
# Years of two digits up to here are first read as of this century, as strptime does.
LAST_RECENT_YEAR = 68

YEARS = range(1850, 2100)
"""Years that digits side by side may name."""

Days = tuple[datetime.date, ...]
"""The days that a date may mean, the likeliest first; several where the writing leaves it open."""


@cache
def month_names(language: str) -> dict[tuple[str, int], str]:
    """Return (way of writing, month) -> name as CLDR has it, without a final period."""
    calendar = Locale.parse(language).months
    return {
        (f"{context} {width}", month): name.removesuffix(".")
        for width in ("wide", "abbreviated")
        for context in ("format", "stand-alone")
        for month, name in calendar[context][width].items()
    }


@cache
def month_numbers() -> dict[str, int]:
    """Return the number of each month by its folded names in all `LANGUAGES`."""
    numbers: dict[str, int] = {}
    for language in LANGUAGES:
        for (_, month), name in month_names(language).items():
            # Catalan writes "de març", "d'abril".
            bare = re.sub(r"^(?:de |d')|\.$", "", fold_text(name))
            if len(bare) >= 2 and bare.isalpha():
                numbers[bare] = month
    return {**{fold_text(name): month for name, month in MORE_MONTH_NAMES.items()}, **numbers}


def years_of(digits: str) -> list[int]:
    """Return the years that four or two digits may mean, the likeliest first."""
    if len(digits) == 4:
        return [int(digits)]
    years = [2000 + int(digits), 1900 + int(digits)]
    return years if int(digits) <= LAST_RECENT_YEAR else years[::-1]


def find_days(folded: str) -> Iterator[tuple[int, int, Days]]:
    """Find every full date of a folded text: its start, its end, and what it may mean."""
    for pattern in _patterns():
        for match in pattern.finditer(folded):
            if days := _days(match):
                yield match.start(), match.end(), days


def days_of(value: str) -> Days:
    """Return the days that a value means if all of it is one full date, else none.

    Eight digits alone are taken for a number.
    """
    bare = fold_text(value).strip(" .,;:()[]")
    for pattern in _patterns()[:-1]:
        match = pattern.fullmatch(bare)
        if match and (days := _days(match)):
            return days
    return ()


def days_in(value: str) -> set[datetime.date]:
    """Return the days that a value which is known to be a date may mean, whatever else it says.

    Where no usual writing stands in it, one month's name, one number of a day and one year in any
    order will do.
    """
    folded = fold_text(value)
    days = {day for _, _, days in find_days(folded) for day in days}
    if days:
        return days
    if match := _MIXED.match(folded):
        return set(_days(match))
    words = re.findall(rf"\d+|{LETTER}+", folded)
    months = [month_numbers()[word] for word in words if word in month_numbers()]
    numbers = [int(word) for word in words if word.isdigit() and len(word) <= 2]
    years = [int(word) for word in words if word.isdigit() and len(word) == 4]
    if len(months) == len(numbers) == len(years) == 1:
        return set(_existing([(years[0], months[0], numbers[0])]))
    return set()


def names_a_day(value: str) -> bool:
    """Return whether a value that is known to be a date or a time names a day of a month.

    The year may be missing. A year, a month, a month of a year, a time of day, a weekday, a number
    of days and a relative time name none. What may be read in two ways counts as a day: 03/21 may
    be a month of a year, 201203 may be one too. So does a number from 1 to 31 with a year beside
    it, whatever the words between, unless the two are all there is: 03/2021 is a month. Days in
    words ("the third of March") are not read.
    """
    if days_in(value):
        return True
    folded = _CLOCK.sub(" ", fold_text(value))
    words = re.findall(rf"{LETTER}+", folded)
    days = any(1 <= int(number) <= 31 for number in _DAY_NUMBER.findall(folded))
    return (
        (days and any(word in month_numbers() for word in words))
        or any(map(_is_day_and_month, _PAIR.finditer(folded)))
        or any(_reads_as_day(run) for run in re.findall(r"\d+", folded) if len(run) in (6, 8))
        or _ROMAN_MONTH.search(folded) is not None
        or _has_year_and_day(folded)
    )


# Times of day, and "5 days ago": ago is also short for August.
_CLOCK = re.compile(
    r"(?<![\d.])(?:[01]?\d|2[0-4])"
    r"(?::\d\d(?::\d\d)?| ?h\d\d|(?:[:.]\d\d)? ?(?:uhr|h|[ap]\.?m)\b)"
    rf"|\d+ ?(?!de ){LETTER}{{2,}} ago\b"
)
_DAY_NUMBER = re.compile(r"(?<![\d'])\d{1,2}(?!\d)")
_PAIR = re.compile(
    r"(?<![\d./-])(?P<one>\d{1,2})(?P<sign> ?/ ?| ?[월月] ?| ?\. ?|-)(?P<two>\d{1,2})"
    rf"(?![\d/-]|\.\d)(?P<unit>[ -]?{LETTER}{{3}})?"
)
_YEAR = re.compile(r"(?<!\d)(?:18|19|20)\d\d(?!\d)")
_MONTH_OF_YEAR = re.compile(r"(?<!\d)(?:\d\d?[ ./-]{1,2}\d{4}|\d{4}[ ./-]{1,2}\d\d?)(?!\d)")
_ROMAN_MONTH = re.compile(
    r"(?<!\d)\d{1,2}[ ./-]{1,2}(?:x?i{1,3}|i?[vx]|vi{1,3}|ix)[ ./-]{1,2}(?:\d{4}|\d\d)(?!\d)"
)


def _has_year_and_day(folded: str) -> bool:
    """Return whether a number from 1 to 31 is left beside a year and the month of it."""
    left = _DAY_NUMBER.findall(_MONTH_OF_YEAR.sub(" ", folded))
    return _YEAR.search(folded) is not None and any(1 <= int(number) <= 31 for number in left)


def _is_day_and_month(match: re.Match[str]) -> bool:
    """Return whether two numbers side by side are a day and a month."""
    one, two = match["one"], match["two"]
    # Around a hyphen or a period they may be a number of something: "3-4 weeks", "2.5 years".
    if match["sign"].strip() in "-." and match["unit"] and "0" not in (one[0], two[0]):
        return False
    return bool(_existing([(2000, int(two), int(one)), (2000, int(one), int(two))]))


def _reads_as_day(run: str) -> bool:
    """Return whether 6 or 8 digits side by side are a day, month and year in a usual order."""
    orders = [(run[:-4], run[-4:-2], run[-2:]), (run[4:], run[2:4], run[:2])]
    orders.append((run[4:], run[:2], run[2:4]))
    return any(
        years_of(year)[0] in YEARS and _existing([(2000, int(month), int(day))])
        for year, month, day in orders
    )


# Signs between day, month and year that differ.
_MIXED = re.compile(r"(?P<one>\d{1,2})[./-](?P<two>\d{1,2})[./-](?P<year>\d{4}|\d\d)(?!\d)")


@cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    """Return usual writings of a date in folded text; the last is eight digits side by side."""
    month = rf"(?P<name>{'|'.join(sorted(month_numbers(), key=len, reverse=True))})(?!{LETTER})"
    year = r"(?P<year>\d{4}|'?\d\d)(?!\d)"
    day = r"(?P<day>\d{1,2})(?:st|nd|rd|th|er|o|a|e|°)?"
    of = r"[ .,/-]{0,2}(?:(?:of|de|del|den) |d')?"
    return tuple(
        re.compile(pattern)
        for pattern in (
            # 25/03/2021, and 03/25/2021
            r"(?<!\d)(?<!\d[-/.])(?P<one>\d{1,2})(?P<sep> ?[-/.] ?)(?P<two>\d{1,2})(?P=sep)"
            r"(?P<year>\d{4}|'?\d\d)(?!\d|[-/.]\d)",
            # 2021-03-25
            r"(?<!\d)(?<!\d[-/.])(?P<year>\d{4}) ?[-/.年년] ?(?P<month>\d{1,2}) ?[-/.月월] ?"
            r"(?P<day>\d{1,2})(?!\d|[-/.]\d)[日일]?",
            # 25 March 2021
            rf"(?<!\d){day}{of}{month}{of}{year}",
            # March 25, 2021
            rf"(?<!{LETTER}){month}[ .,/-]{{0,2}}{day}(?!\d)[ .,/-]{{1,3}}(?:of )?{year}",
            # 2021 March 25
            rf"(?<!\d)(?P<year>\d{{4}})[ .,/-]{{0,2}}{month}[ .,/-]{{0,2}}{day}(?!\d)",
            # 20210325, and with hours, minutes and seconds
            r"(?<!\d)(?P<year>(?:19|20)\d\d)(?P<month>\d\d)(?P<day>\d\d)(?:\d{4}|\d{6})?(?!\d)",
        )
    )


def _days(match: re.Match[str]) -> Days:
    """Return what a date may mean: day before month first, then the likelier century."""
    part = match.groupdict()
    years = years_of(part["year"].lstrip("'"))
    if "one" in part:
        one, two = int(part["one"]), int(part["two"])
        pairs = [(two, one), (one, two)]
    else:
        month = month_numbers()[part["name"]] if "name" in part else int(part["month"])
        pairs = [(month, int(part["day"]))]
    return _existing((year, *pair) for pair, year in itertools.product(pairs, years))


def _existing(dates: Iterable[tuple[int, int, int]]) -> Days:
    """Return the days among years, months and days of the month, each once, in order."""
    days: dict[datetime.date, None] = {}
    for year, month, day in dates:
        try:
            days[datetime.date(year, month, day)] = None
        except ValueError:  # 31 February
            continue
    return tuple(days)
