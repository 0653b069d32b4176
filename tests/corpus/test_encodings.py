"""Encodings of files: UTF-16 with its mark, without it, NULs, and what XML declares."""

import codecs
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sani.corpus.encodings import decode_declared
from sani.corpus.readers import read_corpus
from sani.corpus.reading import Notes
from tests.support.corpora import END, NAME, START, TEXT, refusal, stand_off, write_lines

MARKED = {
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
PEOPLE = f"{TEXT} Peña, Ωmega 😀"
TAG = f'<NAME id="P0" start="{START}" end="{END}" text="{NAME}" TYPE="PATIENT" />'


def write(folder: Path, kind: str, raw_of: Any) -> tuple[Path, dict[str, Any]]:
    """A corpus of one document, each file encoded by a function; the path, and how it is read."""
    if kind in ("jsonl", "csv"):
        content = (
            f'{{"id": 1, "text": "{PEOPLE}"}}\n' if kind == "jsonl" else f"id;text\n1;{PEOPLE}"
        )
        (folder / f"c.{kind}").write_bytes(raw_of(content))
        return folder / f"c.{kind}", {}
    inner = folder / "f"
    inner.mkdir()
    if kind == "xml":
        (inner / "a.xml").write_bytes(
            raw_of(stand_off(PEOPLE, TAG, encoding="UTF-16", written="utf-8").decode())
        )
        return inner, {}
    (inner / "a.txt").write_bytes(raw_of(PEOPLE))
    if kind == "brat":
        (inner / "a.ann").write_bytes(raw_of(f"T1\tNAME {START} {END}\t{NAME}\n"))
    return inner, {"format": "text"} if kind == "text" else {}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "xml", "brat", "text"])
@pytest.mark.parametrize("encoding", MARKED)
def test_utf_16_and_32_are_read_where_a_mark_says_so(
    tmp_path: Path, kind: str, encoding: str
) -> None:
    path, options = write(tmp_path, kind, lambda text: MARKED[encoding] + text.encode(encoding))
    corpus = read_corpus(path, **options)
    assert [d.text for d in corpus] == [PEOPLE]
    assert [corpus[0].value(span) for span in corpus[0].spans] in ([], [NAME])
    name = encoding.upper()[:6]
    assert [note for note in corpus.notes if name in note]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "xml", "brat", "text"])
@pytest.mark.parametrize("encoding", MARKED)
def test_without_a_mark_the_error_names_the_encoding_and_its_advice_works(
    tmp_path: Path, kind: str, encoding: str
) -> None:
    path, options = write(tmp_path, kind, lambda text: text.encode(encoding))
    message = refusal(path, **options)
    name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    assert f"it holds NUL bytes as {name} has them, without a byte order mark" in message
    assert f"iconv -f {name} -t UTF-8 OLD > NEW" in message
    file = path if path.is_file() else next(path.glob("a.*"))
    converted = subprocess.run(
        ["iconv", "-f", name, "-t", "UTF-8", str(file)], capture_output=True, check=True
    )
    assert NAME in converted.stdout.decode()


def test_the_advice_for_another_encoding_leads_to_text_in_which_something_is_found(
    tmp_path: Path,
) -> None:
    path, options = write(tmp_path, "text", lambda text: "Señor Odo".encode("cp1252"))
    assert "iconv -f WINDOWS-1252" in refusal(path, **options)


def test_a_compressed_file_in_utf_16_is_read(tmp_path: Path) -> None:
    with pa.output_stream(str(tmp_path / "c.jsonl.gz"), compression="gzip") as out:
        out.write('{"id": 1, "text": "Peña"}\n'.encode("utf-16"))
    assert read_corpus(tmp_path / "c.jsonl.gz")[0].text == "Peña"


@pytest.mark.parametrize("kind", ["jsonl", "text"])
def test_a_mark_that_is_not_true_is_an_error(tmp_path: Path, kind: str) -> None:
    path, options = write(tmp_path, kind, lambda text: codecs.BOM_UTF16_LE + b"\x00\xd8a\x00\n\x00")
    assert "its byte order mark says UTF-16, and it is not" in refusal(path, **options)


def test_nuls_in_a_text_are_an_error_wherever_they_come_from(tmp_path: Path) -> None:
    """A scan would take the name for two words, and mark half of it."""
    hidden = NAME.replace(" ", "\0 ")
    problem = "holds NUL characters, which are no text and would hide an identifier"
    path = write_lines(tmp_path / "c.jsonl", {"id": 1, "text": hidden})
    assert f"line 1: 'text' {problem}" in refusal(path)
    message = {"role": "user", "content": hidden}
    path = write_lines(tmp_path / "m.jsonl", {"id": 1, "messages": [message]})
    assert f"message 1: 'content' {problem}" in refusal(path)
    path, options = write(tmp_path, "text", lambda text: text.replace(" ", "\0 ", 1).encode())
    assert "it holds NUL characters" in refusal(path, **options)
    assert "tr -d" in refusal(path, **options)


# ---- what XML declares -------------------------------------------------------------------------


def read_xml(folder: Path, text: str, *, declared: str, written: str) -> str:
    folder.mkdir()
    (folder / "a.xml").write_bytes(stand_off(text, encoding=declared, written=written))
    return read_corpus(folder)[0].text


@pytest.mark.parametrize(
    ("declared", "written"),
    [
        ("ISO-8859-1", "latin-1"),
        ("iso-8859-15", "iso-8859-15"),
        ("windows-1252", "cp1252"),
        ("ISO-8859-1", "cp1252"),
        ("ISO-8859-1", "utf-8"),
        ("UTF-8", "utf-8"),
    ],
)
def test_xml_is_read_in_the_encoding_it_declares(
    tmp_path: Path, declared: str, written: str
) -> None:
    text = "Señora Peña" if written in ("latin-1", "iso-8859-15") else "Señora Peña\u2019s €5"
    assert read_xml(tmp_path / "f", text, declared=declared, written=written) == text


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        ("UTF-8", "not UTF-8 text"),
        ("x-odd", "it declares an encoding that is not known"),
        ("ascii-odd", "it declares an encoding that is not known"),
    ],
)
def test_xml_in_no_encoding_that_it_declares_is_refused(
    tmp_path: Path, declared: str, problem: str
) -> None:
    (tmp_path / "a.xml").write_bytes(stand_off("Peña", encoding=declared, written="latin-1"))
    assert problem in refusal(tmp_path)


def test_declared_text_is_never_decoded_to_control_characters() -> None:
    notes = Notes()
    assert decode_declared("Odo\u2019s".encode("cp1252"), "latin1", notes) == "Odo\u2019s"
    assert decode_declared("Peña".encode("latin-1"), "latin1", notes) == "Peña"
    assert decode_declared("Peña".encode(), "us-ascii", notes) == "Peña"
    assert len(notes.lines()) == 2
    with pytest.raises(UnicodeDecodeError):
        decode_declared(b"Odo \x81", "latin1", notes)
