"""The invented clinic: spans exact by construction, same seed same bytes, clinics disjoint."""

import re
import subprocess
import sys
from itertools import combinations

import pytest

from sani.corpus.documents import Corpus, Document
from sani.demo.clinic import invent_clinic, invent_clinics
from sani.demo.templates import LAYOUTS, SENTENCES
from sani.errors import CorpusError

OF_THE_PATIENT = {"NAME", "MRN", "PHONE", "EMAIL", "ADDRESS"}
NEVER_SHARED = OF_THE_PATIENT | {"DOCTOR"}
DIRECT = NEVER_SHARED | {"DATE_OF_BIRTH", "DATE"}
SHAPES = {
    "NAME": r"[A-Z][a-zA-Z']+( [A-Z][a-zA-Z']+)?",
    "DOCTOR": r"[A-Z][a-zA-Z']+ [A-Z][a-zA-Z']+",
    "MRN": r"\d{8}",
    "DATE_OF_BIRTH": r"\d\d/\d\d/\d{4}",
    "DATE": r"\d{4}-\d\d-\d\d",
    "AGE": r"\d\d",
    "PHONE": r"\(\d{3}\) 555-\d{4}|\d{3}-555-\d{4}|\d{3}\.555\.\d{4}",
    "EMAIL": r"[a-z.']+\d{2,3}@example\.(com|net|org)",
    "ADDRESS": r"\d+ [A-Za-z' ]+, [A-Za-z' ]+",
}


@pytest.fixture(scope="module")
def clinic() -> Corpus:
    return invent_clinic(patients=150, seed=7)


def values(corpus: Corpus, labels: set[str]) -> set[str]:
    """Every value of these labels but surnames alone."""
    return {
        document.value(span)
        for document in corpus
        for span in document.spans
        if span.label in labels and not (span.label == "NAME" and " " not in document.value(span))
    }


def test_every_span_is_in_range_in_order_and_has_the_shape_of_its_label(clinic: Corpus) -> None:
    for document in clinic:
        end = 0
        for span in document.spans:
            assert end <= span.start < span.end <= len(document.text)
            assert re.fullmatch(SHAPES[span.label], document.value(span))
            # A span is the whole value: no letter or digit goes on at either side.
            assert not re.search(r"\w\Z", document.text[: span.start])
            assert not re.match(r"\w", document.text[span.end :])
            end = span.end


def test_every_label_occurs_and_has_its_kind(clinic: Corpus) -> None:
    kinds = {(span.label, span.kind) for document in clinic for span in document.spans}
    assert kinds == {(label, "direct") for label in DIRECT} | {("AGE", "indirect")}
    ages = [int(d.value(span)) for d in clinic for span in d.spans if span.label == "AGE"]
    assert max(ages) <= 89


@pytest.mark.parametrize("seed", range(5))
def test_no_value_of_a_patient_stands_outside_a_span(seed: int) -> None:
    corpus = invent_clinic(patients=100, seed=seed)
    of_patient: dict[str, set[str]] = {}
    for document in corpus:
        found = {document.value(span) for span in document.spans if span.label in OF_THE_PATIENT}
        of_patient.setdefault(document.subject_id, set()).update(found)
    for document in corpus:
        for value in of_patient[document.subject_id]:
            for match in re.finditer(re.escape(value), document.text, re.IGNORECASE):
                assert is_covered(document, match.start(), match.end())


def is_covered(document: Document, start: int, end: int) -> bool:
    return any(span.start <= start and end <= span.end for span in document.spans)


def test_the_constant_values_of_a_patient_never_change(clinic: Corpus) -> None:
    seen: dict[tuple[str, str], str] = {}
    for document in clinic:
        for span in document.spans:
            if span.label in {"MRN", "PHONE", "EMAIL", "ADDRESS", "DATE_OF_BIRTH"}:
                value = document.value(span)
                assert seen.setdefault((document.subject_id, span.label), value) == value


def test_names_recur_in_most_notes(clinic: Corpus) -> None:
    recur = [sum(span.label == "NAME" for span in document.spans) > 1 for document in clinic]
    assert sum(recur) / len(recur) > 0.6


