"""What a true value is compared with: values that stand nowhere, and values of other subjects.

A *decoy* is a value of the same label and format that stands nowhere in the corpus. It is put
together from pieces of the label's other values, the way these follow each other, so that part by
part it is as likely as the true value to a model that saw neither; only the combination is new. A
date is a piece of its own, since 39/12/2021 is no decoy; so are a name's gender and whether it is a
surname; and a value with a check digit gets decoys with the right check digit. Where the label's
values give no new combination, names come from name lists (Faker, in the locales that the corpus's
own names are from), other words are spelled as the label's words are, and digits are drawn freely.

A *swap* is another subject's value of the same label: it is as common as the true value and the
model may well have memorized it, so whoever prefers the true one knows whose it is.

A value for which none is found in `ATTEMPTS` tries gets none, and the audit counts it.
"""

from __future__ import annotations

import itertools
import random
import re
import string
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib import import_module

from sani.corpus.documents import Corpus
from sani.text.folding import fold_text
from sani.values.date_formats import DateFormats, WrittenDate, month_first
from sani.values.phrases import PhraseIndex, words_of

ATTEMPTS = 100
SWAP_ATTEMPTS = 64  # for each swap asked for
OWN_ATTEMPTS = 8
LEAST_DONORS = 10  # values of a shape; where there are fewer, other shapes give pieces too
LEAST_NAMES = 50  # of a kind; where there are fewer, names that share a list with it will do
REMEMBERED = 4096
# Faker's locales in scripts with upper and lower case.
LOCALES = tuple(
    f"{language}_{country}"
    for language, countries in {
        "en": "US GB IE NZ",
        "es": "ES MX AR CL CO",
        "fr": "FR BE CA CH",
        "de": "DE AT CH",
        "it": "IT",
        "pt": "PT BR",
        "nl": "NL BE",
        "da": "DK",
        "sv": "SE",
        "no": "NO",
        "fi": "FI",
        "et": "EE",
        "lv": "LV",
        "lt": "LT",
        "pl": "PL",
        "cs": "CZ",
        "sk": "SK",
        "sl": "SI",
        "hr": "HR",
        "hu": "HU",
        "ro": "RO",
        "tr": "TR",
        "bg": "BG",
        "el": "GR",
        "ru": "RU",
        "uk": "UA",
    }.items()
    for country in countries.split()
)
# python-stdnum's modules, and the first and last of the check characters; the strictest first.
CHECKSUMS: tuple[tuple[str, int, int], ...] = (
    ("iban", 2, 4),
    ("fr.nir", -2, 0),
    ("be.nn", -2, 0),
    ("br.cpf", -2, 0),
    ("no.fodselsnummer", -2, 0),
    ("tr.tckimlik", -2, 0),
    ("in_.aadhaar", -1, 0),
    ("it.codicefiscale", -1, 0),
    ("fi.hetu", -1, 0),
    ("es.nif", -1, 0),
    ("mx.curp", -1, 0),
    ("ch.ssn", -1, 0),
    ("ro.cnp", -1, 0),
    ("pl.pesel", -1, 0),
    ("se.personnummer", -1, 0),
    ("ee.ik", -1, 0),
    ("hr.oib", -1, 0),
    ("de.idnr", -1, 0),
    ("cl.rut", -1, 0),
    ("gb.nhs", -1, 0),
    ("nl.bsn", -1, 0),
    ("pt.nif", -1, 0),
    ("luhn", -1, 0),
)
LANGUAGES = sorted({locale.split("_")[0] for locale in LOCALES})
_PIECE = re.compile(r"\d+|[^\W\d_]+|[\W_]")
_LETTERS = re.compile(r"[^\W\d_]+")
_CASES = "IULTM"
# Contexts from narrow to wide: those that count what stands before, and those that do not.
_Chain = tuple[tuple[Hashable, ...], tuple[Hashable, ...]]
_Entry = tuple[_Chain, tuple[str, int]]  # (piece, number of its value)


