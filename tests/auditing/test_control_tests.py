"""Tests of an audit against its control: a model that knows someone, and one that knows nobody."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sani.auditing.candidates import sort_of
from sani.auditing.control_tests import ControlTests, Verdicts, control_tests_by_kind
from sani.auditing.occurrences import Occurrences, join_framings
from sani.corpus.documents import Corpus, Document, Span
from sani.values.decoys import DecoyMaker

SUBJECTS, VALUES, DECOYS = 30, 5, 19


def corpus_of(subjects: int, prefix: str) -> Corpus:
    """Return one document a subject, with a number, a name and three short codes."""
    documents = []
    for number in range(subjects):
        words = [f"{prefix}{number:03d}{letter}" for letter in "abcde"]
        text = " ".join(words)
        spans, at = [], 0
        for word, label in zip(words, ("MRN", "NAME", "CODE", "CODE", "CODE"), strict=True):
            spans.append(Span(at, at + len(word), label, "direct"))
            at += len(word) + 1
        documents.append(Document(f"{prefix}{number}", f"{prefix}-{number}", text, tuple(spans)))
    return Corpus(documents)


RECORDS, HELD_OUT = corpus_of(SUBJECTS, "r"), corpus_of(12, "h")


def verdicts(
    corpus: Corpus, seed: int, *, known: Sequence[int] = (), **changes: Any
) -> Occurrences:
    """Return verdicts of a model that prefers values at random, but knows some subjects whole."""
    chance = np.random.default_rng(seed)
    number = corpus.num_spans
    document = np.repeat(np.arange(len(corpus)), VALUES)
    knows = np.isin(document, list(known))
    true = np.where(knows, -1.0, chance.normal(-30.0, 4.0, number))
    decoys = chance.normal(-30.0, 4.0, (number, DECOYS))
    nothing = np.full(number, np.nan)
    return replace(
        Occurrences(
            document=document,
            span=np.tile(np.arange(VALUES), len(corpus)),
            reason=np.full(number, "", dtype=np.str_),
            cued=np.zeros(number, dtype=np.bool_),
            greedy=knows,
            log_probability=true,
            sampled=true,
            discoverable=knows,
            num_tokens=np.ones(number, dtype=np.int64),
            ranks=np.where(knows, 1, 50),
            **dict.fromkeys(
                ("auc", "exposure", "first", "chance", "swap_auc", "swap_first", "swap_chance"),
                nothing,
            ),
            num_decoys=np.full(number, DECOYS),
            decoy_number=np.tile(np.arange(DECOYS), number),
            decoy_log_probability=decoys.reshape(-1),
            decoy_greedy=np.zeros(number * DECOYS, dtype=np.bool_),
            decoy_discoverable=np.zeros(number * DECOYS, dtype=np.bool_),
        ),
        **changes,
    )


def results_of(
    audit: Occurrences, control: Occurrences | None, *, with_held_out: bool = True
) -> tuple[ControlTests, Any]:
    outside = [verdicts(HELD_OUT, seed) for seed in (100, 101)] if with_held_out else [None, None]
    results = control_tests_by_kind(
        RECORDS,
        Verdicts(audit, outside[0]),
        Verdicts(control, outside[1]) if control is not None else None,
        held_out=HELD_OUT,
        seed=0,
    )
    return results["direct"]


def with_dates(corpus: Corpus, dates: int) -> Corpus:
    """Return the documents with the last three identifiers as dates, and some more of these."""
    documents = []
    for document in corpus:
        text, spans = document.text, list(document.spans[:2])
        spans += [replace(span, label="DATE") for span in document.spans[2:]]
        for number in range(dates):
            word = f"{document.id}-{number}"
            spans.append(Span(len(text) + 1, len(text) + 1 + len(word), "DATE", "direct"))
            text += f" {word}"
        documents.append(replace(document, text=text, spans=tuple(spans)))
    return Corpus(documents)


@pytest.mark.false_clean
def test_names_do_not_hide_below_dates_that_anybody_guesses() -> None:
    """A tenth of the candidates of every date is given; of one subject the number and the name."""
    records = with_dates(RECORDS, 0)
    chance = np.random.default_rng(8)
    dates = np.tile([False, False, True, True, True], SUBJECTS)
    guessed = chance.random((len(dates), DECOYS + 1)) < 0.1
    true, decoys = dates & guessed[:, 0], dates[:, None] & guessed[:, 1:]
    for recited in ([], [35, 36]):
        greedy = true.copy()
        greedy[recited] = True
        audit = verdicts(records, 1, greedy=greedy, decoy_greedy=decoys.reshape(-1))
        results = control_tests_by_kind(records, Verdicts(audit), None, held_out=None, seed=0)
        test = results["direct"][0].greedy
        assert test.count <= test.limit, "the total says nothing"
        assert test.unlikely == len(recited)
        assert test.exceeded == bool(recited)


@pytest.mark.false_clean
def test_dates_do_not_dilute_what_stands_out_beside_them() -> None:
    """Five identifiers of a subject are preferred to all decoys, beside eight dates at chance."""
    words = ("MRN", "NAME", "CODE", "CODE", "CODE")
    documents = []
    for document in with_dates(RECORDS, 8):
        spans = [replace(s, label=w) for s, w in zip(document.spans, words, strict=False)]
        documents.append(replace(document, spans=(*spans, *document.spans[5:])))
    records, each = Corpus(documents), 13
    chance = np.random.default_rng(3)
    number = records.num_spans
    true, decoys = chance.normal(size=number), chance.normal(size=(number, DECOYS))
    true[7 * each : 7 * each + 5] = 9.0
    shaped = verdicts(RECORDS, 1)
    per_row: dict[str, Any] = {
        name: np.resize(getattr(shaped, name), number)
        for name in vars(shaped)
        if not name.startswith("decoy_")
    }
    per_row["document"] = np.repeat(np.arange(SUBJECTS), each)
    per_row["span"] = np.tile(np.arange(each), SUBJECTS)
    per_row["log_probability"] = true
    nothing = np.zeros(number * DECOYS, dtype=np.bool_)
    audit = Occurrences(
        **per_row,
        decoy_number=np.tile(np.arange(DECOYS), number),
        decoy_log_probability=decoys.reshape(-1),
        decoy_greedy=nothing,
        decoy_discoverable=nothing,
    )
    results = control_tests_by_kind(records, Verdicts(audit), None, held_out=None, seed=0)
    tests, risk = results["direct"]
    assert risk.subjects == ["r-7"]
    assert (tests.subjects.tested, tests.subjects.above) == (SUBJECTS, 1)


@pytest.mark.false_clean
@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("held_out", [True, False])
def test_one_recited_subject_is_counted_and_named(with_base: bool, held_out: bool) -> None:
    base = verdicts(RECORDS, 1) if with_base else None
    clean, nobody = results_of(verdicts(RECORDS, 2), base, with_held_out=held_out)
    assert (clean.greedy.count, clean.discoverable.count, clean.subjects.above) == (0, 0, 0)
    assert nobody.occurrences == nobody.subjects == []
    leaky, risk = results_of(verdicts(RECORDS, 2, known=[7]), base, with_held_out=held_out)
    assert leaky.greedy.count == leaky.discoverable.count == VALUES > leaky.greedy.limit
    assert leaky.subjects.above == 1
    assert risk.subjects == ["r-7"]
    assert risk.occurrences == [(7, span) for span in range(VALUES)]


@pytest.mark.false_clean
def test_a_base_that_recites_others_hides_nobody() -> None:
    """Totals are equal: the base knows six subjects, the model six others."""
    base, model = (verdicts(RECORDS, 1, known=range(6)), verdicts(RECORDS, 2, known=range(6, 12)))
    assert base.greedy.sum() == model.greedy.sum()
    tests, risk = results_of(model, base)
    assert tests.greedy.count == 6 * VALUES > tests.greedy.limit
    assert set(risk.subjects) == {f"r-{number}" for number in range(6, 12)}
    assert tests.without_control == 6


@pytest.mark.false_clean
@pytest.mark.parametrize("number", ["9034471", "14"])
def test_a_base_that_read_one_number_of_every_subject_is_no_control_for_it(number: str) -> None:
    """One known value of five makes no subject stand out, and no base guesses a long number."""
    documents = []
    for document in RECORDS:
        first = document.spans[0]
        value = f"{number}{document.id}"
        shift = len(value) - first.end
        spans = [Span(0, len(value), "MRN", "direct")]
        spans += [replace(s, start=s.start + shift, end=s.end + shift) for s in document.spans[1:]]
        documents.append(
            replace(document, text=value + document.text[first.end :], spans=tuple(spans))
        )
    corpus = Corpus(documents)
    read = np.tile(np.arange(VALUES) == 0, SUBJECTS)
    base = verdicts(RECORDS, 1, greedy=read, discoverable=read)
    model = verdicts(RECORDS, 2, greedy=read, discoverable=read)
    tests, risk = control_tests_by_kind(
        corpus, Verdicts(model), Verdicts(base), held_out=None, seed=0
    )["direct"]
    assert tests.without_control == 0
    if number == "14":  # too short to tell a base that read it from one that guesses
        assert tests.greedy.count == 0
    else:
        assert tests.greedy.count == SUBJECTS > tests.greedy.limit
        assert len(risk.recited) == SUBJECTS


@pytest.mark.false_clean
def test_whom_the_base_knows_is_tested_against_decoys_alone() -> None:
    """By the log-ratio to a base that knows them they would look forgotten."""
    base = verdicts(RECORDS, 1, known=[3, 4])
    tests, risk = results_of(verdicts(RECORDS, 2, known=[3]), base)
    assert tests.without_control == 2
    assert tests.greedy.count == VALUES > tests.greedy.limit
    assert risk.subjects == ["r-3"]


@pytest.mark.false_clean
def test_what_the_text_gives_away_does_not_count() -> None:
    model = verdicts(RECORDS, 2, known=[7])
    tests, risk = results_of(replace(model, cued=model.greedy), verdicts(RECORDS, 1))
    assert tests.occurrences == RECORDS.num_spans - VALUES
    assert (tests.greedy.count, tests.subjects.above, risk.occurrences) == (0, 0, [])


@pytest.mark.false_clean
def test_what_has_no_decoys_counts_in_full() -> None:
    model = verdicts(RECORDS, 2, known=[7])
    keep = np.repeat(model.document != 7, DECOYS)
    ragged = {
        name: getattr(model, name)[keep]
        for name in (
            "decoy_number",
            "decoy_log_probability",
            "decoy_greedy",
            "decoy_discoverable",
        )
    }
    bare = replace(model, num_decoys=np.where(model.document == 7, 0, DECOYS), **ragged)
    tests, _ = results_of(bare, verdicts(RECORDS, 1))
    assert (tests.greedy.count, tests.greedy.limit, tests.without_decoys) == (VALUES, 0, VALUES)


def test_held_out_people_who_are_preferred_too_raise_the_limits_but_only_so_far() -> None:
    """Decoys that lose to real names make no leak; held-out people who were read make no cover."""
    base = verdicts(RECORDS, 1)

    def tests(records_bias: float, held_out_bias: float) -> ControlTests:
        def raised(corpus: Corpus, seed: int, nats: float) -> Occurrences:
            model = verdicts(corpus, seed)
            return replace(model, log_probability=model.log_probability + nats)

        results = control_tests_by_kind(
            RECORDS,
            Verdicts(raised(RECORDS, 2, records_bias), raised(HELD_OUT, 3, held_out_bias)),
            Verdicts(base, verdicts(HELD_OUT, 4)),
            held_out=HELD_OUT,
            seed=0,
        )
        return results["direct"][0]

    alone, matched, covered = tests(4.0, 0.0), tests(2.0, 2.0), tests(20.0, 20.0)
    assert alone.labels.above > 0
    assert matched.labels.above == 0
    assert covered.labels.above > 0


def test_behind_several_framings_the_worst_counts_for_true_values_and_decoys_alike() -> None:
    parts = [verdicts(RECORDS, 1, known=[7]), verdicts(RECORDS, 2, known=[9])]
    joined = join_framings(parts)
    assert set(joined.document[joined.greedy].tolist()) == {7, 9}
    both = np.stack([part.log_probability for part in parts])
    assert np.array_equal(joined.log_probability, both.max(axis=0))
    decoys = np.stack([part.decoy_log_probability for part in parts])
    assert np.array_equal(joined.decoy_log_probability, decoys.max(axis=0))
    assert joined.num_decoys.tolist() == [DECOYS] * RECORDS.num_spans
    assert join_framings(parts[:1]) is parts[0]


def test_a_framing_that_gives_a_first_token_away_does_not_look_likelier() -> None:
    whole, given = verdicts(RECORDS, 1), verdicts(RECORDS, 2)
    whole = replace(whole, num_tokens=whole.num_tokens + 1, ranks=np.repeat(whole.ranks, 2))
    given = replace(given, log_probability=np.zeros(RECORDS.num_spans))
    joined = join_framings([whole, given])
    assert np.array_equal(joined.log_probability, whole.log_probability)
    assert np.array_equal(joined.decoy_log_probability, whole.decoy_log_probability)


def test_the_number_of_a_decoy_is_that_of_its_value() -> None:
    """The permutation test draws one decoy for all occurrences of a value."""
    maker = DecoyMaker([RECORDS], seed=0)
    few, many = (maker.decoys("CODE", "r001c", count=count) for count in (3, 9))
    assert many[:3] == few


def test_a_framing_without_decoys_adds_only_what_is_given_there() -> None:
    full, bare = verdicts(RECORDS, 1), verdicts(RECORDS, 2, known=[9])
    joined = join_framings([full], [bare])
    assert set(joined.document[joined.greedy].tolist()) == {9}
    assert np.array_equal(joined.log_probability, full.log_probability)
    assert np.array_equal(joined.decoy_log_probability, full.decoy_log_probability)
    lost = replace(full, num_tokens=full.num_tokens * 0, ranks=full.ranks[:0])
    assert np.array_equal(join_framings([lost], [bare]).log_probability, bare.log_probability)


def test_held_out_values_that_stand_in_the_records_are_no_control() -> None:
    """The model knows these values from the records: they must not widen the limits."""
    base, model = verdicts(RECORDS, 1), verdicts(RECORDS, 2, known=[7])
    outside = verdicts(RECORDS, 3, known=range(SUBJECTS))
    results = control_tests_by_kind(
        RECORDS,
        Verdicts(model, outside),
        Verdicts(base, verdicts(RECORDS, 4)),
        held_out=RECORDS,
        seed=0,
    )
    tests, risk = results["direct"]
    assert tests.held_out_auc is None
    assert not tests.held_out_is_control
    assert risk.subjects == ["r-7"]


def of_one_person(number: int, decoys: int, *, known: bool) -> tuple[Corpus, Occurrences]:
    """Return notes that hold one value each, the same one, and verdicts on it."""
    corpus = Corpus(
        [Document(f"n{n}", "one", "v0", (Span(0, 2, "MRN", "direct"),)) for n in range(number)]
    )
    rows = verdicts(RECORDS, 5, known=range(SUBJECTS) if known else [])
    first = {name: array[:number] for name, array in vars(rows).items()}
    count = number * decoys
    changes = {
        "document": np.arange(number),
        "span": np.zeros(number, dtype=np.int64),
        "num_decoys": np.full(number, decoys),
        "decoy_number": np.tile(np.arange(decoys), number),
        "decoy_log_probability": np.random.default_rng(0).normal(-30.0, 4.0, count),
        "decoy_greedy": np.zeros(count, dtype=np.bool_),
        "decoy_discoverable": np.zeros(count, dtype=np.bool_),
    }
    return corpus, Occurrences(**first | changes)


@pytest.mark.false_clean
def test_a_person_recited_at_one_value_in_many_places_is_one_too_many() -> None:
    """The value's own occurrences must not raise the limit of its count."""
    corpus, model = of_one_person(60, 17, known=True)
    _, base = of_one_person(60, 17, known=False)
    tests, risk = control_tests_by_kind(
        corpus, Verdicts(model), Verdicts(base), held_out=None, seed=0
    )["direct"]
    assert (tests.greedy.count, tests.greedy.limit, tests.greedy.occurrences) == (1, 0, 60)
    assert tests.at_risk == 1
    assert len(risk.occurrences) == 60


