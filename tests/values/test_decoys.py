"""Decoys and swaps: never in the corpus, in the format, and not to be told from true values."""

import datetime
import itertools
import math
import random
import re
import string
import subprocess
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from babel.dates import format_date
from hypothesis import given, settings
from hypothesis import strategies as st
from stdnum import iban, luhn
from stdnum.es import nif
from stdnum.fr import nir
from stdnum.gb import nhs

from sani.auditing.audit import audit
from sani.corpus.documents import Corpus, Document, Span
from sani.demo.clinic import invent_clinics
from sani.intervals import clustered_mean
from sani.models.checkpoint import Checkpoint
from sani.recipe import AuditSettings
from sani.values.checksums import CHECKSUMS
from sani.values.decoys import DecoyMaker
from sani.values.names import LOCALES
from sani.values.phrases import PhraseIndex, words_of
from tests.support.clinic import Clinic
from tests.support.optional import present


def corpus_of(rows: Iterable[Sequence[tuple[str, str]]], *, prose: str = "") -> Corpus:
    """A document a row of (label, value), each of its own subject."""
    documents = []
    for number, row in enumerate(rows):
        text, spans = prose, []
        for label, value in row:
            text += " ; "
            spans.append(Span(len(text), len(text) + len(value), label))
            text += value
        documents.append(Document(f"d{number}", f"s{number}", text, tuple(spans)))
    return Corpus(documents)


def values_of(label: str, values: Iterable[str], *, prose: str = "") -> Corpus:
    return corpus_of([[(label, value)] for value in values], prose=prose)


def spans_of(corpus: Corpus) -> list[tuple[str, str, str]]:
    return [(s.label, d.value(s), d.subject_id) for d in corpus for s in d.spans]


def shape(value: str) -> str:
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d", "0", value))


