r"""Folders with a file or two a document: i2b2/n2c2 XML, BRAT ``.txt``/``.ann`` pairs, plain text.

A file is named by its place in the folder, never by its name, since hospitals name files after
patients. One folder is read, not those within it, but for plain text; files whose name starts with
a dot are not read.

What offsets count is settled by the data. Both formats repeat the words of every tag, so where
line ends (``\r\n``) or a byte-order mark at the head leave two readings of a text, the one in
which every tag covers its words is taken: first the one its standard prescribes (XML counts
``\r\n`` as one character, BRAT counts every character, the mark too, as MEDDOCAN does). If tags
have no words to settle it, or no reading fits, that is an error. Runs of blanks compare as one
blank, since XML turns a line break within an attribute into a blank, and BRAT does the same.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from sani.corpus.records import RecordError, Row, Rows, check_offsets
from sani.corpus.tables import NOT_UTF8
from sani.errors import CorpusError

_BOM = "\ufeff"
_OFFSET = re.compile(r"[0-9]{1,15}")
_BRAT_ENTITY = re.compile(
    r"T[^\t]*\t(?P<label>\S+) (?P<offsets>[0-9]{1,15} [0-9]{1,15}(;[0-9]{1,15} [0-9]{1,15})*)"
    r"(\t(?P<words>.*))?",
    re.DOTALL,
)
# Relations, events, attributes, modifications, normalizations, notes, equivalences.
_BRAT_IGNORED = ("R", "E", "A", "M", "N", "#", "*")


@dataclass(frozen=True, slots=True)
class _Tag:
    """An annotation as its file has it.

    Attributes:
        line: Where it stands in its file, from 1.
        label: What it is.
        fragments: Start and end of every piece; more than one only in BRAT.
        words: What it says it covers; None where it does not say.
    """

    line: int
    label: str
    fragments: tuple[tuple[int, int], ...]
    words: str | None = field(repr=False)


def read_i2b2(folder: Path) -> Rows:
    """Read an XML file a document: ``TEXT``, and ``TAGS`` with start, end, text and TYPE each."""
    files = list_files(folder, ".xml")
    for number, path in enumerate(files, start=1):
        where = _place(folder, ".xml", number=number, count=len(files))
        try:
            source = _read_text(path)
            text, tags = _parse_xml(source)
            readings = [text]
            breaks = source.count("\r\n")
            if breaks and breaks == source.count("\n"):
                readings.append(text.replace("\n", "\r\n"))
            row = _to_row(path.stem, _settle(readings, tags, certain=not breaks), tags)
        except RecordError as problem:
            yield where, problem
        else:
            yield where, row


def read_brat(folder: Path) -> Rows:
    """Read a ``.txt`` and an ``.ann`` file a document; a discontinuous tag gives several spans."""
    texts, tags = list_files(folder, ".txt"), list_files(folder, ".ann")
    places = {
        path: _place(folder, path.suffix, number=number, count=len(paths))
        for paths in (texts, tags)
        for number, path in enumerate(paths, start=1)
    }
    stems = sorted({path.stem for path in (*texts, *tags)}, key=os.fsencode)
    for stem in stems:
        text_path, tag_path = folder / f"{stem}.txt", folder / f"{stem}.ann"
        if tag_path not in places:
            message = "it has no .ann file beside it; add an empty one if it holds no identifier"
            yield places[text_path], RecordError(message)
        elif text_path not in places:
            message = "it has no .txt file beside it; add the text or move the .ann file away"
            yield places[tag_path], RecordError(message)
        else:
            yield _brat_row(text_path, tag_path, places=places)


def read_text_folder(folder: Path, *, subject_pattern: str | None = None) -> Rows:
    """Read one ``.txt`` file a document, in this folder and those below; nothing is marked.

    The subject is what the group ``subject`` of the pattern finds in the file's path within the
    folder; without a pattern, the first folder below, if the file lies in one.

    Args:
        folder: Where the files lie; the id is the path within it, without suffix.
        subject_pattern: A regular expression with a group ``subject``.

    Raises:
        CorpusError: If the pattern is none, or has no such group.
    """
    pattern = _subject_pattern(folder, subject_pattern)
    for number, path, count in _text_files(folder):
        listing = f"find {shlex.quote(str(folder))} -name '[!.]*.txt' | LC_ALL=C sort"
        where = f"file {number} of {count} in path order ({listing} | sed -n {number}p)"
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
                "text": _read_text(path).removeprefix(_BOM),
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


def _text_files(folder: Path) -> list[tuple[int, Path, int]]:
    """Return the number, path and count of the text files, in the order of their paths' bytes."""
    paths = [path for path in folder.rglob("*.txt") if not path.name.startswith(".")]
    paths.sort(key=lambda path: os.fsencode(path))
    return [(number, path, len(paths)) for number, path in enumerate(paths, start=1)]


