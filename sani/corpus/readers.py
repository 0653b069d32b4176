"""Reads a corpus in any of ten formats into documents, and says clearly what is wrong with it.

In: a file of JSON Lines, JSON, FHIR, CSV, Excel, Parquet, Arrow or XML, or a folder of i2b2/n2c2
XML, BRAT or plain text files. Text is UTF-8, or UTF-16 where a byte order mark says so; JSON, FHIR
and CSV may be compressed, as .gz or .zst.
Out: a ``Corpus`` in which every span fits its text and every id is used once. Every record of the
input is in it, or named in an error, or counted in its notes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from sani.corpus.annotations import task_as_record, with_spans
from sani.corpus.columnar import read_arrow, read_parquet
from sani.corpus.columns import check_columns, check_columns_seen, renamed
from sani.corpus.conversations import with_plain_contents
from sani.corpus.csv_files import read_csv
from sani.corpus.documents import COLUMNS, KINDS, Corpus, Document, Kind
from sani.corpus.excel import read_xlsx
from sani.corpus.fhir import read_fhir
from sani.corpus.folders import read_brat, read_i2b2, read_text_folder
from sani.corpus.formats import Format, resolve_format
from sani.corpus.reading import DEFAULT_LIMITS, Reading, SizeLimits
from sani.corpus.records import (
    NAME_LIKE_VALUE,
    RecordError,
    Row,
    Rows,
    marks,
    names_like_values,
    to_document,
)
from sani.corpus.tables import read_json, read_jsonl
from sani.errors import CorpusError

_READERS: dict[Format, Callable[[Path, Reading], Rows]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "parquet": read_parquet,
    "csv": read_csv,
    "xlsx": read_xlsx,
    "arrow": read_arrow,
    "fhir": read_fhir,
    "i2b2": read_i2b2,
    "brat": read_brat,
}
_WITH_COLUMNS: tuple[Format, ...] = ("jsonl", "json", "parquet", "csv", "xlsx", "arrow")
_NUM_PROBLEMS_SHOWN = 10
_NO_ID = "'id' is missing or empty; expected a string or a whole number of its own"
_OWN_ID = (
    "; give each record an id of its own, or name no column for id: then the number of a record is "
    "its id"
)
_NUMBERED = "no record has an id, so its number in the file, from 1, is its id"
_NO_SUBJECT = (
    "no record has a subject_id, so each document counts as a person of its own: figures by "
    "subject mean little, and a value is not looked for in the same person's other documents. If "
    "a column names the person, say which: --column subject_id=NAME (corpus.columns in a recipe)"
)
_SOME_SUBJECTS = "records without a subject_id, each of which counts as a person of its own"


def read_corpus(
    path: Path | str,
    *,
    format: Format | None = None,
    limit: int | None = None,
    kinds: Mapping[str, Kind] | None = None,
    subject_pattern: str | None = None,
    columns: Mapping[str, str] | None = None,
    limits: SizeLimits = DEFAULT_LIMITS,
) -> Corpus:
    """Read all documents of a corpus, or its first ones, and check every one.

    Where a record says nothing: ``id`` is its number in the file, if no record of the file has one;
    ``subject_id`` is its ``id``, ``spans`` are none, and a span's
    ``kind`` is that of its label in ``kinds``, else ``direct``; but a date that names no day, and
    an age up to 89, is ``indirect`` (`sani.scanning.labels.kind_by_value`). In a folder the id is
    the file name without its suffix.

    Args:
        path: A file, or a folder for i2b2, BRAT and plain text.
        format: What it is; None means to go by the suffix, or by what the file or folder holds.
            A folder of plain text is only read when asked for: its annotation may have been lost.
        limit: How many documents to read, at least 1; the rest is not checked. None means all.
        kinds: Kind of each label; only used for spans that name none themselves.
        subject_pattern: Finds the subject in a plain text file's path; see `read_text_folder`.
        columns: Name of a field (``id``, ``text``, ``subject_id``, ...) -> name of its column, for
            tables and JSON in which that is another one.
        limits: Sizes of a line and of a decompressed file beyond which the corpus is refused.

    Raises:
        CorpusError: If it cannot be read, holds no document, or any document is wrong; the
            message tells the first ten problems, one a document, and holds no value of the data.
    """
    path = Path(path)
    kinds = kinds or {}
    if limit is not None and (type(limit) is not int or limit < 1):
        raise CorpusError(f"{path}: limit must be at least 1, or be left out to read all documents")
    if not all(kind in KINDS for kind in kinds.values()):
        raise CorpusError(f"{path}: kinds must map every label to one of {', '.join(KINDS)}")
    failure = None
    reading = Reading(limits, columns or {})
    try:
        rows = _open_rows(path, format, reading, subject_pattern=subject_pattern)
        documents, problems = _collect(rows, reading, limit=limit, kinds=kinds)
    except OSError as error:  # its text would name a file
        failure = error.strerror or "input/output error"
    if failure:
        raise CorpusError(f"{path}: it cannot be read: {failure}")
    if problems:
        raise CorpusError(_report(path, problems))
    if not documents:
        raise CorpusError(f"{path}: it holds no documents; expected at least one")
    return Corpus(documents, reading.notes.lines())


def _open_rows(
    path: Path, format: Format | None, reading: Reading, *, subject_pattern: str | None
) -> Rows:
    """Return the records of a path, none of them read yet."""
    try:
        check_columns(reading.columns)
    except CorpusError as problem:
        raise CorpusError(f"{path}: {problem}") from None
    format = resolve_format(path, format)
    if subject_pattern is not None and format != "text":
        raise CorpusError(f"{path}: a subject pattern is for the format text, not {format}")
    if reading.columns and format not in _WITH_COLUMNS:
        raise CorpusError(
            f"{path}: names of columns are for the formats {', '.join(_WITH_COLUMNS)}, not {format}"
        )
    if format == "text":
        return read_text_folder(path, reading, subject_pattern=subject_pattern)
    return _READERS[format](path, reading)


@dataclass
class _Reader:
    """Makes documents of records, and keeps what can only be judged at the end of the file.

    Attributes:
        reading: The reading of the file.
        kinds: Kind of each label.
        documents: The documents so far.
        problems: The place and problem of each record that is none.
        places: Where each document stands, by its id.
        without_spans: Places of documents without the key for spans.
        without_id: Places of records without an id, which have their number instead.
        without_subject: Number of documents whose record names no subject.
        fields: Names of all fields of the records.
        has_used_id: An id was used twice.
    """

    reading: Reading
    kinds: Mapping[str, Kind]
    documents: list[Document] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    without_spans: list[str] = field(default_factory=list)
    without_id: list[str] = field(default_factory=list)
    without_subject: int = 0
    fields: set[str] = field(default_factory=set)
    has_used_id: bool = False

    def add(self, row: Row | RecordError, place: str, number: int) -> None:
        """Add the document of a record, or its problem."""
        try:
            if isinstance(row, RecordError):
                raise row
            row = self._normal(row)
            if "id" not in row:
                self.without_id.append(place)
                row = {**row, "id": number}
            document = to_document(row, kinds=self.kinds)
            if document.id in self.places and not self.without_id:
                raise RecordError(self._used_id(document.id))
        except RecordError as problem:
            at = f"{place}, line {problem.line}" if problem.line else place
            self.problems.append((at, str(problem)))
            return
        self.places[document.id] = place
        self.documents.append(document)
        self.without_subject += row.get("subject_id") in (None, "")
        if not marks(row):
            self.without_spans.append(place)

    def _used_id(self, id: str) -> str:
        """Return the problem of an id that is used again; the first one says what to do."""
        problem = f"its id is already used on {self.places[id]}"
        is_first, self.has_used_id = not self.has_used_id, True
        return f"{problem}{_OWN_ID}" if is_first else problem

    def _normal(self, row: Row) -> Row:
        """Return a record under sani's own names and in its own forms."""
        notes, columns = self.reading.notes, self.reading.columns
        row = task_as_record(row, columns, notes)
        self.fields.update(row)
        row = with_plain_contents(with_spans(renamed(row, columns)), notes)
        for name, value in row.items():
            if name not in COLUMNS and value not in (None, "", [], {}):
                notes.leave_out(name)
        return row

    def finish(self) -> None:
        """Add the problems that only all records together show."""
        problems = self.problems
        if 0 < len(self.without_spans) < len(self.documents):
            # A key of another name would hide a document's identifiers in silence.
            hint = "it has no 'spans', but others have; write \"spans\": [] where there are none"
            problems += [(place, hint) for place in self.without_spans]
        if 0 < len(self.without_id) < len(self.documents):
            problems += [(place, _NO_ID) for place in self.without_id]
        elif self.without_id:
            self.reading.notes.say(_NUMBERED)
        if self.without_subject < len(self.documents):
            self.reading.notes.count(_SOME_SUBJECTS, self.without_subject)
        elif self.reading.notes.has_fields and len(self.documents) > 1:
            self.reading.notes.say(_NO_SUBJECT)
        if self.documents:
            try:
                check_columns_seen(self.reading.columns, self.fields)
            except RecordError as problem:
                problems.append(("", str(problem)))
        guilty = names_like_values(self.documents)
        for document in self.documents if guilty else ():
            if any(span.label in guilty or span.source in guilty for span in document.spans):
                problems.append((self.places[document.id], NAME_LIKE_VALUE))


def _collect(
    rows: Rows, reading: Reading, *, limit: int | None, kinds: Mapping[str, Kind]
) -> tuple[list[Document], list[tuple[str, str]]]:
    """Read all documents, and the place and problem of every record that is none."""
    reader = _Reader(reading, kinds)
    with closing(rows):
        for number, (place, row) in enumerate(islice(rows, limit), start=1):
            reader.add(row, place, number)
    reader.finish()
    return reader.documents, reader.problems


def _report(path: Path, problems: list[tuple[str, str]]) -> str:
    """Return one message for all problems; those beyond the first ten are only counted."""
    if len(problems) == 1:
        place, problem = problems[0]
        return f"{path}, {place}: {problem}" if place else f"{path}: {problem}"
    shown = problems[:_NUM_PROBLEMS_SHOWN]
    lines = [f"{path}: {len(problems)} problems:"]
    lines += [f"  {place}: {problem}" if place else f"  {problem}" for place, problem in shown]
    if len(problems) > len(shown):
        lines.append(f"  and {len(problems) - len(shown)} more")
    return "\n".join(lines)
