"""Every record of the input is read, or named in an error, or counted in a note: each format."""

import base64
import csv
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sani.corpus.formats import FORMATS
from sani.corpus.readers import read_corpus
from sani.errors import CorpusError
from tests.support.corpora import resource, stand_off

# A record is (word, state): the word stands in its text and nowhere else.
READ, BROKEN, COUNTED = "read", "broken", "counted"
Record = tuple[str, str]
Build = Callable[[Path, list[Record]], tuple[Path, dict[str, Any]]]


def rows_of(records: list[Record]) -> list[dict[str, Any]]:
    """Records in sani's own form; a broken one has no text."""
    return [
        {"id": f"d{number}", "text": f"Note {word}." if state == READ else None}
        for number, (word, state) in enumerate(records)
    ]


def build_jsonl(folder: Path, records: list[Record]) -> tuple[Path, dict[str, Any]]:
    lines = [
        json.dumps(row) if number % 2 or row["text"] else f'{{"id": "d{number}", "text":'
        for number, row in enumerate(rows_of(records))
    ]
    (folder / "c.jsonl").write_text("\n\n".join(lines))
    return folder / "c.jsonl", {}


def build_json(folder: Path, records: list[Record]) -> tuple[Path, dict[str, Any]]:
    (folder / "c.json").write_text(json.dumps(rows_of(records), indent=2))
    return folder / "c.json", {}


def build_csv(folder: Path, records: list[Record]) -> tuple[Path, dict[str, Any]]:
    with (folder / "c.csv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["id", "text"])
        for row in rows_of(records):
            text = row["text"]
            writer.writerow([row["id"], f"{text}\n,|\t next line"] if text else [row["id"]])
    return folder / "c.csv", {}


def build_xlsx(folder: Path, records: list[Record]) -> tuple[Path, dict[str, Any]]:
    openpyxl = pytest.importorskip("openpyxl", reason="the extra xlsx is not installed")
    book = openpyxl.Workbook()
    book.active.append(["id", "text"])
    for row in rows_of(records):
        book.active.append([row["id"], row["text"]])
    book.save(folder / "c.xlsx")
    return folder / "c.xlsx", {}


def build_parquet(folder: Path, records: list[Record]) -> tuple[Path, dict[str, Any]]:
    pq.write_table(pa.Table.from_pylist(rows_of(records)), folder / "c.parquet", row_group_size=3)
    return folder / "c.parquet", {}


def build_arrow(folder: Path, records: list[Record]) -> tuple[Path, dict[str, Any]]:
    table = pa.Table.from_pylist(rows_of(records))
    path = str(folder / "c.arrow")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return folder / "c.arrow", {}


def build_fhir(folder: Path, records: list[Record]) -> tuple[Path, dict[str, Any]]:
    """Documents on lines of their own, in Bundles, and as further attachments of one resource."""
    lines: list[Any] = []
    for number, (word, state) in enumerate(records):
        row = resource(f"d{number}", f"Note {word}.", subject=f"Patient/p{number}")
        attachment = row["content"][0]["attachment"]
        if state == BROKEN:
            attachment["data"] = "!" + attachment["data"]
        if state == COUNTED and number % 2:
            row = {"resourceType": "Patient", "id": f"p{number}", "name": [{"text": word}]}
        elif state == COUNTED:
            attachment["contentType"] = "text/html"
            plain = base64.b64encode(b"also plain").decode()
            row["content"].insert(0, {"attachment": {"contentType": "text/plain", "data": plain}})
        bundled = state == COUNTED or number % 3 == 0
        lines.append({"resourceType": "Bundle", "entry": [{"resource": row}]} if bundled else row)
    (folder / "c.ndjson").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "c.ndjson", {}


def build_text(folder: Path, records: list[Record]) -> tuple[Path, dict[str, Any]]:
    for number, (word, state) in enumerate(records):
        suffix = {READ: (".txt", ".TXT")[number % 2], BROKEN: ".txt", COUNTED: ".rtf"}[state]
        text = f"Note {word}.".encode("utf-16-le" if state == BROKEN else "utf-8")
        path = folder / f"ward{number % 2}" / f"{number}{suffix}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text)
    return folder, {"format": "text"}


def build_brat(folder: Path, records: list[Record]) -> tuple[Path, dict[str, Any]]:
    for number, (word, state) in enumerate(records):
        suffix = ".pdf" if state == COUNTED else (".txt", ".TXT")[number % 2]
        (folder / f"{number}{suffix}").write_text(f"Note {word}.")
        if state == READ:
            (folder / f"{number}.ann").write_text(f"T1\tNAME 5 {5 + len(word)}\t{word}\n")
    return folder, {}


def build_i2b2(folder: Path, records: list[Record]) -> tuple[Path, dict[str, Any]]:
    """A file a document with tags beside the text, and files of several with tags in it."""
    for number, (word, state) in enumerate(records):
        text, end = f"Note {word}.", 5 + len(word)
        tag = f'<NAME id="N" spans="5~{end}" text="{"odd" if state == BROKEN else word}" />'
        content = stand_off(text, tag)
        if state == READ and number % 2:
            record = f'<RECORD ID="r{number}"><TEXT>Note <PHI TYPE="NAME">{word}</PHI>.</TEXT>'
            content = f"<ROOT>{record}</RECORD></ROOT>".encode()
        suffix = {COUNTED: ".html"}.get(state, (".xml", ".XML")[number % 2])
        (folder / f"{number}{suffix}").write_bytes(content)
    return folder, {}


BUILDERS: dict[str, Build] = {
    "jsonl": build_jsonl, "json": build_json, "csv": build_csv, "xlsx": build_xlsx,
    "parquet": build_parquet, "arrow": build_arrow, "fhir": build_fhir, "text": build_text,
    "brat": build_brat, "i2b2": build_i2b2,
}  # fmt: skip
WORDS = [f"Zyx{letter}quor" for letter in "abcdefghijklmnopqrst"]
WITH_COUNTED = ("fhir", "text", "brat", "i2b2")


def test_there_is_a_builder_for_every_format() -> None:
    assert set(BUILDERS) == set(FORMATS)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(4))
