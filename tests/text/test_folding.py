"""Folding: against a slow version, and that one value is one value wherever it is looked for."""

import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sani.auditing.cues import CueFinder
from sani.auditing.identifier_index import Hit, IdentifierIndex
from sani.corpus.documents import TERM_SOURCE, Corpus, Document, Span
from sani.errors import CheckpointError
from sani.releasing.identifiers_in_files import check_texts
from sani.scanning.inventory import take_inventory
from sani.scanning.propagation import propagate
from sani.scanning.terms import Finder, read_terms
from sani.text.folding import fold, fold_text
from sani.values.decoys import DecoyMaker
from sani.values.phrases import words_of

# --- against a slow version -----------------------------------------------------------------------

SPELLED = {
    "ł": "l", "ø": "o", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ħ": "h", "ŧ": "t",
    "ŋ": "n", "\u0131": "i", "\u2044": "/",
}  # fmt: skip
APOSTROPHES = set(
    "'`\u00b4\u02b9\u02bb\u02bc\u02bd\u02ca\u02cb\u055a\u05f3\u2018\u2019\u201b"
) | set("\u2032\u2035\ua78c")
FILLERS = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x3164, 0xFFA0}


def slow_character(character: str) -> str:
    """One character, by a chain of questions about each part of its decomposition."""
    if character in APOSTROPHES:
        return "'"
    if unicodedata.name(character, "").startswith("HANGUL SYLLABLE"):
        return character
    parts = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    result = ""
    for part in " " if character.isspace() else parts:
        code, category = ord(part), unicodedata.category(part)
        filler = code in FILLERS or 0xFE00 <= code < 0xFE10 or 0xE0100 <= code < 0xE01F0
        accent = category == "Mn" and unicodedata.combining(part) > 0
        if part.isspace():
            result += " "
        elif category == "Nd":
            result += str(int(part))
        elif part in APOSTROPHES:
            result += "'"
        elif category == "Pd" or part in "\u02d7\u2043\u2212":
            result += "-"
        elif not (filler or accent or category in ("Cf", "Me")):
            result += SPELLED.get(part, part)
    return result


