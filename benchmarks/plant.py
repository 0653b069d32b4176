"""Plant invented identities in real clinical notes (mtsamples, which holds none).

Names are those of the Enron pairs and streets those of presidio_synth, so that they do not come
from the lists that the scan and the decoys use.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

from sani.corpus.documents import Corpus, Document, Span
from sani.corpus.readers import read_corpus

SENTENCES = {
    "NAME": [
        "{name} was seen in clinic today.", "The patient, {name}, agreed to the plan.",
        "Her husband {name} was at the bedside.", "cc: {name}, MD", "Dictated by {name}.",
        "We discussed this with {given} at length.", "Mr. {surname} tolerated it well.",
        "{upper}", "Patient Name: {name}",
    ],
    "ADDRESS": ["He lives at {street}.", "Address: {street}", "She was brought from {street}."],
    "ZIP": ["ZIP {zip}.", "mail to {zip}"],
    "DATE": ["Admitted {date}.", "DOB: {date}", "seen on {written}", "follow up {short}"],
    "AGE": ["This {old}-year-old was admitted.", "She turned {old} last week."],
    "PHONE": ["Call {phone} with results.", "Phone: {phone}", "reached at {phone}"],
    "FAX": ["Fax: {phone}", "faxed to {phone}"],
    "EMAIL": ["E-mail {email}.", "contact {email}"],
    "SSN": ["SSN: {ssn}", "social security {ssn}", "({ssn})"],
    "MRN": ["MRN: {code}", "medical record number {number}", "Chart {number}",
                         "#{number}"],
    "PLAN": ["Member ID {code}", "insurance policy {code}", "Medicare {code}"],
    "ACCOUNT": ["Account number {number}", "billed to acct {number}"],
    "LICENSE": ["DEA {code}", "license number {code}", "NPI {number}0"],
    "VEHICLE": ["license plate {plate}", "the car, plate {plate}, rolled over"],
    "DEVICE": ["pacemaker serial number {code}", "S/N {code}", "implant lot {code}"],
    "URL": ["see {url}", "portal: {url}"],
    "IP": ["logged in from {ip}", "IP {ip}"],
    "ID": ["accession {code}", "specimen {code}", "case no. {number}",
                        "study ID {code}"],
}  # fmt: skip
OF_A_PATIENT = {
    "NAME": [
        *SENTENCES["NAME"][:1], "The patient, {name}, agreed to the plan.", "Patient Name: {name}",
    ],
    "ADDRESS": SENTENCES["ADDRESS"],
    "DATE_OF_BIRTH": ["DOB: {date}", "Date of birth: {date}"],
    "MRN": ["MRN: {number}", "medical record number {number}"],
    "PHONE": SENTENCES["PHONE"][:2],
}  # fmt: skip


def plant(corpora: Path, *, limit: int | None = None, seed: int = 0) -> Corpus:
    """Notes of mtsamples, each with one sentence of every label at a random line.

    Args:
        corpora: Folder of the public corpora.
        limit: The first so many notes.
        seed: Of places, sentences and values.
    """
    chance = random.Random(seed)
    people, mails, streets = _real_values(corpora)
    planted = []
    for note in read_corpus(corpora / "mtsamples/train.jsonl", limit=limit):
        text, spans, lines = "", [], note.text.split("\n")
        places = sorted(chance.randrange(len(lines) + 1) for _ in SENTENCES)
        order = chance.sample(sorted(SENTENCES), len(SENTENCES))
        for number, line in enumerate([*lines, ""]):
            while places and places[0] == number:
                places.pop(0)
                label = order.pop()
                before, field, after = _split(chance.choice(SENTENCES[label]))
                value = _value(field, chance, people, mails, streets)
                text += before
                spans.append(Span(len(text), len(text) + len(value), label, "direct"))
                text += value + after + "\n"
            text += line + "\n"
        planted.append(Document(note.id, note.id, text, tuple(spans)))
    return Corpus(planted)


def plant_patients(
    corpora: Path, *, patients: int, notes: int = 3, characters: int = 700, seed: int = 0
) -> Corpus:
    """Notes of mtsamples in which the same people stand again and again, as in a hospital.

    Every note of a person bears the same name, record number, birth date, address and telephone
    number, each in a sentence of its own at a random sentence of the note.

    Args:
        corpora: Folder of the public corpora.
        patients: Number of people.
        notes: Number of notes of each.
        characters: A note of mtsamples is cut after so many, at the end of a sentence.
        seed: Of people, places and sentences.
    """
    chance = random.Random(seed)
    people, _, streets = _real_values(corpora)
    texts = read_corpus(corpora / "mtsamples/train.jsonl", limit=patients * notes)
    names = chance.sample(sorted(set(people)), patients)
    homes = chance.sample(sorted(set(streets)), patients)
    planted = []
    for number, (name, street) in enumerate(zip(names, homes, strict=True)):
        values = {
            "NAME": name,
            "ADDRESS": street,
            "DATE_OF_BIRTH": _value("date", chance, people, (), streets),
            "MRN": _value("number", chance, people, (), streets),
            "PHONE": _value("phone", chance, people, (), streets),
        }
        for note in texts[number * notes : (number + 1) * notes]:
            sentences = note.text[:characters].replace("\n", " ").split(". ")[:-1]
            places = sorted(chance.randrange(len(sentences) + 1) for _ in values)
            order = chance.sample(sorted(values), len(values))
            text, spans = "", []
            for place, sentence in enumerate([*sentences, ""]):
                while places and places[0] == place:
                    places.pop(0)
                    label = order.pop()
                    before, _, after = _split(chance.choice(OF_A_PATIENT[label]))
                    text += before
                    spans.append(Span(len(text), len(text) + len(values[label]), label, "direct"))
                    text += values[label] + after + "\n"
                text += f"{sentence.strip()}.\n" if sentence.strip() else ""
            planted.append(Document(note.id, f"patient-{number}", text, tuple(spans)))
    return Corpus(planted)


def _real_values(corpora: Path) -> tuple[list[str], list[str], list[str]]:
    """Return names, e-mail addresses and streets of the public corpora."""
    pairs = read_corpus(corpora / "enron_pairs/test.jsonl")
    synth = read_corpus(corpora / "presidio_synth/test.jsonl")
    people = [d.value(d.spans[0]) for d in pairs]
    people = [name for name in people if len(name.split()) > 1]
    mails = [d.value(d.spans[1]) for d in pairs]
    streets = [d.value(s) for d in synth for s in d.spans if s.label == "STREET_ADDRESS"]
    return people, mails, [value.split("\n")[0] for value in streets if " " in value]


def _split(sentence: str) -> tuple[str, str, str]:
    before, rest = sentence.split("{")
    field, after = rest.split("}")
    return before, field, after


def _value(
    field: str,
    chance: random.Random,
    people: Sequence[str],
    mails: Sequence[str],
    streets: Sequence[str],
) -> str:
    def digits(count: int) -> str:
        return "".join(chance.choices("0123456789", k=count))

    def letters(count: int) -> str:
        return "".join(chance.choices("ABCDEFGHJKLMNPRSTVWXYZ", k=count))

    day, month, year = chance.randint(1, 28), chance.randint(1, 12), chance.randint(1930, 2024)
    name = chance.choice(people)
    match field:
        case "name":
            return name
        case "given" | "surname":
            return name.split()[0 if field == "given" else -1]
        case "upper":
            return name.upper()
        case "street":
            return chance.choice(streets)
        case "email":
            return chance.choice(mails)
        case "zip":
            return chance.choice([digits(5), f"{digits(5)}-{digits(4)}"])
        case "date":
            return chance.choice([f"{month}/{day}/{year}", f"{year}-{month:02}-{day:02}",
                                  f"{month:02}/{day:02}/{year % 100:02}"])  # fmt: skip
        case "short":
            return f"{month}/{day}"
        case "written":
            name = time.strftime("%B", (2000, month, 1, 0, 0, 0, 0, 1, 0))
            return chance.choice([f"{name} {day}, {year}", f"{day} {name[:3]} {year}"])
        case "old":
            return str(chance.randint(90, 104))
        case "phone":
            a, b, c = chance.randint(201, 989), digits(3), digits(4)
            return chance.choice([f"({a}) {b}-{c}", f"{a}-{b}-{c}", f"{a}.{b}.{c}", f"{a} {b} {c}",
                                  f"{b}-{c}"])  # fmt: skip
        case "ssn":
            return f"{chance.randint(100, 665)}-{digits(2)}-{digits(4)}"
        case "number":
            return digits(chance.randint(6, 9))
        case "code":
            shapes = (f"{letters(2)}{digits(6)}", f"{letters(3)}-{digits(5)}", digits(8))
            return chance.choice([*shapes, f"{digits(4)}-{letters(2)}"])
        case "plate":
            return chance.choice(
                [f"{letters(3)} {digits(4)}", f"{digits(1)}{letters(3)}{digits(3)}"]
            )
        case "url":
            return f"https://portal.{letters(6).lower()}.org/p/{digits(5)}"
        case "ip":
            return ".".join(str(chance.randint(1, 254)) for _ in range(4))
    raise ValueError(field)