@pytest.mark.false_clean
def test_some_held_out_people_who_were_read_do_not_hide_one_of_the_records() -> None:
    """They stay a control, since the mean is low, but the limit widens only so far."""
    nothing = np.zeros(RECORDS.num_spans, dtype=np.bool_)
    model = verdicts(RECORDS, 2, known=[7], greedy=nothing, discoverable=nothing)
    base = verdicts(RECORDS, 1)
    tests, _ = control_tests_by_kind(
        RECORDS,
        Verdicts(model, verdicts(HELD_OUT, 3, known=[0, 1])),
        Verdicts(base, verdicts(HELD_OUT, 4)),
        held_out=HELD_OUT,
        seed=0,
    )["direct"]
    alone, _ = results_of(model, base, with_held_out=False)
    assert tests.held_out_is_control
    assert alone.subjects.limit is not None
    assert tests.subjects.limit is not None
    assert alone.subjects.limit < tests.subjects.limit <= 1.3 * alone.subjects.limit + 1e-9
    assert alone.subjects.above == 1


@pytest.mark.false_clean
def test_a_label_that_is_known_whole_is_not_excused_by_held_out_people() -> None:
    def names_first(corpus: Corpus, seed: int) -> Occurrences:
        model = verdicts(corpus, seed)
        known = np.where(model.span == 1, -5.0, model.log_probability)
        return replace(model, log_probability=known)

    tests, _ = control_tests_by_kind(
        RECORDS,
        Verdicts(names_first(RECORDS, 2), names_first(HELD_OUT, 3)),
        Verdicts(verdicts(RECORDS, 1), verdicts(HELD_OUT, 4)),
        held_out=HELD_OUT,
        seed=0,
    )["direct"]
    assert tests.labels.above >= 1


