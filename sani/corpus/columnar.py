"""Columnar files, Parquet and Arrow, streamed through the ``datasets`` library."""

from __future__ import annotations

import glob
import logging
import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sani.corpus.columns import check_header, names_to_read
from sani.corpus.reading import MIB, Reading
from sani.corpus.records import RecordError, Row, Rows

_ROWS_A_BATCH = 256
_ARROW_FILE_HEAD = b"ARROW1"
_ARROW_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def read_parquet(path: Path, reading: Reading) -> Rows:
    """Read a Parquet file; ``spans`` is a list of structs."""
    return _read_columns(path, "parquet", reading)


def read_arrow(path: Path, reading: Reading) -> Rows:
    """Read an Arrow IPC stream or file; ``spans`` is a list of structs."""
    return _read_columns(path, "arrow", reading)


def _read_columns(path: Path, builder: str, reading: Reading) -> Rows:
    """Read the rows of a columnar file, streamed, with nothing kept outside a temporary folder."""
    number, left = 0, reading.limits.decompressed * MIB
    with tempfile.TemporaryDirectory() as folder, _silenced_datasets():
        try:
            for table in _tables(path, builder, folder=folder):
                check_header(table.column_names, "the table", reading)
                left -= table.nbytes
                if left < 0:
                    raise RecordError(
                        f"the file holds more than {reading.limits.decompressed} MiB once it is "
                        "decompressed; raise corpus.max_decompressed_mib in the recipe"
                    )
                names = [n for n in names_to_read(reading.columns) if n in table.column_names]
                for name in set(table.column_names).difference(names):
                    reading.notes.leave_out(name, table.num_rows)
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