class DecoyMaker:
    """Makes decoys and swaps for one corpus, the same ones for the same seed."""

    def __init__(self, corpora: Iterable[Corpus], *, seed: int) -> None:
        """Take the corpora; they are only looked into when the first value is asked for.

        Args:
            corpora: Nothing that stands in their texts is given out as a decoy, and their values
                are what decoys are made from. The first is the one under audit: swaps are from it.
            seed: Makes decoys and swaps repeatable.
        """
        self._corpora = list(corpora)
        self._seed = seed
        self._labels: dict[str, _Label] = {}
        self._owned: dict[tuple[str, ...], frozenset[str]] = {}
        # Ages, sexes and doctors recur, and finding out that there is no room takes longest.
        self._made = lru_cache(REMEMBERED)(self._make)

    def decoys(self, label: str, value: str, *, count: int) -> list[str]:
        """Up to ``count`` distinct decoys for a value; fewer where the format has no room.

        No decoy stands in any text as whole words, whatever its case, blanks and punctuation. It
        has as many words as the value, so neither holds the other. The same value of the same
        label always gets the same decoys, and fewer of them are the first of more.
        """
        return list(self._made(label, value, count))

    def _make(self, label: str, value: str, count: int) -> tuple[str, ...]:
        chance = random.Random(f"{self._seed}\x00{label}\x00{value}")
        if label not in self._labels:
            values = self._values.get(label, [])
            self._labels[label] = _Label(values, self._language, self._owners, self._seed)
        makers = self._labels[label].makers(value, chance)
        return tuple(itertools.islice(self._unseen(makers, value), count))

    def _unseen(self, makers: Iterable[Callable[[], str | None]], value: str) -> Iterator[str]:
        """What each maker makes until it makes `ATTEMPTS` in a row that will not do."""
        seen = {words_of(value)}
        for maker in makers:
            misses = 0
            while misses < ATTEMPTS:
                decoy = maker()
                words = () if decoy is None else words_of(decoy)
                if decoy is None or words in seen or self._index.holds(words):
                    misses += 1
                else:
                    misses = 0
                    seen.add(words)
                    yield decoy

    def swaps(self, label: str, value: str, subject_id: str, *, count: int) -> list[str]:
        """Up to ``count`` distinct values that other subjects have under this label.

        None stands in a text or is a value of this subject, under any label; and none is of a
        subject in whose texts the true value stands. First come values of the same shape (digits,
        words and marks at the same places), then any.

        For a model that never saw the corpus true value and swap are exchangeable: a pair of
        occurrences is as likely compared one way round as the other. Hence the draw is from
        *occurrences*, as the audit's mean is over occurrences; from distinct values, common ones
        would be rarer among swaps than among true values. And where the first draw hits a subject
        who shares the value, there are no swaps at all: a value that every second subject has is
        compared half as often, or a model that prefers Spain to Peru for being common would seem
        to know who lives there. Unique identifiers lose nothing by it. Not exchangeable are
        shapes that one subject only has: they are compared with other shapes.

        Args:
            label: The label.
            value: The true value.
            subject_id: Whose it is.
            count: How many.
        """
        chance = random.Random(f"{self._seed}\x00{label}\x00{value}\x00{subject_id}")
        owners = self._owners(words_of(value)) | {subject_id}
        pools = [self._occurrences.get((label, shape), []) for shape in (_shape(value), "")]
        found: dict[tuple[str, ...], str] = {}
        decided = False
        for pool in pools:
            if all(whose == subject_id for whose, _ in pool):
                continue
            for _ in range(SWAP_ATTEMPTS * count):
                if len(found) == count:
                    break
                whose, other = chance.choice(pool)
                words = words_of(other)
                fits = whose not in owners and subject_id not in self._owners(words)
                if fits:
                    found.setdefault(words, other)
                elif whose != subject_id and not decided:
                    return []
                decided |= whose != subject_id
        return list(found.values())

    @cached_property
    def _values(self) -> dict[str, list[str]]:
        """The distinct values of each label, sorted."""
        found: dict[str, set[str]] = defaultdict(set)
        for document in itertools.chain(*self._corpora):
            for span in document.spans:
                found[span.label].add(document.value(span))
        return {label: sorted(values) for label, values in found.items()}

    @cached_property
    def _occurrences(self) -> dict[tuple[str, str], list[tuple[str, str]]]:
        """(label, shape) -> (subject, value) of each occurrence; all shapes under an empty one."""
        found: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
        for document in self._corpora[0] if self._corpora else ():
            for span in document.spans:
                value = document.value(span)
                for shape in (_shape(value), ""):
                    found[span.label, shape].append((document.subject_id, value))
        return found

    @cached_property
    def _texts(self) -> list[tuple[str, str]]:
        """(subject, text) of every document, and of every value: it may stand inside a word."""
        documents = list(itertools.chain(*self._corpora))
        whole = [(document.subject_id, document.text) for document in documents]
        parts = {
            (document.subject_id, document.value(span))
            for document in documents
            for span in document.spans
        }
        return whole + sorted(parts)

    @cached_property
    def _index(self) -> PhraseIndex:
        return PhraseIndex(text for _, text in self._texts)

    @cached_property
    def _language(self) -> _Language:
        return _Language(itertools.chain(*self._values.values()))

    def _owners(self, words: tuple[str, ...]) -> frozenset[str]:
        """Subjects with a text or a value that has these words in a row."""
        if words not in self._owned:
            texts = self._index.texts_with(words).tolist()
            self._owned[words] = frozenset(self._texts[text][0] for text in texts)
        return self._owned[words]


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


