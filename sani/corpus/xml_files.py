"""XML of i2b2/n2c2 and MAE, with tags beside the text, and of i2b2 2006, with tags in the text.

    2014, n2c2:  <root> <TEXT>...</TEXT> <TAGS> <NAME start="0" end="3" text="Ana" TYPE="PATIENT"/>
    MAE:         the same, but a tag has spans="0~3" and its name is its label
    2006:        <ROOT> <RECORD ID="1"> <TEXT>... <PHI TYPE="PATIENT">Ana</PHI> ...</TEXT>

A file may declare its encoding; if it is valid UTF-8, it is that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers import expat

from sani.corpus.encodings import NOT_UTF8, decode_declared, decode_file
from sani.corpus.reading import Notes
from sani.corpus.records import RecordError, Row
from sani.corpus.tags import Tag, settle, tagged_row

_OFFSET = re.compile(r"[0-9]{1,15}")
_FRAGMENTS = re.compile(r"[0-9]{1,15}~[0-9]{1,15}(,[0-9]{1,15}~[0-9]{1,15})*")
_NOWHERE = ("", "-1", "-1~-1")  # as MAE gives the place of a tag for the whole document
_DECLARATION = re.compile(rb"""<\?xml[^>]{0,200}?encoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")
_PLACELESS = "tags for a whole document or between tags, which mark no place and were not read"
UTF8 = ("utf-8", "utf8")


@dataclass
class _Record:
    """One document of a file.

    Attributes:
        name: Its id in a file of several; None where the file is one document.
        num_texts: Number of its elements TEXT.
        text: Its text, in pieces.
        tags: Its tags.
    """

    name: str | None = None
    num_texts: int = 0
    text: list[str] = field(default_factory=list)
    tags: list[Tag] = field(default_factory=list)

    @property
    def length(self) -> int:
        return sum(map(len, self.text))


def xml_rows(raw: bytes, stem: str, notes: Notes) -> Iterator[Row]:
    """Yield the documents of a file.

    Args:
        raw: Its content.
        stem: Name of its one document; of several, that of those without an ``ID``.
        notes: Where tags without a place are counted.

    Raises:
        RecordError: If it is not well-formed, or no such XML, or a tag does not fit its text.
    """
    source = _decoded(raw, notes)
    content = _parse(source, notes)
    if content.records:
        for number, record in enumerate(content.records, start=1):
            name = record.name or f"{stem}/{number}"
            yield tagged_row(name, "".join(record.text), record.tags)
        return
    text, tags = "".join(content.single.text), content.single.tags
    readings = [text]
    breaks = source.count("\r\n")
    if breaks and breaks == source.count("\n"):
        readings.append(text.replace("\n", "\r\n"))
    yield tagged_row(stem, settle(readings, tags, certain=not breaks), tags)


def _decoded(raw: bytes, notes: Notes) -> str:
    """Decode by a byte order mark, else as UTF-8, else as the file declares."""
    declared = _DECLARATION.match(raw.removeprefix(b"\xef\xbb\xbf").lstrip())
    try:
        return decode_file(raw, notes)
    except RecordError as problem:
        charset = declared[1].decode("ascii") if declared is not None else "utf-8"
        if str(problem) != NOT_UTF8 or charset.lower() in UTF8:
            raise
    try:
        return decode_declared(raw, charset, notes)
    except LookupError:
        raise RecordError(
            "it declares an encoding that is not known; convert it to UTF-8"
        ) from None
    except UnicodeError:
        raise RecordError(f"it is not text of the encoding it declares, and {NOT_UTF8}") from None


