"""Decoys: values of the same label and format as an identifier that stand nowhere in the corpus.

A value is rebuilt from other values of its label: each word is swapped for the word at the same
place of another value with as many words, and each digit for the digit at the same place of
another value of the same shape. So a decoy is as likely, part by part, as the true value to a
model that never saw either; only the combination is new. Where a label has too few values for
that, words come from name lists (Faker; Latin script only) or are made of the letters that values
of the corpus are written with, and digits come from the whole range.

A value for which no decoy can be found in `ATTEMPTS` tries gets none, and the audit counts it.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable

from sani.corpus.documents import Corpus

ATTEMPTS = 30
_PIECE = re.compile(r"\d|[^\W\d_]+|.", re.DOTALL)


class DecoyMaker:
    """Makes decoys for one corpus, the same ones for the same seed."""

    def __init__(self, corpora: Iterable[Corpus], *, seed: int) -> None:
        """Collect every value of every label.

        Args:
            corpora: Documents whose values are material and are never given out as decoys.
            seed: Makes the decoys repeatable.
        """
        self._seed = seed
        self._taken: set[str] = set()
        # (script, upper case) -> the letters that values of the corpus are written with.
        self._letters: dict[tuple[str, bool], list[str]] = defaultdict(list)
        # (label, shape) -> for each place of the shape, the pieces that other values have there.
        self._pools: dict[tuple[str, str], list[list[str]]] = defaultdict(list)
        values: set[tuple[str, str]] = set()
        for corpus in corpora:
            for document in corpus:
                values.update((span.label, document.value(span)) for span in document.spans)
        for label, value in sorted(values):
            self._taken.add(_folded(value))
            for letter in filter(str.isalpha, value):
                if letter not in self._letters[_alphabet(letter)]:
                    self._letters[_alphabet(letter)].append(letter)
            pieces = _PIECE.findall(value)
            pool = self._pools[label, _shape(pieces)]
            for place, piece in enumerate(pieces):
                if place == len(pool):
                    pool.append([])
                pool[place].append(piece)
        self._names: list[str] | None = None

    def decoys(self, label: str, value: str, *, count: int) -> list[str]:
        """Up to ``count`` distinct decoys for a value; fewer where the format has no room.

        The same value of the same label always gets the same decoys.
        """
        chance = random.Random(f"{self._seed}\x00{label}\x00{value}")
        pieces = _PIECE.findall(value)
        pool = self._pools.get((label, _shape(pieces)), [])
        makers: list[Callable[[], str]] = [
            lambda: "".join(chance.choice(pool[place]) for place in range(len(pieces))),
            lambda: "".join(self._fresh(piece, chance) for piece in pieces),
            lambda: "".join(self._scrambled(piece, chance) for piece in pieces),
        ]
        found: list[str] = []
        seen = {_folded(value)}
        for maker in makers if pool else makers[1:]:
            for _ in range(ATTEMPTS * count):
                if len(found) == count:
                    return found
                decoy = maker()
                key = _folded(decoy)
                if key not in seen and key not in self._taken:
                    seen.add(key)
                    found.append(decoy)
        return found

    def _fresh(self, piece: str, chance: random.Random) -> str:
        """A digit for a digit, a name from the lists for a word of three letters or more."""
        if piece.isdigit():
            return chance.choice("0123456789")
        if len(piece) < 3 or not all(_alphabet(letter)[0] == "LATIN" for letter in piece):
            return piece
        if self._names is None:
            self._names = _name_list()
        name = chance.choice(self._names)
        return name.upper() if piece.isupper() else name.lower() if piece.islower() else name

    def _scrambled(self, piece: str, chance: random.Random) -> str:
        """Random digits for digits; for letters, others of the script and case that occur."""
        if piece.isdigit():
            return chance.choice("0123456789")
        return "".join(
            chance.choice(self._letters.get(_alphabet(character)) or [character])
            if character.isalpha()
            else character
            for character in piece
        )


def _shape(pieces: list[str]) -> str:
    """Digits as 0, words as a, everything else as it stands: ``0000-a``."""
    return "".join(
        "0" if piece.isdigit() else "a" if piece.isalpha() else piece for piece in pieces
    )


def _alphabet(letter: str) -> tuple[str, bool]:
    """A letter's script, by its Unicode name, and whether it is a capital."""
    return unicodedata.name(letter, "?").split()[0], letter.isupper()


def _folded(value: str) -> str:
    return " ".join(value.casefold().split())


def _name_list() -> list[str]:
    from faker.providers.person.en_US import Provider as English
    from faker.providers.person.es_ES import Provider as Spanish

    names = {
        name
        for provider in (English, Spanish)
        for names in (provider.first_names, provider.last_names)
        for name in names
        if name.isalpha()
    }
    return sorted(names)
