"""The review without a browser: the draw, the size, the page's bytes, and what is applied."""

import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sani.cli.main import main
from sani.corpus.documents import ANNOTATION, Corpus, Document, Span, Turn
from sani.corpus.readers import read_corpus
from sani.corpus.tables import write_jsonl
from sani.errors import ScanError, WriteError
from sani.intervals import rate
from sani.reviewing.draw import distinct_documents, draw, strata
from sani.reviewing.material import material_of
from sani.reviewing.outcome import apply_review, write_outcome
from sani.reviewing.page import write_page
from sani.reviewing.size import (
    LEAST,
    WITHOUT_FINDINGS,
    design_effect,
    documents_needed,
    documents_planned,
    identifiers_needed,
)
from sani.scanning.allowed import read_allowed

HOSTILE = "</script><!--<script>alert(1)</script>\u2028&'\"\\u003c \U0001d4b3"


def marked(number: int, text: str, *values: tuple[str, str], source: str = "ner") -> Document:
    """A document in which the first place of each value is marked."""
    spans = [
        Span(text.index(value), text.index(value) + len(value), label, source=source, score=0.9)
        for value, label in values
    ]
    return Document(str(number), f"s{number}", text, tuple(sorted(spans)))


def corpus() -> Corpus:
    """Two documents: in each a month is marked as a name, and in the second a name is missed."""
    return Corpus(
        [
            marked(0, "🙂 Seen in May. Ana Ruiz came.", ("May", "NAME"), ("Ana Ruiz", "NAME")),
            marked(1, "In may Bob Hill came with Zed Moss.", ("may", "NAME"), ("Bob Hill", "NAME")),
        ]
    )


def saved(material_corpus: Corpus, **changes: Any) -> dict[str, Any]:
    """A review as the page saves it: nothing struck, nothing reviewed."""
    digest = material_of(material_corpus).digest
    return {"version": 1, "digest": digest, "struck": [], "documents": [], **changes}


def reviewed(number: int, *spans: tuple[int, int, str], complete: bool = True) -> dict[str, Any]:
    return {"number": number, "complete": complete, "spans": [list(span) for span in spans]}


def place(document: Document, value: str, label: str = "NAME") -> tuple[int, int, str]:
    start = document.text.index(value)
    return start, start + len(value), label


def write(folder: Path, review: Any) -> Path:
    path = folder / "review.json"
    path.write_text(review if isinstance(review, str) else json.dumps(review))
    return path


# ---- the draw ----------------------------------------------------------------------------------


def many(count: int) -> Corpus:
    """Half of them short, a fifth without any finding."""
    documents = []
    for number in range(count):
        text = f"Ana{number} came. " + "Nothing new. " * (1 if number % 2 else 40 + number % 7)
        found = [(f"Ana{number}", "NAME")] if number % 5 else []
        documents.append(marked(number, text, *found))
    return Corpus(documents)


def test_the_draw_gives_every_stratum_its_share() -> None:
    documents = many(200)
    everything = Counter(strata(list(documents)))
    assert len(everything) > 3
    for seed in range(5):
        drawn = draw(documents, 40, seed=seed)
        assert len(set(drawn)) == 40
        sample = Counter(strata(list(documents))[number] for number in drawn)
        for stratum, count in everything.items():
            assert abs(sample[stratum] - count / 5) <= 1


def test_every_document_is_as_likely_and_the_same_seed_draws_the_same() -> None:
    documents = many(20)
    times = Counter(n for seed in range(2000) for n in draw(documents, 5, seed=seed))
    # 500 expected each, with a standard deviation of 19.
    assert len(times) == 20
    assert all(abs(count - 500) < 100 for count in times.values())
    assert draw(documents, 5, seed=3) == draw(documents, 5, seed=3)
    assert draw(documents, 5, seed=3) != draw(documents, 5, seed=4)


