"""Tables as they come: separators, names of columns, JSON, Excel, no ids, columns not read."""

import csv
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sani.corpus.columns import parse_columns
from sani.corpus.readers import read_corpus
from sani.errors import CorpusError
from tests.support.corpora import END, NAME, START, TEXT, refusal, write_lines

SPANS = [{"start": START, "end": END, "label": "NAME"}]
JOINED = (
    "cells in quotes that hold a line break and a tab; if this file does not quote its cells, "
    "records became one there"
)
NUMBERED = "no record has an id, so its number in the file, from 1, is its id"


def write_table(path: Path, separator: str, *rows: list[str], encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    return path


# ---- separators --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("separator", "name"),
    [(";", "semicolon"), ("\t", "tab"), ("|", "vertical bar"), (",", "comma")],
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".CSV", ".Tsv"])
def test_the_separator_is_settled_by_the_header_and_named(
    tmp_path: Path, separator: str, name: str, suffix: str
) -> None:
    spans = json.dumps(SPANS)
    text = f"{TEXT} a,b;c\td|e\nnext; line"  # each separator stands in the text, too
    path = write_table(
        tmp_path / f"c{suffix}", separator,
        ["id", "subject_id", "text", "spans"], ["007", "s1", text, spans], ["2", "s1", "x", "[]"],
    )  # fmt: skip
    corpus = read_corpus(path)
    assert [(d.id, d.subject_id, d.text) for d in corpus] == [("007", "s1", text), ("2", "s1", "x")]
    assert corpus[0].value(corpus[0].spans[0]) == NAME
    usual = "tab" if suffix.lower() == ".tsv" else "comma"
    said = () if name == usual else (f"its cells are separated by the {name}, as its header shows",)
    joined = f"{JOINED}: 1"  # a tab stands in a cell of two lines
    assert corpus.notes == (*said, *((joined,) if name == "tab" else ()))


def test_the_line_that_tells_excel_the_separator_is_read_and_lines_are_counted_with_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "c.csv"
    path.write_text(f"sep=;\nid;text\n1;{TEXT}\n2;x;y\n")
    assert refusal(path) == (
        f"{path}, line 4: it has 3 cells and the header 2; put quotes around a cell that holds a "
        "semicolon or a line break"
    )
    path.write_text(f"sep=;\r\nid;text\r\n1;{TEXT}\r\n")
    assert [d.text for d in read_corpus(path)] == [TEXT]


def test_records_that_a_quote_may_have_joined_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "c.tsv"
    path.write_text(f'id\ttext\n1\t"{TEXT}\n2\tend"\n3\t"a\nb"\n')
    corpus = read_corpus(path)
    assert [d.id for d in corpus] == ["1", "3"]
    assert corpus.notes == (f"{JOINED}: 1",)


def test_a_header_that_lacks_text_names_the_separator_and_the_way_out(tmp_path: Path) -> None:
    path = write_table(tmp_path / "c.csv", ";", ["id", "note"], ["1", TEXT])
    message = refusal(path)
    assert message.startswith(
        f"{path}, line 1: the header, whose separator is the semicolon, lacks"
    )
    assert "corpus.columns in a recipe, or --column text=NAME" in message
    # Without a header the first record stands in its place: it is not shown.
    assert "lacks 'text'" in refusal(write_table(tmp_path / "d.csv", ",", ["1", TEXT]))


# ---- names of columns --------------------------------------------------------------------------

OTHER_NAMES = {"id": "note_id", "subject_id": "mrn", "text": "note"}


def write_other_names(path: Path) -> Path:
    row = {"note_id": "n1", "mrn": "s7", "note": TEXT, "ward": "3B"}
    if path.suffix == ".csv":
        return write_table(path, ",", list(row), list(row.values()))
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
        return path
    if path.suffix == ".json":
        path.write_text(json.dumps([row]))
        return path
    if path.suffix == ".xlsx":
        openpyxl = pytest.importorskip("openpyxl", reason="the extra xlsx is not installed")
        book = openpyxl.Workbook()
        book.active.append(list(row))
        book.active.append(list(row.values()))
        book.save(path)
        return path
    return write_lines(path, row)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet", ".xlsx"])
