"""Formats of the dates in one label's values, and other dates in the same format: for decoys.

A format is guessed for all values of a label at once, since 03/04/2021 alone does not say which
number is the day: it is the order of day, month and year under which most values written alike are
dates that exist. Month names are in the language most values have them in.
"""

from __future__ import annotations

import calendar
import datetime
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from babel import Locale, localedata

from sani.values.dates import YEARS, month_names, years_of

LEAST_DAYS = 366  # a label whose dates span less is given this much room
LEAST_DONORS = 5
_ORDERS = ("dmy", "mdy", "ymd", "my", "ym", "dm", "md", "y")
_NUMERIC = re.compile(
    r"(?<!\d)(?<!\d[./\- ])(?:(\d{8})|(\d{1,4})([./-] ?| )(\d{1,4})(?:\3(\d{1,4}))?)"
    r"(?!\d|[./-]\d|\3\d)"
)
_YEAR = re.compile(r"(?<!\d)(?<!\d\W)(?:1[89]|20)\d\d(?!\d|\W\d)")
_DAY = r"\d{1,2}(?:[^\W\d_]{1,2})?"  # 11, 11th, 1er, 2º
_GAP = r"[\W_]+(?:[^\W\d_]{1,3}[\W_]+)?"  # a blank, a hyphen, " de ", " of "


@dataclass(frozen=True)
class WrittenDate:
    """A date as it stands in a value: literals and fields in turn.

    Attributes:
        start: First character in the value.
        end: One past the last.
        kinds: Of each field, ``d``, ``m``, ``y``, or ``n`` for a month's name.
        texts: Of each field.
        gaps: What stands before each field but the first.
        style: What all dates of the same format share; a key.
    """

    start: int
    end: int
    kinds: str
    texts: tuple[str, ...]
    gaps: tuple[str, ...]
    style: str

    @property
    def is_partial(self) -> bool:
        """True if it does not say day, month and year."""
        return len(self.kinds) < 3

    def written(self, texts: Sequence[str]) -> str:
        """Return the same format with other fields."""
        return texts[0] + "".join(
            gap + text for gap, text in zip(self.gaps, texts[1:], strict=True)
        )


