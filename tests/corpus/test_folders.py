"""Folders and XML: suffixes in capitals, files that are not read, MAE, and tags in the text."""

import subprocess
from pathlib import Path

import pytest

from sani.corpus.readers import read_corpus
from tests.support.corpora import END, NAME, START, TEXT, refusal, stand_off

TAG = f'<NAME id="P0" start="{START}" end="{END}" text="{NAME}" TYPE="PATIENT" />'


def write(folder: Path, **files: str) -> Path:
    """Files by name; the last underscore stands for the dot before the suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / ".".join(name.rsplit("_", 1))).write_text(text)
    return folder


# ---- suffixes and other files ------------------------------------------------------------------


def test_suffixes_in_capitals_are_read(tmp_path: Path) -> None:
    text = write(tmp_path / "text", a_txt="one", B_TXT="two", c_Txt="three")
    assert [d.text for d in read_corpus(text, format="text")] == ["two", "one", "three"]
    xml = stand_off(TEXT, TAG).decode()
    assert read_corpus(write(tmp_path / "xml", a_xml=xml, B_XML=xml)).num_spans == 2
    assert read_corpus(write(tmp_path / "file", a_XML=xml) / "a.XML").num_spans == 1
    ann = f"T1\tNAME {START} {END}\t{NAME}\n"
    brat = write(tmp_path / "brat", a_TXT=TEXT, a_ann=ann, b_txt=TEXT, b_ANN=ann)
    assert read_corpus(brat).num_spans == 2


@pytest.mark.parametrize(
    ("files", "options", "guilty"),
    [
        ({"a_txt": "x", "B_TXT": "\0x", "c_txt": "x"}, {"format": "text"}, "B.TXT"),
        ({"a_xml": "<a/>", "B_XML": stand_off("x").decode()}, {}, "a.xml"),
        ({"a_txt": "x", "a_ann": "", "b_TXT": "x", "b_ANN": "odd"}, {}, "b.ANN"),
    ],
)
def test_the_place_in_the_message_finds_a_file_with_a_suffix_in_capitals(
    tmp_path: Path, files: dict[str, str], options: dict[str, str], guilty: str
) -> None:
    message = refusal(write(tmp_path / "f", **files), **options)
    start = message.index("(") + 1
    command = message[start : message.index("p)", start) + 1]
    shown = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == str(tmp_path / "f" / guilty)


def test_two_files_with_one_name_are_an_error(tmp_path: Path) -> None:
    text = write(tmp_path / "text", a_txt="one", a_TXT="two")
    assert "its id is already used" in refusal(text, format="text")
    brat = write(tmp_path / "brat", a_txt="one", a_TXT="two", a_ann="")
    assert "another file has its name but for the case of the suffix" in refusal(brat)


# Of a file that stands beside the folders, whose names are those of subjects.
ALONE = "records without a subject_id, each of which counts as a person of its own: 1"


def test_files_that_are_not_read_are_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", a_txt="one", b_rtf="x", c_md="x")
    write(folder / "ward", d_txt="two", e_docx="x", README_md="x")
    (folder / ".hidden.txt").write_text("x")
    corpus = read_corpus(folder, format="text")
    assert len(corpus) == 2
    assert set(corpus.notes) == {
        "files with another suffix, which were not read: 3",
        "files whose name starts with a dot, which were not read: 1",
        ALONE,
    }
    brat = write(tmp_path / "brat", a_txt="x", a_ann="", annotation_conf="x", b_pdf="x")
    assert read_corpus(brat).notes == ("files with another suffix, which were not read: 1",)
    xml = write(tmp_path / "xml", a_xml=stand_off("x").decode(), b_txt="x", LICENSE_txt="x")
    assert read_corpus(xml).notes == ("files with another suffix, which were not read: 1",)


def test_linked_folders_are_read_and_circles_are_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", a_txt="one")
    write(tmp_path / "elsewhere", d_txt="two")
    (folder / "ward").symlink_to(tmp_path / "elsewhere")
    (folder / "circle").symlink_to(folder)
    corpus = read_corpus(folder, format="text")
    assert sorted((d.subject_id, d.text) for d in corpus) == [("a", "one"), ("ward", "two")]
    assert set(corpus.notes) == {
        "links to a folder that is read already, which were not entered: 1",
        ALONE,
    }


# ---- MAE ---------------------------------------------------------------------------------------


def test_tags_of_mae_are_read_by_their_spans_and_their_names(tmp_path: Path) -> None:
    text = "Ana von Luz, seen by Odo"
    document = stand_off(
        text,
        '<NAME id="N0" spans="21~24" text="Odo" note="" />',
        '<NAME id="N1" spans="0~3,8~11" text="Ana ... Luz" />',
        '<ID id="I0" spans="0~3" text="Ana" TYPE="NICKNAME" />',
        '<WHOLE id="W0" spans="-1~-1" text="" />',
        '<OLDER id="O0" start="-1" end="-1" text="" />',
        '<LINK id="L0" fromID="N0" fromText="Odo" toID="N1" toText="Ana" />',
    )
    corpus = read_corpus(write(tmp_path / "f", a_xml=document.decode()))
    spans = corpus[0].spans
    assert [(span.label, corpus[0].value(span)) for span in spans] == [
        ("NAME", "Ana"), ("NICKNAME", "Ana"), ("NAME", "Luz"), ("NAME", "Odo"),
    ]  # fmt: skip
    assert corpus.notes == (
        "tags for a whole document or between tags, which mark no place and were not read: 3",
    )


@pytest.mark.parametrize(
    ("tag", "problem"),
    [
        ('<NAME spans="3-15" text="x" />', "the tag's 'spans' are no places such as 3~15"),
        ('<NAME spans="0~9999" text="x" />', "'end' lies beyond the text"),
        (f'<NAME spans="1~4" text="{NAME}" />', "the words that the tag repeats are not those"),
        ('<NAME text="x" />', "the tag's 'start' is missing"),
    ],
)
def test_a_tag_of_mae_without_a_place_is_an_error(tmp_path: Path, tag: str, problem: str) -> None:
    (tmp_path / "a.xml").write_bytes(stand_off(TEXT, tag))
    assert f", line 5: {problem}" in refusal(tmp_path)


# ---- i2b2 2006 ---------------------------------------------------------------------------------

INLINE = f"""<?xml version="1.0" encoding="UTF-8" ?>
<ROOT>
<RECORD ID="641">
<TEXT>
Name: <PHI TYPE="PATIENT">{NAME}</PHI> &amp; <PHI TYPE="DATE">03/04</PHI>.
</TEXT>
</RECORD>
<RECORD ID="642"><SMOKING STATUS="UNKNOWN"></SMOKING><TEXT>nothing</TEXT></RECORD>
</ROOT>
"""


def test_tags_in_the_text_are_read_from_a_file_or_a_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", a_xml=INLINE)
    for path in (folder, folder / "a.xml"):
        one, other = read_corpus(path, kinds={"DATE": "indirect"})
        assert (one.id, other.id, other.text) == ("641", "642", "nothing")
        assert one.text == f"\nName: {NAME} & 03/04.\n"
        assert [(span.label, one.value(span)) for span in one.spans] == [
            ("PATIENT", NAME), ("DATE", "03/04"),
        ]  # fmt: skip
        assert other.spans == ()
    assert refusal(write(tmp_path / "g", a_xml=INLINE, b_xml=INLINE)).count("already used") == 2


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("<TEXT>nothing</TEXT>", "", "it has RECORD elements, and other elements beside them or"),
        ("</ROOT>", "<TEXT>x</TEXT></ROOT>", "it has RECORD elements, and other elements beside"),
        ("</ROOT>", "", "it is not well-formed XML"),
        ('"641"', '"642"', "its id is already used"),
    ],
)
def test_a_file_of_records_that_is_not_whole_is_an_error(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    assert problem in refusal(write(tmp_path / "f", a_xml=INLINE.replace(old, new)))


def test_records_without_an_id_are_numbered_by_their_file(tmp_path: Path) -> None:
    text = INLINE.replace(' ID="641"', "").replace(' ID="642"', "")
    assert [d.id for d in read_corpus(write(tmp_path / "f", n_xml=text))] == ["n/1", "n/2"]
