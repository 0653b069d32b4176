"""An invented clinic: notes about people who do not exist, for ``sani demo`` and the tests.

In: how many patients, and a seed. Out: a corpus whose spans are exact by construction, because a
note is written piece by piece and each piece carries its label; no text is ever searched.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from string import Formatter
from typing import TYPE_CHECKING, NamedTuple

from sani.corpus.documents import Corpus, Document, Kind, Span
from sani.errors import CorpusError

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
KIND_OF_LABEL: dict[str, Kind] = {
    label: "indirect" if label in {"DATE_OF_BIRTH", "DATE", "AGE"} else "direct"
    for label in LABEL_OF_SLOT.values()
}

_FIRST_VISIT = datetime.date(2019, 1, 7)
_PATIENTS_PER_DOCTOR = 8
_PHONE_SHAPES = ("({}) 555-{}", "{}-555-{}", "{}.555.{}")

# A sentence slot draws from here, never the same sentence twice in one note.
SENTENCES: dict[str, tuple[str, ...]] = {
    "complaint": (
        "{title} {SURNAME} came in with {symptom} for the past {days} days.",
        "{title} {SURNAME}, aged {AGE}, reports {symptom} over the last {weeks} weeks.",
        "{title} {SURNAME} describes {symptom}, worst {when}.",
        "This {AGE}-year-old {person} was seen because of {symptom} lasting {days} days.",
        "The family brought {title} {SURNAME} in after {days} days of {symptom}.",
        "{title} {SURNAME} returns with {symptom}, {change} since the last visit.",
        "Main concern today is {symptom}, which {title} {SURNAME} first noticed {when}.",
        "Sudden onset of {symptom} {days} hours ago in this {AGE}-year-old {person}.",
        "{title} {SURNAME} has had {symptom} on and off for {weeks} weeks.",
        "At the age of {AGE}, {title} {SURNAME} now presents with new {symptom}.",
        "{title} {SURNAME} rates the {symptom} at {score} out of 10.",
        "For {weeks} weeks {title} {SURNAME} has been troubled by {symptom}, mostly {when}.",
    ),
    "history": (
        "Past history includes {background}.",
        "{He} is known to have {background}, treated with {other_drug}.",
        "{He} stopped smoking {score} years ago and drinks alcohol rarely.",
        "{He} has never smoked and lives with {his} sister.",
        "No known drug allergies.",
        "Allergic to penicillin, which caused a rash in childhood.",
        "There is {background} on {his} mother's side of the family.",
        "{He} had an appendectomy many years ago and no other surgery.",
        "A similar episode {weeks} months ago settled without treatment.",
        "{He} denies fever, weight loss or night sweats.",
        "{He} tried over-the-counter ibuprofen with little relief.",
        "{background_start} has been stable on {other_drug}.",
        "{He} works nights in a warehouse and sleeps poorly.",
        "There was no injury, recent travel or contact with sick people.",
    ),
    "exam": (
        "Blood pressure {systolic}/{diastolic}, pulse {pulse}, oxygen saturation {oxygen}%.",
        "Temperature {temperature} C, breathing rate {breaths} per minute.",
        "On examination there is {finding}.",
        "Examination of the {site} shows {finding}.",
        "No other changes of the {site} were seen.",
        "{He} looks comfortable at rest, and there is {finding}.",
        "{He} is alert and oriented but appears tired.",
        "Heart sounds are normal without murmurs.",
        "The abdomen is soft and not tender.",
        "Most notable is {finding}; the rest of the exam is normal.",
        "Gait is steady and reflexes are equal on both sides.",
        "The {test} {result}.",
        "We repeated the {test}, which {result}.",
        "Weight is {weight} kg on the clinic scale.",
    ),
    "assessment": (
        "Findings fit {diagnosis}.",
        "The picture is most consistent with {diagnosis}.",
        "Impression: {diagnosis}, {severity}.",
        "This is likely {diagnosis} on a background of {background}.",
        "Working diagnosis is {diagnosis}; the {test} {result}.",
        "We discussed that {symptom} together with {finding} suggests {diagnosis}.",
        "{severity_start} {diagnosis}, {change} under current treatment.",
        "Because the {test} {result}, {diagnosis} was confirmed.",
        "There are no warning signs; {diagnosis} remains the leading explanation.",
    ),
    "medication": (
        "Started {drug} {dose}.",
        "{He} was given {drug} {dose} for {days} days.",
        "We increased {drug} to {dose}.",
        "Continue {drug} {dose} and {other_drug}.",
        "Prescribed {drug}, {dose}, to be taken with food.",
        "Current medication: {drug} {dose}, {other_drug}.",
        "{drug_start} {dose} was well tolerated, so it goes on unchanged.",
        "Besides {other_drug}, {he} now takes {drug} {dose}.",
        "We switched {him} to {drug} {dose} because of nausea.",
        "Hold {other_drug} while {he} is taking {drug} {dose}.",
        "{He} missed several doses of {drug}; restart at {dose}.",
        "Taper {drug} over {weeks} weeks, depending on the {symptom}.",
    ),
    "plan": (
        "Review on {REVIEW}.",
        "Repeat the {test} in {weeks} weeks.",
        "{title} {SURNAME} will return on {REVIEW} or sooner if {he} gets worse.",
        "Rest, fluids and a recheck in {days} days.",
        "{title} {SURNAME} was told to call about any further {symptom}.",
        "Refer to physiotherapy for the {site}.",
        "We ordered another {test} before the next appointment.",
        "{title} {SURNAME} understands the plan and agrees.",
        "Blood tests for kidney function and electrolytes in {weeks} weeks.",
        "Advice about diet and daily walking was given.",
        "{He} should go to the emergency department in case of severe {symptom}.",
        "Next appointment on {REVIEW} with Dr. {DOCTOR}.",
        "No work for {days} days; a certificate was handed to {title} {SURNAME}.",
        "The nurse will check {his} progress by telephone in {days} days.",
    ),
}

LAYOUTS = (
    "ADMISSION NOTE\nPatient: {FULL_NAME}\nMRN: {MRN}\nDate of birth: {BIRTH}\nPhone: {PHONE}\n"
    "Admitted on {VISIT} under Dr. {DOCTOR}\n\n{complaint} {history} {history}\n"
    "Exam: {exam} {exam}\n{assessment} {medication}\nPlan: {plan}\n",
    "DISCHARGE SUMMARY\nName: {FULL_NAME} | MRN: {MRN} | DOB: {BIRTH}\nHome address: {ADDRESS}\n"
    "Attending: Dr. {DOCTOR}. Discharged on {VISIT}.\n\n{complaint} {exam}\n{assessment} "
    "{medication} {medication}\nFollow-up: {plan} {plan}\nContact: {EMAIL}\n",
    "Dear colleague,\n\nRe: {FULL_NAME}, born {BIRTH}, MRN {MRN}, living at {ADDRESS}.\n\n"
    "Thank you for referring {title} {SURNAME}, whom I saw on {VISIT}. {complaint} {exam} "
    "{assessment} {medication} {plan}\n{title} {SURNAME} can be reached at {PHONE}.\n\n"
    "Kind regards,\nDr. {DOCTOR}\n",
    "TELEPHONE CALL {VISIT}\nCaller: {FULL_NAME} (MRN {MRN})\nCall back: {PHONE}\n"
    "Email: {EMAIL}\n\n{complaint} {history}\n{medication}\n{plan} {plan}\n"
    "Taken by the nurse for Dr. {DOCTOR}\n",
    "PROGRESS NOTE\nDate: {VISIT}\nPatient: {FULL_NAME}, {AGE} years, MRN: {MRN}\n"
    "S: {complaint} {history}\nO: {exam} {exam}\nA: {assessment}\nP: {medication} {plan}\n"
    "Send results to {EMAIL} or by mail to {ADDRESS}\nSigned: Dr. {DOCTOR}\n",
    "EMERGENCY DEPARTMENT\n{VISIT} - {FULL_NAME} - DOB {BIRTH} - MRN {MRN}\n\n"
    "Complaint: {complaint}\nBackground: {history}\nFindings: {exam} {exam}\n"
    "Diagnosis: {assessment}\nTreatment: {medication}\nDisposition: {plan}\n"
    "Next of kin asked to use {PHONE}. Physician: Dr. {DOCTOR}\n",
    "Referral request from Dr. {DOCTOR}, {VISIT}\n\nPlease see {FULL_NAME} (MRN: {MRN}, "
    "date of birth {BIRTH}). {complaint} {history} {exam} {assessment} {plan}\n\n"
    "Appointment letter to: {ADDRESS}\nPhone: {PHONE}\nEmail: {EMAIL}\n",
    "MEDICATION REVIEW\nMRN: {MRN}\nName: {FULL_NAME}\nReviewed by Dr. {DOCTOR} on {VISIT}\n\n"
    "{medication} {medication}\n{complaint} {history} {exam}\n{plan}\n"
    "Copy to {title} {SURNAME}, {ADDRESS}, {EMAIL}\n",
)


class _Problem(NamedTuple):
    """What brings a patient in, in noun phrases that fit the sentences above."""

    diagnosis: str
    site: str
    test: str
    symptoms: tuple[str, ...]
    findings: tuple[str, ...]
    results: tuple[str, ...]
    regimens: tuple[tuple[str, str], ...]  # drug, dose


_PROBLEMS = (
    _Problem("community-acquired pneumonia", "chest", "chest X-ray",
        ("productive cough", "shortness of breath", "chest pain on breathing"),
        ("crackles at the right base", "reduced air entry on the left"),
        ("showed patchy consolidation", "showed a small effusion"),
        (("amoxicillin", "500 mg three times daily"), ("doxycycline", "100 mg twice daily"))),
    _Problem("heart failure", "legs and lungs", "echocardiogram",
        ("swelling of both ankles", "breathlessness when lying flat"),
        ("pitting edema to the knees", "raised neck veins"),
        ("showed reduced pump function", "showed an enlarged left ventricle"),
        (("furosemide", "40 mg in the morning"), ("bisoprolol", "2.5 mg daily"))),
    _Problem("atrial fibrillation", "heart", "electrocardiogram",
        ("palpitations", "light-headedness on standing"),
        ("an irregular pulse", "a rapid irregular heartbeat"),
        ("confirmed an irregular rhythm", "showed absent P waves"),
        (("apixaban", "5 mg twice daily"), ("metoprolol", "25 mg twice daily"))),
    _Problem("urinary tract infection", "lower abdomen", "urine culture",
        ("burning on urination", "urinary frequency"),
        ("tenderness above the bladder", "mild flank tenderness"),
        ("grew E. coli", "was positive for nitrites"),
        (("nitrofurantoin", "100 mg twice daily"), ("cefalexin", "500 mg twice daily"))),
    _Problem("osteoarthritis of the knee", "right knee", "knee X-ray",
        ("knee pain", "stiffness of the knee"),
        ("a small joint effusion", "crepitus on bending"),
        ("showed narrowing of the joint space", "showed bony spurs"),
        (("naproxen", "250 mg twice daily"), ("acetaminophen", "1 g three times daily"))),
    _Problem("migraine without aura", "head and neck", "brain MRI",
        ("throbbing headache", "headache with nausea"),
        ("sensitivity to light", "tightness of the neck muscles"),
        ("was normal", "showed no mass or bleeding"),
        (("sumatriptan", "50 mg at onset"), ("propranolol", "40 mg twice daily"))),
    _Problem("poorly controlled type 2 diabetes", "feet", "HbA1c",
        ("excessive thirst", "tingling in the feet", "blurred vision"),
        ("reduced sensation in both feet", "dry skin over the heels"),
        ("was 8.9%", "rose to 9.4%"),
        (("metformin", "1000 mg twice daily"), ("insulin glargine", "14 units at bedtime"))),
    _Problem("gastroesophageal reflux", "upper abdomen", "gastroscopy",
        ("heartburn", "acid taste in the mouth"),
        ("mild epigastric tenderness", "slight bloating of the abdomen"),
        ("showed mild esophagitis", "found a small hiatal hernia"),
        (("omeprazole", "20 mg before breakfast"), ("famotidine", "20 mg at bedtime"))),
    _Problem("asthma exacerbation", "chest", "peak flow measurement",
        ("wheezing", "chest tightness", "dry cough"),
        ("wheeze over both lungs", "prolonged expiration"),
        ("was 60% of predicted", "improved after albuterol"),
        (("prednisone", "40 mg daily"), ("albuterol", "two puffs every 4 hours"))),
    _Problem("lumbar disc herniation", "lower back", "lumbar MRI",
        ("low back pain", "pain shooting down the left leg"),
        ("a positive straight leg raise", "weakness of the big toe"),
        ("showed a disc bulge at L4-L5", "showed nerve root compression"),
        (("gabapentin", "300 mg at night"), ("diclofenac", "50 mg twice daily"))),
    _Problem("iron deficiency anemia", "skin and eyes", "blood count",
        ("fatigue", "shortness of breath on stairs"),
        ("pale conjunctivae", "a soft flow murmur"),
        ("showed a hemoglobin of 8.7 g/dL", "showed small red cells"),
        (("ferrous sulfate", "325 mg daily"), ("folic acid", "5 mg daily"))),
    _Problem("cellulitis of the lower leg", "left shin", "wound swab",
        ("redness of the leg", "heat and pain in the shin"),
        ("warm red skin below the knee", "a swollen calf with clear margins"),
        ("grew staphylococci", "grew mixed skin flora"),
        (("flucloxacillin", "500 mg four times daily"), ("clindamycin", "300 mg every 8 hours"))),
    _Problem("depressive episode", "nervous system", "mood questionnaire",
        ("low mood", "poor sleep", "loss of appetite"),
        ("slowed speech", "a flat expression with good eye contact"),
        ("scored in the moderate range", "improved by four points"),
        (("sertraline", "50 mg daily"), ("mirtazapine", "15 mg at night"))),
    _Problem("hypothyroidism", "neck", "thyroid panel",
        ("weight gain", "cold intolerance", "constipation"),
        ("a slightly enlarged thyroid", "slow ankle reflexes"),
        ("showed a raised TSH", "showed a low free T4"),
        (("levothyroxine", "75 mcg in the morning"), ("liothyronine", "5 mcg daily"))),
)  # fmt: skip

_PROSE_SLOTS = {
    "background": ("hypertension", "gout", "chronic kidney disease", "psoriasis", "epilepsy",
        "high cholesterol", "glaucoma", "rheumatoid arthritis", "coronary artery disease"),
    "other_drug": ("lisinopril 10 mg daily", "atorvastatin 20 mg at night", "aspirin 81 mg daily",
        "allopurinol 100 mg daily", "amlodipine 5 mg daily", "losartan 50 mg daily",
        "vitamin D 1000 units daily", "tamsulosin 0.4 mg at night"),
    "when": ("at night", "in the morning", "after meals", "on exertion", "in cold weather"),
    "change": ("improved", "unchanged", "slightly worse", "somewhat better"),
    "severity": ("mild", "moderate", "severe", "early", "recurrent"),
}  # fmt: skip
_NUMBER_SLOTS = {
    "days": (2, 14), "weeks": (2, 12), "score": (2, 9), "systolic": (98, 178),
    "diastolic": (58, 98), "pulse": (54, 118), "oxygen": (90, 99), "breaths": (12, 26),
    "weight": (48, 112),
}  # fmt: skip
_PRONOUN_SLOTS = {
    "female": {"title": "Ms.", "He": "She", "he": "she", "him": "her", "his": "her"}
    | {"person": "woman"},
    "male": {"title": "Mr.", "He": "He", "he": "he", "him": "him", "his": "his"}
    | {"person": "man"},
}
_CAPITALIZED_SLOTS = ("background", "severity", "drug")  # as {background_start}, ...
# No surname may be part of this, or it would stand in notes outside any span.
_PROSE = repr((SENTENCES, LAYOUTS, _PROBLEMS, _PROSE_SLOTS, _PRONOUN_SLOTS)).lower()


class _Patient(NamedTuple):
    """One invented person; ``slots`` holds the values that stay the same at every visit."""

    subject_id: str
    born: datetime.date
    slots: dict[str, str]


def invent_clinic(*, patients: int, seed: int, visits: tuple[int, int] = (1, 3)) -> Corpus:
    """Invent one clinic: the same arguments give the same bytes (with one release of Faker).

    Args:
        patients: How many people, at least 1.
        seed: Any integer.
        visits: Fewest and most notes a patient; both at least 1.

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
        visits: Fewest and most notes a patient; both at least 1.

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
    """``female`` or ``male``, evenly."""
    return rng.choice(sorted(_PRONOUN_SLOTS))


def _invent_name(fake: Faker, sex: str, taken: set[str]) -> tuple[str, str]:
    """Draw an unused given name and surname; the surname is not part of any prose."""
    while True:
        given = fake.first_name_female() if sex == "female" else fake.first_name_male()
        surname = fake.last_name()
        if surname.lower() not in _PROSE and f"{given} {surname}" not in taken:
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
    return _Patient(f"patient-{number:04d}", born, slots | _PRONOUN_SLOTS[sex])


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
            spans.append(Span(len(text), len(text) + len(piece), label, KIND_OF_LABEL[label]))
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
    problem = rng.choice(_PROBLEMS)
    drug, dose = rng.choice(problem.regimens)
    slots = {slot: rng.choice(choices) for slot, choices in _PROSE_SLOTS.items()}
    slots |= {slot: str(rng.randint(*limits)) for slot, limits in _NUMBER_SLOTS.items()}
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