class DateFormats:
    """The formats in which the values of one label write dates, and their first and last day."""

    def __init__(
        self, values: Iterable[str], *, languages: Sequence[str], month_first: bool
    ) -> None:
        """Guess the formats.

        Args:
            values: Distinct values of the label.
            languages: Whose month names are looked for, by CLDR code.
            month_first: How to read a format that the values leave open.
        """
        values = list(values)
        self._month_first = month_first
        self._months = _Months.of(values, languages)
        self._orders = self._guess_orders(values)
        self._partial = False
        full = sum(any(not written.is_partial for written in self.find(value)) for value in values)
        self._partial = full > sum(any(map(str.isdigit, value)) for value in values) / 4
        # (style, field) -> how the label's dates write it.
        self._fields: dict[tuple[str, int], list[str]] = defaultdict(list)
        self._day_texts: dict[int, str] = {}
        known: list[datetime.date] = []
        for value in values:
            for written in self.find(value):
                for field, text in enumerate(written.texts):
                    self._fields[written.style, field].append(text)
                    if written.kinds[field] == "d" and not text.isdigit():
                        self._day_texts[_number(text)] = text
                if not written.is_partial and (day := self._date(written.kinds, written.texts)):
                    known.append(day)
        self._known = known

    @cached_property
    def days(self) -> tuple[datetime.date, datetime.date] | None:
        """First and last day that a date may be; None if the label has no full date.

        The range of the label's own full dates, widened evenly where it is shorter than a year.
        """
        if not self._known:
            return None
        first, last = min(self._known), max(self._known)
        more = datetime.timedelta(max(0, LEAST_DAYS - (last - first).days) // 2)
        return first - more, last + more

    def find(self, value: str) -> list[WrittenDate]:
        """Return the dates in a value, from left to right."""
        dates: list[WrittenDate] = []
        candidates = [*self._named(value), *self._numeric(value)]
        for one in sorted(candidates, key=lambda one: (one.start, -one.end)):
            if not dates or dates[-1].end <= one.start:
                dates.append(one)
        return dates

    def draw(
        self, date: WrittenDate, chance: random.Random, *, fresh: bool, same_year: bool
    ) -> str | None:
        """Return another date in the same format, within the label's range; None if the try fails.

        Args:
            date: As found in a value of this label.
            chance: The dice.
            fresh: Any day of the range instead of a day, a month and a year of the label's own
                dates of this format.
            same_year: Keep the year, if the date says one.
        """
        fields = range(len(date.kinds))
        pools = [self._fields.get((date.style, field), []) for field in fields]
        if not fresh:
            if any(len(pool) < LEAST_DONORS for pool in pools):
                return None
            texts = [
                text if same_year and kind == "y" else chance.choice(pool)
                for kind, text, pool in zip(date.kinds, date.texts, pools, strict=True)
            ]
        else:
            first, last = self.days or (datetime.date(1950, 1, 1), datetime.date(2020, 12, 31))
            if same_year and "y" in date.kinds and (true := self._date(date.kinds, date.texts)):
                first = max(first, true.replace(month=1, day=1))
                last = min(last, true.replace(month=12, day=31))
            day = first + datetime.timedelta(chance.randrange(max(0, (last - first).days) + 1))
            texts = [
                self._text(day, kind, text, pool)
                for kind, text, pool in zip(date.kinds, date.texts, pools, strict=True)
            ]
        drawn = self._date(date.kinds, texts) if all(texts) else None
        if drawn is None or not self._inside(date.kinds, drawn):
            return None
        return date.written(texts)

    def _inside(self, kinds: str, day: datetime.date) -> bool:
        if self.days is None or "y" not in kinds:
            return True
        first, last = self.days
        if "d" not in kinds:  # a month or a year is inside if a day of it is
            first = first.replace(day=1) if len(kinds) > 1 else first.replace(month=1, day=1)
        return first <= day <= last

    def _text(self, day: datetime.date, kind: str, like: str, pool: list[str]) -> str:
        """Return a field of a day, written like another; empty if that cannot be."""
        if kind == "n":
            return _recased(self._months.written(day.month, like), like)
        if kind == "y":
            return f"{day.year % 10 ** len(like):0{len(like)}}"
        number = day.day if kind == "d" else day.month
        if not like.isdigit():  # 11th: how the label writes that day, if it does
            return self._day_texts.get(number, "")
        # 15.10. does not say whether the fifth is 5. or 05.; the label's other dates do.
        padded = any(text.startswith("0") for text in [like, *pool])
        text = f"{number:02}" if padded else str(number)
        return text if len(text) == len(like) else ""

    def _date(self, kinds: str, texts: Sequence[str]) -> datetime.date | None:
        """Return the day, the first where the fields leave it open; None if there is none."""
        parts = {"y": 2000, "m": 1, "d": 1}
        for kind, text in zip(kinds, texts, strict=True):
            if kind == "n":
                parts["m"] = self._months.number(text)
            elif kind == "y" and len(text) == 2:
                parts["y"] = years_of(text)[0]
            else:
                parts[kind] = _number(text)
        if parts["y"] not in YEARS or not 1 <= parts["m"] <= 12:
            return None
        if not 1 <= parts["d"] <= calendar.monthrange(parts["y"], parts["m"])[1]:
            return None
        return datetime.date(parts["y"], parts["m"], parts["d"])

    def _guess_orders(self, values: Sequence[str]) -> dict[str, str]:
        """Return for each way to write numbers the order that makes most of them dates."""
        valid: dict[str, Counter[str]] = defaultdict(Counter)
        written: Counter[str] = Counter()
        for value in values:
            for match in _numbers(value):
                key = _written_key(match)
                written[key] += 1
                for order in _ORDERS:
                    texts = _fields(match, order)
                    if texts and self._date(order, texts):
                        valid[key][order] += 1
        orders = {}
        for key, counts in valid.items():
            best = max(
                counts,
                key=lambda order: (
                    counts[order],
                    order[-1] == "y",
                    (order.find("m") < order.find("d")) == self._month_first,
                ),
            )
            if counts[best] > written[key] / 2:
                orders[key] = best
        return orders

    def _numeric(self, value: str) -> Iterator[WrittenDate]:
        for match in _numbers(value):
            order = self._orders.get(_written_key(match))
            if order is None or (len(order) < 3 and not self._partial):
                continue
            texts = _fields(match, order)
            if texts is None or self._date(order, texts) is None:
                continue
            gap = match.group(3) if match.re is _NUMERIC and not match.group(1) else ""
            widths = "".join(str(len(text)) for text in texts)
            yield WrittenDate(
                *match.span(), order, texts, (gap,) * (len(texts) - 1), f"{order}{widths}{gap}"
            )

    def _named(self, value: str) -> Iterator[WrittenDate]:
        for match in self._months.pattern.finditer(value) if self._months.pattern else ():
            kinds = "".join(name[0] for name, text in _in_order(match))
            texts = tuple(text for _, text in _in_order(match))
            if (len(kinds) == 1 and not self._partial) or self._date(kinds, texts) is None:
                continue
            places = [match.span(name) for name, _ in _in_order(match)]
            gaps = tuple(value[places[n][1] : places[n + 1][0]] for n in range(len(places) - 1))
            style = [kinds, *gaps]
            for kind, text in zip(kinds, texts, strict=True):
                style.append(
                    f"{self._months.width(text)}{_case(text)}"
                    if kind == "n"
                    else f"{len(text) if text.isdigit() else 'ordinal'}"
                )
            yield WrittenDate(places[0][0], places[-1][1], kinds, texts, gaps, "|".join(style))


class _Months:
    """Month names of one language; none if no value has a month's name."""

    def __init__(self, language: str, words: Counter[str]) -> None:
        self._names = _folded_names(language) if language else {}
        self._widths: dict[str, list[str]] = defaultdict(list)
        self._numbers: dict[str, int] = {}
        for (width, number), name in self._names.items():
            self._widths[name].append(width)
            self._numbers[name] = number
        # "May" is long and short: it is what the label's other months are.
        self._votes: Counter[str] = Counter()
        for word, count in words.items():
            for width in self._widths.get(word, []):
                self._votes[width] += count
        self.pattern = None
        if language:
            name = "|".join(sorted(map(re.escape, self._numbers), key=len, reverse=True))
            year = [rf"(?:{_GAP}(?P<y{n}>\d{{4}}|\d\d)(?![\w:]))?" for n in (1, 2)]
            self.pattern = re.compile(
                rf"(?<!\w)(?:(?P<d1>{_DAY}){_GAP}(?P<n1>{name})(?!\w){year[0]}"
                rf"|(?P<n2>{name})(?!\w)(?:[\W_]+(?P<d2>{_DAY})(?![\w:]))?{year[1]})",
                re.IGNORECASE,
            )

    @classmethod
    def of(cls, values: Sequence[str], languages: Sequence[str]) -> _Months:
        """Take the language in which most values name a month beside a number."""
        words = Counter(
            word
            for value in values
            if any(map(str.isdigit, value))
            for word in set(re.findall(r"[^\W\d_]{3,}", value.casefold()))
        )
        counts = {
            language: sum(words[name] * len(name) for name in set(_folded_names(language).values()))
            for language in (languages if words else ())
        }
        best = max(counts, key=lambda language: counts[language], default="")
        return cls(best if counts.get(best) else "", words)

    def number(self, text: str) -> int:
        """Return the month, 1 to 12; 0 if the text names none."""
        return self._numbers.get(text.casefold(), 0)

    def width(self, text: str) -> str:
        """Return the way of writing months (long, short, ...) that the label has most of."""
        widths = self._widths[text.casefold()]
        return max(widths, key=lambda width: self._votes[width])

    def written(self, month: int, like: str) -> str:
        """Return a month's name, as wide as another."""
        return self._names.get((self.width(like), month), "")


@cache
def _folded_names(language: str) -> dict[tuple[str, int], str]:
    """Return (way of writing, month) -> name in small letters; single words only."""
    names = {key: name.casefold().strip(".") for key, name in month_names(language).items()}
    wide = [names["format wide", month] for month in range(1, 13)]
    for length in (3, 4):  # Sept, though CLDR has Sep
        for month, name in enumerate(wide, start=1):
            if sum(other.startswith(name[:length]) for other in wide) == 1:
                names[f"first {length}", month] = name[:length]
    return {key: name for key, name in names.items() if len(name) > 2 and name.isalpha()}


def month_first(locale: str) -> bool:
    """Return whether a locale, such as ``en_US``, writes the month before the day."""
    known = locale if localedata.exists(locale) else locale.split("_")[0]
    pattern = str(Locale.parse(known).date_formats["short"].pattern)
    return pattern.find("M") < pattern.find("d")


def _numbers(value: str) -> Iterator[re.Match[str]]:
    yield from _NUMERIC.finditer(value)
    yield from _YEAR.finditer(value)


def _written_key(match: re.Match[str]) -> str:
    """Return the writing with numbers of four digits as Y, of eight as D and others as n."""
    if match.re is _YEAR:
        return "Y"
    return re.sub(r"\d+", lambda run: {4: "Y", 8: "D"}.get(len(run[0]), "n"), match[0])


def _fields(match: re.Match[str], order: str) -> tuple[str, ...] | None:
    """Return the texts of the fields if the numbers can be read in this order."""
    if match.re is _YEAR:
        return (match[0],) if order == "y" else None
    if match.group(1):
        text = match.group(1)
        cut = {"ymd": (4, 6), "dmy": (2, 4), "mdy": (2, 4)}.get(order)
        return (text[: cut[0]], text[cut[0] : cut[1]], text[cut[1] :]) if cut else None
    texts = tuple(text for text in match.group(2, 4, 5) if text)
    if len(texts) != len(order):
        return None
    # Two digits are a year only in 12.03.21, not in 12.21 or 12 03 21.
    years = (2, 4) if len(order) == 3 and match.group(3) != " " else (4,)
    widths = {"d": (1, 2), "m": (1, 2), "y": years}
    fits = all(len(text) in widths[kind] for kind, text in zip(order, texts, strict=True))
    return texts if fits else None


def _in_order(match: re.Match[str]) -> list[tuple[str, str]]:
    """Return (group, text) of the groups that took part, from left to right."""
    return [(name, text) for name, text in match.groupdict().items() if text]


def _number(text: str) -> int:
    """Return the number that a field starts with."""
    return int(re.split(r"\D", text, maxsplit=1)[0])


def _case(word: str) -> str:
    return "U" if word.isupper() else "l" if word.islower() else "T"


def _recased(word: str, like: str) -> str:
    return {"U": word.upper(), "l": word.lower(), "T": word.capitalize()}[_case(like)]
