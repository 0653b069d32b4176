"""Reading corpora: what is read, what is refused, and that no message shows a value."""

import base64
import csv
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sani.corpus.documents import Corpus, Document, Kind, Span
from sani.corpus.formats import FORMATS
from sani.corpus.readers import read_corpus
from sani.corpus.reading import SizeLimits
from sani.corpus.tables import write_jsonl as write_documents
from sani.errors import CorpusError

NAME = "KOWALCZYKOWA"
NUMBER = "4711998877"
CANARIES = (NAME[:6], NAME[-6:], NUMBER[:6], NUMBER[-6:])

TEXT = f"Pt {NAME}\r\nMRN {NUMBER}, 40 años, 👍🏽 \u2028ok"
SPANS = [
    {"start": 3, "end": 15, "label": "NAME", "kind": "direct"},
    {"start": 21, "end": 31, "label": "MRN", "kind": "direct"},
    {"start": 33, "end": 40, "label": "AGE", "kind": "indirect"},
]
ROWS: list[dict[str, Any]] = [
    {"id": "007", "subject_id": "s1", "text": TEXT, "spans": SPANS},
    {"id": "NA", "subject_id": "s1", "text": "null", "spans": []},
    {"id": "3", "subject_id": "3", "text": ' "a",\n\n;b\t', "spans": []},
]
DOCUMENTS = [
    Document(row["id"], row["subject_id"], row["text"], tuple(Span(**s) for s in row["spans"]))
    for row in ROWS
]
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "subject_id": pa.string(),
        "text": pa.string(),
        "spans": pa.list_(
            pa.struct(
                {"start": pa.int64(), "end": pa.int64(), "label": pa.string(), "kind": pa.string()}
            )
        ),
    }
)


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def write_csv(path: Path, rows: list[Any]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            spans = {"spans": json.dumps(row["spans"])} if "spans" in row else {}
            writer.writerow({**row, **spans})
    return path


def write_parquet(path: Path, rows: list[Any]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path, row_group_size=2)
    return path


def write_stream(path: Path, rows: list[Any]) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    return path


def write_ipc_file(path: Path, rows: list[Any]) -> Path:
    pyarrow.feather.write_feather(pa.Table.from_pylist(rows, schema=SCHEMA), str(path))
    return path


def write_xml(folder: Path, name: str, body: str, **options: str) -> Path:
    folder.mkdir(exist_ok=True)
    head = "<?xml version='1.0' encoding='UTF-8'?>\n"
    (folder / name).write_bytes((head + body).encode(**options))
    return folder


def xml(text: str, *tags: str) -> str:
    body = "\n".join(tags)
    return f"<deId>\n<TEXT><![CDATA[{text}]]></TEXT>\n<TAGS>\n{body}\n</TAGS>\n</deId>\n"


def tag(start: object, end: object, words: str | None, label: str = "NAME") -> str:
    text = "" if words is None else f' text="{words}"'
    return f'<X id="P1" start="{start}" end="{end}"{text} TYPE="{label}" comment="" />'


def write_brat(folder: Path, stem: str, text: str, tags: str | None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{stem}.txt").write_bytes(text.encode())
    if tags is not None:
        (folder / f"{stem}.ann").write_bytes(tags.encode())
    return folder


def refusal(path: Path | str, **options: Any) -> str:
    """The message with which a corpus is refused, after a check that nothing of it leaks."""
    with pytest.raises(CorpusError) as caught:
        read_corpus(path, **options)
    shown = "".join(traceback.format_exception(caught.value))
    assert not any(canary in shown for canary in CANARIES)
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return str(caught.value)


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is not named after the test, whose parameters hold the planted values."""
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture
def meddocan() -> Path:
    root = Path(os.environ.get("SANI_CORPORA", Path(__file__).parents[3] / "shared" / "data"))
    if not (root / "meddocan" / "train.jsonl").exists():
        pytest.skip("the MEDDOCAN corpus is not here; set SANI_CORPORA to the folder that holds it")
    return root / "meddocan"


# ---- what is read ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("c.jsonl", write_jsonl),
        ("c.ndjson", write_jsonl),
        ("c.csv", write_csv),
        ("c.CSV", write_csv),
        ("c.parquet", write_parquet),
        ("c.arrow", write_stream),
        ("file.arrow", write_ipc_file),
        ("c.feather", write_ipc_file),
        ("o[d]d*::na?me.parquet", write_parquet),
    ],
)
def test_every_table_format_reads_the_same_documents(
    tmp_path: Path, name: str, write: Callable[..., Any]
) -> None:
    corpus = read_corpus(write(tmp_path / name, ROWS))
    assert list(corpus) == DOCUMENTS
    assert corpus.digest() == Corpus(DOCUMENTS).digest()
    assert [corpus[0].value(span) for span in corpus[0].spans] == [NAME, NUMBER, "40 años"]


@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_parquet, write_stream])
def test_limit_reads_the_first_documents(tmp_path: Path, write: Callable[..., Any]) -> None:
    path = write(tmp_path / "c.any", ROWS)
    chosen: dict[str, Any] = {
        "write_jsonl": "jsonl",
        "write_csv": "csv",
        "write_parquet": "parquet",
    }
    corpus = read_corpus(str(path), format=chosen.get(write.__name__, "arrow"), limit=2)
    assert list(corpus) == DOCUMENTS[:2]


def test_limit_leaves_the_rest_unchecked(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", [*ROWS, {"id": None}])
    assert len(read_corpus(path, limit=3)) == 3


def test_many_rows_keep_their_order_in_parquet(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "id": str(number)} for number in range(700)]
    corpus = read_corpus(write_parquet(tmp_path / "c.parquet", rows))
    assert [document.id for document in corpus] == [row["id"] for row in rows]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": 5, "text": ""}, Document("5", "5", "")),
        ({"id": "a", "subject_id": None, "text": "x", "spans": None}, Document("a", "a", "x")),
        ({"id": "a", "subject_id": "", "text": "x", "other": {"b": []}}, Document("a", "a", "x")),
        ({"id": "a", "subject_id": 9, "text": "x"}, Document("a", "9", "x")),
        ({"id": " a ", "text": "\ufeffx\r\n"}, Document(" a ", " a ", "\ufeffx\r\n")),
    ],
)
def test_missing_fields_have_defaults(
    tmp_path: Path, row: dict[str, Any], expected: Document
) -> None:
    assert list(read_corpus(write_jsonl(tmp_path / "c.jsonl", [row]))) == [expected]


def test_spans_are_sorted_and_exact_duplicates_dropped(tmp_path: Path) -> None:
    spans = [
        {"start": 2, "end": 4, "label": "B"},
        {"start": 0, "end": 3, "label": "A", "kind": "indirect", "score": 0.5},
        {"start": 2, "end": 4, "label": "B", "kind": "direct"},
        {"start": 0, "end": 3, "label": "C", "kind": None},
    ]
    path = write_jsonl(tmp_path / "c.jsonl", [{"id": 1, "text": "abcd", "spans": spans}])
    assert read_corpus(path)[0].spans == (
        Span(0, 3, "A", "indirect"),
        Span(0, 3, "C", "direct"),
        Span(2, 4, "B", "direct"),
    )


def test_what_the_scan_found_is_written_and_read_back_with_source_and_score(tmp_path: Path) -> None:
    spans = (Span(0, 2, "NAME", "direct", "ner", 0.85), Span(3, 4, "AGE", "indirect"))
    documents = [Document("1", "a", "Bó 4 😀", spans), Document("2", "a", "x")]
    write_documents(documents, tmp_path / "out.jsonl")
    assert list(read_corpus(tmp_path / "out.jsonl")) == documents
    assert (tmp_path / "out.jsonl").stat().st_mode & 0o777 == 0o600
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows[0]["spans"][1] == {"start": 3, "end": 4, "label": "AGE", "kind": "indirect"}


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ({"source": "ner", "score": 1.5}, "span 1: 'score' is not a number from 0 to 1"),
        ({"source": "ner", "score": True}, "span 1: 'score' is not a number from 0 to 1"),
        ({"source": 7}, "span 1: 'source' is a whole number; expected a string"),
        ({"source": " "}, "span 1: 'source' is empty; expected a name such as annotation"),
    ],
)
def test_a_source_or_score_that_is_none_is_refused(
    tmp_path: Path, extra: dict[str, Any], problem: str
) -> None:
    row = {"id": 1, "text": "abcd", "spans": [{"start": 0, "end": 1, "label": "A", **extra}]}
    with pytest.raises(CorpusError) as error:
        read_corpus(write_jsonl(tmp_path / "c.jsonl", [row]))
    assert str(error.value).endswith(problem)


def test_kinds_fill_in_only_what_the_data_leaves_open(tmp_path: Path) -> None:
    spans = [
        {"start": 0, "end": 1, "label": "AGE"},
        {"start": 1, "end": 2, "label": "AGE", "kind": "direct"},
        {"start": 2, "end": 3, "label": "NAME"},
    ]
    path = write_jsonl(tmp_path / "c.jsonl", [{"id": 1, "text": "abcd", "spans": spans}])
    kinds = [span.kind for span in read_corpus(path, kinds={"AGE": "indirect"})[0].spans]
    assert kinds == ["indirect", "direct", "direct"]


VALUES = {  # text, label -> kind where nobody says it
    ("born 25/03/1951", "DATE"): "direct",
    ("25 de marzo", "FECHAS"): "direct",
    ("25032021", "DATE_OF_BIRTH"): "direct",
    ("1951", "DATE"): "indirect",
    ("March 2021", "B-DATE"): "indirect",
    ("two days ago", "DATE_TIME"): "indirect",
    ("tonight", "TIME"): "indirect",
    ("91 años", "EDAD_SUJETO_ASISTENCIA"): "direct",
    ("61", "AGE"): "indirect",
    ("1951", "YEAR_OF_SOMETHING"): "direct",
    ("Lugo", "CITY"): "direct",
}


def test_the_value_of_a_date_or_an_age_decides_its_kind_where_nobody_says_it(
    tmp_path: Path,
) -> None:
    def row(number: int, text: str, label: str, **extra: str) -> dict[str, Any]:
        span = {"start": 0, "end": len(text), "label": label, **extra}
        return {"id": number, "text": text, "spans": [span]}

    path = write_jsonl(tmp_path / "c.jsonl", [row(n, *pair) for n, pair in enumerate(VALUES)])
    assert [document.spans[0].kind for document in read_corpus(path)] == list(VALUES.values())
    for kind in ("direct", "indirect"):
        rows = [row(n, *pair, kind=kind) for n, pair in enumerate(VALUES)]
        said = read_corpus(write_jsonl(tmp_path / "said.jsonl", rows))
        assert {document.spans[0].kind for document in said} == {kind}
    # What a caller says of a label counts too.
    named: dict[str, Kind] = {label: "indirect" for _, label in VALUES}
    assert {d.spans[0].kind for d in read_corpus(path, kinds=named)} == {"indirect"}
    # The turns of a conversation likewise.
    turn = {"role": "user", "content": "born 1/2/1951", "spans": [
        {"start": 5, "end": 13, "label": "DATE"}]}  # fmt: skip
    path = write_jsonl(tmp_path / "chat.jsonl", [{"id": 1, "messages": [turn]}])
    assert read_corpus(path)[0].spans[0].kind == "direct"


def test_jsonl_skips_head_mark_blank_lines_and_carriage_returns(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"id": 1, "text": "a\xe2\x80\xa8b"}\r\n\n  \r\n{"id": 2, "text": "c"}'
    )
    assert [document.text for document in read_corpus(path)] == ["a\u2028b", "c"]


def test_csv_keeps_breaks_quotes_long_cells_and_the_process_limit(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    long = "x" * 300_000
    path.write_bytes(f'\ufeffid,text\r\n01,"a\r\n""b""\rc"\r\n\r\n2,{long}\r\n'.encode())
    before = csv.field_size_limit()
    assert list(read_corpus(path)) == [
        Document("01", "01", 'a\r\n"b"\rc'),
        Document("2", "2", long),
    ]
    assert csv.field_size_limit() == before


def test_csv_empty_cells_are_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("text,spans,id,subject_id,x\nNaN,,1,,\n", "utf-8")
    assert list(read_corpus(path)) == [Document("1", "1", "NaN")]


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        (f"Dr {NAME}", [tag(3, 15, NAME)]),
        ("\ufeffAna", [tag(1, 4, "Ana")]),
        ("a\nAna\nLuz", [tag(2, 9, "Ana\nLuz")]),
        ("a\r\nAna", [tag(2, 5, "Ana")]),
        ("a & Ana", [tag(4, 7, "Ana"), tag(2, 3, "&amp;")]),
        ("👍🏽 Ana", [tag(3, 6, "Ana")]),
        ("Ana", [tag(0, 3, None)]),
        ("Ana", []),
    ],
)
def test_i2b2_spans_cover_their_words(tmp_path: Path, text: str, tags: list[str]) -> None:
    document = read_corpus(write_xml(tmp_path / "f", "one.two.xml", xml(text, *tags)))[0]
    assert (document.id, document.subject_id) == ("one.two", "one.two")
    assert document.text == text.replace("\r\n", "\n")
    assert len(document.spans) == len(tags)


@pytest.mark.parametrize(("start", "expected"), [(2, "a\nAna\n"), (3, "a\r\nAna\r\n")])
def test_i2b2_line_ends_count_as_the_offsets_say(tmp_path: Path, start: int, expected: str) -> None:
    body = xml("a\nAna\n", tag(start, start + 3, "Ana")).replace("\n", "\r\n")
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "1.xml").write_bytes(b"\xef\xbb\xbf" + body.encode())
    document = read_corpus(folder)[0]
    assert document.text == expected
    assert document.value(document.spans[0]) == "Ana"


@pytest.mark.parametrize(
    ("text", "tags", "expected", "values"),
    [
        ("a\r\nAna", "T1\tNAME 3 6\tAna\n", "a\r\nAna", ["Ana"]),
        ("a\r\nAna", "T1\tNAME 2 5\tAna\r\n", "a\nAna", ["Ana"]),
        ("\ufeffAna", "T1\tNAME 1 4\tAna\n", "\ufeffAna", ["Ana"]),
        ("\ufeffAna", "\ufeffT1\tNAME 0 3\tAna\n", "Ana", ["Ana"]),
        ("\ufeffa\r\nAna", "T1\tNAME 2 5\tAna\n", "a\nAna", ["Ana"]),
        ("Ana von Luz", "T1\tNAME 0 3;8 11\tAna Luz", "Ana von Luz", ["Ana", "Luz"]),
        ("Ana\nLuz", "T1\tNAME 0 7\tAna Luz", "Ana\nLuz", ["Ana\nLuz"]),
        (
            "Ana",
            "T1\tNAME 0 3\n\nR1\tx Arg1:T1\nA1\tN T1\n#1\tNote T1\tx\n*\tE T1\n",
            "Ana",
            ["Ana"],
        ),
        ("Ana", "", "Ana", []),
    ],
)
def test_brat_spans_cover_their_words(
    tmp_path: Path, text: str, tags: str, expected: str, values: list[str]
) -> None:
    document = read_corpus(write_brat(tmp_path / "f", "p", text, tags))[0]
    assert document.text == expected
    assert [document.value(span) for span in document.spans] == values


def test_folders_take_kinds_and_limits_and_pass_over_other_files(tmp_path: Path) -> None:
    folder = write_brat(tmp_path / "f", "b", "Ana 40", "T1\tNAME 0 3\tAna\nT2\tAGE 4 6\t40\n")
    write_brat(folder, "a", "Luz", "")
    for name in ("annotation.conf", ".hidden.txt", "README.md"):
        (folder / name).write_text("x", "utf-8")
    (folder / "old").mkdir()
    corpus = read_corpus(folder, kinds={"AGE": "indirect"})
    assert [document.id for document in corpus] == ["a", "b"]
    assert corpus[1].spans == (Span(0, 3, "NAME"), Span(4, 6, "AGE", "indirect"))
    assert [document.id for document in read_corpus(folder, limit=1)] == ["a"]


def test_xml_declaring_another_encoding_is_read_as_the_utf8_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    body = "<?xml version='1.0' encoding='ISO-8859-1'?>" + xml("Peña", tag(0, 4, "Peña"))
    (folder / "1.xml").write_bytes(body.encode())
    assert read_corpus(folder)[0].text == "Peña"


@pytest.mark.parametrize("raw", ["raw_xml", "raw_brat"])
def test_meddocan_reads_as_its_jsonl(meddocan: Path, raw: str) -> None:
    expected = {document.id: document for document in read_corpus(meddocan / "train.jsonl")}
    kinds = {span.label: span.kind for document in expected.values() for span in document.spans}
    corpus = read_corpus(meddocan / raw, kinds=kinds)
    assert len(corpus) == 10
    assert list(corpus) == [expected[document.id] for document in corpus]


def test_meddocan_with_a_head_mark_reads_as_its_jsonl_from_brat(
    meddocan: Path, tmp_path: Path
) -> None:
    marked = [d for d in read_corpus(meddocan / "train.jsonl") if d.text.startswith("\ufeff")]
    assert marked
    for document in marked:
        lines = [
            f"T{number}\t{span.label} {span.start} {span.end}\t{document.value(span)}\n"
            for number, span in enumerate(document.spans, start=1)
        ]
        write_brat(tmp_path / "f", document.id, document.text, "".join(lines))
    texts = {document.id: document.text for document in read_corpus(tmp_path / "f")}
    assert texts == {document.id: document.text for document in marked}


# ---- what is refused: one record -------------------------------------------------------------

SPAN = {"start": 0, "end": 3, "label": NAME}


def with_span(**changes: object) -> dict[str, Any]:
    return {"id": NAME, "text": f"{NAME} x", "spans": [SPAN, {**SPAN, **changes}]}


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


BAD_ROWS: list[tuple[Any, str]] = [
    ({"text": NAME}, "'id' is missing or empty; expected a string or a whole number of its own"),
    (
        {"id": " ", "text": NAME},
        "'id' is missing or empty; expected a string or a whole number of its own",
    ),
    ({"id": 4.5, "text": NAME}, "'id' is a decimal number; expected a string or a whole number"),
    ({"id": True, "text": NAME}, "'id' is a boolean; expected a string or a whole number"),
    ({"id": [NAME], "text": NAME}, "'id' is a list; expected a string or a whole number"),
    (
        {"id": 1, "subject_id": {"n": NAME}, "text": NAME},
        "'subject_id' is an object; expected a string or a whole number",
    ),
    ({"id": NAME}, "'text' is missing or null; expected a string"),
    ({"id": NAME, "text": int(NUMBER)}, "'text' is a whole number; expected a string"),
    ({"id": NAME, "text": NAME, "spans": NAME}, "'spans' is a string; expected a list"),
    ({"id": NAME, "text": NAME, "spans": SPAN}, "'spans' is an object; expected a list"),
    ({"id": NAME, "text": NAME, "spans": [NAME]}, "span 1: it is a string; expected an object"),
    (
        {"id": NAME, "text": NAME, "Spans": [SPAN]},
        "a field is called 'spans' but for case or blanks and would be ignored; "
        "rename it to 'spans'",
    ),
    (with_span(start=-1), "span 2: 'start' is negative; offsets count characters from 0"),
    (with_span(start=True), "span 2: 'start' is a boolean; expected a whole number"),
    (with_span(start=NUMBER), "span 2: 'start' is a string; expected a whole number"),
    (with_span(end=3.0), "span 2: 'end' is a decimal number; expected a whole number"),
    (with_span(end=None), "span 2: 'end' is missing or null; expected a whole number"),
    (
        with_span(end=0),
        "span 2: 'end' is not greater than 'start'; it is one past the last character",
    ),
    (
        with_span(end=int(NUMBER)),
        "span 2: 'end' lies beyond the text, which has 14 characters; "
        "offsets count characters (not bytes) from 0",
    ),
    (with_span(label=None), "span 2: 'label' is missing or null; expected a string"),
    (with_span(label=" "), "span 2: 'label' is empty; expected a name such as NAME or DATE"),
    (with_span(kind=NAME), "span 2: 'kind' is not one of direct, indirect"),
    (with_span(kind=["direct"]), "span 2: 'kind' is not one of direct, indirect"),
    ([NAME], "it holds a list; expected a JSON object"),
    (NAME, "it holds a string; expected a JSON object"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_jsonl_refuses_a_bad_record(tmp_path: Path, row: Any, message: str) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", [{"id": 1_000, "text": "x"}, row])
    assert refusal(path) == f"{path}, line 2: {message}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            f'{{"id": "{NAME}"',
            "not valid JSON from column 22 on; check quotes, commas and brackets",
        ),
        (f"{NAME}", "not valid JSON from column 1 on; check quotes, commas and brackets"),
        (
            f'{{"id": 1, "text": "{NAME}", "text": "x"}}',
            "a JSON object holds the same key twice; keep one",
        ),
        ("[" * 200_000, "JSON with a number too long or brackets too deep to read"),
        (NUMBER * 500, "JSON with a number too long or brackets too deep to read"),
        (
            f'{{"id": 1, "text": "{NAME} \\ud83d"}}',
            "'text' holds half of a surrogate pair, which is no character; "
            "write the character itself or both halves of its escape",
        ),
        (
            '{"id": "\\udc00", "text": ""}',
            "'id' holds half of a surrogate pair, which is no character; "
            "write the character itself or both halves of its escape",
        ),
    ],
)
def test_jsonl_refuses_a_bad_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(f'{{"id": 0, "text": ""}}\n\n{line}\n', "utf-8")
    assert refusal(path) == f"{path}, line 3: {message}"


def test_jsonl_reports_ten_problems_and_counts_the_rest(tmp_path: Path) -> None:
    rows = [{"id": number, "text": NAME if number % 2 else None} for number in range(30)]
    path = write_jsonl(tmp_path / "c.jsonl", rows)
    lines = refusal(path).splitlines()
    assert lines[0] == f"{path}: 15 problems:"
    assert lines[1:11] == [
        f"  line {number}: 'text' is missing or null; expected a string"
        for number in range(1, 21, 2)
    ]
    assert lines[11:] == ["  and 5 more"]


OWN_ID = (
    "; give each record an id of its own, or name no column for id: then the number of a record is "
    "its id"
)


def test_duplicate_ids_name_both_places(tmp_path: Path) -> None:
    rows = [{"id": "5", "text": ""}, {"id": NAME, "text": ""}, {"id": 5, "text": NAME}]
    path = write_jsonl(tmp_path / "c.jsonl", rows)
    assert refusal(path) == f"{path}, line 3: its id is already used on line 1{OWN_ID}"
    path = write_jsonl(tmp_path / "c.jsonl", [*rows, rows[0]])
    assert refusal(path).splitlines()[1:] == [  # the remedy stands once
        f"  line 3: its id is already used on line 1{OWN_ID}",
        "  line 4: its id is already used on line 1",
    ]


NOT_UTF8 = (
    "not UTF-8 text; find out its encoding and convert it with iconv, "
    "for example: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
)


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv"])
def test_other_encodings_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write = write_csv if name.endswith("csv") else write_jsonl
    write(path, [{"id": 1, "text": "x"}, {"id": 2, "text": f"{NAME} Peña"}])
    path.write_bytes(path.read_text("utf-8").encode("latin-1"))
    assert refusal(path) == f"{path}, line {2 + (name == 'c.csv')}: {NOT_UTF8}"


# ---- what is refused: tables -----------------------------------------------------------------

LACKS_TEXT = (
    "lacks 'text'; expected the columns text and, where known, id, subject_id and spans. Where "
    "they have other names, say which: corpus.columns in a recipe, or --column text=NAME"
)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            f"id,text,spans\n1,x\n2,{NAME},[]\n",
            "line 2: it has 2 cells and the header 3; "
            "put quotes around a cell that holds a comma or a line break",
        ),
        (
            f"id,text,spans\n1,x,[],{NAME}\n",
            "line 2: it has 4 cells and the header 3; "
            "put quotes around a cell that holds a comma or a line break",
        ),
        (
            f"id;note;spans\n1;{NAME};[]\n",
            f"line 1: the header, whose separator is the semicolon, {LACKS_TEXT}",
        ),
        (
            f"id,text,spans,spans\n1,{NAME},[],[]\n",
            "line 1: the header has the column 'spans' twice; keep one",
        ),
        (
            f"id,text,SPANS \n1,{NAME},[]\n",
            "line 1: a field is called 'spans' but for case or blanks and would be ignored; "
            "rename it to 'spans'",
        ),
        (
            f'id,text\n1,"{NAME}\n2,x\n',
            "line 3: the quoting is broken; double a quote within quotes and close every quote",
        ),
        (
            f'id,text\n1,"{NAME}"x\n',
            "line 2: the quoting is broken; double a quote within quotes and close every quote",
        ),
        (
            f"id,text,spans\n1,{NAME},{NAME}\n",
            "line 2: 'spans': not valid JSON from column 1 on; check quotes, commas and brackets",
        ),
        (
            f'id,text,spans\n1,"a\nb",[]\n\n2,{NAME},"{{""a"": 1}}"\n',
            "line 5: 'spans' is an object; expected a list",
        ),
        (
            f"id,text\n,{NAME}\n",
            "line 2: 'id' is missing or empty; expected a string or a whole number of its own",
        ),
        (f"id,text\n1,{NAME}\n1,x\n", f"line 3: its id is already used on line 2{OWN_ID}"),
    ],
)
def test_csv_refuses(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "c.csv"
    path.write_text(source, "utf-8")
    assert refusal(path) == f"{path}, {message}"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"id": [NAME], "note": [NAME]},
            f": the table {LACKS_TEXT}",
        ),
        (
            {"id": ["a", "a"], "text": ["x", NAME]},
            f", row 2: its id is already used on row 1{OWN_ID}",
        ),
        (
            {"id": [1.0], "text": [NAME]},
            ", row 1: 'id' is a decimal number; expected a string or a whole number",
        ),
        (
            {"id": [1], "text": [b"x" + NAME.encode()]},
            ", row 1: 'text' is bytes; expected a string",
        ),
        (
            {"id": [1, 2], "text": ["", NAME], "spans": [None, f'[{{"start": {NUMBER}}}]']},
            ", row 2: 'spans' is a string; expected a list",
        ),
        (
            {"id": [1], "text": [NAME], "spans": [[{"start": 0.0, "end": 1.0, "label": "A"}]]},
            ", row 1: span 1: 'start' is a decimal number; expected a whole number",
        ),
        (
            {"id": [1], "text": [NAME], " spans": [[]]},
            ": a field is called 'spans' but for case or blanks and would be ignored; "
            "rename it to 'spans'",
        ),
    ],
)
def test_parquet_refuses(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table(table), path)
    assert refusal(path) == f"{path}{message}"


def not_utf8_table() -> pa.Table:
    offsets = pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0")
    text = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"ok\xff\xfe"))
    return pa.table({"id": ["1", NAME], "text": text})


def test_parquet_refuses_strings_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(not_utf8_table(), path)
    expected = "a string in it is not UTF-8; write the file again from UTF-8 text"
    assert refusal(path) == f"{path}, row 2: {expected}"


def test_arrow_refuses_strings_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "c.arrow"
    table = not_utf8_table()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert refusal(path) == f"{path}: it cannot be read as Arrow; check that the file is whole"


UNENDED = (
    "it is no Arrow data, or a stream without its end mark, from which documents may "
    "be missing; check that the file is whole and its writer was closed"
)


def test_arrow_streams_cut_between_batches_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(ROWS[:1], schema=SCHEMA))
        cut = sink.tell()
        writer.write_table(pa.Table.from_pylist(ROWS[1:], schema=SCHEMA))
    assert len(read_corpus(path)) == 3
    path.write_bytes(path.read_bytes()[:cut])
    assert refusal(path) == f"{path}: {UNENDED}"


@pytest.mark.parametrize("name", ["c.parquet", "c.arrow"])
@pytest.mark.parametrize("cut", ["garbage", "tail", "head"])
def test_damaged_tables_are_refused_in_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, cut: str
) -> None:
    path = tmp_path / name
    (write_parquet if name == "c.parquet" else write_stream)(path, ROWS)
    whole = path.read_bytes()
    damaged = {"garbage": NAME.encode() * 9, "tail": whole[: len(whole) // 2], "head": whole[9:]}
    path.write_bytes(damaged[cut])
    message = "it cannot be read as Parquet; check that the file is whole"
    if name == "c.arrow":
        message = UNENDED if cut != "head" else message.replace("Parquet", "Arrow")
    assert refusal(path) == f"{path}: {message}"
    assert capfd.readouterr() == ("", "")


def test_image_columns_are_not_fetched(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"id": pa.array(["1"]), "text": pa.array(["x"])}
    picture = pa.array([{"bytes": None, "path": "http://127.0.0.1:9/x"}], image)
    features = {
        "id": {"dtype": "string", "_type": "Value"},
        "text": {"dtype": "string", "_type": "Value"},
        "picture": {"_type": "Image"},
    }
    meta = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table({**columns, "picture": picture}).replace_schema_metadata(meta), path)
    assert list(read_corpus(path)) == [Document("1", "1", "x")]


def homes(folder: Path) -> list[Path]:
    """Every folder in which a library might leave something."""
    return [folder / name for name in ("HF_HOME", "HF_DATASETS_CACHE", "TMPDIR", "HOME")]


def run_alone(folder: Path, code: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a fresh process with homes of its own in a folder."""
    for home in homes(folder):
        home.mkdir()
    environment = {**os.environ, **{home.name: str(home) for home in homes(folder)}}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_tables_leave_nothing_behind_and_use_no_network(tmp_path: Path) -> None:
    write_parquet(tmp_path / "c.parquet", ROWS)
    write_ipc_file(tmp_path / "c.arrow", ROWS)
    write_csv(tmp_path / "c.csv", ROWS)
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise SystemExit('a socket was opened')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from sani.corpus.readers import read_corpus\n"
        "for name in ('c.csv', 'c.parquet', 'c.arrow'):\n"
        "    assert len(read_corpus(sys.argv[1] + '/' + name)) == 3\n"
        "    assert len(read_corpus(sys.argv[1] + '/' + name, limit=1)) == 1\n"
    )
    assert run_alone(tmp_path, code) == (0, "", "")
    left = [path for home in homes(tmp_path) for path in home.rglob("*") if path.is_file()]
    assert not [path for path in left if NAME.encode() in path.read_bytes()]
    assert not [path for path in left if not path.is_relative_to(tmp_path / "HOME")]
    assert not list((tmp_path / "TMPDIR").iterdir())


def test_damaged_tables_are_refused_in_silence_by_a_fresh_process(tmp_path: Path) -> None:
    (tmp_path / "c.parquet").write_text(NAME * 9, "utf-8")
    code = (
        "import sys\n"
        "from sani.corpus.readers import read_corpus\n"
        "from sani.errors import CorpusError\n"
        "try: read_corpus(sys.argv[1] + '/c.parquet')\n"
        "except CorpusError: pass\n"
        "else: raise SystemExit('it was read')\n"
    )
    assert run_alone(tmp_path, code) == (0, "", "")


# ---- what is refused: folders ----------------------------------------------------------------

MISFIT = (
    "the words that the tag repeats are not those between its offsets; "
    "check that text and tags belong together and offsets count characters from 0"
)
UNSETTLED = (
    "the tag does not repeat the words it covers, so it cannot be told whether its "
    "offsets count line ends as one character or two, or the byte-order mark; "
    "convert the text to plain line ends without that mark, and the offsets with it"
)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (xml(f"Dr {NAME}", tag(2, 14, NAME)), f", line 5: {MISFIT}"),
        (xml(f"👍{NAME} x", tag(2, 14, NAME)), f", line 5: {MISFIT}"),
        (
            xml(NAME, tag(0, NUMBER, NAME)),
            ", line 5: 'end' lies beyond the text, which has 12 characters; "
            "offsets count characters (not bytes) from 0",
        ),
        (
            xml(NAME, tag(3, 3, "")),
            ", line 5: 'end' is not greater than 'start'; it is one past the last character",
        ),
        (
            xml(NAME, tag(NAME, 3, "")),
            ", line 5: the tag's 'start' is missing or no whole number of 0 or more",
        ),
        (
            xml(NAME, tag(0, -3, "")),
            ", line 5: the tag's 'end' is missing or no whole number of 0 or more",
        ),
        (
            xml(NAME, tag(0, 3, NAME[:3], label=" ")),
            ", line 5: the tag's 'TYPE' is missing or empty; expected its label",
        ),
        (xml("a\r\nAna", tag(3, 6, None)), f", line 6: {UNSETTLED}"),
        (
            f"<a><TEXT>{NAME} <b/></TEXT><TAGS/></a>",
            ", line 2: TEXT holds an element; expected characters only",
        ),
        (
            f"<a><TEXT>{NAME}</TEXT></a>",
            ": it has 0 TAGS elements within its root; expected one, "
            "and an empty TAGS if it holds no identifier",
        ),
        (
            f"<a><TEXT>{NAME}</TEXT><TEXT/><TAGS/></a>",
            ": it has 2 TEXT elements within its root; expected one, "
            "and an empty TAGS if it holds no identifier",
        ),
        (
            f"<a><TEXT>{NAME}</TEXT><TAGS/>",
            ", line 2: it is not well-formed XML; check that the file is whole",
        ),
        (
            f"<a><TEXT>{NAME} &nbsp;</TEXT><TAGS/></a>",
            ", line 2: it is not well-formed XML; check that the file is whole",
        ),
        (
            f'<!DOCTYPE a [<!ENTITY x "{NAME}"><!ENTITY y "&x;&x;">]>\n'
            "<a><TEXT>&y;</TEXT><TAGS/></a>",
            ", line 2: it has a DOCTYPE, which is not read for safety; remove it",
        ),
        (
            '<!DOCTYPE a SYSTEM "file:///etc/passwd"><a><TEXT/><TAGS/></a>',
            ", line 2: it has a DOCTYPE, which is not read for safety; remove it",
        ),
    ],
)
def test_i2b2_refuses(tmp_path: Path, body: str, message: str) -> None:
    folder = write_xml(tmp_path / "x y", "a.xml", xml("Ana", tag(0, 3, "Ana")))
    write_xml(folder, f"{NAME}.xml", body)
    listing = f"LC_ALL=C ls '{folder}'/*.xml | sed -n 1p"
    assert refusal(folder) == f"{folder}, file 1 of 2 in name order ({listing}){message}"