def list_files(folder: Path, suffix: str) -> list[Path]:
    """Return the files of a folder with a suffix, in the order of ``LC_ALL=C ls``.

    Raises:
        CorpusError: If files would be passed over: in a folder within, or for a suffix's case.
    """
    entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    files = [path for path in entries if path.suffix == suffix]
    odd = sum(path.suffix.lower() == suffix for path in entries) - len(files)
    if odd:
        raise CorpusError(
            f"{folder}: {odd} of its files end in {suffix} in another case, which is not read; "
            f"rename to {suffix}"
        )
    inner = [path for path in entries if path.is_dir() and path not in files]
    if any(path.suffix.lower() == suffix for child in inner for path in child.iterdir()):
        raise CorpusError(
            f"{folder}: {suffix} files also lie in a folder within it, which is not read; "
            "move all of them into one folder, or name the folder that holds them"
        )
    return sorted(files, key=lambda path: os.fsencode(path.name))


def _place(folder: Path, suffix: str, *, number: int, count: int) -> str:
    """Return a file's place, and how to see its name; the name itself may be a patient's."""
    listing = f"LC_ALL=C ls {shlex.quote(str(folder))}/*{suffix} | sed -n {number}p"
    return f"file {number} of {count} in name order ({listing})"


def _read_text(path: Path) -> str:
    """Read a file as text, line ends and byte-order mark as they are."""
    if not (path.is_file() or path.is_dir() or not path.exists()):
        raise RecordError("it is no regular file but a pipe, a socket or a device; remove it")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise RecordError(NOT_UTF8) from None
    except OSError as error:
        raise RecordError(f"it cannot be read: {error.strerror}") from None


class _XmlContent:
    """Collects what an i2b2 file holds while it is parsed."""

    def __init__(self, parser: expat.XMLParserType) -> None:
        self.parser = parser
        self.path: list[str] = []
        self.sections: list[str] = []
        self.text: list[str] = []
        self.tags: list[_Tag] = []
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.characters
        parser.StartDoctypeDeclHandler = self.doctype

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self.path.append(name)
        section = self.path[1] if len(self.path) > 1 else ""
        if len(self.path) == 2:
            self.sections.append(name)
        elif section == "TEXT":
            raise self.problem("TEXT holds an element; expected characters only")
        elif section == "TAGS":
            self.tags.append(self.tag(attributes))

    def end(self, _name: str) -> None:
        self.path.pop()

    def characters(self, data: str) -> None:
        if len(self.path) == 2 and self.path[1] == "TEXT":
            self.text.append(data)

    def doctype(self, *_declaration: object) -> None:
        raise self.problem("it has a DOCTYPE, which is not read for safety; remove it")

    def tag(self, attributes: dict[str, str]) -> _Tag:
        for name in ("start", "end"):
            if not _OFFSET.fullmatch(attributes.get(name, "")):
                raise self.problem(f"the tag's {name!r} is missing or no whole number of 0 or more")
        label = attributes.get("TYPE", "")
        if not label.strip():
            raise self.problem("the tag's 'TYPE' is missing or empty; expected its label")
        return _Tag(
            line=self.parser.CurrentLineNumber,
            label=label,
            fragments=((int(attributes["start"]), int(attributes["end"])),),
            words=attributes.get("text") or None,
        )

    def problem(self, message: str) -> RecordError:
        return RecordError(message, line=self.parser.CurrentLineNumber)


