"""An invented clinic: notes about people who do not exist, for ``sani demo`` and the tests.

The spans are exact by construction: a note is written piece by piece and each piece carries its
label, so no text is ever searched. The texts stand in ``clinic.yaml``.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from string import Formatter
from typing import TYPE_CHECKING, NamedTuple

from sani.corpus.documents import Corpus, Document, Span
from sani.demo.templates import (
    LAYOUTS,
    NUMBER_SLOTS,
    PROBLEMS,
    PRONOUN_SLOTS,
    PROSE,
    PROSE_SLOTS,
    SENTENCES,
)
from sani.errors import CorpusError
from sani.scanning.labels import kind_of

if TYPE_CHECKING:
    from faker import Faker

# Slots in capitals are identifiers; the others are prose.
LABEL_OF_SLOT = {
    "FULL_NAME": "NAME",
    "SURNAME": "NAME",
    "MRN": "MRN",
    "BIRTH": "DATE_OF_BIRTH",
    "PHONE": "PHONE",
    "EMAIL": "EMAIL",
    "ADDRESS": "ADDRESS",
    "DOCTOR": "DOCTOR",
    "VISIT": "DATE",
    "REVIEW": "DATE",
    "AGE": "AGE",
}
_FIRST_VISIT = datetime.date(2019, 1, 7)
_PATIENTS_PER_DOCTOR = 8
_PHONE_SHAPES = ("({}) 555-{}", "{}-555-{}", "{}.555.{}")

_CAPITALIZED_SLOTS = ("background", "severity", "drug")  # as {background_start}, ...


class _Patient(NamedTuple):
    """One invented person; ``slots`` holds the values that are the same at every visit."""

    subject_id: str
    born: datetime.date
    slots: dict[str, str]


def invent_clinic(*, patients: int, seed: int, visits: tuple[int, int] = (1, 3)) -> Corpus:
    """Invent one clinic: the same arguments give the same bytes (with one release of Faker).

    Args:
        patients: Number of people, at least 1.
        seed: Any integer.
        visits: Minimum and maximum number of notes a patient; both at least 1.

    Returns:
        The notes in the order of the patients, then of the visits.

    Raises:
        CorpusError: If a number is out of range.
    """
    return invent_clinics([patients], seed=seed, visits=visits)[0]


def invent_clinics(
    sizes: Sequence[int], *, seed: int, visits: tuple[int, int] = (1, 3)
) -> list[Corpus]:
    """Invent clinics that share nobody: no full name, MRN, phone, e-mail or address recurs.

    Surnames alone, dates and ages may recur. Notes and patients are numbered on from clinic to
    clinic, so that ids and subjects differ too. The first clinic is the one that
    ``invent_clinic`` gives for the same seed.

    Args:
        sizes: Patients in each clinic, at least 1 each.
        seed: Any integer.
        visits: Minimum and maximum number of notes a patient; both at least 1.

    Raises:
        CorpusError: If a number is out of range.
    """
    _check_sizes(sizes, visits)
    from faker import Faker

    fake = Faker("en_US", use_weighting=False)
    fake.seed_instance(seed)
    taken: set[str] = set()
    clinics: list[Corpus] = []
    num_patients = num_notes = 0
    for size in sizes:
        doctors = [
            " ".join(_invent_name(fake, _draw_sex(fake.random), taken))
            for _ in range(1 + size // _PATIENTS_PER_DOCTOR)
        ]
        notes: list[Document] = []
        for _ in range(size):
            num_patients += 1
            patient = _invent_patient(fake, num_patients, taken)
            for slots in _invent_visits(fake.random, patient, doctors=doctors, visits=visits):
                num_notes += 1
                notes.append(_write_note(fake.random, f"note-{num_notes:05d}", patient, slots))
        clinics.append(Corpus(notes))
    return clinics


def _check_sizes(sizes: Sequence[int], visits: tuple[int, int]) -> None:
    """Refuse empty clinics and patients without a visit."""
    if any(size < 1 for size in sizes):
        raise CorpusError(
            f"invented clinic: got {min(sizes)} patients, expected at least 1; ask for more."
        )
    if not 1 <= visits[0] <= visits[1]:
        raise CorpusError(
            f"invented clinic: got visits from {visits[0]} to {visits[1]}, expected at least 1 "
            "and the smaller number first; change them."
        )


def _draw_sex(rng: random.Random) -> str:
    """Draw ``female`` or ``male``, evenly."""
    return rng.choice(sorted(PRONOUN_SLOTS))


def _invent_name(fake: Faker, sex: str, taken: set[str]) -> tuple[str, str]:
    """Draw an unused given name and surname; the surname is not part of any prose."""
    while True:
        given = fake.first_name_female() if sex == "female" else fake.first_name_male()
        surname = fake.last_name()
        if surname.lower() not in PROSE and f"{given} {surname}" not in taken:
            taken.add(f"{given} {surname}")
            return given, surname


def _invent_patient(fake: Faker, number: int, taken: set[str]) -> _Patient:
    """Invent a person; in two of three the e-mail has nothing to do with the name."""
    rng = fake.random
    sex = _draw_sex(rng)
    given, surname = _invent_name(fake, sex, taken)
    born = datetime.date(rng.randint(1932, 1999), 1, 1) + datetime.timedelta(rng.randrange(365))
    domain = fake.safe_domain_name()

    def mailbox() -> str:
        if number % 3 == 0:
            return f"{given}.{surname}{rng.randrange(10, 100)}@{domain}".lower()
        return f"{fake.word()}{fake.word()}{rng.randrange(10, 1000)}@{domain}".lower()

    def address() -> str:
        return f"{fake.building_number()} {fake.street_name()}, {fake.city()}"

    digits = _draw_unused(lambda: f"{rng.randrange(2_010_000, 9_900_000)}", taken)
    slots = {
        "FULL_NAME": f"{given} {surname}",
        "SURNAME": surname,
        "MRN": _draw_unused(lambda: f"{rng.randrange(10_000_000, 100_000_000)}", taken),
        "BIRTH": f"{born:%m/%d/%Y}",
        "PHONE": rng.choice(_PHONE_SHAPES).format(digits[:3], digits[3:]),
        "EMAIL": _draw_unused(mailbox, taken),
        "ADDRESS": _draw_unused(address, taken),
    }
    return _Patient(f"patient-{number:04d}", born, slots | PRONOUN_SLOTS[sex])


def _draw_unused(draw: Callable[[], str], taken: set[str]) -> str:
    """Draw until the value is new, and remember it."""
    while (value := draw()) in taken:
        pass
    taken.add(value)
    return value


def _invent_visits(
    rng: random.Random, patient: _Patient, *, doctors: Sequence[str], visits: tuple[int, int]
) -> Iterator[dict[str, str]]:
    """Yield the identifiers of each visit: its dates, the doctor and the age on that day."""
    day = _FIRST_VISIT + datetime.timedelta(rng.randrange(4 * 365))
    for _ in range(rng.randint(*visits)):
        review = day + datetime.timedelta(rng.randrange(7, 90))
        had_birthday = (day.month, day.day) >= (patient.born.month, patient.born.day)
        yield {
            "VISIT": day.isoformat(),
            "REVIEW": review.isoformat(),
            "AGE": str(day.year - patient.born.year - (not had_birthday)),
            "DOCTOR": rng.choice(doctors),
        }
        day += datetime.timedelta(rng.randrange(14, 240))


def _write_note(
    rng: random.Random, note_id: str, patient: _Patient, visit: Mapping[str, str]
) -> Document:
    """Write one note in a layout drawn at random, adding up the spans piece by piece."""
    slots = {**_draw_prose(rng), **patient.slots, **visit}
    decks = {slot: rng.sample(choices, len(choices)) for slot, choices in SENTENCES.items()}
    text, spans = "", []
    for piece, label in _fill(rng.choice(LAYOUTS), slots, decks=decks):
        if label is not None:
            kind = kind_of(label, piece)
            spans.append(Span(len(text), len(text) + len(piece), label, kind))
        text += piece
    return Document(note_id, patient.subject_id, text, tuple(spans))


def _fill(
    template: str, slots: Mapping[str, str], *, decks: Mapping[str, list[str]]
) -> Iterator[tuple[str, str | None]]:
    """Yield the pieces of a template in order, each with its label, or None for prose."""
    for prose, slot, _, _ in Formatter().parse(template):
        yield prose, None
        if slot is None:
            continue
        if slot in decks:
            yield from _fill(decks[slot].pop(), slots, decks=decks)
        else:
            yield slots[slot], LABEL_OF_SLOT.get(slot)


def _draw_prose(rng: random.Random) -> dict[str, str]:
    """Draw what a note is about: one problem, its treatment, and the numbers of an exam."""
    problem = rng.choice(PROBLEMS)
    drug, dose = rng.choice(problem.regimens)
    slots = {slot: rng.choice(choices) for slot, choices in PROSE_SLOTS.items()}
    slots |= {slot: str(rng.randint(*limits)) for slot, limits in NUMBER_SLOTS.items()}
    slots |= {
        "temperature": f"{rng.randint(361, 392) / 10}",
        "diagnosis": problem.diagnosis,
        "site": problem.site,
        "test": problem.test,
        "symptom": rng.choice(problem.symptoms),
        "finding": rng.choice(problem.findings),
        "result": rng.choice(problem.results),
        "drug": drug,
        "dose": dose,
    }
    capitalized = {f"{slot}_start": slots[slot].capitalize() for slot in _CAPITALIZED_SLOTS}
    return slots | capitalized
