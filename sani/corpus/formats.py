"""Formats of a corpus, and which one a file or a folder has: by its name, else by its content."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from sani.corpus.fhir import holds_fhir
from sani.corpus.folders import list_files
from sani.corpus.lines import COMPRESSED
from sani.corpus.tables import holds_one_value
from sani.errors import CorpusError

Format = Literal["jsonl", "json", "parquet", "csv", "xlsx", "arrow", "i2b2", "brat", "fhir", "text"]
FORMATS: tuple[Format, ...] = get_args(Format)
FOLDER_FORMATS: tuple[Format, ...] = ("i2b2", "brat", "text")
_ONLY_FOLDERS: tuple[Format, ...] = ("brat", "text")

_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".xlsx": "xlsx",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".xml": "i2b2",
}
_COMPRESS_THEMSELVES: tuple[Format, ...] = ("parquet", "arrow", "xlsx")
_TO_TEXT = "write each document to a .txt file of a folder, and read it with the format text"
_ADVICE = {
    ".xls": "save it as .xlsx, or as CSV UTF-8",
    ".ods": "save it as .xlsx, or as CSV UTF-8",
    ".txt": "put it into a folder, and read that with the format text; if it is a table or holds "
    "one record a line, give the format csv or jsonl",
    ".ann": "name the folder that holds it and its .txt file, which is read with the format brat",
    ".spacy": 'write JSONL from it: {"text": doc.text, "spans": [{"start": ent.start_char, '
    '"end": ent.end_char, "label": ent.label_}]} for each document',
    ".zip": "unpack it first",
    ".tar": "unpack it first",
    ".tgz": "unpack it first",
    ".7z": "unpack it first",
    ".bz2": "unpack it first",
    ".xz": "unpack it first",
    ".conll": "join its tokens to texts, and write JSONL with spans",
    ".pkl": "write it as JSONL or Parquet",
    **dict.fromkeys((".doc", ".docx", ".rtf", ".odt", ".pdf", ".htm", ".html", ".md"), _TO_TEXT),
}


def resolve_format(path: Path, format: Format | None) -> Format:
    """Return the format of a path, by its name or by its content.

    Raises:
        CorpusError: If there is nothing there, or its format is not told and not known.
    """
    if format is not None and format not in FORMATS:
        raise CorpusError(f"{path}: unknown format; expected one of {', '.join(FORMATS)}")
    if not path.exists():
        raise CorpusError(f"{path}: there is no such file or folder; check the path")
    if path.is_dir():
        return _resolve_folder(path, format)
    if format in _ONLY_FOLDERS:
        raise CorpusError(f"{path}: it is a file; the format {format} is read from a folder")
    if not path.is_file():
        raise CorpusError(
            f"{path}: it is no regular file but a pipe, a socket or a device, which may never end; "
            "write its content to a file first"
        )
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    suffix = name.suffix.lower()
    if path != name and (format or _SUFFIXES.get(suffix)) in _COMPRESS_THEMSELVES:
        raise CorpusError(f"{path}: it compresses itself; decompress the file first")
    if path != name and (format or _SUFFIXES.get(suffix)) == "i2b2":
        raise CorpusError(f"{path}: XML is not read compressed; decompress the file first")
    if format is None and suffix in _ADVICE:
        raise CorpusError(f"{path}: {suffix} files are not read; {_ADVICE[suffix]}")
    if format is None and suffix not in _SUFFIXES:
        raise CorpusError(
            f"{path}: its suffix tells no format; expected one of {', '.join(_SUFFIXES)}, "
            f"{' or '.join(COMPRESSED)} after it where it is text, or the format given as one of "
            f"{', '.join(FORMATS)}"
        )
    with path.open("rb") as file:
        if not file.read(1):
            raise CorpusError(f"{path}: the file is empty; expected at least one document")
    if format is None and _SUFFIXES[suffix] in ("jsonl", "json"):
        return _resolve_json(path)
    return format or _SUFFIXES[suffix]


def _resolve_json(path: Path) -> Format:
    """Return the format of a JSON file by its head, whatever its suffix says."""
    one_value = holds_one_value(path)
    if holds_fhir(path, one_value=one_value):
        return "fhir"
    return "json" if one_value else "jsonl"


def _resolve_folder(path: Path, format: Format | None) -> Format:
    """Return the format of a folder, by the files it holds."""
    if format is not None and format not in FOLDER_FORMATS:
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