def slow_fold(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The folded text and where each of its characters stands, one character after the other."""
    pieces = [(at, part) for at, one in enumerate(text) for part in slow_character(one)]
    kept: list[tuple[int, str]] = []
    for at, part in pieces:
        if not (part == " " and kept and kept[-1][1] == " "):
            kept.append((at, part))
    joined: list[tuple[int, str]] = []
    for at, part in kept:  # a Hangul syllable grows as long as its next letter joins it
        grown = unicodedata.normalize("NFC", joined[-1][1] + part) if joined else ""
        if len(grown) == 1 and unicodedata.name(grown, "").startswith("HANGUL SYLLABLE"):
            joined[-1] = (joined[-1][0], grown)
        else:
            joined.append((at, part))
    starts = [at for at, _ in joined]
    ends = [min((s for s in starts if s > at), default=len(text)) for at in starts]
    return "".join(part for _, part in joined), list(zip(starts, ends, strict=True))


ODD = "ßẞłŁøæœđÞİ\u0131\u017fŉǆǅ\ufb01\ufb02\ufb00\ufb05…½²①ªº№\uff20\uff21\uff19\uff0d\uff07"
ODD += "\u00b4`\u2019\u2013—\u2212\u00a0\u2009\u200b\u00ad\ufe0f\u20e3\u0301\u0327\u093c\u094d"
ODD += "\u0941\u1112\u1161\u11ab한하ᄒ\uff76\uff9eガが\u0664\u096aΣςϊΐᾳ\u0000\ufdfa \n\t-'aZ1"
TEXTS = st.text(st.one_of(st.sampled_from(ODD), st.characters()), max_size=30)


@settings(max_examples=500, deadline=None)
@example("Ana \u00ad Ruiz")  # a soft hyphen parts two blanks
@example("\u200b")
@example("\u1112\u1161\u11ab\u11ab")  # a fourth letter joins no syllable
@example("\ufdfa\u0301 x")
@given(TEXTS)
def test_folding_gives_what_a_slow_version_gives(text: str) -> None:
    folded = fold(text)
    expected, places = slow_fold(text)
    assert folded.text == expected
    assert list(zip(folded.starts.tolist(), folded.ends.tolist(), strict=True)) == places
    assert fold_text(text) == expected.strip(" ")
    assert fold(folded.text).text == folded.text
    for first in range(len(places)):
        assert folded.original(first, len(places)) == (places[first][0], places[-1][1])


def test_every_character_folds_as_in_the_slow_version_and_no_further() -> None:
    planes = [
        *range(0x3400),
        *range(0xA000, 0xAC10),
        *range(0xD7A0, 0x20000),
        *range(0xE0000, 0xE0200),
    ]
    for code in planes:
        folded = fold_text(f"a{chr(code)}b")
        assert folded == slow_fold(f"a{chr(code)}b")[0], hex(code)
        assert fold_text(folded) == folded, hex(code)


def test_folding_knows_accents_combining_marks_digits_and_blanks() -> None:
    assert fold("JOSE\u0301 \n\tMüller\u00a0Ñ").text == "jose muller n"
    assert fold("\u0661\u0662\u0663 \uff14\uff15").text == "123 45"
    text = "x\u0301\u0302y"
    assert fold(text).original(0, 1) == (0, 3)
    assert fold("aßb").original(1, 2) == fold("aßb").original(2, 3) == (1, 2)


def test_words_that_differ_in_a_vowel_sign_are_not_the_same() -> None:
    assert fold_text("\u0938\u0941\u0928\u093e") != fold_text("\u0938\u0928\u093e")


# --- one value, wherever it is looked for ---------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """One value in two ways to write it."""

    value: str
    other: str


NFD = "Jose\u0301 Nu\u0301n\u0303ez"
VARIANTS = {
    "sharp s": Written("Anna Strauß", "Anna Strauss"),
    "capital sharp s": Written("Anna STRAUẞ", "Anna Strauss"),
    "l with stroke": Written("Wałęsa Lech", "Walesa Lech"),
    "o with stroke": Written("Søren Sørensen", "Soren Sorensen"),
    "d with stroke": Written("Novak Đoković", "Novak Dokovic"),
    "ae in one letter": Written("Jon Æbersen", "Jon Aebersen"),
    "oe in one letter": Written("Marie Lecœur", "Marie Lecoeur"),
    "ligature fi": Written("Rafi Griffin", "Ra\ufb01 Griffin"),
    "ligature ffl": Written("Ana Loeffler", "Ana Loe\ufb04er"),
    "ligature fl": Written("Ana Reinfluss", "Ana Rein\ufb02uss"),
    "full width": Written("Tanaka Ken", "\uff34\uff41\uff4e\uff41\uff4b\uff41 \uff2b\uff45\uff4e"),
    "full width digits": Written("5551234567", "\uff15\uff15\uff15\uff11\uff12\uff13\uff14567"),
    "other widths": Written("Tanaka Ken", "\U0001d413anaka \u212aen"),
    "no-break blank": Written("Maria Lopez", "Maria\u00a0Lopez"),
    "thin blank": Written("Maria Lopez", "Maria\u2009Lopez"),
    "narrow no-break blank": Written("Maria Lopez", "Maria\u202fLopez"),
    "ideographic blank": Written("Maria Lopez", "Maria\u3000Lopez"),
    "line break": Written("Maria Lopez", "Maria \n  Lopez"),
    "soft hyphen": Written("Maria Lopez", "Ma\u00adria Lo\u00adpez"),
    "zero-width blank": Written("Maria Lopez", "Mar\u200bia Lopez"),
    "zero-width joiner": Written("Maria Lopez", "Maria Lo\u200dpez"),
    "word joiner": Written("Maria Lopez", "Maria\u2060 Lopez"),
    "decomposed": Written(unicodedata.normalize("NFC", NFD), NFD),
    "composed": Written(NFD, unicodedata.normalize("NFC", NFD)),
    "decomposed Hangul": Written("남궁 민수", unicodedata.normalize("NFD", "남궁 민수")),
    "without accents": Written("José Núñez", "Jose Nunez"),
    "capitals": Written("José Núñez", "JOSÉ NÚÑEZ"),
    "typographic apostrophe": Written("Ann O'Brien", "Ann O\u2019Brien"),
    "modifier apostrophe": Written("Ann O'Brien", "Ann O\u02bcBrien"),
    "accent for an apostrophe": Written("Ann O'Brien", "Ann O\u00b4Brien"),
    "prime for an apostrophe": Written("Ann O\u2019Brien", "Ann O\u2032Brien"),
    "no-break hyphen": Written("Ana Gil-Ruiz", "Ana Gil\u2011Ruiz"),
    "hyphen": Written("Ana Gil-Ruiz", "Ana Gil\u2010Ruiz"),
    "dash": Written("Ana Gil-Ruiz", "Ana Gil\u2013Ruiz"),
    "long dash": Written("Ana Gil-Ruiz", "Ana Gil\u2014Ruiz"),
    "minus": Written("555-123-4567", "555\u2212123\u22124567"),
    "small hyphen": Written("Ana Gil-Ruiz", "Ana Gil\ufe63Ruiz"),
}  # fmt: skip
WAYS = [
    pytest.param(Written(*pair), id=f"{name}{way}")
    for name, one in VARIANTS.items()
    for way, pair in (("", (one.value, one.other)), (", back", (one.other, one.value)))
]
BEFORE, BEHIND = "Seen today: ", ", who feels better."


def label_of(value: str) -> str:
    return "PHONE" if value[-1].isdecimal() else "NAME"


def document(number: int, value: str, *, marked: bool) -> Document:
    spans = (Span(len(BEFORE), len(BEFORE) + len(value), label_of(value)),) if marked else ()
    return Document(f"d{number}", "s", f"{BEFORE}{value}{BEHIND}", spans)


def wholly(value: str) -> tuple[int, int]:
    return len(BEFORE), len(BEFORE) + len(value)


@pytest.mark.parametrize("written", WAYS)
def test_propagation_finds_a_value_in_any_writing_and_where_it_stands(written: Written) -> None:
    documents = [
        document(0, written.value, marked=True), document(1, written.other, marked=False),
        document(2, "nobody", marked=False),
    ]  # fmt: skip
    found = propagate(documents)
    assert wholly(written.other) in {(span.start, span.end) for span in found[1]}
    assert found[2] == []


@pytest.mark.parametrize("written", WAYS)
def test_the_inventory_counts_an_unmarked_value_in_any_writing(written: Written) -> None:
    marked, unmarked = (document(n, v, marked=not n) for n, v in
                        enumerate((written.value, written.other)))  # fmt: skip
    assert take_inventory(Corpus([marked, unmarked])).unmarked == 1
    assert take_inventory(Corpus([marked, document(1, "nobody", marked=False)])).unmarked == 0


@pytest.mark.parametrize("written", WAYS)
def test_a_term_is_found_in_any_writing_and_where_it_stands(
    written: Written, tmp_path: Path
) -> None:
    (tmp_path / "terms.txt").write_text(" ".join(written.value.split("\n")), encoding="utf-8")
    text = document(0, written.other, marked=False).text
    found = list(Finder(read_terms(tmp_path / "terms.txt")).find(text))
    assert [(span.start, span.end) for span in found] == [wholly(written.other)]


@pytest.mark.parametrize("written", WAYS)
def test_the_audit_of_generated_text_finds_a_value_in_any_writing(written: Written) -> None:
    index = IdentifierIndex(Corpus([document(0, written.value, marked=True)]))
    assert index.find(document(1, written.other, marked=False).text) == [Hit(0, exact=True)]
    assert index.find(document(1, "nobody", marked=False).text) == []
    both = Corpus([document(n, v, marked=True)
                   for n, v in enumerate((written.value, written.other))])  # fmt: skip
    assert len(IdentifierIndex(both)) == 1


@pytest.mark.parametrize("written", WAYS)
def test_a_value_in_another_writing_is_a_cue(written: Written) -> None:
    text = f"{written.other} came. {BEFORE}{written.value}{BEHIND}"
    start = text.index(written.value, len(written.other) + 1)
    end = start + len(written.value)
    cues = CueFinder(text)
    assert cues.cued(start, end, [(0, start)])
    assert not cues.cued(start, end, [(len(written.other), start)])


@pytest.mark.parametrize("written", WAYS)
def test_a_decoy_stands_nowhere_in_any_writing(written: Written) -> None:
    assert words_of(written.value) == words_of(written.other)
    texts = [document(0, written.value, marked=True), document(1, "Bo Ek", marked=True)]
    corpus = Corpus([*texts, document(2, written.other, marked=False)])
    index = DecoyMaker([corpus], seed=0)._index
    assert index.texts_with(words_of(written.value)).tolist()[:2] == [0, 2]


def test_a_name_that_the_corpus_writes_otherwise_is_no_decoy() -> None:
    def maker(prose: str) -> DecoyMaker:
        pairs = ["Eva Strauß", "Mia Łapa", "Ana Sol"]
        documents = [document(n, pair, marked=True) for n, pair in enumerate(pairs)]
        return DecoyMaker([Corpus([*documents, Document("p", "p", prose)])], seed=0)

    others = {"Mia Strauß", "Eva Łapa"}
    assert others <= set(maker("").decoys("NAME", "Ana Sol", count=40))
    seen = maker("MIA STRAUSS and eva lapa")
    assert not others & set(seen.decoys("NAME", "Ana Sol", count=40))


@pytest.mark.parametrize("source", ["annotation", TERM_SOURCE])
@pytest.mark.parametrize("written", WAYS)
def test_a_release_is_refused_for_a_value_in_any_writing(
    written: Written, source: str, tmp_path: Path
) -> None:
    span = Span(0, len(written.value), "NAME", "direct", source)
    corpus = Corpus([Document("d", "s", written.value, (span,))])
    config = tmp_path / "config.json"
    for escaped in (True, False):
        config.write_text(json.dumps({"note": "nobody"}, ensure_ascii=escaped), encoding="utf-8")
        check_texts(tmp_path, corpus)
        note = f"{BEFORE}{written.other}{BEHIND}"
        config.write_text(json.dumps({"note": note}, ensure_ascii=escaped), encoding="utf-8")
        with pytest.raises(CheckpointError, match=re.escape("config.json holds 1 identifiers")):
            check_texts(tmp_path, corpus)