class _Content:
    """Collects the documents of a file while it is parsed."""

    def __init__(self, parser: expat.XMLParserType, notes: Notes) -> None:
        self.parser = parser
        self.notes = notes
        self.path: list[str] = []
        self.sections: list[str] = []
        self.single = _Record()
        self.records: list[_Record] = []
        self.inline: list[tuple[str, int, int]] = []  # label, start and line of open tags
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.characters
        parser.StartDoctypeDeclHandler = self.doctype

    @property
    def in_record(self) -> bool:
        return len(self.path) > 1 and self.path[1] == "RECORD"

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self.path.append(name)
        section = self.path[1] if len(self.path) > 1 else ""
        if len(self.path) == 2:
            self.sections.append(name)
            if name == "RECORD":
                self.records.append(_Record(attributes.get("ID") or attributes.get("id")))
        elif section == "TEXT":
            raise self.problem("TEXT holds an element; expected characters only")
        elif section == "TAGS":
            self.add_tag(name, attributes)
        elif self.path[1:] == ["RECORD", "TEXT"]:
            self.records[-1].num_texts += 1
        elif self.in_record and "TEXT" in self.path[2:-1]:
            label = attributes.get("TYPE", name)
            self.inline.append((label, self.records[-1].length, self.parser.CurrentLineNumber))

    def end(self, _name: str) -> None:
        if self.in_record and "TEXT" in self.path[2:-1]:
            label, start, line = self.inline.pop()
            record = self.records[-1]
            end = record.length
            if end > start:
                record.tags.append(Tag(line=line, label=label, fragments=((start, end),)))
            else:
                self.notes.count(_PLACELESS)
        self.path.pop()

    def characters(self, data: str) -> None:
        if len(self.path) == 2 and self.path[1] == "TEXT":
            self.single.text.append(data)
        elif self.in_record and "TEXT" in self.path[2:]:
            self.records[-1].text.append(data)

    def doctype(self, *_declaration: object) -> None:
        raise self.problem("it has a DOCTYPE, which is not read for safety; remove it")

    def add_tag(self, name: str, attributes: dict[str, str]) -> None:
        """Add a tag, unless it marks no place."""
        spans = attributes.get("spans", f"{attributes.get('start')}~{attributes.get('end')}")
        linked = "fromID" in attributes and "start" not in attributes and "spans" not in attributes
        if linked or spans in _NOWHERE:
            self.notes.count(_PLACELESS)
            return
        if "spans" not in attributes:
            for key in ("start", "end"):
                if not _OFFSET.fullmatch(attributes.get(key, "")):
                    raise self.problem(
                        f"the tag's {key!r} is missing or no whole number of 0 or more"
                    )
        elif not _FRAGMENTS.fullmatch(spans):
            raise self.problem("the tag's 'spans' are no places such as 3~15 or 3~15,20~25")
        label = attributes.get("TYPE", name)
        if not label.strip():
            raise self.problem("the tag's 'TYPE' is missing or empty; expected its label")
        pairs = [fragment.split("~") for fragment in spans.split(",")]
        self.single.tags.append(
            Tag(
                line=self.parser.CurrentLineNumber,
                label=label,
                fragments=tuple((int(start), int(end)) for start, end in pairs),
                words=attributes.get("text") or None,
            )
        )

    def problem(self, message: str) -> RecordError:
        return RecordError(message, line=self.parser.CurrentLineNumber)


def _parse(source: str, notes: Notes) -> _Content:
    """Parse a file; whatever encoding it declares, it is UTF-8 by now."""
    parser = expat.ParserCreate("utf-8")
    content = _Content(parser, notes)
    try:
        parser.Parse(source.encode("utf-8"), True)
    except expat.ExpatError as error:
        message = "it is not well-formed XML; check that the file is whole"
        raise RecordError(message, line=error.lineno) from None
    except UnicodeEncodeError:
        raise RecordError(NOT_UTF8) from None
    if content.records:
        odd = sum(record.num_texts != 1 for record in content.records)
        if odd or len(content.records) < len(content.sections):
            raise RecordError(
                "it has RECORD elements, and other elements beside them or not one TEXT in each of "
                f"them ({odd} of {len(content.records)}); expected RECORD elements with one TEXT"
            )
        return content
    for name in ("TEXT", "TAGS"):
        count = content.sections.count(name)
        if count != 1:
            raise RecordError(
                f"it has {count} {name} elements within its root; expected one, "
                "and an empty TAGS if it holds no identifier"
            )
    return content