def test_the_place_in_the_message_finds_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "it's here"
    for stem in ("b", "a-1", "a", "Z", "é", "a b"):
        write_xml(folder, f"{stem}.xml", "<a/>" if stem == "a" else xml(""))
    message = refusal(folder)
    command = message[message.index("(") + 1 : message.index(")")]
    shown = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert shown.stdout == f"{folder}/a.xml\n"


@pytest.mark.parametrize(
    ("text", "tags", "suffix", "message"),
    [
        (f"Dr {NAME}", f"T1\tNAME 0 12\t{NAME}", "ann", f", line 1: {MISFIT}"),
        (f"{NAME}", f"\nT1\tNAME 0 5;6 9\t{NAME}", "ann", f", line 2: {MISFIT}"),
        (
            f"{NAME}",
            f"T1\tNAME 0 {NUMBER}\t{NAME}",
            "ann",
            ", line 1: 'end' lies beyond the text, which has 12 characters; "
            "offsets count characters (not bytes) from 0",
        ),
        ("\ufeffAna", "T1\tNAME 0 3", "ann", f", line 1: {UNSETTLED}"),
        ("a\r\nAna", "T1\tNAME 3 6", "ann", f", line 1: {UNSETTLED}"),
        (
            f"{NAME}",
            f"T1 NAME 0 12 {NAME}",
            "ann",
            ", line 1: it is no BRAT annotation; "
            "expected T1, a tab, LABEL START END, a tab, the words",
        ),
        (
            f"{NAME}",
            f"{NAME}",
            "ann",
            ", line 1: it is no BRAT annotation; "
            "expected T1, a tab, LABEL START END, a tab, the words",
        ),
        (
            f"{NAME}",
            None,
            "txt",
            ": it has no .ann file beside it; add an empty one if it holds no identifier",
        ),
    ],
)
def test_brat_refuses(
    tmp_path: Path, text: str, tags: str | None, suffix: str, message: str
) -> None:
    folder = write_brat(tmp_path / "f", "A", "Ana", "T1\tNAME 0 3\tAna")
    write_brat(folder, NAME, text, tags)
    listing = f"LC_ALL=C ls {folder}/*.{suffix} | sed -n 2p"
    assert refusal(folder) == f"{folder}, file 2 of 2 in name order ({listing}){message}"


