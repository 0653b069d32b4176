"""The examples of formats in the page about corpora are read as they stand."""

from pathlib import Path

import pytest

from sani.corpus.formats import FORMATS
from sani.corpus.readers import read_corpus
from tests.support.pages import ROOT, blocks

PAGE = (ROOT / "docs" / "corpora.md").read_text(encoding="utf-8")
COLUMNS = {"id": "note_id", "subject_id": "mrn", "text": "note"}
FILES = blocks(PAGE, "csv", "jsonl", "ndjson", "xml")
FOLDERS = [content for _, content in blocks(PAGE, "files")]


@pytest.mark.parametrize(("language", "content"), FILES)
def test_an_example_of_a_file_is_read(tmp_path: Path, language: str, content: str) -> None:
    path = tmp_path / f"records.{language}"
    path.write_text(content, encoding="utf-8")
    (document,) = read_corpus(path, columns=COLUMNS if "note_id" in content else None)
    assert "Seen today: Ana Ruiz" in document.text
    if "NAME" in content or "PHI" in content:
        assert [document.value(span) for span in document.spans] == ["Ana Ruiz"]


@pytest.mark.parametrize("content", FOLDERS)
def test_an_example_of_a_folder_is_read(tmp_path: Path, content: str) -> None:
    for line in content.splitlines():
        name, text = line.split("   ")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    corpus = read_corpus(tmp_path, format=None if ".ann" in content else "text")
    assert corpus[0].text == "Seen today: Ana Ruiz"
    assert len(corpus) == 2 - (".ann" in content)


def test_every_format_has_its_row() -> None:
    rows = [line.split("`")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    assert set(FORMATS) <= set(rows)
    assert len(FILES) >= 6
    assert len(FOLDERS) == 2
