"""A model of one label's values: the pieces they are made of, and how these follow each other.

A value is a row of pieces: words, digits, dates, and marks, which stay. Pieces of other values are
put in their place one after the other, each drawn by what stands before it and around it.
"""

from __future__ import annotations

import random
import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from sani.values.checksums import Checksum, common_checksums
from sani.values.continuations import Contexts, Entry, continuations
from sani.values.date_formats import DateFormats, WrittenDate, month_first
from sani.values.names import LANGUAGES, Names, script_of
from sani.values.phrases import words_of

ATTEMPTS = 100
ATTEMPTS_WITHOUT_CONTEXT = 8
MIN_CHECKED_DIGITS = 5  # shorter numbers have no check digit
MIN_DONORS = 10  # values of a shape; where there are fewer, other shapes give pieces too
_PIECE = re.compile(r"\d+|[^\W\d_]+|[\W_]")
_CASES = "IULTM"


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a value.

    Attributes:
        text: As it stands.
        symbol: Pieces with the same symbol may take each other's place; empty for a mark or a
            blank, which stays.
        date: What it says if it is a date.
    """

    text: str
    symbol: str
    date: WrittenDate | None = None


@dataclass(frozen=True)
class Maker:
    """A way to make a decoy.

    Attributes:
        make: Makes another one at each call; None if a try fails.
        of_others: Whether what it makes may stand in texts of subjects who lack the true value.
    """

    make: Callable[[], str | None]
    of_others: bool = False


class LabelModel:
    """The values of one label as pieces, and how these follow each other."""

    def __init__(
        self,
        values: Sequence[str],
        names: Names,
        owners: Callable[[tuple[str, ...]], Collection[str]],
        seed: int,
    ) -> None:
        """Take the values apart.

        Args:
            values: Distinct values, sorted.
            names: Of the corpus's language.
            owners: Gives the subjects in whose documents these words stand in a row.
            seed: Of the trials that tell whether a format has room.
        """
        self._values = values
        self._names = names
        self._owners = owners
        self._seed = seed
        self._dates = DateFormats(
            values, languages=LANGUAGES, month_first=month_first(names.locale)
        )
        self._numbers: dict[tuple[str, ...], int] = {}
        self._shapes: dict[tuple[str, ...], int] = {}
        self._alike: Counter[int] = Counter()  # values of each shape
        self._full: dict[tuple[str, ...], bool] = {}
        self._words: set[str] = set()
        entries: list[Entry] = []
        for value in values:
            number = self._numbers.setdefault(words_of(value), len(self._numbers))
            pieces = self._pieces(value)
            shape = self._shapes.setdefault(_symbols(pieces), len(self._shapes))
            self._alike[shape] += 1
            self._words |= {piece.text.casefold() for piece in pieces if piece.text.isalpha()}
            before = earlier = ""
            for place, piece in enumerate(pieces):
                if piece.symbol:
                    for contexts in _ngram_contexts(shape, place, pieces, earlier, before):
                        entries.append((contexts, (piece.text, number)))
                    earlier, before = before, piece.text
        # Context -> (piece, number of its value), sorted.
        self._continuations = continuations(entries)

    def makers(self, value: str, chance: random.Random) -> list[Maker]:
        """Return ways to make another value of the same format, the best first.

        A day first keeps its year: a visit is no decoy of a birth, and who knows the year of a
        document knows the year of its dates. Where the days of a year are used up, days that other
        subjects have are better than another year.
        """
        pieces = self._pieces(value)
        number = self._numbers.get(words_of(value), -1)
        combined = (
            [] if self._is_full(pieces) else [partial(self._combined, pieces, number, chance)]
        )
        fresh = partial(self._fresh, pieces, chance, keep=True)
        makers: list[Maker] = []
        if any(piece.date and {"d", "y"} <= set(piece.date.kinds) for piece in pieces):
            same_year = [partial(make, same_year=True) for make in (*combined, fresh)]
            makers += map(Maker, same_year)
            makers += [Maker(make, of_others=True) for make in same_year]
        makers += map(Maker, [*combined, fresh])
        if self._is_names:
            makers.append(Maker(partial(self._fresh, pieces, chance, keep=False)))
        checksum = None if any(piece.date for piece in pieces) else self._checksum(value)
        if checksum is None:
            return makers
        return [Maker(partial(_completed, checksum, maker.make)) for maker in makers]

    def _pieces(self, value: str) -> list[_Piece]:
        """Take a value apart."""
        pieces: list[_Piece] = []
        at = 0
        for date in self._dates.find(value):
            pieces += self._undated(value[at : date.start])
            pieces.append(_Piece(value[date.start : date.end], f"date {date.style}", date))
            at = date.end
        return pieces + self._undated(value[at:])

    def _undated(self, text: str) -> list[_Piece]:
        """Split into words, numbers of up to three digits, and the single digits of longer ones."""
        pieces = []
        for part in _PIECE.findall(text):
            if part.isalpha():
                pieces.append(_Piece(part, _case(part) + self._names.roles(part)))
            elif not part.isdigit():
                pieces.append(_Piece(part, ""))
            elif len(part) <= 3:
                pieces.append(_Piece(part, "#" * len(part)))
            else:
                pieces += [_Piece(digit, "0") for digit in part]
        return pieces

    def _is_full(self, pieces: Sequence[_Piece]) -> bool:
        """Return whether the corpus has most of what its pieces can be combined to.

        What is left over then is what nobody would write, such as 46 days for an age. Numbers and
        whole dates are as good as each other.
        """
        shape = _symbols(pieces)
        if shape not in self._full:
            chance = random.Random(f"{self._seed}\x00{shape}")
            worded = any(one.text.isalpha() or (one.date and one.date.is_partial) for one in pieces)
            drawn = [self._combined(pieces, -1, chance) for _ in range(ATTEMPTS if worded else 0)]
            taken = sum(text is not None and bool(self._owners(words_of(text))) for text in drawn)
            self._full[shape] = 2 * taken > len(drawn)
        return self._full[shape]

    def _combined(
        self,
        pieces: Sequence[_Piece],
        number: int,
        chance: random.Random,
        *,
        same_year: bool = False,
    ) -> str | None:
        """Put pieces of other values together, each drawn by what stands before and around it.

        Args:
            pieces: Of the value; marks and blanks stay.
            number: Of the value, whose own pieces are avoided.
            chance: The dice.
            same_year: Whether a date keeps its year.
        """
        shape = self._shapes.get(_symbols(pieces), -1)
        texts: list[str] = []
        before = earlier = ""
        for place, piece in enumerate(pieces):
            if not piece.symbol:
                texts.append(piece.text)
                continue
            if piece.date:
                text = self._dates.draw(piece.date, chance, fresh=False, same_year=same_year)
            else:
                in_shape, in_any = _ngram_contexts(shape, place, pieces, earlier, before)
                text = None
                # Where few values have the shape, those of all shapes are asked at once.
                for contexts in (in_shape, in_any)[self._alike[shape] < MIN_DONORS :]:
                    text = text or self._drawn(contexts, number, chance)
                if text is None and piece.text.isdigit():
                    text = _digits(piece.text, chance)
            if text is None:
                return None
            texts.append(text)
            earlier, before = before, text
        return "".join(texts)

    def _drawn(self, contexts: Contexts, number: int, chance: random.Random) -> str | None:
        """Draw a piece of another value than the one of this number; None if there is none.

        Source: Kneser and Ney 1995, with a discount of one: in each context that counts what
        stands before, a piece of one value only is that value's own and would repeat it; its
        share goes to the next wider context, which counts just these. So each piece is drawn as
        often as it occurs.
        """
        backoff_contexts, unigram_contexts = contexts
        for context in backoff_contexts:
            if items := self._continuations.get(context):
                at = chance.randrange(len(items))
                text, other = items[at]
                # The items are sorted, so equal pieces are neighbours. Refusing the first of them
                # takes one off each piece's count: the discount.
                repeated = at and items[at - 1][0] == text and items[at - 1][1] != number
                if repeated and other != number:
                    return text
        for context in unigram_contexts:
            items = self._continuations.get(context, [])
            # A draw is seldom the value's own piece; where it often is, there are few others.
            for _ in range(ATTEMPTS_WITHOUT_CONTEXT if items else 0):
                text, other = chance.choice(items)
                if other != number:
                    return text
        return None

    def _fresh(
        self,
        pieces: Sequence[_Piece],
        chance: random.Random,
        *,
        keep: bool,
        same_year: bool = False,
    ) -> str | None:
        """Put new pieces together: names, made-up words, any digits, any day of the label's range.

        Words that two other subjects have, be it in prose, stay if ``keep``: Street, years.
        """
        texts: list[str] = []
        for place, piece in enumerate(pieces):
            if piece.date:
                date = self._dates.draw(piece.date, chance, fresh=True, same_year=same_year)
                if date is None:
                    return None
                texts.append(date)
            elif piece.text.isdigit():
                inside = place > 0 and pieces[place - 1].text.isdigit()
                texts.append(_digits(piece.text, chance, inside=inside))
            elif not piece.symbol or (keep and self._is_common(piece.text)):
                texts.append(piece.text)
            else:
                texts.append(self._word(piece.text, chance))
        return "".join(texts)

    def _is_common(self, word: str) -> bool:
        return len(self._owners(words_of(word))) > 2

    def _word(self, word: str, chance: random.Random) -> str:
        """Draw a name for a name and for any word of a label of names, else make up a word."""
        if len(word) > 2 and (self._names.roles(word) or self._is_names):
            name = self._names.draw(word, chance)
            if name is not None:
                return name
        return self._spelled(word, chance)

    @cached_property
    def _is_names(self) -> bool:
        """True if more than a third of the label's words are names."""
        words = [word for word in self._words if len(word) > 2]
        return sum(bool(self._names.roles(word)) for word in words) > len(words) / 3

    def _spelled(self, word: str, chance: random.Random) -> str:
        """Make up a word of the same length and case; letters follow as in the label's words."""
        letters = ""
        for letter in word:
            for length in (2, 1):
                items = self._letters.get((f"^{letters}"[-length:], script_of(letter)), [])
                at = chance.randrange(len(items)) if items else 0
                if at and items[at] == items[at - 1]:
                    letters += items[at]
                    break
            else:
                letters += chance.choice(self._names.letters.get(script_of(letter), letter))
        return "".join(
            new.upper() if old.isupper() and len(new.upper()) == 1 else new
            for new, old in zip(letters, word, strict=True)
        )

    @cached_property
    def _letters(self) -> dict[tuple[str, str], list[str]]:
        """One or two letters and a script -> the letters of it that follow them, sorted."""
        following: dict[tuple[str, str], list[str]] = defaultdict(list)
        for word in sorted(self._words):
            for place, letter in enumerate(word):
                for length in (1, 2):
                    if len(before := f"^{word[:place]}"[-length:]) == length:
                        following[before, script_of(letter)].append(letter)
        return {context: sorted(letters) for context, letters in following.items()}

    def _checksum(self, value: str) -> Checksum | None:
        """Return the strictest checksum that holds for the value and most values of its shape."""
        checksums = self._checksums.get(shape_of(value), [])
        return next((checksum for checksum in checksums if checksum.holds(value)), None)

    @cached_property
    def _checksums(self) -> dict[str, list[Checksum]]:
        """The checksums that most values of each shape have."""
        alike: dict[str, list[str]] = defaultdict(list)
        for value in self._values:
            if sum(map(str.isdigit, value)) >= MIN_CHECKED_DIGITS:
                alike[shape_of(value)].append(value)
        return {shape: common_checksums(values) for shape, values in alike.items()}