def test_brat_refuses_tags_without_text(tmp_path: Path) -> None:
    folder = write_brat(tmp_path / "f", NAME, "x", f"T1\tNAME 0 12\t{NAME}")
    (folder / f"{NAME}.txt").unlink()
    listing = f"LC_ALL=C ls {folder}/*.ann | sed -n 1p"
    assert refusal(folder) == (
        f"{folder}, file 1 of 1 in name order ({listing}): "
        "it has no .txt file beside it; add the text or move the .ann file away"
    )


@pytest.mark.parametrize("suffix", ["txt", "ann", "xml"])
def test_folders_refuse_other_encodings(tmp_path: Path, suffix: str) -> None:
    if suffix == "xml":
        folder = write_xml(tmp_path / "f", f"{NAME}.xml", xml("Peña"), encoding="latin-1")
    else:
        folder = write_brat(tmp_path / "f", NAME, "x", "")
        (folder / f"{NAME}.{suffix}").write_bytes("T1\tPeña 0 1\tx".encode("latin-1"))
    assert refusal(folder).endswith(f"sed -n 1p): {NOT_UTF8}")


def test_folders_refuse_what_would_be_passed_over(tmp_path: Path) -> None:
    folder = write_xml(tmp_path / "f", "a.xml", xml("x"))
    write_xml(folder / "sub", f"{NAME}.xml", xml("x"))
    assert refusal(folder) == (
        f"{folder}: .xml files also lie in a folder within it, which is not read; "
        "move all of them into one folder, or name the folder that holds them"
    )


