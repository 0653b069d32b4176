"""Excel workbooks (``.xlsx``), by the library openpyxl, which the optional extra ``xlsx`` brings.

The first row of the sheet is the header. Hidden rows and columns are read like others. Of several
sheets with rows, the one whose header names the column of text is read, and a note counts the rows
of the others. A workbook with none or two such sheets is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sani.corpus.columns import check_header, has_text, parsed_cells
from sani.corpus.reading import Reading
from sani.corpus.records import RecordError, Row, Rows
from sani.errors import CorpusError

LONGEST_CELL = 32_767  # characters; Excel cuts what is longer, without a word
_CUT = (
    f"cells of exactly {LONGEST_CELL} characters, the most that Excel keeps, so that their text "
    "may be cut off"
)
_OTHER_SHEETS = "rows of other sheets that are not read, since these have no column of text"
_ERRORS = ("#NULL!", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#N/A")


def read_xlsx(path: Path, reading: Reading) -> Rows:
    """Read the sheet of a workbook that holds the records; ``spans`` is a JSON list in a cell."""
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise CorpusError(
            f"{path}: Excel workbooks are read with the library openpyxl, which is not installed; "
            "install it with pip install 'sani-llm[xlsx]', or save the sheet as CSV UTF-8"
        ) from None
    number = 0
    try:
        book = load_workbook(path, read_only=True, data_only=True)
        try:
            for number, row in _rows(book, reading):
                yield f"row {number}", row
        finally:
            book.close()
    except RecordError as problem:
        yield "", problem
    except OSError:
        raise
    except Exception:  # a damaged file raises almost anything, and the text may quote it
        where = f"after row {number}" if number else ""
        message = (
            "it cannot be read as an Excel workbook; check that the file is whole and has no "
            "password, or save the sheet as CSV UTF-8"
        )
        yield where, RecordError(message)


def _rows(book: Any, reading: Reading) -> Iterator[tuple[int, Row | RecordError]]:
    for sheet in book.worksheets:
        sheet.reset_dimensions()  # a file may state a smaller sheet than it holds
    sheets = [sheet for sheet in book.worksheets if any(map(_holds, sheet.values))]
    sheet = _sheet_of_records(sheets, reading) if sheets else None
    header: list[str] | None = None
    for number, cells in enumerate(sheet.values if sheet else (), start=1):
        if not _holds(cells):
            continue
        if header is None:
            header = _header(cells, reading)
        else:
            yield number, _row(header, cells, reading)


def _sheet_of_records(sheets: Sequence[Any], reading: Reading) -> Any:
    """Return the sheet whose header names a column of text, and note the rows of the others.

    Raises:
        RecordError: If there are several sheets, and not exactly one has such a header.
    """
    if len(sheets) == 1:
        return sheets[0]
    with_text = [sheet for sheet in sheets if _names_text(sheet, reading)]
    if len(with_text) != 1:
        have = f"{len(with_text)} of these have" if with_text else "none of these has"
        raise RecordError(
            f"{len(sheets)} of its sheets hold rows, and {have} a column of text in the first "
            "row, so it is not known which one holds the records; name the column with "
            "corpus.columns in a recipe, or --column text=NAME, or keep one sheet in the workbook"
        )
    others = [sheet for sheet in sheets if sheet is not with_text[0]]
    num_rows = sum(_holds(cells) for sheet in others for cells in sheet.values)
    reading.notes.count(_OTHER_SHEETS, num_rows)
    return with_text[0]


def _names_text(sheet: Any, reading: Reading) -> bool:
    """Return whether the first row with a cell names a column of text."""
    cells = next(filter(_holds, sheet.values))
    return has_text([str(cell) for cell in cells if cell is not None], reading)


def _holds(cells: Sequence[object]) -> bool:
    return any(cell is not None for cell in cells)


def _header(cells: Sequence[object], reading: Reading) -> list[str]:
    """Return the names of the columns; a column without a name has an empty one."""
    names = ["" if cell is None else str(cell) for cell in cells]
    check_header(names, "the first row", reading)
    return names


def _row(header: Sequence[str], cells: Sequence[object], reading: Reading) -> Row | RecordError:
    if any(cell is not None for cell in cells[len(header) :]) or any(
        cell is not None and not name for name, cell in zip(header, cells, strict=False)
    ):
        return RecordError("it has a cell in a column without a name; name the column")
    row: dict[str, object] = {
        name: _value(cell, reading) for name, cell in zip_longest(header, cells) if name
    }
    text = row.get(reading.columns.get("text", "text"))
    if isinstance(text, str) and text in _ERRORS:
        return RecordError("the cell of its text holds an error of Excel; mend the formula")
    return parsed_cells(row, reading.columns)


def _value(cell: object, reading: Reading) -> object:
    """Return what a cell holds; Excel writes a carriage return as ``_x000D_``."""
    if not isinstance(cell, str):
        return cell
    from openpyxl.utils.escape import unescape

    if len(cell) == LONGEST_CELL:
        reading.notes.count(_CUT)
    return str(unescape(cell))
