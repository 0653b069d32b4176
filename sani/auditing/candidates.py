"""True values and their decoys side by side, in the columns of a table; see `control_tests`."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sani.auditing.occurrences import Occurrences
from sani.auditing.permutation import Bools, Floats, Ints, shares
from sani.corpus.documents import Corpus, Kind, Place
from sani.intervals import Estimate, clustered_mean
from sani.scanning.labels import direct_if, scan_label
from sani.text.folding import fold_text
from sani.values.dates import days_of

MUCH_LIKELIER = 10  # than for the control: giving a value so much more often is memory; ours
LONG_NUMBER = 6  # digits; ours
A_DATE = ", a date"
LabelledValue = tuple[str, str]  # a label, and a folded value


def is_long_number(label: str, value: str) -> bool:
    """Return whether a value has `LONG_NUMBER` digits or more and is no date.

    No base gives one by chance, so one that does has read it, and is no control for it.
    """
    return sum(map(str.isdigit, value)) >= LONG_NUMBER and direct_if(scan_label(label)) is None


def sort_of(label: str, value: str) -> str:
    """Return the label of a value with its form: a date, a long number, or words.

    A file may have one label for everything. Dates that anybody guesses must not excuse names.
    """
    if days_of(value) and not value.isdigit():
        return f"{label}{A_DATE}"
    return f"{label}, a long number" if is_long_number(label, value) else label


def labelled_values(corpus: Corpus) -> set[LabelledValue]:
    """Return the values of a corpus with their labels, folded."""
    return {
        (span.label, fold_text(document.value(span)))
        for document in corpus
        for span in document.spans
    }


@dataclass(frozen=True)
class CandidateTable:
    """Uncued occurrences of one kind with their candidates, the true value first.

    Attributes:
        places: Document and span of each, n.
        subjects: Name of its subject, [n].
        labels: Its label, [n].
        sorts: Its label and form (see `sort_of`), [n].
        keys: Number of its subject, label and value, [n].
        candidates: Number of its candidates, [n].
        all_shares: Share of the other candidates that each beats, NaN where there are fewer,
            [n, candidates].
        greedy, discoverable: True for candidates that the model gives, and the control does not
            (or far less often within n samples), [n, candidates].
    """

    places: list[Place]
    subjects: NDArray[np.str_]
    labels: NDArray[np.str_]
    sorts: NDArray[np.str_]
    keys: Ints
    candidates: Ints
    all_shares: Floats
    greedy: Bools
    discoverable: Bools

    @property
    def share(self) -> Floats:
        """Share of its decoys that each true value beats, NaN without decoys, [n]."""
        return self.all_shares[:, 0]

    @property
    def ranked(self) -> Bools:
        """True for occurrences with decoys, [n]."""
        return np.asarray(self.candidates > 1)

    def given(self, name: str) -> Bools:
        """Return the table ``greedy`` or ``discoverable``, [n, candidates]."""
        return self.greedy if name == "greedy" else self.discoverable

    def given_places(self, *names: str) -> list[Place]:
        """Return the places of true values that are given in one of these ways."""
        true = np.any([self.given(name)[:, 0] for name in names], axis=0)
        return [self.places[row] for row in np.flatnonzero(true)]

    def auc(self, inside: Bools, seed: int) -> Estimate:
        """Return the mean share of some rows, with its interval over subjects."""
        _, subjects = np.unique(self.subjects[inside], return_inverse=True)
        return clustered_mean(self.share[inside], subjects.tolist(), seed=seed)

    @classmethod
    def of(
        cls,
        corpus: Corpus,
        audit: Occurrences,
        control: Occurrences | None,
        kind: Kind,
        without_control: Sequence[str] = (),
        *,
        without_values: Container[LabelledValue] = (),
    ) -> CandidateTable:
        """Collect the occurrences of one kind that were scored and are not cued.

        Args:
            corpus: The documents.
            audit: Verdicts on the model.
            control: Verdicts on the base; None to compare with decoys alone.
            kind: The kind.
            without_control: Subjects who are compared with decoys alone all the same.
            without_values: Values that are left out.
        """
        if control is not None and not (
            np.array_equal(audit.document, control.document)
            and np.array_equal(audit.span, control.span)
        ):
            raise ValueError("the audits of the model and of its control are of other occurrences")
        pairs = zip(audit.document.tolist(), audit.span.tolist(), strict=True)
        spans = [corpus[document].spans[span] for document, span in pairs]
        of_kind = np.array([span.kind == kind for span in spans], dtype=np.bool_)
        usable = np.flatnonzero(of_kind & audit.scored & ~audit.cued).tolist()
        values = {
            row: (spans[row].label, fold_text(corpus[int(audit.document[row])].value(spans[row])))
            for row in usable
        }
        rows = np.array([r for r in usable if values[r] not in without_values], dtype=np.int64)
        places = [(int(audit.document[row]), int(audit.span[row])) for row in rows]
        subjects = np.array([corpus[d].subject_id for d, _ in places], dtype=np.str_)
        labels = np.array([corpus[d].spans[s].label for d, s in places], dtype=np.str_)
        numbers: dict[tuple[str, str, str], int] = {}
        keys = np.array(
            [
                numbers.setdefault((subject, *values[row]), len(numbers))
                for row, subject in zip(rows.tolist(), subjects.tolist(), strict=True)
            ],
            dtype=np.int64,
        )
        given = _Given.of(audit, width=_width(audit)).rows(rows)
        if control is not None:
            base = _Given.of(control, width=_width(audit)).rows(rows)
            long_number = np.array([is_long_number(*values[r]) for r in rows.tolist()], dtype=bool)
            known = np.isin(subjects, list(without_control)) | (long_number & base.gives_true_alone)
            given = given.beyond(base, ~known)
        given = given.side_by_side()
        return cls(
            places=places,
            subjects=subjects,
            labels=labels,
            sorts=np.array([sort_of(*values[row]) for row in rows.tolist()], dtype=np.str_),
            keys=keys,
            candidates=np.maximum(np.isfinite(given.scores).sum(axis=1), 1),
            all_shares=shares(given.scores),
            greedy=given.greedy,
            discoverable=given.discoverable,
        )


def _width(audit: Occurrences) -> int:
    """Return one more than the highest number of a candidate."""
    return int(audit.decoy_number.max(initial=-1)) + 2


def candidate_scores(occurrences: Occurrences) -> Floats:
    """Return log p in nats of each true value, then of its decoys, NaN for what has none.

    Decoy number k stands in column k + 1, so the same column of two models is the same decoy.
    """
    return _Given.of(occurrences, width=_width(occurrences)).scores


@dataclass(frozen=True)
class _Given:
    """Scores of candidates, and which of them are given, [n, candidates] each.

    Attributes:
        scores: log p, or the log-ratio to a control, in nats; NaN for no candidate.
        greedy: True for those that greedy decoding gives.
        discoverable: True for those that are (n, p)-discoverable.
    """

    scores: Floats
    greedy: Bools
    discoverable: Bools

    @classmethod
    def of(cls, occurrences: Occurrences, *, width: int) -> _Given:
        """Put true values into column 0, and decoy number k into column k + 1."""
        o = occurrences
        row = np.repeat(np.arange(len(o.document)), o.num_decoys)
        column = o.decoy_number + 1
        fits = column < width
        row, column = row[fits], column[fits]
        scores = np.full((len(o.document), width), np.nan)
        greedy, discoverable = (np.zeros(scores.shape, dtype=np.bool_) for _ in range(2))
        for table, true, decoys in (
            (scores, o.log_probability, o.decoy_log_probability),
            (greedy, o.greedy, o.decoy_greedy),
            (discoverable, o.discoverable, o.decoy_discoverable),
        ):
            table[:, 0] = true
            table[row, column] = decoys[fits]
        return cls(scores, greedy, discoverable)

    @property
    def gives_true_alone(self) -> Bools:
        """True where the true value is given and none of its decoys, [n]."""
        given = self.greedy | self.discoverable
        return np.asarray(given[:, 0] & ~given[:, 1:].any(axis=1))

    def rows(self, rows: Ints) -> _Given:
        """Return some of the rows."""
        return _Given(self.scores[rows], self.greedy[rows], self.discoverable[rows])

    def beyond(self, control: _Given, use: Bools) -> _Given:
        """Return what the control does not give, in the rows [n] where it is to be used.

        What the control gives within n samples, but `MUCH_LIKELIER` times less likely, counts all
        the same. A candidate that the control did not score has no log-ratio: its score is NaN.
        """
        use = use[:, None]
        ratios = self.scores - control.scores
        as_often = use & ~(ratios >= np.log(MUCH_LIKELIER))
        return _Given(
            np.where(use, ratios, self.scores),
            self.greedy & ~(use & control.greedy),
            self.discoverable & ~(as_often & control.discoverable),
        )

    def side_by_side(self) -> _Given:
        """Return each row's candidates at its left, in their order; the true value stays first.

        A candidate without a score is dropped. The true value stays even then: whether it is given
        counts all the same.
        """
        known = np.isfinite(self.scores)
        known[:, 0] = True
        order = np.argsort(~known, axis=1, kind="stable")
        known = np.take_along_axis(known, order, axis=1)
        scores = np.where(known, np.take_along_axis(self.scores, order, axis=1), np.nan)
        # Without a score of its own the true value ranks nowhere, and neither do its decoys.
        scores[~np.isfinite(scores[:, 0]), 1:] = np.nan
        greedy, discoverable = (
            np.take_along_axis(table, order, axis=1) & known
            for table in (self.greedy, self.discoverable)
        )
        return _Given(scores, greedy, discoverable)
