"""Header fields that recur in the documents: which are learnt, and which are not."""

import random
from collections.abc import Callable

from faker import Faker

from sani.corpus.documents import Corpus, Document
from sani.recipe import ScanSettings
from sani.scanning.detection import detect
from sani.scanning.structure import SOURCE, find_structure

# Headings in Polish and Turkish, which no recognizer of sani knows.
DIAGNOSES = ("Zapalenie Trzustki", "Cukrzyca Typu", "Herzinsuffizienz", "Rak Okrężnicy")


def note(draw: random.Random, name: str, number: str) -> str:
    """A letter of one template, with values, findings and one field that names the patient."""
    return (
        f"Karta wypisowa\nPacjent: {name}\nDosya no\t{number}\n"
        f"Rozpoznanie: {draw.choice(DIAGNOSES)}\nHb: {draw.uniform(8, 16):.1f} g/dl\n"
        f"Leukozyten: {draw.randrange(3000, 12000)}\nTrombosit: {draw.randrange(90, 450) * 1000}\n"
        f"Waga: {draw.randrange(50, 110)} kg\nStan ogólny: dobry\nLekarz: Marek Nowak\n"
        f"Przebieg: chory w stanie dobrym, {draw.randrange(10**6)} krwinek.\n"
    )


def letters(
    subjects: int, *, each: int = 1, name_of: Callable[[int], str] | None = None
) -> tuple[list[Document], dict[str, tuple[str, str]]]:
    draw, fake = random.Random(0), Faker("pl_PL")
    fake.seed_instance(0)
    people = {
        f"p{n}": (
            name_of(n) if name_of else f"{fake.first_name_female()} {fake.last_name_female()}",
            f"TR-{draw.randrange(10**6, 10**7)}",
        )
        for n in range(subjects)
    }
    documents = [
        Document(f"{subject}-{n}", subject, note(draw, *person))
        for subject, person in people.items()
        for n in range(each)
    ]
    return documents, people


def marked(documents: list[Document]) -> dict[str, set[str]]:
    """Return the values that are marked, by label."""
    spans_of, _ = find_structure(documents)
    values: dict[str, set[str]] = {}
    for document, spans in zip(documents, spans_of, strict=True):
        for span in spans:
            assert (span.source, span.kind) == (SOURCE, "direct")
            values.setdefault(span.label, set()).add(document.value(span))
    return values


def test_names_and_numbers_that_stay_with_a_subject_are_learnt_and_nothing_else() -> None:
    documents, people = letters(20, each=2)
    assert marked(documents) == {
        "NAME": {name for name, _ in people.values()},
        "ID": {number for _, number in people.values()},
    }


def test_numbers_of_one_format_are_learnt_from_one_note_a_subject() -> None:
    documents, people = letters(30)
    assert marked(documents) == {"ID": {number for _, number in people.values()}}


def test_what_others_mark_in_half_of_the_notes_is_marked_in_all() -> None:
    """Patterns know every third name; a name that nobody could know is marked with them."""

    def name(number: int) -> str:
        return f"Zyx{'abcdefghijklmnopqrst'[number]}quor" if number % 3 == 0 else names[number]

    fake = Faker("en_US")
    fake.seed_instance(1)
    names = [f"{fake.first_name_female()} {fake.unique.last_name()}" for _ in range(20)]
    documents, _ = letters(20, name_of=name)
    settings = {"without": ScanSettings(patterns=True),
                "with": ScanSettings(patterns=True, structure=True)}  # fmt: skip
    invented = {name(number) for number in range(0, 20, 3)}
    known = {}
    for key, setting in settings.items():
        scanned = detect(Corpus(documents), setting)
        known[key] = {d.value(span) for d in scanned for span in d.spans if span.label == "NAME"}
    assert not invented & known["without"]
    assert invented <= known["with"]
    assert scanned.notes[0].startswith("2 header fields learnt from lines that recur: ID (1), NAME")
    assert not any(name in scanned.notes[0] for name in names)


def test_few_subjects_teach_nothing() -> None:
    documents, _ = letters(7, each=4)
    assert marked(documents) == {}


def test_ordinary_notes_have_no_field_whose_values_identify() -> None:
    """Findings, drugs and diagnoses differ from note to note, and name nobody."""
    draw = random.Random(1)
    words = ["Aspirin", "Ramipril", "Metformin", "Torasemid", "Warfarin", "Bisoprolol", "Insulin"]
    documents = [
        Document(str(number), str(number // 2), (
            f"Medication: {' '.join(draw.sample(words, 3))}\n"
            f"BP: {draw.randrange(90, 180)}/{draw.randrange(50, 100)}\n"
            f"Platelets: {draw.randrange(80, 999)},000\nDose: {draw.randrange(10**6, 10**7)} IU\n"
            f"Impression: {draw.choice(words)} was given, {draw.choice(words).lower()} stopped.\n"
        ))
        for number in range(60)
    ]  # fmt: skip
    values = marked(documents)
    assert not any(word in value for found in values.values() for value in found for word in words)
    assert values == {}
