"""Files with one document a line or row: JSONL (also written), CSV, Parquet and Arrow.

Each reader takes a path and yields where a record stands and the record, or what is wrong with it.
JSONL and CSV are read with the standard library, since a shape that is slightly off must be an
error that names its line: the CSV reader of the ``datasets`` library turns a short row into one
without spans, a long row into one shifted by a column, and the id 007 into 7. Parquet and Arrow
are streamed through ``datasets``.
"""

from __future__ import annotations

import codecs
import csv
import glob
import io
import json
import logging
import os
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from sani.atomic import new_file
from sani.corpus.documents import ANNOTATION, Document, Span
from sani.corpus.records import COLUMNS, RecordError, Row, Rows, check_names, type_name
from sani.errors import CorpusError
from sani.machine import distributed

NOT_UTF8 = (
    "not UTF-8 text; find out its encoding and convert it with iconv, "
    "for example: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
)

COMPRESSED = (".gz", ".zst")
SPAN_FIELDS = ("start", "end", "label", "kind")
_ROWS_A_BATCH = 256
_LONGEST_FIELD = 2**31 - 1
_ARROW_FILE_HEAD = b"ARROW1"
_ARROW_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


@dataclass(frozen=True)
class SizeLimits:
    """Sizes beyond which a file is refused: a small compressed file may hold a huge one.

    Attributes:
        line: Longest line, or cell over several lines, in MiB.
        decompressed: Largest content of a file that is compressed, in MiB.
    """

    line: int = 64
    decompressed: int = 4096


DEFAULT_LIMITS = SizeLimits()
_MIB = 2**20


def read_jsonl(path: Path, limits: SizeLimits = DEFAULT_LIMITS) -> Rows:
    """Read one JSON object a line; blank lines are skipped."""
    with _open(path) as file:
        lines = enumerate(_raw_lines(file, path, limits), start=1)
        number = 0
        try:
            for number, raw in lines:
                if raw in (b"\n", b"\r\n"):
                    continue
                line = _decode(raw, first=number == 1).rstrip("\r\n")
                if line.strip(" \t"):
                    yield f"line {number}", _json_row(line)
        except _TooLargeError as problem:
            yield f"line {number + 1}", problem
        except RecordError as problem:
            yield f"line {number}", problem


class _TooLargeError(RecordError):
    """A line or a decompressed file beyond its limit."""


def _raw_lines(file: BinaryIO, path: Path, limits: SizeLimits) -> Iterator[bytes]:
    """Yield the lines of a file, which are read no further than its limits."""
    longest, left = limits.line * _MIB, limits.decompressed * _MIB
    is_compressed = path.suffix.lower() in COMPRESSED
    while raw := file.readline(longest + 1):
        if len(raw) > longest:
            raise _TooLargeError(
                f"the line is longer than {limits.line} MiB; is a line break missing? "
                "corpus.max_line_mib in the recipe raises the limit"
            )
        left -= len(raw)
        if is_compressed and left < 0:
            raise _TooLargeError(
                f"the file holds more than {limits.decompressed} MiB once it is decompressed; "
                "decompress it first, or raise corpus.max_decompressed_mib in the recipe"
            )
        yield raw


def _open(path: Path) -> BinaryIO:
    """Open a file's bytes; .gz and .zst are decompressed."""
    if path.suffix.lower() not in COMPRESSED:
        return path.open("rb")
    import pyarrow as pa

    compression = {".gz": "gzip", ".zst": "zstd"}[path.suffix.lower()]
    return io.BufferedReader(pa.input_stream(str(path), compression=compression))


def write_jsonl(documents: Iterable[Document], path: Path) -> None:
    """Write documents and their spans in the clear, whole or not at all, mode 0600.

    Of several processes the main one writes.

    Raises:
        CorpusError: If a span reaches from one message into the next.
        WriteError: If the file cannot be written.
    """
    distributed.on_main(lambda: _write_jsonl(documents, path))


def _write_jsonl(documents: Iterable[Document], path: Path) -> None:
    with new_file(path, mode=0o600) as partial, partial.open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps(_row_of(document), ensure_ascii=False) + "\n")