# ---- what is refused: paths and arguments ----------------------------------------------------


def test_paths_that_hold_no_corpus(tmp_path: Path) -> None:
    missing, empty, odd = tmp_path / "no.jsonl", tmp_path / "empty.jsonl", tmp_path / "c.odd.gz"
    empty.touch()
    odd.write_text(NAME, "utf-8")
    blank = tmp_path / "blank.jsonl"
    blank.write_text(" \n\n", "utf-8")
    assert refusal(missing) == f"{missing}: there is no such file or folder; check the path"
    assert refusal(empty) == f"{empty}: the file is empty; expected at least one document"
    assert refusal(blank) == f"{blank}: it holds no documents; expected at least one"
    assert refusal(odd) == (
        f"{odd}: its suffix tells no format; expected one of .jsonl, .ndjson, .json, .parquet, "
        ".csv, .tsv, .xlsx, .arrow, .feather, .xml, .gz or .zst after it where it is text, or the "
        "format given as one of jsonl, json, parquet, csv, xlsx, arrow, i2b2, brat, fhir, text"
    )


@pytest.mark.parametrize("write", [write_parquet, write_stream, write_ipc_file])
def test_tables_without_rows_hold_no_documents(tmp_path: Path, write: Callable[..., Any]) -> None:
    path = write(tmp_path / ("c.parquet" if write is write_parquet else "c.arrow"), [])
    assert refusal(path) == f"{path}: it holds no documents; expected at least one"