def test_ids_and_visits() -> None:
    corpus = invent_clinic(patients=12, seed=0, visits=(2, 2))
    assert [document.id for document in corpus] == [f"note-{n:05d}" for n in range(1, 25)]
    assert [document.subject_id for document in corpus[:3]] == [
        "patient-0001",
        "patient-0001",
        "patient-0002",
    ]


def test_same_seed_same_bytes() -> None:
    first = invent_clinic(patients=20, seed=3)
    assert invent_clinic(patients=20, seed=3).digest() == first.digest()
    assert invent_clinic(patients=20, seed=4).digest() != first.digest()
    assert invent_clinics([20, 5], seed=3)[0].digest() == first.digest()


def test_same_seed_same_bytes_in_another_process_whatever_the_global_seeds() -> None:
    code = (
        "import random, faker; random.seed(99); faker.Faker.seed(99);"
        "from sani.demo.clinic import invent_clinic;"
        "print(invent_clinic(patients=5, seed=3).digest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == invent_clinic(patients=5, seed=3).digest()


def test_clinics_share_nobody() -> None:
    clinics = invent_clinics([120, 120, 60], seed=1)
    assert [len({document.subject_id for document in c}) for c in clinics] == [120, 120, 60]
    ids = [document.id for clinic in clinics for document in clinic]
    assert len(set(ids)) == len(ids)
    for one, other in combinations(clinics, 2):
        assert not {d.subject_id for d in one} & {d.subject_id for d in other}
        text = "\n".join(document.text for document in other)
        assert [value for value in values(one, NEVER_SHARED) if value in text] == []
        phones = [
            {re.sub(r"\D", "", phone) for phone in values(c, {"PHONE"})} for c in (one, other)
        ]
        assert not phones[0] & phones[1]


def test_other_seeds_share_almost_nothing(clinic: Corpus) -> None:
    other = invent_clinic(patients=150, seed=8)
    assert len(values(clinic, NEVER_SHARED) & values(other, NEVER_SHARED)) <= 1


def test_most_emails_do_not_hold_the_name() -> None:
    derived: dict[str, bool] = {}
    for document in invent_clinic(patients=90, seed=2, visits=(3, 3)):
        found: dict[str, list[str]] = {"NAME": [], "EMAIL": []}
        for span in document.spans:
            if span.label in found:
                found[span.label].append(document.value(span).lower())
        for email in found["EMAIL"]:
            derived[document.subject_id] = max(found["NAME"]).split()[-1] in email
    assert 0 < sum(derived.values()) <= len(derived) / 2


def test_size_and_share_of_identifiers(clinic: Corpus) -> None:
    characters = sum(len(document.text) for document in clinic)
    marked = sum(span.end - span.start for document in clinic for span in document.spans)
    assert 450 <= characters / len(clinic) <= 700
    assert 0.15 <= marked / characters <= 0.35


def test_variety(clinic: Corpus) -> None:
    assert len(LAYOUTS) >= 6
    templates = [sentence for sentences in SENTENCES.values() for sentence in sentences]
    assert len(templates) == len(set(templates)) >= 60
    assert len({document.text for document in clinic}) == len(clinic)
    assert all("{" not in document.text for document in clinic)


def test_every_template_is_used() -> None:
    text = "\n".join(document.text for document in invent_clinic(patients=600, seed=0))
    templates = [*LAYOUTS, *(sentence for choices in SENTENCES.values() for sentence in choices)]
    for template in templates:
        assert max(re.split(r"\{\w+\}", template), key=len) in text


def test_numbers_out_of_range() -> None:
    with pytest.raises(CorpusError) as caught:
        invent_clinics([3, 0], seed=0)
    assert str(caught.value) == (
        "invented clinic: got 0 patients, expected at least 1; ask for more."
    )
    with pytest.raises(CorpusError) as caught:
        invent_clinic(patients=1, seed=0, visits=(3, 1))
    assert str(caught.value) == (
        "invented clinic: got visits from 3 to 1, expected at least 1 "
        "and the smaller number first; change them."
    )


def test_importing_the_module_does_not_import_faker() -> None:
    code = "import sys, sani.demo.clinic; print('faker' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