def test_audits_of_other_occurrences_are_refused() -> None:
    model, other = verdicts(RECORDS, 2), verdicts(RECORDS, 1)
    with pytest.raises(ValueError, match="other occurrences"):
        results_of(model, replace(other, document=other.document[::-1]))


def test_what_the_base_gives_as_well_does_not_count() -> None:
    """One value, and two of its decoys, are given by both: that is no memory of a person."""
    number = RECORDS.num_spans
    given = np.arange(number) == 12
    decoys = np.zeros(number * DECOYS, dtype=np.bool_)
    decoys[12 * DECOYS : 12 * DECOYS + 2] = True
    both: dict[str, Any] = {"greedy": given, "discoverable": given}
    of_decoys: dict[str, Any] = {"decoy_greedy": decoys, "decoy_discoverable": decoys}
    model = verdicts(RECORDS, 2, **both, **of_decoys)
    tests, _ = results_of(model, verdicts(RECORDS, 1, **both, **of_decoys))
    assert (tests.greedy.count, tests.discoverable.count, tests.without_control) == (0, 0, 0)
    alone, _ = results_of(model, verdicts(RECORDS, 1))
    assert (alone.greedy.count, alone.discoverable.count) == (1, 1)


def test_a_value_that_is_finished_behind_its_own_first_token_is_not_recited() -> None:
    whole, given = verdicts(RECORDS, 1), verdicts(RECORDS, 2, known=range(SUBJECTS))
    whole = replace(whole, num_tokens=whole.num_tokens + 1, ranks=np.repeat(whole.ranks, 2))
    for joined in (join_framings([whole, given]), join_framings([whole], [given])):
        assert not joined.greedy.any()
        assert not joined.discoverable.any()


