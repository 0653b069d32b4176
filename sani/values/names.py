"""Names of people: Faker's lists by language, and the names that one corpus is likely to hold.

Decoys draw names from here; the scan takes its lists of given names and surnames.
"""

from __future__ import annotations

import itertools
import random
import re
import string
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module

from sani.text.folding import fold_text

MIN_NAMES = 50  # of a kind; where there are fewer, names that share a list with it will do
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
LANGUAGES = sorted({locale.split("_")[0] for locale in LOCALES})
_WORD = re.compile(r"[^\W\d_]+")

Role = str
"""``m``, ``f`` or ``s``: men's first names, women's first names, surnames."""


class Names:
    """The names of the language that a corpus's values are from.

    Attributes:
        locale: The Faker locale whose names the values share most of, in proportion.
        letters: Script -> the letters that the values are written with, as often as they are.
    """

    def __init__(self, values: Iterable[str]) -> None:
        """Compare the values with the lists of every locale."""
        words = {word for value in values for word in _WORD.findall(value.casefold())}
        self.letters: dict[str, list[str]] = defaultdict(list)
        for word in sorted(words):
            for letter in word:
                self.letters[script_of(letter)].append(letter)
        known = {_folded(word) for word in words if len(word) > 2}
        shared = {locale: len(known & _listed_words(locale)) for locale in LOCALES}
        # Divided by the square root of the list's length (the cosine), or the longest list would
        # always win.
        self.locale = max(LOCALES, key=lambda one: shared[one] / len(_listed_words(one)) ** 0.5)
        self._roles: dict[str, str] = {}
        weights: dict[str, float] = defaultdict(float)
        written = {letter for letters in self.letters.values() for letter in letters}
        for locale in LOCALES:
            # Other countries of the language count where the corpus has their names too.
            same_language = locale.split("_")[0] == self.locale.split("_")[0]
            if not same_language or 2 * shared[locale] < shared[self.locale]:
                continue
            for role, names in _shares(locale).items():
                for name, weight in names.items():
                    folded = _folded(name)
                    self._roles[folded] = "".join(sorted({role, *self._roles.get(folded, "")}))
                    # Without accents where the corpus has none.
                    foreign = set(name.casefold()) - written - set(string.ascii_lowercase)
                    weights[folded.capitalize() if foreign else name] += weight
        self._script = script_of(min(self._roles)[0])
        # Roles -> names that have just these, or some of them if those are few, and the sums of
        # their weights up to there.
        self._names: dict[str, tuple[list[str], list[float]]] = {}
        for roles in {"", *self._roles.values()}:
            chosen = sorted(name for name in weights if roles in ("", self.roles(name)))
            if len(chosen) < MIN_NAMES:
                chosen = sorted(name for name in weights if set(roles) & set(self.roles(name)))
            sums = list(itertools.accumulate(weights[name] for name in chosen))
            self._names[roles] = chosen, sums

    def roles(self, word: str) -> str:
        """Return the roles that a word has as a name, sorted; empty if it is on no list."""
        return self._roles.get(_folded(word), "") if len(word) > 2 else ""

    def draw(self, word: str, chance: random.Random) -> str | None:
        """Draw a name of the word's roles and case by its frequency; None for another script."""
        if script_of(word[0]) != self._script:
            return None
        names, sums = self._names[self.roles(word)]
        (name,) = chance.choices(names, cum_weights=sums)
        return name.upper() if word.isupper() else name.lower() if word.islower() else name


@cache
def listed_names(locales: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str]]:
    """Return given names of Faker's locales, and surnames that are no given name, folded."""
    given = {
        fold_text(name)
        for locale in locales
        for name, _ in _entries(locale, "first_names", "first_names_male", "first_names_female")
    }
    surnames = {
        fold_text(name)
        for locale in locales
        for name, _ in _entries(locale, "last_names", "last_names_male", "last_names_female")
    }
    given, surnames = ({name for name in names if len(name) > 2} for names in (given, surnames))
    return frozenset(given), frozenset(surnames - given)


def script_of(letter: str) -> str:
    """Return the script of a letter, the first word of its Unicode name."""
    return unicodedata.name(letter, "?").split()[0]


def _entries(locale: str, *attributes: str) -> Iterator[tuple[str, float]]:
    """Yield the names of Faker's lists with these names, and their weights (1 without any)."""
    provider = import_module(f"faker.providers.person.{locale}").Provider
    for attribute in attributes:
        entries = getattr(provider, attribute, ())
        if isinstance(entries, Mapping):
            yield from entries.items()
        elif isinstance(entries, list | tuple):
            yield from ((name, 1) for name in entries)


@cache
def _shares(locale: str) -> dict[Role, dict[str, float]]:
    """Return Faker's names of one word by role, each with its share of the role's weight."""

    def shares(*attributes: str) -> dict[str, float]:
        weights: dict[str, float] = defaultdict(float)
        for name, weight in _entries(locale, *attributes):
            if name.isalpha() and len(name) > 2:
                weights[name] += weight
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}

    men, women = shares("first_names_male"), shares("first_names_female")
    if not men and not women:
        men = women = shares("first_names")
    surnames = shares("last_names", "last_names_male", "last_names_female")
    return {"m": men, "f": women, "s": surnames}


@cache
def _listed_words(locale: str) -> frozenset[str]:
    return frozenset(_folded(name) for names in _shares(locale).values() for name in names)


_folded = cache(fold_text)
