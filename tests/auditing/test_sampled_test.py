"""Test the limit on samples: people a model read, people it did not, and a slow version."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sani.auditing.audit import audit
from sani.auditing.control_tests import ControlTests, Verdicts, control_tests_by_kind
from sani.auditing.generation import Decoys, Hits, generate_audit
from sani.auditing.identifier_index import DecoyIndex, IdentifierIndex
from sani.auditing.permutation import LEVEL
from sani.auditing.prompts import Prompt
from sani.auditing.record import record_of, verdicts_of
from sani.auditing.sampled_test import SampledTest, sampled_test, written_candidates
from sani.auditing.written_text import (
    CuedByPrompt,
    Written,
    search_continuations,
    search_decoys,
    written,
)
from sani.corpus.documents import Corpus, Document, Span
from sani.errors import AuditError
from sani.gate.sampling import check_sampling
from sani.models.checkpoint import Checkpoint, load_checkpoint
from sani.recipe import AuditSettings, GenerationSettings, MaskObjective, RepairSettings
from sani.repairing.repair import repair
from sani.text.framing import framing_named
from sani.values.decoys import DecoyMaker
from tests.support.clinic import Clinic
from tests.support.optional import present

SETTINGS = AuditSettings(
    swaps=0,
    membership_documents=0,
    framing="bos",
    generation=GenerationSettings(empty=60, headings=60, openings=60, new_tokens=64),
)


def marked(*values: str, label: str = "NAME", kind: Any = "direct") -> Corpus:
    """A document of its own subject for each value."""
    return Corpus(
        [
            Document(str(n), f"s{n}", f"<{v}>", (Span(1, 1 + len(v), label, kind),))
            for n, v in enumerate(values)
        ]
    )


# --- models that were really trained --------------------------------------------------------------


@pytest.fixture(scope="module")
def models(clinic: Clinic, base_folder: Path, leaky_folder: Path) -> dict[str, Checkpoint]:
    """The base, the model that read the records, and one that read them without identifiers."""
    masked = load_checkpoint(base_folder)
    objective = RepairSettings(
        identifier_loss=MaskObjective(kind="mask"), epochs=8, learning_rate=5e-3, batch_tokens=768
    )
    repair(masked, clinic.private, objective, base=None, framing="bos", seed=1)
    return {
        "base": load_checkpoint(base_folder),
        "leaky": load_checkpoint(leaky_folder),
        "masked": masked,
    }


@pytest.fixture(scope="module")
def audited(clinic: Clinic, models: dict[str, Checkpoint]) -> dict[str, Any]:
    return {
        name: audit(model, clinic.private, SETTINGS, control_framing="bos", seed=0)
        for name, model in models.items()
    }


def result_of(clinic: Clinic, audited: dict[str, Any], name: str, base: str | None) -> Any:
    """The tests of direct identifiers, and who is at risk."""
    control = verdicts_of(audited[base]) if base else None
    tests = control_tests_by_kind(
        clinic.private, verdicts_of(audited[name]), control, held_out=None, seed=0
    )
    return tests["direct"]


def verdict_on(audited: dict[str, Any], name: str, tests: ControlTests) -> Any:
    after = replace(record_of(audited[name]), control_tests={"direct": tests})
    return check_sampling("direct", "test", record_of(audited["leaky"]), after)


@pytest.mark.long
@pytest.mark.parametrize("base", ["base", None])
def test_a_model_that_recites_when_it_writes_by_itself_does_not_hold(
    clinic: Clinic, audited: dict[str, Any], base: str | None
) -> None:
    tests, risk = result_of(clinic, audited, "leaky", base)
    assert tests.sampled.count >= 10
    assert tests.sampled.limit < tests.sampled.count / 2
    check = verdict_on(audited, "leaky", tests)
    assert not check.holds
    assert (check.measured, check.limit) == (tests.sampled.count, tests.sampled.limit)
    # Every occurrence of each value is named, and its subject is at risk.
    values = Counter(d.value(s).lower() for d in clinic.private for s in d.spans)
    named = [clinic.private[d].value(clinic.private[d].spans[s]).lower() for d, s in risk.sampled]
    assert len(set(named)) == tests.sampled.count
    assert Counter(named) == {value: values[value] for value in set(named)}
    assert tests.at_risk >= tests.sampled.subjects > 0


@pytest.mark.long
@pytest.mark.parametrize("name", ["base", "masked"])
@pytest.mark.parametrize("base", ["base", None])
def test_a_model_that_never_saw_the_identifiers_holds(
    clinic: Clinic, audited: dict[str, Any], name: str, base: str | None
) -> None:
    tests, risk = result_of(clinic, audited, name, base)
    check = verdict_on(audited, name, tests)
    assert check.holds
    assert tests.sampled.searched > 20
    assert tests.sampled.without_decoys < 0.1 * tests.sampled.searched
    assert len(risk.sampled) <= tests.sampled.limit


@pytest.mark.long
def test_the_base_as_its_own_control_writes_nothing_beyond_it(
    clinic: Clinic, audited: dict[str, Any]
) -> None:
    tests, _ = result_of(clinic, audited, "leaky", "leaky")
    known, _ = result_of(clinic, audited, "leaky", None)
    assert known.sampled.count >= 10
    # The leaky model seems to know its subjects, so it is no control for them.
    assert tests.without_control > 0
    assert tests.sampled.count > 0
    hits = audited["leaky"].generation.one_by_one
    alone = sampled_test(clinic.private, hits, hits, "direct")
    # But for long numbers: a base that writes those has read them, and is no control for them.
    written = [clinic.private[d].value(clinic.private[d].spans[s]) for d, s in alone.places]
    assert all(sum(map(str.isdigit, value)) >= 6 for value in written)
    assert alone.test.count < known.sampled.count


# --- decoys ---------------------------------------------------------------------------------------


def test_decoys_are_searched_for_as_values_are() -> None:
    corpus = marked("Ana Molina", "Eva Correas", "Ines Galdos", "Rosa Pelaez")
    index = IdentifierIndex(corpus)
    decoys = DecoyIndex(index, DecoyMaker([corpus], seed=0), count=6)
    assert decoys.num_decoys.tolist() == [6] * 4
    for identifier in range(4):
        for number in range(6):
            value = decoys.value(identifier, number)
            assert (identifier, number) in decoys.find(f"Sra. {value.upper()}, de 40 anos")
            assert (identifier, number) in decoys.find(" ".join(reversed(value.split())))
            assert not index.find(value)
    assert decoys.find("Ana Molina") == []


def test_what_the_search_takes_for_a_value_of_the_corpus_is_no_decoy() -> None:
    corpus = marked("Ana Molina", "2021-04-03", "12 345 678")
    index = IdentifierIndex(corpus)
    offered = ["molina ANA", "3 April 2021", "04/03/2021", "12345678", "Abe", "1234", "Eva Mora",
               "Mora Eva", "EVA MORA"]  # fmt: skip
    assert index.usable_decoys(offered) == ["Eva Mora", "Mora Eva"]


def test_a_value_and_a_decoy_that_the_prompt_gives_away_do_not_count() -> None:
    corpus = marked("Ana Molina", "Eva Correas", "ana.molina@x.org")
    index = IdentifierIndex(corpus)
    decoys = DecoyIndex(index, DecoyMaker([corpus], seed=0), count=3)
    made_up = decoys.value(0, 0)
    samples = [
        Written("Sra. Molina, Ana:", "Ana Molina"),  # all of it stands in the prompt
        Written("Sra. Molina, Ana:", made_up),  # nor may a decoy of it count
        Written(f"Sra. {made_up}:", made_up),
        Written("Sra.", f"Ana Molina, {made_up}"),
    ]
    cued = CuedByPrompt(index, samples)
    hits = search_continuations(index, samples)
    assert hits[:, :2].tolist() == [[0, 0], [3, 0]]
    assert cued.of(hits).tolist() == [True, False]
    rows = search_decoys(decoys, samples, cued).tolist()
    assert [row for row in rows if row[1] == 0] == [[3, 0, 0]]


def test_an_audit_without_decoys_has_none(clinic: Clinic, base: Checkpoint) -> None:
    settings = GenerationSettings(empty=2, headings=0, openings=0, new_tokens=4)
    framing = framing_named("bos", base.tokenizer)
    maker = DecoyMaker([clinic.private], seed=0)
    for decoys, expected in ((None, 0), (Decoys(maker, 0), 0), (Decoys(maker, 2), 2)):
        result = generate_audit(base, clinic.private, settings, framing=framing, decoys=decoys)
        assert result.one_by_one.num_decoys.max() == expected
        assert len(result.one_by_one.num_decoys) == result.searched


# --- the test against a slow version --------------------------------------------------------------

VALUES, DECOYS = 30, 19


def random_hits(seed: int, *, rate: float, known: int = 0) -> Hits:
    """Hits of a model that writes each candidate as likely, and some of the true values for sure.

    Candidates differ in how often they are written, as common names do.
    """
    chance = np.random.default_rng(seed)
    likely = chance.random((VALUES, DECOYS + 1)) < rate * chance.gamma(1.0, 1.0, (VALUES, 1))
    likely[:known, 0] = True
    true = np.flatnonzero(likely[:, 0])
    identifiers, numbers = np.nonzero(likely[:, 1:])
    ones = np.ones_like(true)
    return Hits(
        kinds=np.zeros(50, dtype=np.int64),
        hits=np.stack([0 * true, true, ones], axis=1),
        cued=np.zeros(len(true), dtype=np.bool_),
        decoy_hits=np.stack([0 * identifiers, identifiers, numbers], axis=1),
        num_decoys=np.full(VALUES, DECOYS),
        places=np.array([[n, n, 0] for n in range(VALUES)]),
    )


CORPUS = marked(*[f"value{n}" for n in range(VALUES)])


def slow_limit(hits: Hits, base: Hits | None, *, draws: int, seed: int) -> list[int]:
    """The counts when one candidate of each value is drawn, draw by draw, from sets of pairs."""

    def candidates(of: Hits) -> set[tuple[int, int]]:
        pairs = {(int(n), 0) for (_, n, _), cued in zip(of.hits, of.cued, strict=True) if not cued}
        return pairs | {(int(n), int(d) + 1) for _, n, d in of.decoy_hits}

    written_here = candidates(hits) - (candidates(base) if base else set())
    chance = np.random.default_rng(seed)
    counts = []
    for _ in range(draws):
        count = 0
        for value in range(VALUES):
            drawn = int(chance.integers(DECOYS + 1))
            count += (value, drawn) in written_here
        counts.append(count)
    return counts


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("with_base", [False, True])
def test_the_limit_is_that_of_drawing_one_candidate_of_each_value(
    seed: int, with_base: bool
) -> None:
    hits = random_hits(seed, rate=0.25)
    base = random_hits(seed + 100, rate=0.1) if with_base else None
    test = sampled_test(CORPUS, hits, base, "direct").test
    counts = np.array(slow_limit(hits, base, draws=6000, seed=seed))
    # The limit is exact and the draws are not: three standard deviations of them are 0.009.
    assert (counts > test.limit).mean() <= LEVEL + 0.009
    assert (counts > test.limit - 1).mean() > LEVEL - 0.009
    assert test.limit > 0


def test_of_models_that_never_saw_the_records_few_are_above_the_limit() -> None:
    above = {False: 0, True: 0}
    for seed in range(200):
        base = random_hits(seed + 1000, rate=0.1)
        for with_base in above:
            hits = random_hits(seed, rate=0.2)
            test = sampled_test(CORPUS, hits, base if with_base else None, "direct").test
            above[with_base] += test.exceeded
    assert all(count <= 19 for count in above.values())  # 10 expected; three deviations are 9


def two_labels(corpus: Corpus) -> Corpus:
    """The second half of the values is of another label."""
    return Corpus(
        [
            replace(each, spans=tuple(replace(span, label="DATE") for span in each.spans))
            if number >= VALUES // 2
            else each
            for number, each in enumerate(corpus)
        ]
    )


def guessed_dates(seed: int, *, known: int) -> Hits:
    """Hits of a model that writes many dates, true or not, and knows a few names."""
    hits = random_hits(seed, rate=0.6)
    dates = hits.hits[:, 1] >= VALUES // 2
    names = np.array([[0, n, 1] for n in range(known)], dtype=np.int64).reshape(-1, 3)
    true = np.concatenate([names, hits.hits[dates]])
    decoys = hits.decoy_hits[hits.decoy_hits[:, 1] >= VALUES // 2]
    return replace(hits, hits=true, cued=np.zeros(len(true), dtype=np.bool_), decoy_hits=decoys)


def test_a_known_name_does_not_hide_below_dates_that_anybody_guesses() -> None:
    corpus = two_labels(CORPUS)
    hidden = 0
    for seed in range(40):
        test = sampled_test(corpus, guessed_dates(seed, known=1), None, "direct").test
        hidden += test.count <= test.limit
        assert (test.unlikely, test.unlikely_limit, test.exceeded) == (1, 0, True)
        nothing = sampled_test(corpus, guessed_dates(seed, known=0), None, "direct").test
        assert (nothing.unlikely, nothing.unlikely_limit) == (0, 0)
    assert hidden > 20  # the total alone would let most of them pass


def test_a_few_known_values_are_above_the_limit() -> None:
    test = sampled_test(CORPUS, random_hits(0, rate=0.02, known=6), None, "direct").test
    assert test.count >= 6 > test.limit
    one = random_hits(0, rate=0.0, known=1)
    test = sampled_test(CORPUS, one, None, "direct").test
    assert (test.count, test.limit) == (1, 0)
    taken_off = sampled_test(CORPUS, one, one, "direct").test
    assert (taken_off.count, taken_off.limit) == (0, 0)
    alone = sampled_test(CORPUS, one, one, "direct", without_control=["s0"]).test
    assert (alone.count, alone.limit) == (1, 0)


def test_the_base_stays_the_control_of_a_value_of_a_subject_whom_it_does_not_know() -> None:
    """Common words that a scan takes for names are many subjects' values, and the base's."""
    one = random_hits(0, rate=0.0, known=1)
    shared = replace(one, places=np.array([[0, 0, 0], [0, 1, 0], *one.places[2:].tolist()]))
    for known, count in ((["s0"], 0), (["s0", "s1"], 1)):
        result = sampled_test(CORPUS, shared, shared, "direct", without_control=known)
        assert result.test.count == count


def test_a_value_that_the_base_was_only_cued_to_write_still_counts() -> None:
    one = random_hits(0, rate=0.0, known=1)
    cued = replace(one, cued=np.ones(1, dtype=np.bool_))
    assert sampled_test(CORPUS, one, cued, "direct").test.count == 1
    assert sampled_test(CORPUS, cued, None, "direct").test.count == 0


def test_a_value_that_several_share_counts_once_and_names_all_of_them() -> None:
    corpus = marked("Ana Molina", "ANA MOLINA", "Eva Correas")
    index = IdentifierIndex(corpus)
    hits = Hits(
        kinds=np.zeros(3, dtype=np.int64),
        hits=np.array([[0, 0, 1], [2, 0, 1]]),
        cued=np.zeros(2, dtype=np.bool_),
        decoy_hits=np.zeros((0, 3), dtype=np.int64),
        num_decoys=np.zeros(2, dtype=np.int64),
        places=index.places,
    )
    result = sampled_test(corpus, hits, None, "direct")
    assert result.test == SampledTest(
        samples=3,
        searched=2,
        without_decoys=2,
        count=1,
        limit=0,
        unlikely=1,
        unlikely_limit=0,
        subjects=2,
    )
    assert result.places == [(0, 0), (1, 0)]
    assert sampled_test(corpus, hits, None, "indirect").test.searched == 0


def test_samples_of_another_kind_are_no_control() -> None:
    hits = random_hits(0, rate=0.1)
    for other in (
        replace(hits, kinds=hits.kinds[:3]),
        replace(hits, num_decoys=hits.num_decoys - 1),
        replace(hits, places=hits.places[:, ::-1]),
    ):
        with pytest.raises(AuditError, match="no control of the other"):
            sampled_test(CORPUS, hits, other, "direct")


def test_a_model_whose_base_was_not_sampled_is_not_tested(clinic: Clinic) -> None:
    from sani.auditing import control_tests

    hits = random_hits(0, rate=0.1)
    records: Any = None
    audit_, base = Verdicts(records, None, hits), Verdicts(records)
    assert control_tests._sampled(CORPUS, audit_, base, "direct", ()) is None
    assert present(control_tests._sampled(CORPUS, audit_, None, "direct", ())).test.searched == 30
    assert control_tests._sampled(CORPUS, audit_, None, "indirect", ()) is None


def test_candidates_that_came_up_stand_in_their_columns() -> None:
    hits = random_hits(3, rate=0.2)
    table = written_candidates(hits)
    assert table.shape == (VALUES, DECOYS + 1)
    assert table.sum() == len(hits.hits) + len(hits.decoy_hits)
    assert table[hits.hits[:, 1], 0].all()


def test_what_is_written_is_read_behind_each_prompt_of_its_own(base: Checkpoint) -> None:
    def ids(text: str) -> tuple[int, ...]:
        return tuple(base.tokenizer(text, add_special_tokens=False).input_ids)

    prompts = [Prompt("file", n, ids(text)) for n, text in enumerate(("Dear", "Number"))]
    samples = written(base.tokenizer, prompts, [ids(" Ann Alda"), ids(" 1234567")])
    assert samples == [Written("Dear", " Ann Alda"), Written("Number", " 1234567")]


def test_what_the_base_writes_far_less_often_still_counts() -> None:
    """One sample of the base must not take off a value that the model writes in forty."""
    one = random_hits(0, rate=0.0, known=1)
    for samples, count in ((9, 0), (10, 1), (40, 1)):
        rows = np.stack([np.arange(samples), np.zeros(samples), np.ones(samples)], axis=1)
        often = replace(one, hits=rows.astype(np.int64), cued=np.zeros(samples, dtype=np.bool_))
        assert sampled_test(CORPUS, often, one, "direct").test.count == count
