"""Test of sampling: values that a model writes by itself and its base does not, and chance.

A model that never saw the records is as likely to write a decoy of a value as the value itself. So
the decoys that come up say how many values do by chance; see `permutation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sani.auditing.candidate_tests import GUESSED
from sani.auditing.candidates import MUCH_LIKELIER, is_long_number, sort_of
from sani.auditing.generation import Hits
from sani.auditing.permutation import Bools, Ints, count_limit
from sani.corpus.documents import Corpus, Kind, Place
from sani.errors import AuditError


@dataclass(frozen=True)
class SampledTest:
    """Values that a model writes by itself and its control does not, and how many chance allows.

    A value counts once, whoever shares it: it is the same string in the same samples.

    Attributes:
        samples: Continuations that were sampled.
        searched: Values that were searched for in them.
        without_decoys: Those for which no decoy could be made: each that is written counts in full.
        count: Values that are written in a continuation whose prompt does not give them away.
        limit: The most they may be.
        unlikely: Those of labels of whose decoys hardly any is written, and those without decoys.
            Many dates that anybody guesses raise ``limit``; a few names must not hide below it.
        unlikely_limit: The most these may be.
        subjects: Subjects that they belong to.
    """

    samples: int
    searched: int
    without_decoys: int
    count: int
    limit: int
    unlikely: int
    unlikely_limit: int
    subjects: int

    @property
    def exceeded(self) -> bool:
        """True if more values are written than chance allows."""
        return self.count > self.limit or self.unlikely > self.unlikely_limit


@dataclass(frozen=True)
class SampledResult:
    """The test, and every occurrence of the values that are written beyond the control."""

    test: SampledTest
    places: list[Place]


def sampled_test(
    corpus: Corpus,
    audit: Hits,
    control: Hits | None,
    kind: Kind,
    *,
    without_control: Sequence[str] = (),
) -> SampledResult:
    """Test what sampling brought up against the base and the decoys, for one kind of identifiers.

    Args:
        corpus: The documents that were searched for.
        audit: Hits of the model.
        control: Hits of the base, sampled in the same way; None to test against decoys alone.
        kind: The kind.
        without_control: Subjects for whom the base is no control: nothing is taken off the values
            that they alone have.

    Raises:
        AuditError: If the two are not from the same number of samples, or of other values.

    The exact test over decoys is ours; see `permutation.count_limit`. What the base writes too does
    not count, value or decoy, unless the model writes it `MUCH_LIKELIER` times as often.
    """
    if control is not None:
        _check_alike(audit, control)
    counts = written_candidates(audit)
    given = counts > 0
    numbers, documents, spans = audit.places.T
    of_kind = np.array(
        [corpus[d].spans[s].kind == kind for d, s in zip(documents, spans, strict=True)],
        dtype=np.bool_,
    )
    searched = np.unique(numbers[of_kind])
    if control is not None:
        subjects = np.array([corpus[d].subject_id for d in documents], dtype=np.str_)
        use = np.isin(np.arange(len(given)), numbers[~np.isin(subjects, list(without_control))])
        base = written_candidates(control, width=given.shape[1])
        use &= ~(_long_numbers(corpus, audit) & (base[:, 0] > 0) & ~base[:, 1:].any(axis=1))
        given &= ~(use[:, None] & (counts < MUCH_LIKELIER * base))
    candidates = audit.num_decoys + 1
    with_decoys = audit.num_decoys[searched] > 0
    beyond = searched[given[searched, 0]]
    guessed = _guessed(corpus, audit, given, of_kind)[searched]

    def limit(chosen: Bools) -> int:
        ranked = searched[with_decoys & chosen]
        return count_limit(given[ranked], candidates[ranked], ranked)

    inside = of_kind & np.isin(numbers, beyond)
    places = list(zip(documents[inside].tolist(), spans[inside].tolist(), strict=True))
    test = SampledTest(
        samples=len(audit.kinds),
        searched=len(searched),
        without_decoys=int((~with_decoys).sum()),
        count=len(beyond),
        limit=limit(np.ones(len(searched), dtype=np.bool_)),
        unlikely=int((given[searched, 0] & ~(guessed & with_decoys)).sum()),
        unlikely_limit=limit(~guessed),
        subjects=len({corpus[document].subject_id for document, _ in places}),
    )
    return SampledResult(test, sorted(places))


def _long_numbers(corpus: Corpus, audit: Hits) -> Bools:
    """Return which values no base writes by chance, [identifiers]; see `is_long_number`."""
    long_numbers = np.zeros(len(audit.num_decoys), dtype=np.bool_)
    for number, document, span in audit.places.tolist():
        place = corpus[document].spans[span]
        long_numbers[number] |= is_long_number(place.label, corpus[document].value(place))
    return long_numbers


def written_candidates(hits: Hits, *, width: int | None = None) -> Ints:
    """Count the samples in which each candidate came up, the true value first.

    What its prompt gave away did not come up.

    Returns:
        Numbers of samples, [identifiers, candidates].
    """
    width = width or int(hits.num_decoys.max(initial=0)) + 1
    counts = np.zeros((len(hits.num_decoys), width), dtype=np.int64)
    np.add.at(counts, (hits.hits[~hits.cued, 1], 0), 1)
    np.add.at(counts, (hits.decoy_hits[:, 1], hits.decoy_hits[:, 2] + 1), 1)
    return counts


def _guessed(corpus: Corpus, audit: Hits, given: Bools, of_kind: Bools) -> Bools:
    """Return which values have a label and form that is guessed, [identifiers]; see `GUESSED`.

    A value of several labels has that of its first place.
    """
    numbers, first = np.unique(audit.places[of_kind, 0], return_index=True)
    places = audit.places[of_kind][first, 1:]
    spans = [(corpus[d], corpus[d].spans[s]) for d, s in places]
    labels = np.array([sort_of(s.label, d.value(s)) for d, s in spans], dtype=np.str_)
    written = given[:, 1:].sum(axis=1)
    guessed = np.zeros(len(given), dtype=np.bool_)
    for label in np.unique(labels):
        same = numbers[labels == label]
        guessed[same] = written[same].sum() > GUESSED * audit.num_decoys[same].sum()
    return guessed


def _check_alike(audit: Hits, control: Hits) -> None:
    same = (
        np.array_equal(audit.kinds, control.kinds)
        and np.array_equal(audit.num_decoys, control.num_decoys)
        and np.array_equal(audit.places, control.places)
    )
    if not same:
        raise AuditError(
            "the samples of the model and of its base differ in number, in the identifiers that "
            "were searched for or in their decoys, so the one is no control of the other; run both "
            "with the same corpus and settings"
        )
