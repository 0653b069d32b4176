"""Encodings of text: UTF-8, what a byte order mark names, and what a file or an export declares.

Text without a mark or a declaration is UTF-8 or refused. UTF-16 without a mark would read as text
with a NUL between any two letters, in which no identifier stands.
"""

from __future__ import annotations

import codecs

from sani.corpus.reading import Notes
from sani.corpus.records import RecordError

NOT_UTF8 = (
    "not UTF-8 text; find out its encoding and convert it with iconv, "
    "for example: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
)
_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
LONGEST_MARK = 4
_FEWEST_NULS = 8  # of how many bytes at least one is NUL where text is UTF-16
_SINGLE_BYTE = ("iso8859-1", "ascii")
_AS_WINDOWS = "texts declared as ISO-8859-1 or ASCII that are Windows-1252, and were read as such"
_AS_UTF8 = "texts declared as ISO-8859-1 or ASCII that are UTF-8, and were read as such"
BYTE_ORDER_MARK = "\ufeff"


def marked_encoding(head: bytes) -> str | None:
    """Return the encoding that a byte order mark names; None for that of UTF-8 or without one."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), None)


def decode_file(raw: bytes, notes: Notes) -> str:
    """Decode a whole file: by its byte order mark, else as UTF-8, whose own mark is kept.

    Raises:
        RecordError: If it is not that, or holds NULs.
    """
    encoding = marked_encoding(raw[:LONGEST_MARK])
    if encoding is not None:
        notes.count(f"files in {encoding}, read as such")
        return decode_marked(raw, encoding)
    return decode_utf8(raw)


def decode_marked(raw: bytes, encoding: str) -> str:
    """Decode what begins with a mark of UTF-16 or UTF-32, without the mark.

    Raises:
        RecordError: If it is not that.
    """
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        raise RecordError(not_as_marked(encoding)) from None


def not_as_marked(encoding: str) -> str:
    """Return the problem of a file that is not what its byte order mark says."""
    return f"its byte order mark says {encoding}, and it is not; check that the file is whole"


def decode_utf8(raw: bytes) -> str:
    """Decode UTF-8.

    Raises:
        RecordError: If it is not UTF-8, or holds NULs; the message names the likely encoding.
    """
    if b"\0" in raw:
        raise RecordError(_of_nuls(raw))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise RecordError(NOT_UTF8) from None


def _of_nuls(raw: bytes) -> str:
    """Return the problem of bytes with NULs, and the encoding whose form they have."""
    nuls = [raw[offset::4].count(0) for offset in range(4)]
    half = len(raw) // 8  # half of every fourth byte
    if sum(nuls) * _FEWEST_NULS < len(raw):
        return (
            "it holds NUL characters, which are no text and would hide an identifier; remove "
            "them, for example: tr -d '\\000' < OLD > NEW"
        )
    if min(nuls[2:]) > half:
        guess = "UTF-32LE"
    elif min(nuls[:2]) > half:
        guess = "UTF-32BE"
    else:
        guess = "UTF-16LE" if nuls[1] + nuls[3] > nuls[0] + nuls[2] else "UTF-16BE"
    return (
        f"it holds NUL bytes as {guess} has them, without a byte order mark; nothing would be "
        f"recognized in it: convert it, for example: iconv -f {guess} -t UTF-8 OLD > NEW"
    )


def decode_declared(raw: bytes, charset: str, notes: Notes) -> str:
    """Decode text by the charset that it is declared with, without a byte order mark.

    ISO-8859-1 is read as browsers do: bytes that are no characters in it are Windows-1252 (WHATWG
    Encoding Standard). Text that is valid UTF-8 beyond ASCII is UTF-8, whatever it declares.

    Raises:
        LookupError: If there is no such charset.
        UnicodeDecodeError: If the text is not in it.
        RecordError: If it holds NULs that its charset does not account for.
    """
    marked = marked_encoding(raw[:LONGEST_MARK])
    if marked is not None:
        return decode_marked(raw, marked)
    name = codecs.lookup(charset).name
    if name in _SINGLE_BYTE and not raw.isascii():
        name = _single_byte_encoding(raw, notes)
    text = raw.decode(name).removeprefix(BYTE_ORDER_MARK)
    if "\0" in text:
        raise RecordError(_of_nuls(raw))
    return text


def _single_byte_encoding(raw: bytes, notes: Notes) -> str:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        if not any(0x80 <= byte <= 0x9F for byte in raw):
            return "iso8859-1"
        notes.count(_AS_WINDOWS)
        return "cp1252"
    notes.count(_AS_UTF8)
    return "utf-8"