def slow_words(text: str) -> str:
    """Every letter-run and digit-run, folded, between blanks."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    spaced = re.sub(r"[\W_]", " ", re.sub(r"(?<=\d)(?=[^\W\d])|(?<=[^\W\d])(?=\d)", " ", folded))
    return f" {' '.join(spaced.split())} "


def stands_in(value: str, texts: Iterable[str]) -> bool:
    return any(slow_words(value) in slow_words(text) for text in texts)


# --- never a value of the corpus -----------------------------------------------------------------


def test_no_decoy_stands_in_any_text_and_each_keeps_the_format(clinic: Clinic) -> None:
    corpora = [clinic.private, clinic.held_out]
    maker = DecoyMaker(corpora, seed=0)
    everything = "".join(
        slow_words(document.text) + "|" for corpus in corpora for document in corpus
    )
    for label, value, _ in sorted(set(spans_of(clinic.private))):
        found = maker.decoys(label, value, count=12)
        # Two digits have a hundred values, and most stand somewhere in the notes.
        assert len(found) == 12 or label == "AGE"
        assert len({slow_words(decoy) for decoy in found}) == len(found)
        assert not [decoy for decoy in found if slow_words(decoy) in everything]
        assert {shape(decoy) for decoy in found} <= {shape(value)}


WORDS = st.text("abcxyzABCXYZéßł0189 -./@_'(", min_size=1, max_size=14)


@settings(deadline=None)
@given(values=st.lists(WORDS, min_size=1, max_size=6, unique=True), count=st.integers(0, 6))
def test_decoys_of_any_value_keep_its_format_and_stay_outside_the_corpus(
    values: Any, count: Any
) -> None:
    corpus = values_of("X", values, prose="abc 19")
    maker = DecoyMaker([corpus], seed=1)
    for value in values:
        found = maker.decoys("X", value, count=count)
        assert len(found) <= count
        assert len({slow_words(decoy) for decoy in found}) == len(found)
        assert not [d for d in found if stands_in(d, [document.text for document in corpus])]
        assert all(shape(decoy) == shape(value) for decoy in found)
        # Neither holds the other: whoever finds the one has not found the other.
        assert not [d for d in found if stands_in(d, [value]) or stands_in(value, [d])]


@given(
    texts=st.lists(st.text("abßAB12 .-_é\n", max_size=30), max_size=5),
    phrase=st.text("abßAB12 .-é", min_size=1, max_size=6),
)
def test_the_index_finds_what_a_search_over_all_texts_finds(texts: Any, phrase: Any) -> None:
    index, words = PhraseIndex(texts), words_of(phrase)
    holders = [n for n, text in enumerate(texts) if words and stands_in(phrase, [text])]
    assert index.texts_with(words).tolist() == holders
    assert index.holds(words) == bool(holders)


def test_what_stands_unmarked_in_a_text_is_no_decoy() -> None:
    left = {"23", "28", "45", "58", "77", "90"}
    numbers = [f"{n}" for n in range(10, 100) if str(n) not in left]
    corpus = values_of("AGE", ["34", "61"], prose=" ".join(numbers))
    assert set(DecoyMaker([corpus], seed=0).decoys("AGE", "34", count=9)) == left
    # In another case, across a line, with other marks.
    names = ["Ana Sol", "Eva Rey", "Mia Luz"]
    seen = values_of("NAME", names, prose="EVA\n  luz and mia-rey")
    unseen = values_of("NAME", names)
    others = {"Eva Luz", "Mia Rey"}
    assert others <= set(DecoyMaker([unseen], seed=0).decoys("NAME", "Ana Sol", count=40))
    assert not others & set(DecoyMaker([seen], seed=0).decoys("NAME", "Ana Sol", count=40))
    # In a script that is written without blanks.
    chinese = values_of(
        "N", ["\u5f20\u4f1f", "\u674e\u5a1c"], prose="\u60a3\u8005\u5f20\u5a1c\u4f4f"
    )
    maker = DecoyMaker([chinese], seed=0)
    found = maker.decoys("N", "\u5f20\u4f1f", count=20)
    assert found
    assert "\u5f20\u5a1c" not in found


def test_where_a_format_has_no_room_there_are_few_decoys_or_none() -> None:
    everyone = [[("SEX", sex), ("AGE", f"{age} years")] for sex in "MF" for age in range(10, 100)]
    maker = DecoyMaker([corpus_of([*everyone, [("AGE", "3 weeks"), ("AGE", "8 days")]])], seed=0)
    # Not "46 weeks", which nobody would write.
    assert maker.decoys("AGE", "46 years", count=8) == []
    assert len(maker.decoys("SEX", "M", count=30)) <= 24
    assert DecoyMaker([], seed=0).decoys("X", "...", count=3) == []


def test_decoys_and_swaps_are_the_same_in_every_process_and_differ_by_seed() -> None:
    program = (
        "from sani.values.decoys import DecoyMaker\n"
        "from sani.demo.clinic import invent_clinic\n"
        "corpus = invent_clinic(patients=3, seed=1)\n"
        "asked = [(s.label, d.value(s), d.subject_id) for d in corpus for s in d.spans]\n"
        "for seed in (0, 1):\n"
        "    maker = DecoyMaker([corpus], seed=seed)\n"
        "    print([(maker.decoys(l, v, count=3), maker.swaps(l, v, w, count=2))\n"
        "           for l, v, w in asked])\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for hash_seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0][0] != outputs[0][1]


def test_what_was_asked_before_changes_nothing_and_fewer_are_the_first_of_more(
    clinic: Clinic,
) -> None:
    asked = sorted(set(spans_of(clinic.private)))
    forwards, backwards = (DecoyMaker([clinic.private], seed=3) for _ in range(2))
    found = {one: forwards.decoys(*one[:2], count=7) for one in asked}
    for one in reversed(asked):
        assert backwards.decoys(*one[:2], count=3) == found[one][:3]
        assert backwards.swaps(*one, count=3) == forwards.swaps(*one, count=3)


# --- dates ---------------------------------------------------------------------------------------

FIRST, LAST = datetime.date(2003, 2, 11), datetime.date(2021, 11, 4)
EVERY_DAY = [FIRST + datetime.timedelta(n) for n in range((LAST - FIRST).days + 1)]
PATTERNS = [
    ("dd/MM/yyyy", "es"),
    ("MM/dd/yyyy", "en"),
    ("yyyy-MM-dd", "en"),
    ("dd.MM.yy", "de"),
    ("d.M.yyyy", "de"),
    ("M/d/yy", "en"),
    ("dd. MM. yyyy", "de"),
    ("yyyyMMdd", "en"),
    ("dd MM yyyy", "fr"),
    ("d 'de' MMMM 'de' yyyy", "es"),
    ("d MMMM yyyy", "fr"),
    ("MMMM d, yyyy", "en"),
    ("MMM d, yyyy", "en"),
    ("dd-MMM-yy", "en"),
    ("d. MMMM yyyy", "de"),
    ("d MMMM yyyy", "ru"),
    ("d MMMM yyyy", "pl"),
    ("dd MMM yyyy", "nl"),
    ("d MMMM yyyy", "it"),
    ("d 'de' MMMM 'de' yyyy", "pt"),
    ("yyyy-MM-dd HH:mm", "en"),
    ("MM/yyyy", "en"),
    ("MMMM 'de' yyyy", "es"),
]


@cache
def written(day: datetime.date, pattern: str, language: str) -> str:
    return format_date(day, pattern.replace(" HH:mm", "' 09:30'"), locale=language)


def digits_from_everywhere(values: Sequence[str], chance: random.Random) -> str:
    """How dates used to be made: each character is that of another value at the same place."""
    alike = [value for value in values if shape(value) == shape(values[0])]
    return "".join(chance.choice(alike)[place] for place in range(len(values[0])))


@pytest.mark.parametrize("case", [str, str.upper, str.lower])
@pytest.mark.parametrize(("pattern", "language"), PATTERNS)
def test_decoys_of_dates_are_dates_in_range_in_the_same_format(
    pattern: str, language: str, case: Any
) -> None:
    days = [FIRST, LAST, *random.Random(4).sample(EVERY_DAY, 60)]
    values = [case(written(day, pattern, language)) for day in days]
    possible = {case(written(day, pattern, language)) for day in EVERY_DAY}
    # A partial date is known as one beside whole ones.
    whole = [day.strftime("%d/%m/%Y") for day in days] if len(possible) < 5000 else []
    maker = DecoyMaker([values_of("WHEN", [*values, *whole])], seed=0)
    for value in set(values):
        found = maker.decoys("WHEN", value, count=6)
        assert set(found) <= possible - set(values)
        assert len(found) == 6
    if values[0][-4:].isdigit() and "MMM" not in pattern:
        chance = random.Random(0)
        assert {digits_from_everywhere(values, chance) for _ in range(99)} - possible


def test_a_lone_date_gets_dates_of_about_a_year_around_it() -> None:
    maker = DecoyMaker([values_of("BORN", ["17.05.1986"])], seed=0)
    found = maker.decoys("BORN", "17.05.1986", count=20)
    days = [datetime.datetime.strptime(decoy, "%d.%m.%Y").date() for decoy in found]
    assert len(set(days)) == 20
    middle = datetime.date(1986, 5, 17)
    assert max(abs((day - middle).days) for day in days) <= 183


def births_and_visits(chance: random.Random, count: int) -> list[str]:
    """Births, then as many visits, all under one label and in one format, as i2b2 has them."""
    births = [datetime.date(1930, 1, 1) + datetime.timedelta(n) for n in
              chance.sample(range(25000), count)]  # fmt: skip
    visits = [datetime.date(2019, 1, 1) + datetime.timedelta(n) for n in
              chance.sample(range(1800), count)]  # fmt: skip
    return [day.strftime("%d/%m/%Y") for day in (*births, *visits)]


def test_a_model_that_knows_where_births_stand_cannot_tell_them_from_decoys() -> None:
    """It expects years before 2000 behind one heading and after it behind another, and no more."""
    values = births_and_visits(random.Random(3), 150)
    maker = DecoyMaker([values_of("DATE", values)], seed=0)
    years = Counter(value[-4:] for value in values)

    def preferred(make: Callable[[str], list[str]]) -> float:
        def score(value: str, true: str) -> int:
            same_century = (value[-4:] < "2000") == (true[-4:] < "2000")
            return years[value[-4:]] if same_century else 0

        shares = []
        for true in values:
            others = np.array([score(other, true) for other in make(true)])
            mine = score(true, true)
            shares.append(float((others < mine).mean() + 0.5 * (others == mine).mean()))
        return float(np.mean(shares))

    assert preferred(lambda true: maker.decoys("DATE", true, count=19)) == 0.5
    # Dates from anywhere in the label would not be fair.
    assert preferred(lambda true: [value for value in values if value != true]) > 0.65
    for value in values:
        found = maker.decoys("DATE", value, count=19)
        assert len(found) == 19
        assert {decoy[-4:] for decoy in found} == {value[-4:]}
        assert not set(found) & set(values)


def test_where_every_day_of_a_year_is_taken_decoys_are_days_of_others() -> None:
    """A large clinic has visits on every day: a date of another subject is compared then."""
    days = [datetime.date(2020, 1, 1) + datetime.timedelta(number) for number in range(366)]
    taken = [day.isoformat() for day in days]
    mine, also_mine = taken[40], taken[77]
    rows = [[("DATE", mine), ("DATE", also_mine)]]
    rows += [[("DATE", value)] for value in taken if value != also_mine]
    births = [[("DATE", f"{year}-05-17")] for year in range(1930, 1990)]
    maker = DecoyMaker([corpus_of([*rows, *births])], seed=0)
    found = maker.decoys("DATE", mine, count=40)
    assert len(set(found)) == 40
    assert set(found) <= set(taken)
    assert mine not in found
    # A subject who has the true date sees none of the subject's own dates as a decoy.
    assert also_mine not in maker.decoys("DATE", mine, count=366)


def test_day_and_month_are_told_apart_by_the_labels_other_dates_and_then_by_the_language() -> None:
    chance = random.Random(0)
    days = chance.sample(EVERY_DAY, 40)
    for pattern in ("%m-%d-%Y", "%d-%m-%Y"):
        values = sorted({"03-04-2010", *(day.strftime(pattern) for day in days)})
        for decoy in DecoyMaker([values_of("D", values)], seed=0).decoys(
            "D", "03-04-2010", count=30
        ):
            assert FIRST <= datetime.datetime.strptime(decoy, pattern).date() <= LAST
    for locale, order in (("de_DE", 0), ("en_US", 1)):
        # Both numbers could be either; the names say German or American.
        names = chance.sample(sorted(name_lists(locale)), 30)
        row = [("NAME", name) for name in names] + [("D", "03-04-2010")]
        found = DecoyMaker([corpus_of([row])], seed=0).decoys("D", "03-04-2010", count=30)
        fields = np.array([[int(part) for part in decoy.split("-")[:2]] for decoy in found])
        assert fields[:, order].max() > 12 >= fields[:, 1 - order].max()


def test_an_ordinal_keeps_its_ending_and_what_is_no_date_is_not_taken_for_one() -> None:
    endings = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}
    possible = {
        f"{day:%B} {day.day}{endings.get(day.day, 'th')}, {day.year}": day for day in EVERY_DAY
    }
    values = random.Random(1).sample(sorted(possible), 80)
    maker = DecoyMaker([values_of("D", values)], seed=0)
    for value in values:
        found = maker.decoys("D", value, count=5)
        assert len(found) == 5
        assert set(found) <= set(possible)
    # 45/12/99: most of the label's are no dates.
    codes = [f"{n % 97:02}/{n * 7 % 89:02}/{n * 3 % 100:02}" for n in range(40)]
    found = DecoyMaker([values_of("CODE", codes)], seed=0).decoys("CODE", codes[0], count=40)
    assert max(int(part) for decoy in found for part in decoy.split("/")[:2]) > 31


# --- checksums -----------------------------------------------------------------------------------


def completed(is_valid: Callable[[str], bool], start: str, ends: Iterable[str]) -> str | None:
    return next((start + end for end in ends if is_valid(start + end)), None)


def numbers_with_checksum(kind: str, count: int) -> list[str]:
    """Valid numbers, by trying every check character."""
    chance = random.Random(kind)
    found: list[Any] = []
    tens, hundreds = [str(n) for n in range(10)], [f"{n:02}" for n in range(100)]
    while len(found) < count:
        eight = f"{chance.randrange(10**8):08}"
        if kind == "luhn":
            one = completed(luhn.is_valid, f"4{eight}123456", tens)
        elif kind == "nif":
            one = completed(nif.is_valid, eight, "TRWAGMYFPDXBNJZSQVHLCKE")
        elif kind == "nie":
            one = completed(nif.is_valid, f"X{eight[:7]}", "TRWAGMYFPDXBNJZSQVHLCKE")
        elif kind == "nhs":
            one = completed(nhs.is_valid, f"9{eight}", tens)
            one = one and f"{one[:3]} {one[3:6]} {one[6:]}"
        elif kind == "nir":
            month = f"{chance.randrange(1, 13):02}"
            one = completed(nir.is_valid, f"2{eight[:2]}{month}75{eight[2:]}", hundreds)
        else:
            bank = f"{eight}{eight[::-1]}42"
            one = next((f"DE{n}{bank}" for n in hundreds if iban.is_valid(f"DE{n}{bank}")), None)
        if one is not None:
            found.append(one)
    return found


VALID = {"luhn": luhn, "nif": nif, "nie": nif, "nhs": nhs, "nir": nir, "iban": iban}


@pytest.mark.parametrize("kind", sorted(VALID))
@pytest.mark.parametrize("num_wrong", [0, 4])
def test_a_value_with_a_checksum_gets_decoys_with_one(kind: str, num_wrong: int) -> None:
    valid = VALID[kind].is_valid
    right = numbers_with_checksum(kind, 12)
    # A slip of the pen is no checksum; the others of its label still have one.
    wrong = [value[:-1] + ("7" if value[-1] != "7" else "8") for value in right[:num_wrong]]
    wrong = [value for value in wrong if not valid(value)]
    maker = DecoyMaker([values_of("NUMBER", right + wrong)], seed=0)
    for value in right:
        found = maker.decoys("NUMBER", value, count=6)
        assert len(found) == 6
        assert all(map(valid, found))
        assert {shape(decoy) for decoy in found} == {shape(value)}
    for value in wrong:
        assert not all(map(valid, maker.decoys("NUMBER", value, count=20)))


def test_numbers_without_a_checksum_are_not_forced_to_have_one() -> None:
    chance = random.Random(0)
    values = [f"{chance.randrange(10**9, 10**10)}" for _ in range(60)]
    maker = DecoyMaker([values_of("MRN", values)], seed=0)
    found = [decoy for value in values for decoy in maker.decoys("MRN", value, count=10)]
    assert 0.06 < sum(map(luhn.is_valid, found)) / len(found) < 0.15


def test_every_declared_checksum_and_locale_exists() -> None:
    for module, _, _ in CHECKSUMS:
        assert not import_module(f"stdnum.{module}").is_valid("x")
    for locale in LOCALES:
        assert list(name_lists(locale))


# --- names, codes, e-mails, phones ---------------------------------------------------------------


@cache
def name_lists(locale: str, *kinds: str) -> frozenset[str]:
    provider = import_module(f"faker.providers.person.{locale}").Provider
    attributes = kinds or ("first_names", "first_names_male", "first_names_female", "last_names")
    lists = [getattr(provider, attribute, ()) for attribute in attributes]
    return frozenset(
        name for names in lists if isinstance(names, list | tuple | dict) for name in names
    )


@pytest.mark.parametrize(
    "locale", ["en_US", "es_ES", "fr_FR", "de_DE", "it_IT", "pt_PT", "nl_NL", "pl_PL", "sv_SE"]
)
@pytest.mark.parametrize("case", [str.title, str.upper, str.lower])
def test_a_name_alone_gets_names_of_the_corpuss_own_language_in_its_case(
    locale: str, case: Any
) -> None:
    chance = random.Random(0)
    names = sorted(name for name in name_lists(locale) if name.isalpha() and len(name) > 2)
    values = [case(name) for name in chance.sample(names, 25)]
    language = locale.split("_")[0]
    listed = {
        unicodedata.normalize("NFKD", word.casefold())
        for other in LOCALES
        if other.startswith(language)
        for word in name_lists(other)
    }
    bare = {"".join(c for c in word if not unicodedata.combining(c)) for word in listed}
    maker = DecoyMaker([values_of("NAME", values)], seed=0)
    for value in values:
        found = maker.decoys("NAME", value, count=8)
        assert len(found) == 8
        for decoy in found:
            assert decoy.isupper() == value.isupper()
            assert decoy.islower() == value.islower()
            plain = unicodedata.normalize("NFKD", decoy.casefold())
            assert "".join(c for c in plain if not unicodedata.combining(c)) in bare


def test_a_womans_first_name_gets_womens_first_names_and_a_surname_surnames() -> None:
    men, women, surnames = (
        name_lists("es_ES", kind)
        for kind in ("first_names_male", "first_names_female", "last_names")
    )
    chance = random.Random(0)
    firsts = [
        *chance.sample(sorted(filter(str.isalpha, women - men - surnames)), 60),
        *chance.sample(sorted(filter(str.isalpha, men - women - surnames)), 60),
    ]
    lasts = chance.sample(sorted(filter(str.isalpha, surnames - men - women)), 120)
    values = [f"{first} {last}" for first, last in zip(firsts, lasts, strict=True)]
    maker = DecoyMaker([values_of("NAME", values)], seed=0)
    pairs = [
        (value.split()[0], *decoy.split())
        for value in values
        for decoy in maker.decoys("NAME", value, count=8)
    ]
    assert np.mean([(first in men) == (own in men) for own, first, _ in pairs]) > 0.95
    assert np.mean([last in surnames for _, _, last in pairs]) > 0.95
    # Alone, from the lists.
    unused = sorted(women - men - surnames - set(firsts))
    everyone = set().union(
        *(name_lists(locale, "first_names_female") for locale in LOCALES if "es_" in locale)
    )
    for name in unused[:20]:
        assert np.mean([one in everyone for one in maker.decoys("NAME", name, count=8)]) > 0.8


def test_decoys_keep_the_script_that_the_corpus_is_written_in() -> None:
    """Latin decoys for a Cyrillic name would lose to it on any model, and hide what was learnt."""
    names = ["\u0418\u0432\u0430\u043d", "\u0410\u043d\u043d\u0430", "\u5f20\u4f1f", "John"]
    maker = DecoyMaker([values_of("NAME", names)], seed=0)
    for name in names:
        found = maker.decoys("NAME", name, count=5)
        assert len(found) == 5 or name == names[2]
        scripts = {unicodedata.name(letter).split()[0] for decoy in found for letter in decoy}
        assert scripts <= {unicodedata.name(name[0]).split()[0]}
    assert maker.decoys("NAME", names[2], count=2)


def test_parts_that_always_go_together_stay_together() -> None:
    """As in Spanish licence numbers: the province twice, then a number."""
    chance = random.Random(0)
    values = [f"{p:02} {p:02} {chance.randrange(10**5):05}" for p in range(1, 21) for _ in "12345"]
    maker = DecoyMaker([values_of("LICENCE", values)], seed=0)
    found = [decoy for value in values for decoy in maker.decoys("LICENCE", value, count=4)]
    assert np.mean([decoy[:2] == decoy[3:5] for decoy in found]) > 0.75
    # Drawn one by one, one in twenty would.
    assert {decoy[:2] for decoy in found} == {value[:2] for value in values}


def test_emails_phones_and_addresses_of_the_web_keep_what_all_have() -> None:
    chance = random.Random(0)

    def word() -> str:
        return "".join(chance.choices("aeioulnrst", k=7))

    hosts = ["mail.example.com", "example.org", "web.example.es"]
    rows = [
        [
            ("MAIL", f"{word()}{chance.choice(['.', '_'])}{word()}@{chance.choice(hosts)}"),
            ("PHONE", f"{chance.choice(['915', '934', '600'])} {chance.randrange(10**6):06}"),
            ("URL", f"https://www.{word()}.{chance.choice(['com', 'es'])}/{word()}"),
        ]
        for _ in range(80)
    ]
    maker = DecoyMaker([corpus_of(rows)], seed=0)
    found: Any = defaultdict(list)
    for label, value in itertools.chain(*rows):
        some = maker.decoys(label, value, count=4)
        assert len(some) == 4
        assert {shape(decoy) for decoy in some} == {shape(value)}
        found[label] += some
    assert np.mean([decoy.split("@")[1] in hosts for decoy in found["MAIL"]]) > 0.9
    assert {decoy[:3] for decoy in found["PHONE"]} == {"915", "934", "600"}
    pattern = r"https://www\.[a-z]{7}\.(com|es)/[a-z]{7}"
    assert all(re.fullmatch(pattern, decoy) for decoy in found["URL"])


# --- swaps ---------------------------------------------------------------------------------------


def test_swaps_are_values_of_other_subjects_and_never_one_of_this_subject(clinic: Clinic) -> None:
    maker = DecoyMaker([clinic.private, clinic.held_out], seed=0)
    texts: dict[str, list[str]] = defaultdict(list)
    values: dict[str, set[str]] = defaultdict(set)
    for document in clinic.private:
        texts[document.subject_id].append(document.text)
        for span in document.spans:
            values[span.label].add(document.value(span))
    unique = num_found = 0
    for label, value, subject in sorted(set(spans_of(clinic.private))):
        found = maker.swaps(label, value, subject, count=4)
        others = {whose for whose in texts if stands_in(value, texts[whose])} - {subject}
        unique += not others
        num_found += not others and len(found) > 0
        assert len({slow_words(swap) for swap in found}) == len(found) <= 4
        for swap in found:
            assert swap in values[label]
            assert not stands_in(swap, texts[subject])
            owners = {whose for whose in texts if stands_in(swap, texts[whose])}
            assert owners - others
    assert num_found == unique > 50


def test_swaps_have_the_same_shape_while_there_are_any() -> None:
    plain = [f"{n}" for n in range(100000, 100012)]
    slashed = [f"{n}/07" for n in range(200000, 200003)]
    maker = DecoyMaker([values_of("ID", [*plain, *slashed, "A-1"])], seed=0)
    assert {shape(swap) for swap in maker.swaps("ID", plain[0], "s0", count=8)} == {"000000"}
    found = maker.swaps("ID", slashed[0], "s12", count=5)
    assert set(found[:2]) == set(slashed[1:])
    assert len(found) == 5
    assert not {shape(swap) for swap in found[2:]} & {"000000/00"}
    # Nobody else has this shape, or nobody else this label.
    assert len(maker.swaps("ID", "A-1", "s15", count=3)) == 3
    assert DecoyMaker([values_of("ID", ["7"])], seed=0).swaps("ID", "7", "s0", count=3) == []


def test_a_model_that_only_knows_how_common_a_value_is_cannot_tell_it_from_swaps() -> None:
    chance = random.Random(0)
    common = {f"Town{letter}": 1 / (rank + 1) for rank, letter in enumerate(string.ascii_lowercase)}
    drawn = chance.choices(list(common), weights=list(common.values()), k=2000)
    corpus = values_of("TOWN", drawn)
    right, naive, subjects = [], [], []
    for seed in range(8):
        maker = DecoyMaker([corpus], seed=seed)
        for number, value in enumerate(drawn):
            for swap in maker.swaps("TOWN", value, f"s{number}", count=1):
                right.append(float(common[value] > common[swap]))
                subjects.append(number)
            other = chance.choice([town for town in common if town != value])
            naive.append(float(common[value] > common[other]))
    estimate = clustered_mean(np.array(right), subjects, seed=0)
    assert estimate.trials > 10000
    assert present(estimate.low) < 0.5 < present(estimate.high)
    assert present(estimate.high) - present(estimate.low) < 0.06
    # Drawn from distinct values, what is common would seem to be known.
    assert np.mean(naive) > 0.6


# --- calibration ---------------------------------------------------------------------------------


class CharacterModel:
    """A character trigram model, interpolated with shorter ones: knows how values are written."""

    def __init__(self, values: Iterable[str]) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._totals: Counter[tuple[str, int]] = Counter()
        for value in values:
            for before, letter in self._steps(value):
                for length in range(3):
                    context = before[len(before) - length :]
                    self._counts[context, letter] += 1
                    self._totals[context, length] += 1

    @staticmethod
    def _steps(value: str) -> list[tuple[str, str]]:
        padded = f"^^{value}$"
        return [(padded[at - 2 : at], padded[at]) for at in range(2, len(padded))]

    def log_probability(self, value: str) -> float:
        total = 0.0
        for before, letter in self._steps(value):
            probability = 1 / 1000
            for length in range(3):
                context = before[len(before) - length :]
                weight = self._totals[context, length]
                count = self._counts[context, letter]
                probability = (count + 2 * probability) / (weight + 2)
            total += math.log(probability)
        return total


@cache
def letters_only(kind: str) -> list[str]:
    return sorted(filter(str.isalpha, name_lists("en_US", kind)))


def invented(label: str, chance: random.Random) -> str:
    """A value drawn on its own, part by part."""
    firsts, lasts = letters_only("first_names"), letters_only("last_names")
    streets = ["Street", "Street", "Road", "Avenue", "Lane"]
    day = datetime.date(1930, 1, 1) + datetime.timedelta(chance.randrange(30000))
    return {
        "NAME": f"{chance.choice(firsts)} {chance.choice(lasts)}",
        "PHONE": f"{chance.choice(['020', '0161', '07700'])} {chance.randrange(10**6):06}",
        "BORN": f"{day:%d/%m/%Y}",
        "MRN": f"{chance.choice('KTW')}{chance.randrange(10**7):07}",
        "MAIL": f"{chance.choice(lasts)}{chance.randrange(99)}@"
        f"{chance.choice(['mail', 'post', 'web'])}.com".lower(),
        "STREET": f"{chance.randrange(1, 300)} {chance.choice(lasts)} {chance.choice(streets)}",
    }[label]


@pytest.mark.parametrize("label", ["NAME", "PHONE", "BORN", "MRN", "MAIL", "STREET"])
def test_true_values_and_decoys_cannot_be_told_apart_by_how_they_are_written(label: str) -> None:
    """A model trained on other values of the same kind: it saw neither values nor decoys."""
    chance = random.Random(label)
    model = CharacterModel(invented(label, chance) for _ in range(4000))
    values = [invented(label, chance) for _ in range(600)]
    maker = DecoyMaker([values_of(label, values)], seed=0)

    def preferred(make: Callable[[str], list[str]]) -> np.ndarray:
        result = []
        for value in values:
            true = model.log_probability(value)
            others = np.array([model.log_probability(other) for other in make(value)])
            result.append(float((others < true).mean() + 0.5 * (others == true).mean()))
        return np.array(result)

    found = preferred(lambda value: maker.decoys(label, value, count=8))
    estimate = clustered_mean(found, range(len(values)), seed=0)
    assert estimate.trials == len(values)
    assert present(estimate.high) - present(estimate.low) < 0.06
    assert present(estimate.low) < 0.5 < present(estimate.high)
    # The model does tell values from letters and digits in disorder.
    scrambled = preferred(lambda value: ["".join(chance.sample(value, len(value)))])
    assert scrambled.mean() > 0.8


def said_once(corpus: Corpus) -> Corpus:
    """Only identifiers no word of which stands twice in its note: those can be copied from it."""
    return Corpus(
        [
            replace(
                document,
                spans=tuple(
                    span
                    for span in document.spans
                    if all(
                        document.text.count(word) == 1
                        for word in re.findall(r"[^\W\d_]{3,}|\d{3,}", document.value(span))
                    )
                ),
            )
            for document in corpus
        ]
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_auc_is_one_half_for_a_model_that_never_saw_the_values(
    base: Checkpoint, seed: int
) -> None:
    unseen = invent_clinics([20, 8, 5, 40], seed=11)[3]
    asked = AuditSettings(framing="bos", decoys=8, swaps=0)
    control = audit(base, said_once(unseen), asked, seed=seed).figures["direct"].auc
    assert control.trials >= 250
    assert present(control.high) - present(control.low) < 0.12
    assert present(control.low) < 0.5 < present(control.high)


def test_the_auc_is_near_one_for_what_was_trained_on_and_only_for_that(
    clinic: Clinic, leaky: Checkpoint
) -> None:
    asked = AuditSettings(framing="bos", decoys=4, swaps=0)
    assert present(audit(leaky, said_once(clinic.private), asked).figures["direct"].auc.low) > 0.9
    # What it was not trained on, the leaky model does not prefer either.
    unseen = invent_clinics([20, 8, 5, 40], seed=11)[3]
    assert present(audit(leaky, said_once(unseen), asked).figures["direct"].auc.high) <= 0.60
