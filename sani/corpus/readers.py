"""Reads a corpus in any of eight formats into documents, and says clearly what is wrong with it.

In: a JSONL, FHIR, Parquet, CSV or Arrow file, or a folder of i2b2/n2c2 XML, BRAT or plain text
files, all UTF-8; JSONL, FHIR and CSV also as .gz or .zst.
Out: a ``Corpus`` in which every span fits its text and every id is used once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

from sani.corpus.documents import KINDS, Corpus, Document, Kind
from sani.corpus.fhir import holds_fhir, read_fhir
from sani.corpus.folders import list_files, read_brat, read_i2b2, read_text_folder
from sani.corpus.records import (
    NAME_LIKE_VALUE,
    RecordError,
    Rows,
    marks,
    names_like_values,
    to_document,
)
from sani.corpus.tables import (
    COMPRESSED,
    DEFAULT_LIMITS,
    SizeLimits,
    read_arrow,
    read_csv,
    read_jsonl,
    read_parquet,
)
from sani.errors import CorpusError

Format = Literal["jsonl", "parquet", "csv", "arrow", "i2b2", "brat", "fhir", "text"]
FORMATS: tuple[Format, ...] = get_args(Format)

_FILE_READERS: dict[Format, Callable[[Path, SizeLimits], Rows]] = {
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "csv": read_csv,
    "arrow": read_arrow,
    "fhir": read_fhir,
}
_FOLDER_READERS: dict[Format, Callable[[Path], Rows]] = {"i2b2": read_i2b2, "brat": read_brat}
_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".csv": "csv",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_FOLDER_FORMATS: tuple[Format, ...] = ("i2b2", "brat", "text")
_NUM_PROBLEMS_SHOWN = 10


def read_corpus(
    path: Path | str,
    *,
    format: Format | None = None,
    limit: int | None = None,
    kinds: Mapping[str, Kind] | None = None,
    subject_pattern: str | None = None,
    limits: SizeLimits = DEFAULT_LIMITS,
) -> Corpus:
    """Read all documents of a corpus, or its first ones, and check every one.

    Where a record says nothing: ``subject_id`` is its ``id``, ``spans`` are none, and a span's
    ``kind`` is that of its label in ``kinds``, else ``direct``; but a date that names no day, and
    an age up to 89, is ``indirect`` (`sani.scanning.labels.kind_by_value`). In a folder the id is
    the file name without its suffix.

    Args:
        path: A file, or a folder for i2b2 and BRAT.
        format: What it is; None means to go by the suffix, or by what the file or folder holds.
            A folder of plain text is only read when asked for: its annotation may have been lost.
        limit: How many documents to read, at least 1; the rest is not checked. None means all.
        kinds: Kind of each label; only used for spans that name none themselves.
        subject_pattern: Finds the subject in a plain text file's path; see `read_text_folder`.
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
    try:
        format = _resolve_format(path, format)
        if subject_pattern is not None and format != "text":
            raise CorpusError(f"{path}: a subject pattern is for the format text, not {format}")
        if format == "text":
            rows = read_text_folder(path, subject_pattern=subject_pattern)
        elif format in _FOLDER_READERS:
            rows = _FOLDER_READERS[format](path)
        else:
            rows = _FILE_READERS[format](path, limits)
        documents, problems = _collect(rows, limit=limit, kinds=kinds)
    except OSError as error:  # its text would name a file
        failure = error.strerror or "input/output error"
    if failure:
        raise CorpusError(f"{path}: it cannot be read: {failure}")
    if problems:
        raise CorpusError(_report(path, problems))
    if not documents:
        raise CorpusError(f"{path}: it holds no documents; expected at least one")
    return Corpus(documents)


def _resolve_format(path: Path, format: Format | None) -> Format:
    """Return the format of a path, by its name or by its content."""
    if format is not None and format not in FORMATS:
        raise CorpusError(f"{path}: unknown format; expected one of {', '.join(FORMATS)}")
    if not path.exists():
        raise CorpusError(f"{path}: there is no such file or folder; check the path")
    if path.is_dir():
        return _resolve_folder(path, format)
    if format in _FOLDER_FORMATS:
        raise CorpusError(f"{path}: it is a file; the format {format} is read from a folder")
    if not path.is_file():
        raise CorpusError(
            f"{path}: it is no regular file but a pipe, a socket or a device, which may never end; "
            "write its content to a file first"
        )
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    suffix = name.suffix.lower()
    if path != name and (format or _SUFFIXES.get(suffix)) in ("parquet", "arrow"):
        raise CorpusError(f"{path}: it compresses itself; decompress the file first")
    if format is None and suffix not in _SUFFIXES:
        raise CorpusError(
            f"{path}: its suffix tells no format; expected one of {', '.join(_SUFFIXES)}, "
            f"{' or '.join(COMPRESSED)} after it where it is text, or the format given as one of "
            f"{', '.join(FORMATS)}"
        )
    with path.open("rb") as file:
        if not file.read(1):
            raise CorpusError(f"{path}: the file is empty; expected at least one document")
    if format is None and suffix == ".ndjson" and holds_fhir(path):
        return "fhir"
    return format or _SUFFIXES[suffix]


def _resolve_folder(path: Path, format: Format | None) -> Format:
    """Return the format of a folder, by the files it holds."""
    if format is not None and format not in _FOLDER_FORMATS:
        raise CorpusError(f"{path}: it is a folder; the format {format} is read from one file")
    holds: dict[Format, bool] = {
        "i2b2": bool(list_files(path, ".xml")),
        "brat": bool(list_files(path, ".ann")),
    }
    if format == "text":
        return format
    if format is None and all(holds.values()):
        raise CorpusError(
            f"{path}: it holds both .xml and .ann files; say which to read with the format "
            "i2b2 or brat"
        )
    if not any(holds.values()) or (format is not None and not holds[format]):
        raise CorpusError(
            f"{path}: the folder holds no documents; expected .xml files (i2b2) or pairs of "
            ".txt and .ann files (brat); .txt files alone are read with the format text"
        )
    return format or ("i2b2" if holds["i2b2"] else "brat")


def _collect(
    rows: Rows, *, limit: int | None, kinds: Mapping[str, Kind]
) -> tuple[list[Document], list[tuple[str, str]]]:
    """Read all documents, and the place and problem of every record that is none."""
    documents: list[Document] = []
    problems: list[tuple[str, str]] = []
    places: dict[str, str] = {}
    without_key: list[str] = []
    with closing(rows):
        for place, row in islice(rows, limit):
            try:
                if isinstance(row, RecordError):
                    raise row
                document = to_document(row, kinds=kinds)
                if document.id in places:
                    raise RecordError(f"its id is already used on {places[document.id]}")
            except RecordError as problem:
                at = f"{place}, line {problem.line}" if problem.line else place
                problems.append((at, str(problem)))
            else:
                places[document.id] = place
                documents.append(document)
                if not marks(row):
                    without_key.append(place)
    if 0 < len(without_key) < len(documents):
        # A key of another name would hide a document's identifiers in silence.
        hint = "it has no 'spans', but others have; write \"spans\": [] where there are none"
        problems += [(place, hint) for place in without_key]
    guilty = names_like_values(documents)
    for document in documents if guilty else ():
        if any(span.label in guilty or span.source in guilty for span in document.spans):
            problems.append((places[document.id], NAME_LIKE_VALUE))
    return documents, problems


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