def test_records_in_are_records_out(tmp_path: Path, format: str, seed: int) -> None:
    draw = random.Random(f"{format} {seed}")
    states = [READ, READ, COUNTED] if format in WITH_COUNTED else [READ]
    records = [(word, READ if word == WORDS[0] else draw.choice(states)) for word in WORDS]
    path, options = BUILDERS[format](tmp_path, records)
    corpus = read_corpus(path, **options)
    texts = [document.text for document in corpus]
    for word, state in records:
        assert sum(word in text for text in texts) == (state == READ), (word, state)
    extra = sum("also plain" in text for text in texts)
    assert len(texts) - extra == sum(state == READ for _, state in records)
    counted = sum(int(note.rsplit(": ", 1)[1]) for note in corpus.notes if note[-1].isdigit())
    assert counted == sum(state == COUNTED for _, state in records)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(4))
def test_every_broken_record_is_named_or_counted_and_none_else(
    tmp_path: Path, format: str, seed: int
) -> None:
    draw = random.Random(f"{format} {seed}")
    records = [(word, draw.choice([READ, BROKEN])) for word in WORDS]
    records[:4] = [(WORDS[0], READ), (WORDS[1], BROKEN), (WORDS[2], BROKEN), (WORDS[3], READ)]
    path, options = BUILDERS[format](tmp_path, records)
    with pytest.raises(CorpusError) as caught:
        read_corpus(path, **options)
    message = str(caught.value)
    assert "Zyx" not in message
    broken = sum(state == BROKEN for _, state in records)
    assert message.startswith(f"{path}: {broken} problems:\n")
    lines = message.splitlines()[1:]
    places = [re.match(r"  (line|row|record|file) (\d+)", line) for line in lines[:10]]
    assert all(places)
    assert len({place[0] for place in places if place}) == min(10, broken)
    assert lines[10:] == ([f"  and {broken - 10} more"] if broken > 10 else [])
