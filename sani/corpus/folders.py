"""Folders with a file or two a document: i2b2/n2c2 XML, BRAT ``.txt``/``.ann`` pairs, plain text.

A file is named by its place in the folder, never by its name, since hospitals name files after
patients. One folder is read, not those within it, but for plain text. Suffixes may be written in
capitals. Files with another suffix, and those whose name starts with a dot, are not read but
counted in a note.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from sani.corpus.encodings import BYTE_ORDER_MARK, decode_file
from sani.corpus.reading import Notes, Reading
from sani.corpus.records import RecordError, Row, Rows
from sani.corpus.tags import Tag, settle, tagged_row
from sani.corpus.xml_files import xml_rows
from sani.errors import CorpusError

_BRAT_ENTITY = re.compile(
    r"T[^\t]*\t(?P<label>\S+) (?P<offsets>[0-9]{1,15} [0-9]{1,15}(;[0-9]{1,15} [0-9]{1,15})*)"
    r"(\t(?P<words>.*))?",
    re.DOTALL,
)
# Relations, events, attributes, modifications, normalizations, notes, equivalences.
_BRAT_IGNORED = ("R", "E", "A", "M", "N", "#", "*")
_OTHER_FILES = "files with another suffix, which were not read"
_LINKED_AGAIN = "links to a folder that is read already, which were not entered"
_HIDDEN_FILES = "files whose name starts with a dot, which were not read"
# Files of the tools themselves, and of whoever ships a corpus: they hold no document.
_NO_DOCUMENT = re.compile(
    r"(?i)(annotation|visual|tools|kb_shortcuts)\.conf|(readme|licen[cs]e)\b.*"
)


def read_i2b2(path: Path, reading: Reading) -> Rows:
    """Read XML files, a document or several each: a folder of them, or one."""
    files = [path]
    if not path.is_file():
        files = list_files(path, ".xml")
        _note_other_files(path.iterdir(), files, reading.notes)
    for number, file in enumerate(files, start=1):
        where = "" if path.is_file() else _place(path, files, number)
        try:
            rows = list(xml_rows(_read_bytes(file), file.stem, reading.notes))
        except RecordError as problem:
            yield where, problem
            continue
        for inner, row in enumerate(rows, start=1):
            several = f"record {inner}" if len(rows) > 1 else ""
            yield ", ".join(filter(None, (where, several))), row


def read_brat(folder: Path, reading: Reading) -> Rows:
    """Read a ``.txt`` and an ``.ann`` file a document; a discontinuous tag gives several spans."""
    texts, tags = list_files(folder, ".txt"), list_files(folder, ".ann")
    _note_other_files(folder.iterdir(), [*texts, *tags], reading.notes)
    places = {
        path: _place(folder, paths, number)
        for paths in (texts, tags)
        for number, path in enumerate(paths, start=1)
    }
    text_of, tags_of = ({path.stem: path for path in paths} for paths in (texts, tags))
    for paths, by_stem in ((texts, text_of), (tags, tags_of)):
        for path in paths:
            if by_stem[path.stem] != path:  # a.txt and a.TXT
                message = "another file has its name but for the case of the suffix; rename one"
                yield places[path], RecordError(message)
    for stem in sorted({*text_of, *tags_of}, key=os.fsencode):
        if stem not in tags_of:
            message = "it has no .ann file beside it; add an empty one if it holds no identifier"
            yield places[text_of[stem]], RecordError(message)
        elif stem not in text_of:
            message = "it has no .txt file beside it; add the text or move the .ann file away"
            yield places[tags_of[stem]], RecordError(message)
        else:
            yield _brat_row(text_of[stem], tags_of[stem], places=places, notes=reading.notes)


def read_text_folder(folder: Path, reading: Reading, *, subject_pattern: str | None = None) -> Rows:
    """Read one ``.txt`` file a document, in this folder and those below; nothing is marked.

    The subject is what the group ``subject`` of the pattern finds in the file's path within the
    folder; without a pattern, the first folder below, if the file lies in one.

    Args:
        folder: Where the files lie; the id is the path within it, without suffix.
        reading: Where other files are counted.
        subject_pattern: A regular expression with a group ``subject``.

    Raises:
        CorpusError: If the pattern is none, or has no such group.
    """
    pattern = _subject_pattern(folder, subject_pattern)
    everything = _files_below(folder, reading.notes)
    files = [path for path in everything if not path.name.startswith(".")]
    files = sorted((p for p in files if p.suffix.lower() == ".txt"), key=os.fsencode)
    _note_other_files(everything, files, reading.notes)
    test = "-name" if all(path.suffix == ".txt" for path in files) else "-iname"
    listing = f"find -L {shlex.quote(str(folder))} {test} '[!.]*.txt' | LC_ALL=C sort"
    for number, path in enumerate(files, start=1):
        where = f"file {number} of {len(files)} in path order ({listing} | sed -n {number}p)"
        inner = path.relative_to(folder)
        subject = inner.parts[0] if len(inner.parts) > 1 else None
        try:
            if pattern is not None:
                match = pattern.search(inner.as_posix())
                if match is None:
                    raise RecordError("the subject pattern finds nothing in the file's path")
                subject = match["subject"]
            row = {
                "id": inner.with_suffix("").as_posix(),
                "subject_id": subject,
                "text": _read_text(path, reading.notes).removeprefix(BYTE_ORDER_MARK),
            }
        except RecordError as problem:
            yield where, problem
        else:
            yield where, row


def _subject_pattern(folder: Path, expression: str | None) -> re.Pattern[str] | None:
    try:
        pattern = re.compile(expression) if expression is not None else None
    except re.error as error:
        raise CorpusError(
            f"{folder}: the subject pattern is no regular expression: {error}"
        ) from None
    if pattern is not None and "subject" not in pattern.groupindex:
        raise CorpusError(
            f"{folder}: the subject pattern has no group 'subject'; expected one, as in "
            "(?P<subject>P[0-9]+)"
        )
    return pattern


def list_files(folder: Path, suffix: str) -> list[Path]:
    """Return the files of a folder with a suffix in any case, in the order of ``LC_ALL=C ls``.

    Raises:
        CorpusError: If files in a folder within it would be passed over.
    """
    entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    files = [path for path in entries if path.suffix.lower() == suffix]
    inner = [path for path in entries if path.is_dir() and path not in files]
    if any(path.suffix.lower() == suffix for child in inner for path in child.iterdir()):
        raise CorpusError(
            f"{folder}: {suffix} files also lie in a folder within it, which is not read; "
            "move all of them into one folder, or name the folder that holds them"
        )
    return sorted(files, key=lambda path: os.fsencode(path.name))


def _files_below(folder: Path, notes: Notes) -> list[Path]:
    """Return the files of a folder and of all folders below it, linked ones too, each once."""
    files: list[Path] = []
    entered: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        here = os.path.realpath(root)
        if here in entered:  # links may lead in a circle
            notes.count(_LINKED_AGAIN)
            folders.clear()
            continue
        entered.add(here)
        files += [Path(root, name) for name in names]
    return files


def _note_other_files(files: Iterable[Path], read: Sequence[Path], notes: Notes) -> None:
    """Count the files that are not read."""
    for path in sorted(set(files).difference(read)):
        if path.is_file() and not _NO_DOCUMENT.fullmatch(path.name):
            notes.count(_HIDDEN_FILES if path.name.startswith(".") else _OTHER_FILES)


def _place(folder: Path, files: Sequence[Path], number: int) -> str:
    """Return a file's place, and how to see its name; the name itself may be a patient's."""
    suffixes = {path.suffix for path in files}
    suffix = suffixes.pop()
    if suffixes or suffix != suffix.lower():
        suffix = "." + "".join(f"[{letter}{letter.upper()}]" for letter in suffix[1:].lower())
    listing = f"LC_ALL=C ls {shlex.quote(str(folder))}/*{suffix} | sed -n {number}p"
    return f"file {number} of {len(files)} in name order ({listing})"


def _read_bytes(path: Path) -> bytes:
    if not (path.is_file() or path.is_dir() or not path.exists()):
        raise RecordError("it is no regular file but a pipe, a socket or a device; remove it")
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecordError(f"it cannot be read: {error.strerror}") from None


def _read_text(path: Path, notes: Notes) -> str:
    """Read a file as text, line ends as they are, and the byte-order mark of UTF-8 too."""
    return decode_file(_read_bytes(path), notes)


def _brat_row(
    text_path: Path, tag_path: Path, *, places: dict[Path, str], notes: Notes
) -> tuple[str, Row | RecordError]:
    """Read one document of a BRAT folder, or return the file with a problem, and the problem."""
    try:
        text = _read_text(text_path, notes)
    except RecordError as problem:
        return places[text_path], problem
    marks = [text, text[1:]] if text.startswith(BYTE_ORDER_MARK) else [text]
    readings = [*marks, *(mark.replace("\r\n", "\n") for mark in marks if "\r\n" in mark)]
    try:
        tags = _parse_brat(_read_text(tag_path, notes))
        settled = settle(readings, tags, certain=len(readings) == 1)
    except RecordError as problem:
        return places[tag_path], problem
    return places[text_path], tagged_row(text_path.stem, settled, tags)


def _parse_brat(source: str) -> list[Tag]:
    """Parse the entities of a ``.ann`` file; lines that are no annotation at all are an error."""
    tags = []
    for number, line in enumerate(source.removeprefix(BYTE_ORDER_MARK).split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line.strip() or line.startswith(_BRAT_IGNORED):
            continue
        match = _BRAT_ENTITY.fullmatch(line)
        if match is None:
            raise RecordError(
                "it is no BRAT annotation; expected T1, a tab, LABEL START END, a tab, the words",
                line=number,
            )
        pairs = (pair.split(" ") for pair in match["offsets"].split(";"))
        fragments = tuple((int(start), int(end)) for start, end in pairs)
        tags.append(
            Tag(line=number, label=match["label"], fragments=fragments, words=match["words"])
        )
    return tags