def test_columns_of_other_names_are_read_where_they_are_named(tmp_path: Path, suffix: str) -> None:
    path = write_other_names(tmp_path / f"c{suffix}")
    corpus = read_corpus(path, columns=OTHER_NAMES)
    assert [(d.id, d.subject_id, d.text) for d in corpus] == [("n1", "s7", TEXT)]
    assert corpus.notes == ("fields that are not read, with the number of records: ward (1)",)
    refusal(path)  # without the names nothing says which column is the text
    assert refusal(path, columns={**OTHER_NAMES, "subject_id": "mnr"}) == (
        f"{path}: no record has the column that is given for 'subject_id'; compare the names in "
        "corpus.columns, or of --column, with the file"
    )


def test_a_name_gives_way_to_the_fields_own_name_where_the_file_has_that_one(
    tmp_path: Path,
) -> None:
    """So that held-out records in sani's own form go with a corpus that has other names."""
    path = write_lines(tmp_path / "c.jsonl", {"id": "1", "subject_id": "s", "text": TEXT})
    assert read_corpus(path, columns=OTHER_NAMES)[0].text == TEXT


def test_spans_under_another_name_are_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", {"id": "1", "text": TEXT, "Spans": SPANS})
    assert read_corpus(path, columns={"spans": "Spans"}).num_spans == 1
    path = write_table(
        tmp_path / "c.csv", ";", ["id", "text", "phi"], ["1", TEXT, json.dumps(SPANS)]
    )
    assert read_corpus(path, columns={"spans": "phi"}).num_spans == 1


@pytest.mark.parametrize("columns", [{"label": "x"}, {"text": ""}, {"text": 7}])
def test_columns_for_no_field_are_refused(tmp_path: Path, columns: Any) -> None:
    path = write_lines(tmp_path / "c.jsonl", {"id": "1", "text": TEXT})
    assert "columns maps a field to its name in the corpus" in refusal(path, columns=columns)


def test_columns_are_for_tables(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    message = refusal(tmp_path, format="text", columns={"text": "note"})
    assert message.endswith(
        "names of columns are for the formats jsonl, json, parquet, csv, xlsx, arrow, not text"
    )


def test_pairs_of_the_command_line_become_columns() -> None:
    assert parse_columns(["text=a=b", "id=n"]) == {"text": "a=b", "id": "n"}
    for wrong in (["text"], ["text="], ["note=text"], ["text=a", "text=b"]):
        with pytest.raises(CorpusError, match="column"):
            parse_columns(wrong)


# ---- JSON --------------------------------------------------------------------------------------

RECORDS = [{"id": "1", "text": TEXT, "spans": SPANS}, {"id": "2", "text": "x", "spans": []}]


@pytest.mark.parametrize("name", ["c.json", "c.jsonl", "c.ndjson", "c.JSON"])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_of_records_is_read_whatever_it_is_called(
    tmp_path: Path, name: str, indent: int | None
) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(RECORDS, indent=indent))
    corpus = read_corpus(path)
    assert [d.text for d in corpus] == [TEXT, "x"]
    assert corpus.num_spans == 1


def test_lines_of_json_are_read_from_a_file_called_json(tmp_path: Path) -> None:
    assert len(read_corpus(write_lines(tmp_path / "c.json", *RECORDS))) == 2
    assert len(read_corpus(write_lines(tmp_path / "d.json", RECORDS[0]))) == 1


def test_a_problem_of_a_json_list_names_its_record_or_its_line(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps([*RECORDS, {"id": "3"}, TEXT], indent=1))
    assert refusal(path).splitlines()[1:] == [
        "  record 3: 'text' is missing or null; expected a string",
        "  record 4: it holds a string; expected a JSON object",
    ]
    path.write_text(json.dumps(RECORDS, indent=1)[:-4])
    assert ": not valid JSON from column" in refusal(path)
    path.write_text('{\n"notes": 7\n}')
    assert refusal(path) == f"{path}: 'text' is missing or null; expected a string"


# ---- Excel -------------------------------------------------------------------------------------


def write_book(path: Path, *sheets: list[list[Any]]) -> Path:
    openpyxl = pytest.importorskip("openpyxl", reason="the extra xlsx is not installed")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for number, rows in enumerate(sheets):
        sheet = book.create_sheet(f"{NAME} {number}")
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