def _row_of(document: Document) -> dict[str, object]:
    """Return a document as the record of the contract."""
    row: dict[str, object] = {"id": document.id, "subject_id": document.subject_id}
    if not document.turns:
        row["text"] = document.text
        row["spans"] = [_span_to_json(span) for span in document.spans]
        if document.source_text is not None:
            row["source_text"] = document.source_text
        return row
    messages: list[dict[str, Any]] = []
    for turn in document.turns:
        turn_spans = [
            replace(span, start=span.start - turn.start, end=span.end - turn.start)
            for span in document.spans
            if turn.start <= span.start and span.end <= turn.end
        ]
        content = document.text[turn.start : turn.end]
        spans = [_span_to_json(span) for span in turn_spans]
        messages.append({"role": turn.role, "content": content, "spans": spans})
    if sum(len(message["spans"]) for message in messages) < len(document.spans):
        raise CorpusError("a span reaches from one message into the next; cut it in two")
    return {**row, "messages": messages}


def _span_to_json(span: Span) -> dict[str, object]:
    """Return a span as the contract has it, with source and score where the scan found it."""
    row = asdict(span)
    return row if span.source != ANNOTATION else {name: row[name] for name in SPAN_FIELDS}


def _decode(raw: bytes, *, first: bool) -> str:
    """Decode a line, without the byte-order mark that may open the file."""
    try:
        return (raw.removeprefix(codecs.BOM_UTF8) if first else raw).decode("utf-8")
    except UnicodeDecodeError:
        raise RecordError(NOT_UTF8) from None


def _json_row(line: str) -> Row | RecordError:
    """Return the object that a line holds, or its problem."""
    try:
        value = _parse_json(line)
    except RecordError as problem:
        return problem
    if not isinstance(value, dict):
        return RecordError(f"it holds {type_name(value)}; expected a JSON object")
    return value