def test_copies_and_blank_documents_are_not_drawn_and_all_others_may_be() -> None:
    documents = Corpus([*corpus(), replace(corpus()[0], id="copy"), Document("b", "b", " \n")])
    assert distinct_documents(documents) == [0, 1]
    assert sorted(draw(documents, 99, seed=0)) == [0, 1]
    assert draw(Corpus([]), 3, seed=0) == ()


# ---- the size ----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("half_width", [0.02, 0.05, 0.1])
def test_the_number_of_identifiers_is_the_least_for_the_interval(
    share: float, half_width: float
) -> None:
    """Compared with the interval that the report computes, where hits are a whole number."""
    least = identifiers_needed(share, half_width)

    def half(trials: int) -> float:
        found = rate(round(share * trials), trials)
        assert found.low is not None
        assert found.high is not None
        return (found.high - found.low) / 2

    step = {0.5: 2, 0.9: 10, 1.0: 1}[share]
    assert half(math.ceil(least / step) * step) <= half_width
    below = (least - 1) // step * step
    assert not below or half(below) > half_width


def test_misses_that_come_together_need_more_documents() -> None:
    spread = [(9, 10)] * 20
    together = [(10, 10)] * 18 + [(0, 10)] * 2
    assert design_effect(spread) == 1.0
    assert design_effect(together) > 5
    few, more = documents_needed(spread, 0.05), documents_needed(together, 0.05)
    assert few is not None
    assert more is not None
    assert few == 20  # 180 of 200 gives ±0.042
    assert more > 100
    one = documents_needed([(5, 5)], 0.05)  # nothing missed among 5 says little
    assert one is not None
    assert one > 50
    assert documents_needed([], 0.05) is None
    assert documents_needed([(0, 0)], 0.05) is None


def test_a_review_is_planned_from_the_findings() -> None:
    assert documents_planned(0, 100, 0.05) == WITHOUT_FINDINGS
    assert documents_planned(10_000, 100, 0.05) == LEAST
    wide, narrow = documents_planned(200, 100, 0.1), documents_planned(200, 100, 0.05)
    assert LEAST < wide < narrow
    assert narrow == identifiers_needed(0.9, 0.05)  # two of a document, each counted half


# ---- the page ----------------------------------------------------------------------------------


def test_the_page_is_one_private_file_that_names_nothing_outside(tmp_path: Path) -> None:
    path = tmp_path / "private" / "review.html"
    assert write_page(corpus(), path, seed=1) in {(0, 1), (1, 0)}
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    page = path.read_text()
    assert not re.search(r"https?:|//[a-z]|\bsrc=|@import|url\(", page)
    assert "default-src 'none'" in page
    with pytest.raises(WriteError, match="already exists"):
        write_page(corpus(), path)


def test_no_text_of_a_document_ends_the_script_that_holds_it(tmp_path: Path) -> None:
    value = HOSTILE.replace("\u2028", " ")
    hostile = Corpus([marked(0, f"{HOSTILE} {value}.", (value, "NAME"))])
    plain, path = tmp_path / "plain.html", tmp_path / "hostile.html"
    write_page(corpus(), plain)
    write_page(hostile, path)
    page = path.read_text()
    assert len(re.findall("<", page)) == len(re.findall("<", plain.read_text()))
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["documents"][0]["text"] == hostile[0].text
    assert data["values"] == [value]


def test_words_of_k_anonymity_and_what_people_marked_are_not_to_be_struck() -> None:
    text = "Ana Ruiz and Bob Hill of Rareville."
    documents = Corpus(
        [
            marked(0, text, ("Rareville", "NGRAM"), source="k-anonymity"),
            marked(1, text, ("Ana Ruiz", "NAME"), source=ANNOTATION),
            marked(2, text, ("Ana Ruiz", "NAME"), ("Bob Hill", "NAME")),
        ]
    )
    material = material_of(documents)
    assert material.values == ("Bob Hill",)
    assert [(row.label, row.occurrences, row.documents) for row in material.rows] == [
        ("NAME", 1, 1)
    ]
    assert material.labels[0] == "NAME"
    assert "NGRAM" not in material.labels[:1]
    assert "Bob" not in repr(material)