HEAD = ["id", "subject_id", "text", "spans"]


def test_a_workbook_is_read(tmp_path: Path) -> None:
    rows: list[list[Any]] = [
        HEAD,
        [7, "s1", f"{TEXT}\n40 años 😀", json.dumps(SPANS)],
        [None] * 4,
        ["b", 2, "x", "[]"],
    ]
    corpus = read_corpus(write_book(tmp_path / "c.XLSX", rows, []))
    assert [(d.id, d.subject_id, d.text) for d in corpus] == [
        ("7", "s1", f"{TEXT}\n40 años 😀"), ("b", "2", "x"),
    ]  # fmt: skip
    assert corpus[0].value(corpus[0].spans[0]) == NAME


@pytest.mark.parametrize(
    ("sheets", "message"),
    [
        ([[HEAD], [["id", "text"], [1, TEXT]]], ": 2 of its sheets hold rows, and 2 of these have"),
        ([[["note"], [TEXT]], [[NAME]]], ": 2 of its sheets hold rows, and none of these has"),
        ([[["id", "note"], [1, TEXT]]], ": the first row lacks 'text'"),
        ([[["id", "text"], [1, TEXT, NAME]]], ", row 2: it has a cell in a column without a name"),
        ([[["id", "text"], [1, "#REF!"]]], ", row 2: the cell of its text holds an error of Excel"),
        ([[["id", "text"], [1.5, TEXT]]], ", row 2: 'id' is a decimal number"),
        ([[["id", "text"]]], ": it holds no documents"),
        ([[]], ": it holds no documents"),
    ],
)  # fmt: skip
def test_a_workbook_is_refused(tmp_path: Path, sheets: Any, message: str) -> None:
    path = write_book(tmp_path / "c.xlsx", *sheets)
    assert refusal(path).startswith(f"{path}{message}")


def test_of_several_sheets_the_one_with_a_column_of_text_is_read(tmp_path: Path) -> None:
    legend: list[list[Any]] = [
        ["column", "meaning"],
        ["id", "text"],
        [None, None],
        ["note", "what was written"],
    ]
    records: list[list[Any]] = [["id", "note"], [1, TEXT], [2, "x"]]
    orders: list[list[list[list[Any]]]] = [[records, legend, []], [legend, records]]
    for sheets in orders:
        path = write_book(tmp_path / "c.xlsx", *sheets)
        corpus = read_corpus(path, columns={"text": "note"})
        assert [d.text for d in corpus] == [TEXT, "x"]
        assert [note for note in corpus.notes if "sheets" in note] == [
            "rows of other sheets that are not read, since these have no column of text: 3"
        ]
    alone = read_corpus(write_book(tmp_path / "c.xlsx", records), columns={"text": "note"})
    assert not any("sheets" in note for note in alone.notes)


@pytest.mark.parametrize("dimension", ["A1:D2", "A1:C4"])
def test_rows_and_columns_beyond_the_stated_size_of_a_sheet_are_read(
    tmp_path: Path, dimension: str
) -> None:
    rows: list[list[Any]] = [
        HEAD,
        *([n, "s", TEXT, json.dumps(SPANS)] for n in range(3)),
        [3, "s", "x", None],
    ]
    book = write_book(tmp_path / "c.xlsx", rows)
    wrong = tmp_path / "wrong.xlsx"
    with zipfile.ZipFile(book) as old, zipfile.ZipFile(wrong, "w") as new:
        for name in old.namelist():
            stated = f'<dimension ref="{dimension}"'.encode()
            content, replaced = re.subn(rb'<dimension ref="[^"]*"', stated, old.read(name))
            assert replaced == name.startswith("xl/worksheets/"), name
            new.writestr(name, content)
    corpus = read_corpus(wrong)
    assert [len(document.spans) for document in corpus] == [len(SPANS)] * 3 + [0]


def test_a_cell_that_excel_may_have_cut_is_counted(tmp_path: Path) -> None:
    long = "x" * 32_767
    corpus = read_corpus(write_book(tmp_path / "c.xlsx", [["id", "text"], [1, long], [2, "x"]]))
    assert [note for note in corpus.notes if "may be cut off: 1" in note]