def _ngram_contexts(
    shape: int, place: int, pieces: Sequence[_Piece], earlier: str, before: str
) -> tuple[Contexts, Contexts]:
    """Return the contexts of a piece among the values of its shape, and among all values.

    Args:
        shape: Number of the value's shape.
        place: Of the piece in the value.
        pieces: All of the value.
        earlier: The last piece but one before it that can change.
        before: The last one.
    """
    symbol = pieces[place].symbol
    # The marks on both sides: in any shape, what stands between the same marks is alike.
    left = "^" if not place else "" if pieces[place - 1].symbol else pieces[place - 1].text
    right = "" if place + 1 == len(pieces) or pieces[place + 1].symbol else pieces[place + 1].text
    around = symbol, left, right
    here = (shape, place, earlier, before), (shape, place, before)
    case = symbol[0] if symbol[0] in _CASES else symbol
    return (
        # Inside a number the digit before says more than the place.
        (here, ((shape, place),)) if symbol != "0" else ((*here, ("0", before)), ("0",)),
        (((around, earlier, before), (around, before)), (around, symbol, case)),
    )


def shape_of(value: str) -> str:
    """Return a value with digits as 0, words as a and everything else as it is: ``0000-a``."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d", "0", value))


def _completed(checksum: Checksum, maker: Callable[[], str | None]) -> str | None:
    """Return what a maker makes, with the right check characters."""
    return checksum.complete(maker())


def _symbols(pieces: Iterable[_Piece]) -> tuple[str, ...]:
    return tuple(piece.symbol or piece.text for piece in pieces)


def _digits(digits: str, chance: random.Random, *, inside: bool = False) -> str:
    """Draw as many digits; a number starts with a zero if the other one does."""
    first = "0" if digits[0] == "0" else chance.choice("123456789")
    rest = [chance.choice(string.digits) for _ in digits]
    return "".join(rest if inside else [first, *rest[1:]])


def _case(word: str) -> str:
    """Return one of `_CASES`: an initial, capitals, small letters, a capital first, or mixed."""
    if word.isupper():
        return "U" if len(word) > 1 else "I"
    return "L" if word.islower() else "T" if word.istitle() else "M"