def test_values_are_counted_by_label_the_most_frequent_first() -> None:
    material = material_of(corpus())
    assert [material.values[row.value] for row in material.rows] == ["May", "Ana Ruiz", "Bob Hill"]
    assert [(r.occurrences, r.documents) for r in material.rows] == [(2, 2), (1, 1), (1, 1)]


# ---- what is applied ---------------------------------------------------------------------------


def whole_review() -> dict[str, Any]:
    """The month struck, both documents complete, the missed name added."""
    documents = corpus()
    first, second = documents
    return saved(
        documents,
        struck=[material_of(documents).values.index("May")],
        documents=[
            reviewed(0, place(first, "Ana Ruiz")),
            reviewed(1, place(second, "Bob Hill"), place(second, "Zed Moss")),
        ],
    )


def test_a_review_gives_a_gold_sample_and_an_allow_list(tmp_path: Path) -> None:
    review = apply_review(corpus(), write(tmp_path, whole_review()))
    assert (review.recall.hits, review.recall.trials) == (2, 3)
    assert (review.scanned.precision.hits, review.scanned.precision.trials) == (2, 4)
    assert (review.with_allowed.precision.hits, review.with_allowed.precision.trials) == (2, 2)
    gold, allow = write_outcome(review, tmp_path / "private")
    assert gold is not None
    assert allow is not None
    assert {path.stat().st_mode & 0o777 for path in (gold, allow)} == {0o600}
    written = read_corpus(gold)
    assert [d.value(s) for d in written for s in d.spans] == ["Ana Ruiz", "Bob Hill", "Zed Moss"]
    assert {s.source for d in written for s in d.spans} == {ANNOTATION}
    assert read_allowed(allow, [written]) == {"may"}
    assert "private/gold.jsonl" in review.recipe_lines(gold, allow)
    with pytest.raises(WriteError, match="already exists"):
        write_outcome(review, tmp_path / "private")


def test_an_added_span_has_the_kind_of_its_label_and_value(tmp_path: Path) -> None:
    documents = Corpus([marked(0, "Ana Ruiz, on 3 May 1999, in May.", ("Ana Ruiz", "NAME"))])
    spans = [(0, 8, "NAME"), (13, 23, "DATE"), (28, 31, "DATE"), (0, 3, "LOCATION")]
    review = saved(documents, documents=[reviewed(0, *spans)])
    gold = apply_review(documents, write(tmp_path, review)).gold[0]
    assert {(gold.value(span), span.kind) for span in gold.spans} == {
        ("Ana Ruiz", "direct"),
        ("3 May 1999", "direct"),
        ("May", "indirect"),
        ("Ana", "indirect"),
    }


def test_only_complete_documents_are_gold(tmp_path: Path) -> None:
    review = whole_review()
    review["documents"][1]["complete"] = False
    outcome = apply_review(corpus(), write(tmp_path, review))
    assert [document.id for document in outcome.gold] == ["0"]
    assert outcome.incomplete == 1
    assert any("not completed" in sentence for sentence in outcome.sentences(0.05))


def test_a_struck_value_that_a_complete_document_marks_is_not_allowed(tmp_path: Path) -> None:
    review = whole_review()
    review["documents"][0]["spans"].append(list(place(corpus()[0], "May")))
    outcome = apply_review(corpus(), write(tmp_path, review))
    assert outcome.allowed == ()
    assert outcome.not_allowed == 1
    gold, allow = write_outcome(outcome, tmp_path / "private")
    assert allow is None
    assert "allow" not in outcome.recipe_lines(gold, allow)


def test_without_a_direct_identifier_no_gold_is_advised(tmp_path: Path) -> None:
    """A run refuses such a gold sample."""
    outcome = apply_review(
        corpus(), write(tmp_path, saved(corpus(), documents=[reviewed(0)]))
    )  # fmt: skip
    assert not outcome.has_recall
    assert outcome.recipe_lines(tmp_path / "gold.jsonl", None) == ""
    assert any("recall is unknown" in sentence for sentence in outcome.sentences(0.05))