def test_folders_that_tell_no_format(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / f"{NAME}.txt").write_text(NAME, "utf-8")
    nothing = (
        f"{folder}: the folder holds no documents; expected .xml files (i2b2) or pairs of "
        ".txt and .ann files (brat); .txt files alone are read with the format text"
    )
    assert refusal(folder) == nothing
    assert refusal(folder, format="brat") == nothing
    (folder / f"{NAME}.ann").touch()
    assert refusal(folder, format="i2b2") == nothing
    write_xml(folder, "a.xml", xml("x"))
    assert refusal(folder) == (
        f"{folder}: it holds both .xml and .ann files; say which to read with the format "
        "i2b2 or brat"
    )
    assert len(read_corpus(folder, format="brat")) == 1
    assert len(read_corpus(folder, format="i2b2")) == 1


def test_formats_that_do_not_fit_the_path(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", ROWS)
    assert refusal(path, format="brat") == (
        f"{path}: it is a file; the format brat is read from a folder"
    )
    assert refusal(tmp_path, format="csv") == (
        f"{tmp_path}: it is a folder; the format csv is read from one file"
    )
    assert refusal(path, format=NAME) == (
        f"{path}: unknown format; expected one of {', '.join(FORMATS)}"
    )


@pytest.mark.parametrize("limit", [0, -1, True, 2.5, "3"])
def test_limits_below_one_are_refused(tmp_path: Path, limit: Any) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", ROWS)
    assert refusal(path, limit=limit) == (
        f"{path}: limit must be at least 1, or be left out to read all documents"
    )


# ---- what would never end ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "c.parquet", "c.jsonl.gz"])
def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert "it is no regular file but a pipe, a socket or a device" in refusal(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    assert "it is no regular file but a pipe, a socket or a device" in refusal(tmp_path / name)


@pytest.mark.parametrize(("format", "suffix"), [("text", "txt"), ("brat", "ann"), ("i2b2", "xml")])
def test_a_pipe_in_a_folder_is_refused(tmp_path: Path, format: Any, suffix: str) -> None:
    folder = tmp_path / "f"
    if format == "brat":
        write_brat(folder, NAME, "x", None)
    folder.mkdir(exist_ok=True)
    os.mkfifo(folder / f"{NAME}.{suffix}")
    assert "it is no regular file but a pipe" in refusal(folder, format=format)


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "c.ndjson"])
def test_a_line_without_end_is_refused_at_its_limit(tmp_path: Path, name: str) -> None:
    """A sparse file of a terabyte costs nothing to make."""
    path = tmp_path / name
    path.write_text('{"id": "' if name != "c.csv" else "id,text\n1,")
    os.truncate(path, 2**40)
    began = time.monotonic()
    message = refusal(path)
    assert "the line is longer than 64 MiB" in message
    assert "corpus.max_line_mib in the recipe raises the limit" in message
    assert time.monotonic() - began < 20


