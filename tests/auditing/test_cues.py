"""Cue control: what can be read off the text it is asked with is no memory."""

import itertools
import re
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sani.auditing.audit import audit
from sani.auditing.cues import CueFinder
from sani.corpus.documents import Corpus, Document, Span
from sani.models.checkpoint import Checkpoint
from sani.recipe import AuditSettings
from tests.support.clinic import Clinic


def cued(before: str, value: str, behind: str = "", *, masked: bool = False) -> bool:
    text = before + value + behind
    start, end = len(before), len(before) + len(value)
    seen = [(0, start), (end, len(text))] if masked else [(0, start)]
    return CueFinder(text).cued(start, end, seen)


@pytest.mark.parametrize(
    ("before", "value", "expected"),
    [
        ("Seen by Dr. Juan García. Signed: ", "García", True),
        ("Seen by Dr. Juan GARCIA. Signed: ", "García", True),
        ("Seen by Dr. Juan Garci\u0301a. Signed: ", "Juan García", True),
        ("Seen by Dr. Juan Garciada. Signed: ", "Juan García", False),  # one of two
        ("Patient Juan García Pérez, mail ", "juan.garcia@mail.example", True),
        ("Patient Juan García Pérez, mail ", "jgarcia@x.org", True),
        ("Patient Juan García Pérez, mail ", "secretary@hospital.example", False),
        ("Write to info@gmail.com. Mail ", "lu82@gmail.com", False),
        ("Write to info@gmail.com. Mail ", "info@gmail.com", True),
        ("Patient Juan García Pérez, mail ", "garcia1951@mail.example", False),
        ("Springfield, Illinois 62704. ", "483 Hazel Lane, Springfield, Illinois 62704", False),
        ("Telephone 217-555-0100. ", "217-555-9317", False),
        ("Dr. García. Patient ", "Juan García", False),
        ("Mother Chen Li, patient ", "Chen Yu", False),
        ("Chen Li. Patient ", "Chen Li", True),
        ("Admitted 12/03/2021, discharged ", "12/03/2021", True),
        ("Admitted 12/03/2021, discharged ", "14/03/2021", False),  # the day is not given
        ("Admitted 12/03/2021, discharged ", "17/09/2021", False),
        ("Admitted 3 April 2021, seen on ", "03/04/2021", True),  # in another writing
        ("Admitted 4 March 2021, seen on ", "03/04/2021", True),  # which leaves it open
        ("Admitted 3 April 2021, seen on ", "05/06/2021", False),
        ("Record 4711. ", "4711", True),
        ("Record 47110. ", "4711", False),
        ("Sex: M. Sex: ", "M", True),
        ("Sex: F. Sex: ", "M", False),
        ("Nothing here. ", "+++", False),
        ("", "García", False),
    ],
)
def test_what_gives_a_value_away(before: str, value: str, expected: bool) -> None:
    assert cued(before, value) is expected


def test_only_what_stands_in_the_input_counts() -> None:
    behind = " and again García"
    assert not cued("Doctor ", "García", behind)
    assert cued("Doctor ", "García", behind, masked=True)
    text = "García was seen. " + "x " * 50 + "García"
    start = text.rindex("García")
    assert CueFinder(text).cued(start, len(text), [(0, start)])
    assert not CueFinder(text).cued(start, len(text), [(20, start)])


def slow(text: str, start: int, end: int) -> bool:
    """The rule as the docstring says it, without an index."""

    def words(part: str) -> list[str]:
        found = re.findall(r"[^\W\d_]+|\d+", part)
        plain = [unicodedata.normalize("NFKD", word) for word in found]
        return ["".join(c for c in w if not unicodedata.combining(c)).casefold() for w in plain]

    before, own = words(text[:start]), words(text[start:end])
    if any(before[i : i + len(own)] == own for i in range(len(before))):
        return bool(own)
    pairs = list(itertools.pairwise(before))
    told, total = 0, 0
    for number, word in enumerate(own):
        if len(word) >= 2:
            total += len(word)
            if word.isdigit() and len(word) < 4:
                beside = list(itertools.pairwise(own[max(0, number - 1) : number + 2]))
                told += len(word) * any(pair in pairs for pair in beside)
            else:
                told += len(word) * (word in before)
    return told == total > 0


@given(
    before=st.lists(st.sampled_from(["Ana", "ana", "García", "12", "7", "2021", "-", "de"])),
    own=st.lists(st.sampled_from(["Ana", "García", "12", "7", "2021", "de"]), min_size=1),
)
def test_the_index_finds_what_a_search_over_the_text_finds(before: Any, own: Any) -> None:
    head = "".join(word + " " for word in before)
    value = " ".join(own)
    assert cued(head, value) == slow(head + value, len(head), len(head + value))


def test_cued_and_uncued_figures_add_up_and_a_copied_name_is_cued(
    clinic: Clinic, leaky: Checkpoint
) -> None:
    found = audit(leaky, clinic.private, AuditSettings(decoys=2, swaps=0, framing="bos"))
    for kind in ("direct", "indirect"):
        whole, cued_, uncued = (found.figures[kind + s] for s in ("", ":cued", ":uncued"))
        assert whole.greedy.trials == cued_.greedy.trials + uncued.greedy.trials
        assert whole.greedy.hits == cued_.greedy.hits + uncued.greedy.hits
    assert found.figures["direct:cued"].greedy.trials > 0
    assert found.figures["direct:uncued"].greedy.trials > 0

    name = "Aurelia Quist"
    text = f"Patient {name}. Once more: {name}."
    spans = [Span(m.start(), m.end(), "NAME") for m in re.finditer(name, text)]
    one = audit(leaky, Corpus([Document("1", "1", text, tuple(spans))]), AuditSettings(decoys=0))
    assert one.occurrences.cued.tolist() == [False, True]
    assert np.array_equal(one.occurrences.span, [0, 1])


@pytest.mark.false_clean
@pytest.mark.parametrize(
    ("before", "value", "cued"),
    [
        ("Age 56. TA 12/78, FC 34. Tel: ", "06 12 34 56 78", False),
        ("Na 41, K 55, pH 7.41, 90 bpm. MRN ", "41-55-90", False),
        ("Urea 45, Na 123. SSN ", "123-45-6789", False),
        ("Call 06 12 34 56 78. Tel: ", "06 12 34 56 78", True),
        ("Old number 41-55-91. MRN ", "41-55-90", False),
        ("MRN ends in 6789. SSN ", "123-45-6789", False),
    ],
)
def test_pulses_and_doses_do_not_give_a_long_number_away(
    before: str, value: str, cued: bool
) -> None:
    text = before + value
    finder = CueFinder(text)
    assert finder.cued(len(before), len(text), [(0, len(before))]) == cued