def test_a_span_over_two_messages_is_cut_where_they_meet(tmp_path: Path) -> None:
    text = "Ana Ruiz\n\nBob Hill"
    turns = (Turn("user", 0, 8), Turn("assistant", 10, 18))
    documents = Corpus([replace(marked(0, text, ("Ana Ruiz", "NAME")), turns=turns)])
    review = saved(documents, documents=[reviewed(0, (4, 13, "NAME"))])
    outcome = apply_review(documents, write(tmp_path, review))
    assert [outcome.gold[0].value(span) for span in outcome.gold[0].spans] == ["Ruiz", "Bob"]
    write_outcome(outcome, tmp_path / "private")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"digest": "0" * 64}, "is a review of other documents"),
        ({"version": 99}, "another version"),
        ({"struck": [99]}, "strikes a value that is not there"),
        ({"struck": [-1]}, "strikes a value that is not there"),
        ({"documents": [reviewed(7)]}, "names a document twice, or one that is not there"),
        ({"documents": [reviewed(0), reviewed(0)]}, "names a document twice"),
        ({"documents": [reviewed(0, (0, 999, "NAME"))]}, "does not fit the text"),
        ({"documents": [reviewed(0, (5, 5, "NAME"))]}, "does not fit the text"),
        ({"documents": [reviewed(0, (0, 3, "Ana Ruiz"))]}, "a label that the page does not offer"),
        ({"documents": [reviewed(0, complete=False)]}, "nothing to apply"),
        ({"documents": "Ana Ruiz"}, "not what the page of sani review saves"),
        ({"more": "Ana Ruiz"}, "not what the page of sani review saves"),
    ],
)
def test_a_review_that_does_not_fit_is_refused_without_a_value(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ScanError, match=sentence) as caught:
        apply_review(corpus(), write(tmp_path, saved(corpus(), **changes)))
    assert "Ana" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", '{"version": 1', "[]", "null", "Ana Ruiz"])
def test_a_broken_file_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ScanError, match="not what the page of sani review saves") as caught:
        apply_review(corpus(), write(tmp_path, text))
    assert "Ana" not in str(caught.value)


def test_a_review_of_a_later_scan_of_the_same_documents_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, whole_review())
    later = Corpus([replace(corpus()[0], spans=corpus()[0].spans[:1]), corpus()[1]])
    with pytest.raises(ScanError, match="other documents, or of another scan"):
        apply_review(later, path)


# ---- the command -------------------------------------------------------------------------------


def test_the_command_prints_counts_and_no_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(corpus(), Path("annotated.jsonl"))
    assert main(["review", "annotated.jsonl"]) == 0
    assert Path("private/review.html").is_file()
    write(tmp_path, whole_review())
    assert main(["review", "annotated.jsonl", "--apply", "review.json"]) == 0
    printed = capsys.readouterr()
    assert "66.7% (2/3" in printed.out
    assert "Struck values: 1 allowed" in printed.out
    assert "gold: private/gold.jsonl" in printed.out
    assert "allow: private/allow.txt" in printed.out
    assert "scan_recall: 0.9" in printed.out
    assert printed.out.splitlines()[-1].startswith("Next: ")
    for word in ("Ana", "Ruiz", "Bob", "Hill", "Zed", "Moss", "May"):
        assert word not in printed.out + printed.err
    assert main(["review", "annotated.jsonl", "--apply", "review.json"]) == 1
    assert main(["review", "annotated.jsonl", "--apply", "review.json", "--documents", "3"]) == 2
    capsys.readouterr()
    assert (
        main(["review", "annotated.jsonl", "--apply", "review.json", "--out", "x", "--json"]) == 0
    )
    data = json.loads(capsys.readouterr().out)
    assert (data["documents"], data["allowed"], data["recall"]["trials"]) == (2, 1, 3)