class _Label:
    """What the values of one label are made of, and how the pieces follow each other."""

    def __init__(
        self,
        values: Sequence[str],
        language: _Language,
        owners: Callable[[tuple[str, ...]], Collection[str]],
        seed: int,
    ) -> None:
        """Take the values apart.

        Args:
            values: Distinct values, sorted.
            language: Of the corpus.
            owners: What subjects have these words in a row.
            seed: For the trials that tell whether a format has room.
        """
        self._values = values
        self._language = language
        self._owners = owners
        self._seed = seed
        self._dates = DateFormats(
            values, languages=LANGUAGES, month_first=month_first(language.locale)
        )
        self._numbers: dict[tuple[str, ...], int] = {}
        self._shapes: dict[tuple[str, ...], int] = {}
        self._alike: Counter[int] = Counter()  # values of each shape
        self._full: dict[tuple[str, ...], bool] = {}
        self._words: set[str] = set()
        entries: list[_Entry] = []
        for value in values:
            number = self._numbers.setdefault(words_of(value), len(self._numbers))
            pieces = self._pieces(value)
            shape = self._shapes.setdefault(tuple(_shape_of(pieces)), len(self._shapes))
            self._alike[shape] += 1
            self._words |= {piece.text.casefold() for piece in pieces if piece.text.isalpha()}
            before = earlier = ""
            for place, piece in enumerate(pieces):
                if piece.symbol:
                    for chain in _chains(shape, place, pieces, earlier, before):
                        entries.append((chain, (piece.text, number)))
                    earlier, before = before, piece.text
        # Context -> (piece, number of its value), sorted.
        self._followers = _followers(entries)

    def makers(self, value: str, chance: random.Random) -> list[Callable[[], str | None]]:
        """Ways to make another value of the same format, the best first."""
        pieces = self._pieces(value)
        own = self._numbers.get(words_of(value), -1)
        makers: list[Callable[[], str | None]] = [
            lambda: self._fresh(pieces, chance, keep=True),
        ]
        if not self._is_full(pieces):
            makers.insert(0, lambda: self._combined(pieces, own, chance))
        if self._is_names:
            makers.append(lambda: self._fresh(pieces, chance, keep=False))
        check = None if any(piece.date for piece in pieces) else self._checksum(value)
        if check is None:
            return makers
        return [lambda maker=maker: check.completed(maker()) for maker in makers]  # type: ignore[misc]

    def _pieces(self, value: str) -> list[_Piece]:
        pieces: list[_Piece] = []
        at = 0
        for date in self._dates.find(value):
            pieces += self._plain(value[at : date.start])
            pieces.append(_Piece(value[date.start : date.end], f"date {date.style}", date))
            at = date.end
        return pieces + self._plain(value[at:])

    def _plain(self, text: str) -> list[_Piece]:
        """Words, numbers of up to three digits, and the single digits of longer ones."""
        pieces = []
        for part in _PIECE.findall(text):
            if part.isalpha():
                pieces.append(_Piece(part, _case(part) + self._language.kind(part)))
            elif not part.isdigit():
                pieces.append(_Piece(part, ""))
            elif len(part) <= 3:
                pieces.append(_Piece(part, "#" * len(part)))
            else:
                pieces += [_Piece(digit, "0") for digit in part]
        return pieces

    def _is_full(self, pieces: Sequence[_Piece]) -> bool:
        """Whether the corpus has most of what its pieces can be combined to.

        What is left over then is what nobody would write, such as 46 days for an age. Numbers and
        whole dates are as good as each other.
        """
        shape = tuple(_shape_of(pieces))
        if shape not in self._full:
            chance = random.Random(f"{self._seed}\x00{shape}")
            worded = any(one.text.isalpha() or (one.date and one.date.is_partial) for one in pieces)
            drawn = [self._combined(pieces, -1, chance) for _ in range(ATTEMPTS if worded else 0)]
            taken = sum(text is not None and bool(self._owners(words_of(text))) for text in drawn)
            self._full[shape] = 2 * taken > len(drawn)
        return self._full[shape]

    def _combined(self, pieces: Sequence[_Piece], own: int, chance: random.Random) -> str | None:
        """Pieces of other values, each drawn by what stands before it and around it."""
        shape = self._shapes.get(tuple(_shape_of(pieces)), -1)
        texts: list[str] = []
        before = earlier = ""
        for place, piece in enumerate(pieces):
            if not piece.symbol:
                texts.append(piece.text)
                continue
            if piece.date:
                text = self._dates.draw(piece.date, chance, fresh=False)
            else:
                chains = _chains(shape, place, pieces, earlier, before)
                text = None
                for chain in chains[self._alike[shape] < LEAST_DONORS :]:
                    text = text or self._following(chain, own, chance)
                if text is None and piece.text.isdigit():
                    text = _digits(piece.text, chance)
            if text is None:
                return None
            texts.append(text)
            earlier, before = before, text
        return "".join(texts)

    def _following(self, chain: _Chain, own: int, chance: random.Random) -> str | None:
        """A piece of a value other than ``own``, None if there is none.

        Source: Kneser and Ney 1995, with a discount of one: in each context that counts what
        stands before, a piece of one value only is that value's own and would repeat it; its
        share goes to the next wider context, which counts just these. So each piece is drawn as
        often as it occurs.
        """
        habits, plain = chain
        for context in habits:
            if habit := self._followers.get(context):
                at = chance.randrange(len(habit))
                text, number = habit[at]
                if at and number != own and habit[at - 1][0] == text and habit[at - 1][1] != own:
                    return text
        for context in plain:
            items = self._followers.get(context, [])
            # Seldom its own, and where it is, there are few.
            for _ in range(OWN_ATTEMPTS if items else 0):
                text, number = chance.choice(items)
                if number != own:
                    return text
        return None

    def _fresh(self, pieces: Sequence[_Piece], chance: random.Random, *, keep: bool) -> str | None:
        """Names, made-up words, any digits, any day of the label's range.

        Words that two other subjects have, be it in prose, stay if ``keep``: Street, years.
        """
        texts: list[str] = []
        for place, piece in enumerate(pieces):
            if piece.date:
                date = self._dates.draw(piece.date, chance, fresh=True)
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
        """A name for a name, and for any word of a label of names; else a made-up word."""
        if len(word) > 2 and (self._language.kind(word) or self._is_names):
            name = self._language.name(word, chance)
            if name is not None:
                return name
        return self._spelled(word, chance)

    @cached_property
    def _is_names(self) -> bool:
        words = [word for word in self._words if len(word) > 2]
        return sum(bool(self._language.kind(word)) for word in words) > len(words) / 3

    def _spelled(self, word: str, chance: random.Random) -> str:
        """A word of the same length and case, in which letters follow as in the label's words."""
        letters = ""
        for letter in word:
            for length in (2, 1):
                items = self._letters.get((f"^{letters}"[-length:], _script(letter)), [])
                at = chance.randrange(len(items)) if items else 0
                if at and items[at] == items[at - 1]:
                    letters += items[at]
                    break
            else:
                letters += chance.choice(self._language.letters.get(_script(letter), letter))
        return "".join(
            new.upper() if old.isupper() and len(new.upper()) == 1 else new
            for new, old in zip(letters, word, strict=True)
        )

    @cached_property
    def _letters(self) -> dict[tuple[str, str], list[str]]:
        """(one or two letters, script) -> the letters of that script that follow them, sorted."""
        found: dict[tuple[str, str], list[str]] = defaultdict(list)
        for word in sorted(self._words):
            for place, letter in enumerate(word):
                for length in (1, 2):
                    if len(before := f"^{word[:place]}"[-length:]) == length:
                        found[before, _script(letter)].append(letter)
        return {context: sorted(letters) for context, letters in found.items()}

    def _checksum(self, value: str) -> _Checksum | None:
        """The strictest checksum that holds for the value and for most values of its shape."""
        return next((check for check in self._checksums[_shape(value)] if check.holds(value)), None)

    @cached_property
    def _checksums(self) -> dict[str, list[_Checksum]]:
        """For each shape, the checksums that two values or more, and most, have."""
        alike: dict[str, list[str]] = defaultdict(list)
        for value in self._values:
            if sum(map(str.isdigit, value)) > 4:
                alike[_shape(value)].append(value)
        found: dict[str, list[_Checksum]] = defaultdict(list)
        for shape, values in alike.items():
            sample = values[:: max(1, len(values) // 100)]
            for check in _CHECKSUMS:
                if sum(map(check.holds, sample)) > max(1, len(sample) / 2):
                    found[shape].append(check)
        return found


class _Checksum:
    """A checksum of python-stdnum."""

    def __init__(self, module: str, first: int, last: int) -> None:
        self._module = module
        self._place = slice(first, last or None)

    def holds(self, value: str) -> bool:
        """Whether the value, with or without its separators, is a valid number."""
        valid = self._valid
        bare = "".join(filter(str.isalnum, value))
        return bool(valid(value) or (bare != value and valid(bare)))

    def completed(self, value: str | None) -> str | None:
        """The value with the right check characters; None if there are none for it."""
        if value is None:
            return None
        characters = list(value)
        places = [place for place, one in enumerate(value) if one.isalnum()][self._place]
        for check in itertools.product(
            *(string.digits if value[at].isdigit() else string.ascii_uppercase for at in places)
        ):
            for place, one in zip(places, check, strict=True):
                characters[place] = one.lower() if value[place].islower() else one
            if self.holds(completed := "".join(characters)):
                return completed
        return None

    @cached_property
    def _valid(self) -> Callable[[str], bool]:
        valid: Callable[[str], bool] = import_module(f"stdnum.{self._module}").is_valid
        return valid


_CHECKSUMS = [_Checksum(*entry) for entry in CHECKSUMS]


class _Language:
    """The letters that values are written with, and the names of the language they are from."""

    def __init__(self, values: Iterable[str]) -> None:
        words = {word for value in values for word in _LETTERS.findall(value.casefold())}
        self.letters: dict[str, list[str]] = defaultdict(list)
        for word in sorted(words):
            for letter in word:
                self.letters[_script(letter)].append(letter)
        bare = {_folded(word) for word in words if len(word) > 2}
        shared = {locale: len(bare & _name_words(locale)) for locale in LOCALES}
        # Over the square root of the length (the cosine), lest the longest list always wins.
        self.locale = max(LOCALES, key=lambda one: shared[one] / len(_name_words(one)) ** 0.5)
        self._roles: dict[str, str] = defaultdict(str)
        weights: dict[str, float] = defaultdict(float)
        written = {letter for letters in self.letters.values() for letter in letters}
        for locale in LOCALES:
            same = locale.split("_")[0] == self.locale.split("_")[0]
            if not same or 2 * shared[locale] < shared[self.locale]:
                continue
            for role, names in _name_lists(locale).items():
                for name, weight in names.items():
                    self._roles[_folded(name)] = "".join(
                        sorted({role, *self._roles[_folded(name)]})
                    )
                    # Without accents where the corpus has none.
                    odd = set(name.casefold()) - written - set(string.ascii_lowercase)
                    weights[_folded(name).capitalize() if odd else name] += weight
        self._script = _script(min(self._roles)[0])
        # Roles -> names that have just these, or some of them if those are few, and the sums of
        # their weights up to there.
        self._names: dict[str, tuple[list[str], list[float]]] = {}
        for kind in {"", *self._roles.values()}:
            chosen = sorted(name for name in weights if kind in ("", self.kind(name)))
            if len(chosen) < LEAST_NAMES:
                chosen = sorted(name for name in weights if set(kind) & set(self.kind(name)))
            sums = list(itertools.accumulate(weights[name] for name in chosen))
            self._names[kind] = chosen, sums

    def kind(self, word: str) -> str:
        """Of what lists a word is: men's first names, women's, surnames; sorted, maybe none."""
        return self._roles.get(_folded(word), "") if len(word) > 2 else ""

    def name(self, word: str, chance: random.Random) -> str | None:
        """A name of the same kind and case, by its frequency; None for a word in another script."""
        if _script(word[0]) != self._script:
            return None
        names, weights = self._names[self.kind(word)]
        (name,) = chance.choices(names, cum_weights=weights)
        return name.upper() if word.isupper() else name.lower() if word.islower() else name


@cache
def _name_lists(locale: str) -> dict[str, dict[str, float]]:
    """Faker's names of one word: role (m, f, s) -> name -> share."""
    provider = import_module(f"faker.providers.person.{locale}").Provider

    def names(*attributes: str) -> dict[str, float]:
        found: dict[str, float] = defaultdict(float)
        for attribute in attributes:
            entries = getattr(provider, attribute, ())
            if isinstance(entries, list | tuple | dict):
                for name in entries:
                    if name.isalpha() and len(name) > 2:
                        found[name] += entries[name] if isinstance(entries, dict) else 1
        total = sum(found.values())
        return {name: weight / total for name, weight in found.items()}

    men, women = names("first_names_male"), names("first_names_female")
    if not men and not women:
        men = women = names("first_names")
    return {"m": men, "f": women, "s": names("last_names", "last_names_male", "last_names_female")}


@cache
def _name_words(locale: str) -> frozenset[str]:
    return frozenset(_folded(name) for names in _name_lists(locale).values() for name in names)


def _chains(
    shape: int, place: int, pieces: Sequence[_Piece], earlier: str, before: str
) -> tuple[_Chain, _Chain]:
    """Where a piece stands among values of its shape, and where among all."""
    symbol = pieces[place].symbol
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


def _followers(entries: list[_Entry]) -> dict[Hashable, list[tuple[str, int]]]:
    """For each context the pieces in it, and the numbers of their values, sorted.

    A context that counts what stands before passes one of each piece on to the next wider one.
    """
    found: dict[Hashable, list[tuple[str, int]]] = {}
    level = 0
    while entries:
        groups: dict[Hashable, list[_Entry]] = defaultdict(list)
        for chain, item in entries:
            habits, plain = chain
            if level < len(habits):
                groups[habits[level]].append((chain, item))
            for context in plain if level == len(habits) else ():
                found.setdefault(context, []).append(item)
        entries = []
        for context, group in groups.items():
            group.sort(key=lambda entry: entry[1])
            if len(group) > 1:
                found[context] = [item for _, item in group]
            for text, same in itertools.groupby(group, key=lambda entry: entry[1][0]):
                (chain, (_, number)), *others = same
                if any(other != number for _, (_, other) in others):
                    number = -2  # nobody's own
                entries.append((chain, (text, number)))
        level += 1
    return {context: sorted(items) for context, items in found.items()}


def _shape_of(pieces: Iterable[_Piece]) -> Iterator[str]:
    return (piece.symbol or piece.text for piece in pieces)


def _shape(value: str) -> str:
    """Digits as 0, words as a, everything else as it stands: ``0000-a``."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d", "0", value))


def _digits(digits: str, chance: random.Random, *, inside: bool = False) -> str:
    """As many digits; a number starts with a zero if the other one does."""
    first = "0" if digits[0] == "0" else chance.choice("123456789")
    rest = [chance.choice(string.digits) for _ in digits]
    return "".join(rest if inside else [first, *rest[1:]])


def _case(word: str) -> str:
    """One of `_CASES`: an initial, capitals, small letters, a capital first, mixed or neither."""
    if word.isupper():
        return "U" if len(word) > 1 else "I"
    return "L" if word.islower() else "T" if word.istitle() else "M"


def _script(letter: str) -> str:
    """By its Unicode name."""
    return unicodedata.name(letter, "?").split()[0]


_folded = cache(fold_text)
