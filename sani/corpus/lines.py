"""Lines of a text file, plain or compressed, decoded and read no further than its limits."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator
from pathlib import Path

from sani.corpus.encodings import LONGEST_MARK, decode_utf8, marked_encoding, not_as_marked
from sani.corpus.reading import MIB, Reading
from sani.corpus.records import RecordError

COMPRESSED = (".gz", ".zst")


def read_lines(path: Path, reading: Reading) -> Iterator[str]:
    """Yield the lines of a file with their ends, without the byte order mark at its head.

    Raises:
        RecordError: At the first line that is not UTF-8 nor what a mark of UTF-16 promises, or that
            is beyond a limit.
    """
    with open_bytes(path) as file:
        encoding = marked_encoding(file.peek(LONGEST_MARK)[:LONGEST_MARK])
        if encoding is None:
            for number, raw in enumerate(_limited(file.readline, path, reading), start=1):
                yield decode_utf8(raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw)
            return
        reading.notes.say(f"it is read as {encoding}, as its byte order mark says")
        text = io.TextIOWrapper(file, encoding=encoding, newline="\n")
        try:
            for raw in _limited(lambda size: text.readline(size).encode("utf-8"), path, reading):
                yield raw.decode("utf-8")
        except UnicodeError:
            raise RecordError(not_as_marked(encoding)) from None


def open_bytes(path: Path) -> io.BufferedReader:
    """Open a file's bytes; .gz and .zst are decompressed."""
    if path.suffix.lower() not in COMPRESSED:
        return path.open("rb")
    import pyarrow as pa

    compression = {".gz": "gzip", ".zst": "zstd"}[path.suffix.lower()]
    return io.BufferedReader(pa.input_stream(str(path), compression=compression))


def _limited(read_line: Callable[[int], bytes], path: Path, reading: Reading) -> Iterator[bytes]:
    """Yield the lines of a file, which are read no further than its limits."""
    limits = reading.limits
    longest, left = limits.line * MIB, limits.decompressed * MIB
    is_compressed = path.suffix.lower() in COMPRESSED
    while raw := read_line(longest + 1):
        if len(raw) > longest:
            raise RecordError(
                f"the line is longer than {limits.line} MiB; is a line break missing? "
                "corpus.max_line_mib in the recipe raises the limit"
            )
        left -= len(raw)
        if is_compressed and left < 0:
            raise RecordError(
                f"the file holds more than {limits.decompressed} MiB once it is decompressed; "
                "decompress it first, or raise corpus.max_decompressed_mib in the recipe"
            )
        yield raw