def test_a_damaged_workbook_is_refused_and_not_quoted(tmp_path: Path) -> None:
    path = write_book(tmp_path / "c.xlsx", [HEAD, [1, "s", TEXT, "[]"]])
    for damaged in (path.read_bytes()[:200], NAME.encode() * 9):
        path.write_bytes(damaged)
        assert "it cannot be read as an Excel workbook" in refusal(path)


def test_without_the_library_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "c.xlsx").write_bytes(b"PK")
    assert "pip install 'sani-llm[xlsx]'" in refusal(tmp_path / "c.xlsx")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("c.xls", "save it as .xlsx"),
        ("c.docx", "read it with the format text"),
        ("c.spacy", "ent.start_char"),
        ("c.txt", "put it into a folder"),
        ("c.zip", "unpack it first"),
        ("c.ann", "format brat"),
    ],
)
def test_a_file_that_is_not_read_is_told_what_to_do(tmp_path: Path, name: str, advice: str) -> None:
    (tmp_path / name).write_text(TEXT)
    message = refusal(tmp_path / name)
    assert message.startswith(f"{tmp_path / name}: {Path(name).suffix} files are not read; ")
    assert advice in message


# ---- no ids, and columns that are not read -----------------------------------------------------


def write_without_ids(path: Path) -> Path:
    rows = [{"subject_id": "s1", "text": TEXT}, {"subject_id": "s1", "text": "x"}]
    if path.suffix == ".csv":
        return write_table(path, ",", list(rows[0]), *(list(row.values()) for row in rows))
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    return write_lines(path, *rows)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_records_of_a_file_without_ids_are_numbered(tmp_path: Path, suffix: str) -> None:
    corpus = read_corpus(write_without_ids(tmp_path / f"c{suffix}"))
    assert [(d.id, d.subject_id) for d in corpus] == [("1", "s1"), ("2", "s1")]
    assert corpus.notes == (NUMBERED,)


@pytest.mark.parametrize("order", [1, -1])
def test_some_ids_missing_is_an_error(tmp_path: Path, order: int) -> None:
    rows = [{"text": TEXT}, {"id": "1", "text": "x"}][::order]
    path = write_lines(tmp_path / "c.jsonl", *rows)
    line = 1 if order == 1 else 2
    assert refusal(path).startswith(f"{path}, line {line}: 'id' is missing or empty")
    assert "'id' is missing or empty" in refusal(
        write_lines(tmp_path / "d.jsonl", {"id": None, "text": TEXT})
    )


def test_fields_that_are_not_read_are_named_unless_the_name_may_be_a_value(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "text": "x", "ward": "3B", "note": None, NAME: 1, "mrn_8844213907": 2},
        {"id": 2, "text": "y", "ward": "4", "author": NAME},
    ]
    corpus = read_corpus(write_lines(tmp_path / "c.jsonl", *rows))
    assert corpus.notes[-1] == (
        "fields that are not read, with the number of records: author (1), ward (2), "
        "with another name (2)"
    )
    wide = {"id": 1, "text": "x"} | {f"field_{n:02}": n + 1 for n in range(20)}
    (note,) = read_corpus(write_lines(tmp_path / "w.jsonl", wide)).notes
    assert note.endswith("field_11 (1), and 8 more")


def test_a_person_that_no_column_names_is_said_where_other_columns_are(tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": "A note.", "patient_id": "p1"} for n in range(3)]
    path = write_lines(tmp_path / "c.jsonl", *rows)
    note = read_corpus(path).notes[0]
    assert "no record has a subject_id" in note
    assert "--column subject_id=NAME" in note
    assert read_corpus(path, columns={"subject_id": "patient_id"}).notes == ()
    rows[0]["subject_id"] = "p1"
    path = write_lines(tmp_path / "d.jsonl", *rows)
    assert read_corpus(path).notes[0] == (
        "records without a subject_id, each of which counts as a person of its own: 2"
    )
    plain = [{"id": row["id"], "text": row["text"]} for row in rows]
    assert read_corpus(write_lines(tmp_path / "e.jsonl", *plain)).notes == ()
