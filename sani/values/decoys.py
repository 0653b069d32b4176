"""Decoys and swaps: what a true value is compared with.

A *decoy* is a value of the same label and format that stands nowhere in the corpus. It is put
together from pieces of the label's other values, the way these follow each other. So it is, part by
part, as likely as the true value to a model that saw neither, and only the combination is new. A
date is a piece of its own, since 39/12/2021 is no decoy; so are a name's gender and whether it is a
surname; and a value with a check digit gets decoys with the right check digit. Where the label's
values give no new combination, names come from name lists (Faker, in the locales that the corpus's
own names are from), other words are spelled as the label's words are, and digits are drawn freely.

A date keeps its year as long as there are days in it: a visit is no decoy of a birth. Where a year
has too few days that stand nowhere, decoys are days of it that only other subjects' texts hold.
They are the only decoys that may stand in the corpus.

A *swap* is another subject's value of the same label. It is as common as the true value, and the
model may well have memorized it, so whoever prefers the true one knows whose it is.

A value for which none is made in `ATTEMPTS` tries gets none, and the audit counts it.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache

from sani.corpus.documents import Corpus
from sani.values.label_model import ATTEMPTS, LabelModel, Maker, shape_of
from sani.values.names import Names
from sani.values.phrases import PhraseIndex, words_of

SWAP_ATTEMPTS = 64  # for each swap asked for
REMEMBERED = 2**14  # values whose decoys are kept, about 2 kB each

_last_maker: tuple[tuple[object, ...], DecoyMaker] | None = None


def decoy_maker(corpora: Sequence[Corpus], *, seed: int) -> DecoyMaker:
    """Return the maker of some corpora; the last one again if it was for the same texts and spans.

    A run audits several checkpoints on the same documents. Making the decoys anew for each would
    take as long as reading them.

    Args:
        corpora: As for `DecoyMaker`.
        seed: As for `DecoyMaker`.
    """
    global _last_maker
    key = (seed, *(corpus.digest() for corpus in corpora))
    if _last_maker is None or _last_maker[0] != key:
        _last_maker = key, DecoyMaker(corpora, seed=seed)
    return _last_maker[1]


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
        self._labels: dict[str, LabelModel] = {}
        self._owned: dict[tuple[str, ...], frozenset[str]] = {}
        # Ages, sexes and doctors recur, and finding out that there is no room takes longest.
        self._made = lru_cache(REMEMBERED)(self._make)
        self._words_of = lru_cache(REMEMBERED)(words_of)  # a swap is drawn many times over

    def decoys(self, label: str, value: str, *, count: int) -> list[str]:
        """Return up to ``count`` distinct decoys for a value; fewer where the format has no room.

        No decoy stands in any text as whole words, whatever its case, blanks and punctuation,
        but for days of a year that has too few others. It has as many words as the value, so
        neither holds the other. The same value of the same label always gets the same decoys, and
        fewer of them are the first of more.
        """
        return list(self._made(label, value, count))

    def _make(self, label: str, value: str, count: int) -> tuple[str, ...]:
        chance = random.Random(f"{self._seed}\x00{label}\x00{value}")
        if label not in self._labels:
            values = self._values.get(label, [])
            self._labels[label] = LabelModel(values, self._names, self._owners, self._seed)
        makers = self._labels[label].makers(value, chance)
        return tuple(itertools.islice(self._unseen(makers, value), count))

    def _unseen(self, makers: Iterable[Maker], value: str) -> Iterator[str]:
        """Yield what each maker makes until `ATTEMPTS` in a row stand in a text or came before."""
        true = words_of(value)
        seen = {true}
        for maker in makers:
            misses = 0
            while misses < ATTEMPTS:
                decoy = maker.make()
                words = () if decoy is None else words_of(decoy)
                if decoy is None or words in seen or self._stands(words, true, maker):
                    misses += 1
                else:
                    misses = 0
                    seen.add(words)
                    yield decoy

    def _stands(self, words: tuple[str, ...], true: tuple[str, ...], maker: Maker) -> bool:
        """Return whether words stand in a text where a decoy of this maker must not stand."""
        if not self._index.holds(words):
            return False
        return not (maker.of_others and self._owners(words).isdisjoint(self._owners(true)))

    def swaps(self, label: str, value: str, subject_id: str, *, count: int) -> list[str]:
        """Return up to ``count`` distinct values that other subjects have under this label.

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
        pools = [self._occurrences.get((label, shape), []) for shape in (shape_of(value), "")]
        swaps: dict[tuple[str, ...], str] = {}
        decided = False
        for pool in pools:
            if all(whose == subject_id for whose, _ in pool):
                continue
            for _ in range(SWAP_ATTEMPTS * count):
                if len(swaps) == count:
                    break
                whose, other = chance.choice(pool)
                words = self._words_of(other)
                fits = whose not in owners and subject_id not in self._owners(words)
                if fits:
                    swaps.setdefault(words, other)
                elif whose != subject_id and not decided:
                    return []
                decided |= whose != subject_id
        return list(swaps.values())

    @cached_property
    def _values(self) -> dict[str, list[str]]:
        """The distinct values of each label, sorted."""
        distinct: dict[str, set[str]] = defaultdict(set)
        for document in itertools.chain(*self._corpora):
            for span in document.spans:
                distinct[span.label].add(document.value(span))
        return {label: sorted(values) for label, values in distinct.items()}

    @cached_property
    def _occurrences(self) -> dict[tuple[str, str], list[tuple[str, str]]]:
        """(label, shape) -> (subject, value) of each occurrence; all shapes under an empty one."""
        occurrences: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
        for document in self._corpora[0] if self._corpora else ():
            for span in document.spans:
                value = document.value(span)
                for shape in (shape_of(value), ""):
                    occurrences[span.label, shape].append((document.subject_id, value))
        return occurrences

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
    def _names(self) -> Names:
        return Names(itertools.chain(*self._values.values()))

    def _owners(self, words: tuple[str, ...]) -> frozenset[str]:
        """Return the subjects with a text or a value that has these words in a row."""
        if words not in self._owned:
            texts = self._index.texts_with(words).tolist()
            self._owned[words] = frozenset(self._texts[text][0] for text in texts)
        return self._owned[words]