def test_a_cell_that_is_never_closed_is_refused_at_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text('id,text\n1,"' + "a line\n" * 300_000)
    small = SizeLimits(line=1)
    assert "a cell is longer than 1 MiB; is a quote never closed?" in refusal(path, limits=small)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_small_file_that_holds_a_huge_one_is_refused(tmp_path: Path, suffix: str) -> None:
    row = json.dumps({"id": "1", "text": "x"})
    path = tmp_path / f"c.jsonl{suffix}"
    compression = {".gz": "gzip", ".zst": "zstd"}[suffix]
    with pa.output_stream(str(path), compression=compression) as out:
        out.write(row.encode() + b"\n" * (2 * 2**20))
    assert path.stat().st_size < 10_000
    assert len(read_corpus(path)) == 1
    message = refusal(path, limits=SizeLimits(decompressed=1))
    assert "the file holds more than 1 MiB once it is decompressed" in message
    assert "corpus.max_decompressed_mib" in message
    bomb = tmp_path / f"zeros.jsonl{suffix}"
    with pa.output_stream(str(bomb), compression=compression) as out:
        out.write(b"\0" * (3 * 2**20))
    assert "the line is longer than 1 MiB" in refusal(bomb, limits=SizeLimits(line=1))


@pytest.mark.parametrize("write", [write_parquet, write_stream])
def test_a_column_that_holds_more_than_the_limit_is_refused(
    tmp_path: Path, write: Callable[..., Any]
) -> None:
    path = tmp_path / ("c.parquet" if write is write_parquet else "c.arrow")
    write(path, [{"id": str(n), "text": "x" * 2**19} for n in range(4)])
    assert len(read_corpus(path)) == 4
    message = refusal(path, limits=SizeLimits(decompressed=1))
    assert "corpus.max_decompressed_mib" in message


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", ROWS)
    assert refusal(path, kinds={"NAME": NAME}) == (
        f"{path}: kinds must map every label to one of direct, indirect"
    )


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "c.parquet", "c.arrow"])
def test_files_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    path.write_text(NAME, "utf-8")

    def refuse(*_args: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied", NAME)

    monkeypatch.setattr(Path, "open", refuse)
    assert refusal(path) == f"{path}: it cannot be read: Permission denied"


def test_folder_files_that_may_not_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    (folder / f"{NAME}.xml").mkdir(parents=True)
    assert refusal(folder).endswith("sed -n 1p): it cannot be read: Is a directory")


# ---- anything else ---------------------------------------------------------------------------


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes with a few stretches removed, repeated or overwritten."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(whole)))
        end = draw(st.integers(start, min(len(whole), start + 40)))
        middle = draw(st.one_of(st.binary(max_size=6), st.just(whole[start:end] * 2)))
        whole = whole[:start] + middle + whole[end:]
    return whole


def read_or_refuse(path: Path) -> None:
    try:
        read_corpus(path)
    except CorpusError as error:
        shown = "".join(traceback.format_exception(error))
        assert not any(canary in shown for canary in CANARIES)


JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CSV = f'id,text,spans\n1,"{NAME} ""x""\n","[{{""start"":0,""end"":3,""label"":""A""}}]"\n'.encode()
XML = xml(f"Dr {NAME}\n{NUMBER}", tag(3, 15, NAME), tag(16, 26, NUMBER)).encode()
ANN = f"T1\tNAME 3 15\t{NAME}\nT2\tMRN 16 20;21 26\t4711 98877\n".encode()


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_text_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: Any
) -> None:
    whole = JSONL if name == "c.jsonl" else CSV
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(data.draw(st.one_of(mutated(whole), st.binary(max_size=60))))
    read_or_refuse(path)