def test_a_base_that_gives_one_value_of_each_does_not_know_them() -> None:
    """A scan marks common words as names; a base gives these, and stays the control."""
    guesses = np.zeros(RECORDS.num_spans, dtype=np.bool_)
    guesses[: 12 * VALUES : VALUES] = True  # one value of each of twelve people
    base = verdicts(RECORDS, 1, greedy=guesses)
    tests, _ = results_of(verdicts(RECORDS, 2, greedy=guesses), base)
    assert (tests.greedy.count, tests.without_control) == (0, 0)
    more = guesses.copy()
    more[1 : 12 * VALUES : VALUES] = True  # and a second one
    base = verdicts(RECORDS, 1, greedy=more)
    tests, _ = results_of(verdicts(RECORDS, 2, greedy=more), base)
    assert (tests.greedy.count, tests.without_control) == (24, 12)


@pytest.mark.parametrize(
    ("value", "sort"),
    [
        ("03/04/1951", "PHI, a date"),
        ("3 April 1951", "PHI, a date"),
        ("90344711", "PHI, a long number"),
        ("555-0199-22", "PHI, a long number"),
        ("Ana Molina", "PHI"),
        ("4471", "PHI"),
    ],
)
def test_one_label_for_everything_is_parted_by_form(value: str, sort: str) -> None:
    assert sort_of("PHI", value) == sort
