"""Columns of a corpus: which one stands for which field, and which are not read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sani.corpus.annotations import ANNOTATION_FIELDS, FULL_TEXT
from sani.corpus.documents import COLUMNS
from sani.corpus.reading import Reading
from sani.corpus.records import RecordError, Row, check_names
from sani.corpus.tables import parse_json
from sani.errors import CorpusError

_JSON_FIELDS = ("spans", "messages")


def parse_columns(pairs: Iterable[str]) -> dict[str, str]:
    """Return the names of columns from pairs such as ``text=note_text``.

    Raises:
        CorpusError: If one is no such pair, or names a field twice.
    """
    columns: dict[str, str] = {}
    for pair in pairs:
        field, equals, name = pair.partition("=")
        if not equals or not name or field not in COLUMNS:
            raise CorpusError(
                "a column is given as FIELD=NAME, with the name that the column has in the file: "
                f"expected one of {', '.join(COLUMNS)} as FIELD, as in text=note_text"
            )
        if field in columns:
            raise CorpusError(f"the column of {field!r} is given twice; give it once")
        columns[field] = name
    return columns


def check_columns(columns: Mapping[str, str]) -> None:
    """Refuse a mapping to anything but fields that sani reads.

    Raises:
        CorpusError: If a key is none, or a name is empty.
    """
    for field, name in columns.items():
        if field not in COLUMNS or not isinstance(name, str) or not name:
            raise CorpusError(
                f"columns maps a field to its name in the corpus; expected the fields "
                f"{', '.join(COLUMNS)}, each with a name"
            )


def names_to_read(columns: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of all columns that may be read."""
    return (*COLUMNS, *columns.values(), *ANNOTATION_FIELDS, FULL_TEXT, "answer")


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """Return a record under sani's own names; a column that the record lacks changes nothing."""
    used = {field: name for field, name in columns.items() if name in row}
    if not used:
        return row
    kept = {name: value for name, value in row.items() if name not in used.values()}
    return {**kept, **{field: row[name] for field, name in used.items()}}


def has_text(names: Sequence[str], reading: Reading) -> bool:
    """Return whether one of the columns holds the text of documents."""
    given = set(renamed(dict.fromkeys(names), reading.columns))
    return not given.isdisjoint(("text", "messages", FULL_TEXT))


def check_header(names: Sequence[str], what: str, reading: Reading) -> None:
    """Refuse column names from which documents cannot be read for certain.

    Raises:
        RecordError: If a column of text is missing, or a name stands for two columns.
    """
    check_names(renamed(dict.fromkeys(names), reading.columns))
    for name in names_to_read(reading.columns):
        if names.count(name) > 1:
            raise RecordError(f"{what} has the column {name!r} twice; keep one")
    if not has_text(names, reading):
        raise RecordError(
            f"{what} lacks 'text'; expected the columns text and, where known, id, subject_id and "
            "spans. Where they have other names, say which: corpus.columns in a recipe, or "
            "--column text=NAME"
        )


def check_columns_seen(columns: Mapping[str, str], fields: set[str]) -> None:
    """Refuse a name that no record has, where none has the field itself either.

    Args:
        columns: Name of a field -> its name in the corpus.
        fields: Names of all fields that some record has.

    Raises:
        RecordError: If there is one; a typing error would otherwise make every document a person.
    """
    for field, name in columns.items():
        if name not in fields and field not in fields:
            raise RecordError(
                f"no record has the column that is given for {field!r}; compare the names in "
                "corpus.columns, or of --column, with the file"
            )


def parsed_cells(row: dict[str, object], columns: Mapping[str, str]) -> Row | RecordError:
    """Return a record of text cells with its lists read from JSON; an empty list's cell is none."""
    lists = {columns.get(name, name) for name in _JSON_FIELDS}
    for name in (*lists, *ANNOTATION_FIELDS):
        cell = row.get(name)
        if not isinstance(cell, str):
            continue
        if not cell.strip():
            del row[name]
        elif name in lists or cell.lstrip().startswith(("[", "{")):
            try:
                row[name] = parse_json(cell)
            except RecordError as problem:
                return RecordError(f"{name!r}: {problem}")
    return row