@pytest.mark.parametrize("name", ["xml", "ann"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_annotations_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"damaged-{name}"
    whole = XML if name == "xml" else ANN
    write_brat(folder, NAME, f"Dr {NAME}\n{NUMBER}", None)
    (folder / f"{NAME}.{name}").write_bytes(data.draw(mutated(whole)))
    read_or_refuse(folder)


@pytest.mark.parametrize("name", ["c.parquet", "c.arrow"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_columns_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    whole = (write_parquet if name == "c.parquet" else write_stream)(path, ROWS).read_bytes()
    path.write_bytes(data.draw(mutated(whole)))
    read_or_refuse(path)


def test_a_document_whose_spans_go_by_another_name_is_refused(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "text": "Ana", "spans": [{"start": 0, "end": 3, "label": "NAME"}]},
        {"id": "b", "text": "Eva", "marks": [{"start": 0, "end": 3, "label": "NAME"}]},
    ]
    path = tmp_path / "notes.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(CorpusError) as caught:
        read_corpus(path)
    assert str(caught.value) == (
        f"{path}, line 2: it has no 'spans', but others have; write \"spans\": [] where there are "
        "none"
    )
    rows[1] = {"id": "b", "text": "Eva", "spans": []}
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_corpus(path).num_spans == 1


@pytest.mark.parametrize("label", ["123456", "ana@example.com", "x" * 65, "Ana"])
def test_a_label_that_looks_like_a_value_is_refused_and_not_shown(
    tmp_path: Path, label: str
) -> None:
    row = {"id": "a", "text": "Ana", "spans": [{"start": 0, "end": 3, "label": label}]}
    path = tmp_path / "notes.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(CorpusError, match="labels are printed in reports") as caught:
        read_corpus(path)
    assert label not in str(caught.value)


@pytest.mark.parametrize("field", ["label", "source"])
@pytest.mark.parametrize(
    "name", ["Ana Ruiz", "ANA  RUIZ", "Ána Ruíz", "Note Of Ruiz", "patient-seven"]
)
def test_a_label_that_is_a_value_of_another_document_is_refused(
    tmp_path: Path, field: str, name: str
) -> None:
    """It would be printed in every report: also an id, and with other case or accents."""
    rows: list[dict[str, Any]] = [
        {"id": "a", "text": "Eva", "spans": [{"start": 0, "end": 3, "label": "NAME", field: name}]},
        {"id": "note of ruiz", "subject_id": "Patient-Seven", "text": "Ana Ruiz",
         "spans": [{"start": 0, "end": 8, "label": "NAME"}]},
    ]  # fmt: skip
    path = write_jsonl(tmp_path / "c.jsonl", rows)
    message = refusal(path)
    assert message.startswith(f"{path}, line 1: a label or a source of it is the text of an ident")
    assert name not in message
    rows[0]["spans"] = [{"start": 0, "end": 3, "label": "NAME", field: "OTHER"}]
    assert read_corpus(write_jsonl(path, rows)).num_spans == 2
    # A detector takes a heading for a name; that a label is called so tells nothing of anybody.
    rows[0] |= {"text": "MRN", "spans": [{"start": 0, "end": 3, "label": "NAME", "source": "ner"}]}
    rows[1]["spans"][0]["label"] = "MRN"
    assert read_corpus(write_jsonl(path, rows)).num_spans == 2


# ---- exports: FHIR, plain text, compressed ------------------------------------------------------


def resource(
    identity: str = "d1",
    *,
    subject: str = "Patient/p7",
    text: str = "Ana 😀\r\n",
    **attachment: Any,
) -> Any:
    data = base64.b64encode(text.encode()).decode()
    plain = {"contentType": "text/plain; charset=utf-8", "data": data, **attachment}
    return {
        "resourceType": "DocumentReference",
        "id": identity,
        "subject": {"reference": subject},
        "content": [{"attachment": {"contentType": "application/pdf", "url": "x"}},
                    {"attachment": plain}],
    }  # fmt: skip


def test_fhir_documents_are_known_by_their_first_line_and_read_with_their_subject(
    tmp_path: Path,
) -> None:
    rows = [resource(), resource("d2", subject="urn:x/Patient/p8/", text="")]
    path = write_jsonl(tmp_path / "DocumentReference.ndjson", rows)
    expected = [Document("d1", "p7", "Ana 😀\r\n"), Document("d2", "p8", "")]
    assert list(read_corpus(path)) == expected
    assert list(read_corpus(path, format="fhir")) == expected
    latin = resource(contentType="text/plain; charset=iso-8859-1",
                     data=base64.b64encode("Peña".encode("latin-1")).decode())  # fmt: skip
    assert read_corpus(write_jsonl(tmp_path / "l.ndjson", [latin]))[0].text == "Peña"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"resourceType": "Patient"}, "its 'resourceType' is not one of DocumentReference,"),
        ({"content": None}, "'content' is missing or null; expected a list"),
        ({"content": [{"attachment": {"contentType": "text/plain", "url": NAME}}]},
         "it has an attachment of type text/plain without its data"),
        ({"content": [{"attachment": {"contentType": "application/pdf", "data": "QQ=="}}]},
         "it has no attachment of type text/plain that holds its data"),
        ({"content": [{"attachment": {"contentType": "text/plain", "data": "!" + NAME}}]},
         "the attachment's 'data' is not base64"),
        ({"content": [{"attachment": {"contentType": "text/plain", "data": "/w=="}}]},
         "the attachment's 'data' is not text of the charset it names, or of UTF-8"),
        ({"content": [{"attachment": {"contentType": "text/plain; charset=odd", "data": "QQ=="}}]},
         "the attachment's charset is not known"),
        ({"content": [{"attachment": {"contentType": "text/plain", "data": 7}}]},
         "the attachment's 'data' is a whole number; expected base64"),
    ],
)  # fmt: skip
def test_fhir_refuses_what_holds_no_text(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    path = write_jsonl(tmp_path / "c.ndjson", [{**resource(), **change}])
    assert refusal(path).startswith(f"{path}, line 1: {problem}")


def test_plain_text_takes_its_subject_from_the_folder_or_a_pattern(tmp_path: Path) -> None:
    for name, text in (("a/1.txt", "Ana"), ("a/b/2.txt", "\ufeffBo"), ("P12_3.txt", "x")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / ".hidden.txt").write_text("no")
    found = read_corpus(tmp_path, format="text")
    assert list(found) == [
        Document("P12_3", "P12_3", "x"), Document("a/1", "a", "Ana"), Document("a/b/2", "a", "Bo"),
    ]  # fmt: skip
    by_name = read_corpus(tmp_path, format="text", subject_pattern=r"(?P<subject>P[0-9]+)_|^a/")
    assert by_name[0].subject_id == "P12"
    assert refusal(tmp_path, format="text", subject_pattern="(?P<subject>P)").count("nothing") == 2
    assert "has no group 'subject'" in refusal(tmp_path, format="text", subject_pattern="P")
    assert "is no regular expression" in refusal(tmp_path, format="text", subject_pattern="(")
    path = write_jsonl(tmp_path / "c.jsonl", ROWS)
    assert "is for the format text" in refusal(path, subject_pattern="(?P<subject>P)")


def test_plain_text_of_another_encoding_is_refused_by_place(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / f"{NAME}.txt").write_bytes("Peña".encode("latin-1"))
    message = refusal(tmp_path, format="text")
    command = message.split("(", 1)[1].split(") ", 1)[0].rsplit("): ", 1)[0]
    listed = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert listed.stdout.strip() == str(tmp_path / f"{NAME}.txt")
    assert message.endswith(NOT_UTF8)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("write", [write_jsonl, write_csv])
def test_compressed_files_are_read_like_plain_ones(
    tmp_path: Path, write: Callable[..., Any], suffix: str
) -> None:
    plain = write(tmp_path / ("c.jsonl" if write is write_jsonl else "c.csv"), ROWS)
    packed = plain.with_name(plain.name + suffix)
    with pa.output_stream(str(packed), compression={".gz": "gzip", ".zst": "zstd"}[suffix]) as out:
        out.write(plain.read_bytes())
    assert list(read_corpus(packed)) == list(read_corpus(plain))
    whole = packed.read_bytes()
    packed.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorpusError):
        read_corpus(packed)
    packed.write_bytes(b"no such thing, " + NAME.encode())
    assert "it cannot be read" in refusal(packed)