def _parse_json(source: str) -> object:
    """Parse JSON; the parser's own words are dropped, since they may quote."""
    try:
        value: object = json.loads(source, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise RecordError(
            f"not valid JSON from column {error.colno} on; check quotes, commas and brackets"
        ) from None
    except (ValueError, RecursionError):
        raise RecordError("JSON with a number too long or brackets too deep to read") from None
    return value


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse an object with two equal keys: the first would be lost, and with it perhaps spans."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise RecordError("a JSON object holds the same key twice; keep one")
    return value


def read_csv(path: Path, limits: SizeLimits = DEFAULT_LIMITS) -> Rows:
    """Read comma-separated values with a header; ``spans`` is a JSON list in a cell.

    A cell may hold line breaks within quotes; a record is named by the line it starts on.
    """
    # The limit is one for the whole process; the standard 128 KiB is too short for a long note.
    before = csv.field_size_limit(min(limits.line * _MIB, _LONGEST_FIELD))
    reader = None
    try:
        with _open(path) as file:
            reader = csv.reader(_decoded_lines(_raw_lines(file, path, limits)), strict=True)
            header = next(reader, [])
            yield from _csv_rows(reader, header)
    except csv.Error as error:
        where = f"line {reader.line_num}" if reader else ""
        message = "the quoting is broken; double a quote within quotes and close every quote"
        if "field limit" in str(error):
            message = (
                f"a cell is longer than {limits.line} MiB; is a quote never closed? "
                "corpus.max_line_mib in the recipe raises the limit"
            )
        yield where, RecordError(message)
    except RecordError as problem:
        yield f"line {reader.line_num + 1 if reader else 1}", problem
    finally:
        csv.field_size_limit(before)


def _decoded_lines(lines: Iterable[bytes]) -> Iterator[str]:
    """Yield lines with their ends as they are, so that cells keep theirs."""
    for number, raw in enumerate(lines, start=1):
        yield _decode(raw, first=number == 1)


def _csv_rows(reader: Any, header: Sequence[str]) -> Rows:
    """Yield records below the header, each with as many cells as the header has."""
    try:
        _check_header(header, "the header")
    except RecordError as problem:
        yield "line 1", problem
        return
    start = reader.line_num + 1
    for cells in reader:
        where, start = f"line {start}", reader.line_num + 1
        if not cells:
            continue
        if len(cells) != len(header):
            message = (
                f"it has {len(cells)} cells and the header {len(header)}; "
                "put quotes around a cell that holds a comma or a line break"
            )
            yield where, RecordError(message)
        else:
            yield where, _csv_row(dict(zip(header, cells, strict=True)))


def _csv_row(row: dict[str, object]) -> Row | RecordError:
    """Return the record with its spans read; an empty cell means none."""
    spans = row.pop("spans", None)
    if isinstance(spans, str) and spans.strip():
        try:
            row["spans"] = _parse_json(spans)
        except RecordError as problem:
            return RecordError(f"'spans': {problem}")
    return row


def _check_header(names: Sequence[str], what: str) -> None:
    """Refuse column names from which documents cannot be read for certain."""
    check_names(names)
    for name in COLUMNS:
        if names.count(name) > 1:
            raise RecordError(f"{what} has the column {name!r} twice; keep one")
    wanted = ("id",) if "messages" in names else ("id", "text")
    missing = [repr(name) for name in wanted if name not in names]
    if missing:
        raise RecordError(
            f"{what} lacks {' and '.join(missing)}; "
            "expected the columns id, text and, where known, subject_id and spans"
        )


def read_parquet(path: Path, limits: SizeLimits = DEFAULT_LIMITS) -> Rows:
    """Read a Parquet file; ``spans`` is a list of structs."""
    return _read_columns(path, "parquet", limits)


def read_arrow(path: Path, limits: SizeLimits = DEFAULT_LIMITS) -> Rows:
    """Read an Arrow IPC stream or file; ``spans`` is a list of structs."""
    return _read_columns(path, "arrow", limits)


def _read_columns(path: Path, builder: str, limits: SizeLimits) -> Rows:
    """Read the rows of a columnar file, streamed, with nothing kept outside a temporary folder."""
    number, left = 0, limits.decompressed * _MIB
    with tempfile.TemporaryDirectory() as folder, _silenced_datasets():
        try:
            for table in _tables(path, builder, folder=folder):
                _check_header(table.column_names, "the table")
                left -= table.nbytes
                if left < 0:
                    raise RecordError(
                        f"the file holds more than {limits.decompressed} MiB once it is "
                        "decompressed; raise corpus.max_decompressed_mib in the recipe"
                    )
                names = [name for name in COLUMNS if name in table.column_names]
                columns = {name: table.column(name) for name in names}
                for index in range(table.num_rows):
                    number += 1
                    yield f"row {number}", _cells(columns, index)
        except RecordError as problem:
            yield "", problem
        except Exception:  # a damaged file raises almost anything, and the text may quote it
            where = f"after row {number}" if number else ""
            message = f"it cannot be read as {builder.capitalize()}; check that the file is whole"
            yield where, RecordError(message)


def _tables(path: Path, builder: str, *, folder: str) -> Iterator[Any]:
    """Read the Arrow tables of a file as they are stored: no feature is decoded or downloaded."""
    # Not load_dataset: it reports every call to a download counter on the network.
    from datasets.packaged_modules.arrow.arrow import Arrow
    from datasets.packaged_modules.parquet.parquet import Parquet

    # The library reads patterns and addresses into a path; a link of our own holds neither.
    link = Path(folder) / f"corpus.{builder}"
    link.symlink_to(path.resolve())
    options = {"cache_dir": folder, "data_files": glob.escape(str(link))}
    if builder == "parquet":
        source = Parquet(batch_size=_ROWS_A_BATCH, **options)
    else:
        _check_end(link)
        source = Arrow(**options)
    stream = source.as_streaming_dataset(split="train")
    yield from stream.with_format("arrow").iter(batch_size=_ROWS_A_BATCH)


def _check_end(path: Path) -> None:
    """Refuse an Arrow stream that was cut between two batches, which reads as a shorter one."""
    with path.open("rb") as file:
        is_stream = file.read(len(_ARROW_FILE_HEAD)) != _ARROW_FILE_HEAD
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - len(_ARROW_STREAM_END)))
        if is_stream and file.read() != _ARROW_STREAM_END:
            raise RecordError(
                "it is no Arrow data, or a stream without its end mark, from which documents may "
                "be missing; check that the file is whole and its writer was closed"
            )


def _cells(columns: dict[str, Any], index: int) -> Row | RecordError:
    """Return one row as Python values."""
    try:
        return {name: column[index].as_py() for name, column in columns.items()}
    except UnicodeDecodeError:
        return RecordError("a string in it is not UTF-8; write the file again from UTF-8 text")


@contextmanager
def _silenced_datasets() -> Generator[None, None, None]:
    """Keep the library from logging errors that quote what it read."""
    import datasets  # noqa: F401  (importing it later would set its level back)

    logger = logging.getLogger("datasets")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