def _parse_xml(source: str) -> tuple[str, list[_Tag]]:
    """Parse an i2b2 file into text and tags; whatever encoding it declares, it is UTF-8 by now."""
    parser = expat.ParserCreate("utf-8")
    content = _XmlContent(parser)
    try:
        parser.Parse(source.encode("utf-8"), True)
    except expat.ExpatError as error:
        message = "it is not well-formed XML; check that the file is whole"
        raise RecordError(message, line=error.lineno) from None
    for name in ("TEXT", "TAGS"):
        count = content.sections.count(name)
        if count != 1:
            raise RecordError(
                f"it has {count} {name} elements within its root; expected one, "
                "and an empty TAGS if it holds no identifier"
            )
    return "".join(content.text), content.tags


def _brat_row(
    text_path: Path, tag_path: Path, *, places: dict[Path, str]
) -> tuple[str, Row | RecordError]:
    """Read one document of a BRAT folder, or return the file with a problem, and the problem."""
    try:
        text = _read_text(text_path)
    except RecordError as problem:
        return places[text_path], problem
    marks = [text, text[1:]] if text.startswith(_BOM) else [text]
    readings = [*marks, *(mark.replace("\r\n", "\n") for mark in marks if "\r\n" in mark)]
    try:
        tags = _parse_brat(_read_text(tag_path))
        settled = _settle(readings, tags, certain=len(readings) == 1)
    except RecordError as problem:
        return places[tag_path], problem
    return places[text_path], _to_row(text_path.stem, settled, tags)


def _parse_brat(source: str) -> list[_Tag]:
    """Parse the entities of a ``.ann`` file; lines that are no annotation at all are an error."""
    tags = []
    for number, line in enumerate(source.removeprefix(_BOM).split("\n"), start=1):
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
            _Tag(line=number, label=match["label"], fragments=fragments, words=match["words"])
        )
    return tags


def _settle(readings: Sequence[str], tags: Sequence[_Tag], *, certain: bool) -> str:
    """Return the first reading of a text in which every tag covers the words it says.

    Args:
        readings: The text as its standard reads it, then what else the offsets may count.
        tags: All tags of the text.
        certain: Whether nothing but the first reading is possible.
    """
    for tag in tags:
        if not certain and not tag.words:
            raise RecordError(
                "the tag does not repeat the words it covers, so it cannot be told whether its "
                "offsets count line ends as one character or two, or the byte-order mark; "
                "convert the text to plain line ends without that mark, and the offsets with it",
                line=tag.line,
            )
    problems = [_misfit(reading, tags) for reading in readings]
    for reading, problem in zip(readings, problems, strict=True):
        if problem is None:
            return reading
    raise next(filter(None, problems))


def _misfit(text: str, tags: Sequence[_Tag]) -> RecordError | None:
    """Return the problem of the first tag that does not fit a text; None if all do."""
    for tag in tags:
        try:
            for start, end in tag.fragments:
                check_offsets(start, end, text)
        except RecordError as problem:
            return RecordError(str(problem), line=tag.line)
        covered = " ".join(text[start:end] for start, end in tag.fragments)
        if tag.words and covered.split() != tag.words.split():
            return RecordError(
                "the words that the tag repeats are not those between its offsets; "
                "check that text and tags belong together and offsets count characters from 0",
                line=tag.line,
            )
    return None


def _to_row(stem: str, text: str, tags: Sequence[_Tag]) -> Row:
    """Return the record of a file; its kinds are left to whoever knows the labels."""
    spans = [
        {"start": start, "end": end, "label": tag.label}
        for tag in tags
        for start, end in tag.fragments
    ]
    return {"id": stem, "text": text, "spans": spans}
