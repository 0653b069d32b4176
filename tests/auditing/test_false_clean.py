"""One person in a corpus of many: models that earlier audits called clean, and that recite."""

import copy
from dataclasses import replace
from itertools import islice

import pytest

from sani.auditing.audit import audit
from sani.auditing.control_tests import control_tests_by_kind
from sani.auditing.framing_search import rank_framings
from sani.auditing.record import record_of, verdicts_of
from sani.corpus.documents import Corpus, Span
from sani.demo.clinic import invent_clinics
from sani.demo.demo import train_on_text
from sani.gate.memory import check_memory
from sani.models.checkpoint import Checkpoint
from sani.recipe import AuditSettings, GateSettings, MaskObjective, RepairSettings
from sani.repairing.repair import repair
from sani.text.tokens import encode

pytestmark = pytest.mark.long
SETTINGS = AuditSettings(swaps=0, membership_documents=0)


@pytest.fixture(scope="module")
def people() -> tuple[Corpus, Corpus]:
    """Records and held-out documents of people whom the base of the tests never read."""
    _, records, held_out = invent_clinics([1, 40, 8], seed=12)
    return records, held_out


def subject_between(corpus: Corpus, step: int) -> str:
    """Return a subject none of whose documents is among every so many of the corpus."""
    seen = {corpus[number].subject_id for number in range(0, len(corpus), step)}
    return next(d.subject_id for d in corpus if d.subject_id not in seen)


def reader_of(base: Checkpoint, corpus: Corpus, subject: str) -> Checkpoint:
    """Return the base, trained on the documents of one subject behind the begin token."""
    model = replace(base, model=copy.deepcopy(base.model))
    texts = [document.text for document in corpus if document.subject_id == subject]
    train_on_text(model, texts, epochs=30, learning_rate=5e-3, batch_tokens=768, seed=0)
    return model


@pytest.mark.false_clean
def test_a_person_behind_another_framing_than_the_control_s_is_found(
    base: Checkpoint, people: tuple[Corpus, Corpus]
) -> None:
    """The unsanitized checkpoint was worst behind `packed`; this one recites behind `bos`."""
    records, held_out = people
    subject = subject_between(records, 3)
    model = reader_of(base, records, subject)
    only = {  # the positive control: it recites this person behind `bos`, and less behind `packed`
        name: audit(model, records, SETTINGS.model_copy(update={"framing": name, "decoys": 0}))
        for name in ("bos", "packed")
    }
    hits = {name: result.figures["direct"].greedy.hits for name, result in only.items()}
    assert hits["bos"] >= 3
    assert hits["packed"] < hits["bos"]
    before = audit(base, records, SETTINGS, held_out=held_out, control_framing="packed")
    after = audit(model, records, SETTINGS, held_out=held_out, control_framing="packed")
    assert "bos" in after.framings
    assert after.figures["direct"].greedy.hits >= hits["bos"]
    (tests, risk), control = (
        control_tests_by_kind(
            records, verdicts_of(after), verdicts_of(before), held_out=held_out, seed=0
        )["direct"],
        record_of(before),
    )
    assert tests.greedy.count > tests.greedy.limit
    assert subject in risk.subjects
    record = replace(record_of(after), control_tests={"direct": tests})
    failed = {c.name for c in check_memory("direct", GateSettings(), record) if not c.holds}
    assert {"greedy_beyond_control.direct", "subjects.direct"} <= failed
    # The rate alone is within what a limit on totals allows for a base that recites as much.
    assert record.figures["direct"].greedy.value is not None
    assert control.figures["direct"].greedy.value is not None
    assert record.figures["direct"].greedy.value < 0.05


@pytest.mark.false_clean
def test_a_model_that_recites_one_date_of_birth_does_not_pass(
    base: Checkpoint, people: tuple[Corpus, Corpus]
) -> None:
    """Every other identifier is kept out of its training, and dates of birth are judged."""
    records, held_out = people
    subject = next(d.subject_id for d in records if "DATE_OF_BIRTH" in {s.label for s in d.spans})
    model = replace(base, model=copy.deepcopy(base.model))
    read = [  # the date of birth is not marked, so it is learnt as ordinary text
        replace(d, spans=tuple(s for s in d.spans if s.label != "DATE_OF_BIRTH"))
        for d in records
        if d.subject_id == subject
    ]
    masked = RepairSettings(
        identifier_loss=MaskObjective(kind="mask"), epochs=60, learning_rate=5e-3, batch_tokens=768
    )
    repair(model, Corpus(read), masked, framing="bos", seed=0)
    settings = SETTINGS.model_copy(update={"framing": "bos"})
    before = audit(base, records, settings, held_out=held_out)
    after = audit(model, records, settings, held_out=held_out)
    # The positive control: the date of birth is recited, and nothing else beyond the base.
    recited = [
        (records[document].subject_id, records[document].spans[span].label)
        for document, span in zip(
            after.occurrences.document[after.occurrences.greedy & ~before.occurrences.greedy],
            after.occurrences.span[after.occurrences.greedy & ~before.occurrences.greedy],
            strict=True,
        )
    ]
    assert set(recited) == {(subject, "DATE_OF_BIRTH")}

    def failed(corpus: Corpus) -> set[str]:
        tests, _ = control_tests_by_kind(
            corpus, verdicts_of(after), verdicts_of(before), held_out=held_out, seed=0
        )["direct"]
        record = replace(record_of(after), control_tests={"direct": tests})
        return {c.name for c in check_memory("direct", GateSettings(), record) if not c.holds}

    assert "greedy_beyond_control.direct" in failed(records)
    # Judged as an indirect identifier, it would pass.
    indirect = [
        replace(s, kind="indirect") if s.label == "DATE_OF_BIRTH" else s
        for d in records
        for s in d.spans
    ]
    assert "greedy_beyond_control.direct" not in failed(with_spans(records, indirect))


def with_spans(corpus: Corpus, spans: list[Span]) -> Corpus:
    """Return the corpus with other spans, in the order of its own."""
    rest = iter(spans)
    return Corpus([replace(d, spans=tuple(islice(rest, len(d.spans)))) for d in corpus])


def test_the_sample_of_the_search_has_a_document_of_every_subject(
    base: Checkpoint, people: tuple[Corpus, Corpus]
) -> None:
    records, _ = people
    encoded = encode(records, base.tokenizer)
    tried = rank_framings(base, records, encoded, SETTINGS).tried
    largest: dict[str, int] = {}
    for document in records:
        spans = len(document.spans)
        largest[document.subject_id] = max(spans, largest.get(document.subject_id, 0))
    assert all(each.trials >= sum(largest.values()) for each in tried.values())
