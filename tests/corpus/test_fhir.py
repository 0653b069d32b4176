"""FHIR: whose document it is, every attachment, encodings, Bundles, reports and versions."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from sani.corpus.readers import read_corpus
from tests.support.corpora import NAME, TEXT, refusal, resource, write_lines


def bundle(*entries: Any, **fields: Any) -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": "collection", "entry": list(entries), **fields}


def report(identity: str = "r1", **fields: Any) -> dict[str, Any]:
    subject = {"reference": "Patient/p1"}
    head = {"resourceType": "DiagnosticReport", "id": identity, "status": "final"}
    return {**head, "subject": subject, **fields}


def plain(text: str) -> dict[str, Any]:
    return {"contentType": "text/plain", "data": base64.b64encode(text.encode()).decode()}


# ---- subjects ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Patient/p1", "Patient/p1/_history/2", True),
        ("Patient/p1/_history/1", "Patient/p1/_history/2", True),
        ("Patient/p1/_history/2", "Patient/p2/_history/2", False),
        ("Patient/p1", "https://a.example/fhir/Patient/p1", True),
        ("https://a.example/fhir/Patient/p1", "https://a.example/fhir/Patient/p1/_history/3", True),
        ("https://a.example/fhir/Patient/p1", "https://b.example/fhir/Patient/p1", False),
        ("Patient/p1", "Patient/p1/", True),
        ("Patient/1", "Group/1", False),
        ("#p", "#p", False),
        ("urn:uuid:1-2", "urn:uuid:1-2", True),
        ("urn:uuid:1-2", "urn:uuid:1-3", False),
        (
            {"identifier": {"system": "urn:x", "value": "7"}},
            {"identifier": {"system": "urn:x", "value": "7"}},
            True,
        ),
        (
            {"identifier": {"system": "urn:x", "value": "7"}},
            {"identifier": {"system": "urn:y", "value": "7"}},
            False,
        ),
        (None, None, False),
        ({}, {"display": NAME}, False),
    ],
)
def test_two_references_are_one_person_or_two(
    tmp_path: Path, one: Any, other: Any, same: bool
) -> None:
    rows = [resource("d1", subject=one), resource("d2", subject=other)]
    first, second = read_corpus(write_lines(tmp_path / "c.ndjson", *rows))
    assert (first.subject_id == second.subject_id) is same


def test_a_reference_to_an_entry_of_the_bundle_is_the_patient_there(tmp_path: Path) -> None:
    patient = {"resourceType": "Patient", "id": "p9", "name": [{"text": NAME}]}
    whole = bundle(
        {"fullUrl": "urn:uuid:77", "resource": patient},
        {"resource": resource("d1", subject="urn:uuid:77")},
        {"resource": resource("d2", subject="Patient/p9")},
    )
    corpus = read_corpus(write_lines(tmp_path / "c.ndjson", whole))
    assert [d.subject_id for d in corpus] == ["p9", "p9"]


# ---- attachments -------------------------------------------------------------------------------


def test_every_attachment_in_plain_text_is_a_document_of_the_subject(tmp_path: Path) -> None:
    rows = [resource("d1", "one", "two", "three"), resource("d2", "four", subject=None)]
    corpus = read_corpus(write_lines(tmp_path / "c.ndjson", *rows))
    assert [(d.id, d.subject_id, d.text) for d in corpus] == [
        ("d1", "p1", "one"), ("d1/2", "p1", "two"), ("d1/3", "p1", "three"), ("d2", "d2", "four"),
    ]  # fmt: skip
    alone = resource("d3", "five", "six", subject=None)
    corpus = read_corpus(write_lines(tmp_path / "d.ndjson", alone))
    assert {d.subject_id for d in corpus} == {"d3"}


def test_attachments_of_other_types_beside_it_are_counted(tmp_path: Path) -> None:
    row = resource("d1", "one")
    for kind in ("text/html", "application/pdf"):
        row["content"].append({"attachment": {"contentType": kind, "data": "QQ=="}})
    row["content"].append({"attachment": {"title": "no type and no data"}})
    corpus = read_corpus(write_lines(tmp_path / "c.ndjson", row))
    assert [d.text for d in corpus] == ["one"]
    assert corpus.notes == ("attachments of another type than plain text, which were not read: 3",)


def test_a_plain_text_that_is_elsewhere_is_an_error_beside_one_that_is_here(
    tmp_path: Path,
) -> None:
    row = resource("d1", "one")
    row["content"].append({"attachment": {"contentType": "text/plain", "url": "Binary/b1"}})
    path = write_lines(tmp_path / "c.ndjson", row)
    assert "it has an attachment of type text/plain without its data" in refusal(path)
    binary = {"resourceType": "Binary", "id": "b1", **plain("two")}
    path = write_lines(tmp_path / "b.ndjson", bundle({"resource": row}, {"resource": binary}))
    assert [d.text for d in read_corpus(path)] == ["one", "two"]


@pytest.mark.parametrize("blanks", ["\n", "\r\n", " ", "\t", "\n \n"])
def test_white_space_in_base64_is_no_data(tmp_path: Path, blanks: str) -> None:
    row = resource("d1", TEXT * 3)
    data = row["content"][0]["attachment"]["data"]
    wrapped = blanks.join(data[start : start + 76] for start in range(0, len(data), 76)) + blanks
    row["content"][0]["attachment"]["data"] = wrapped
    assert read_corpus(write_lines(tmp_path / "c.ndjson", row))[0].text == TEXT * 3
    row["content"][0]["attachment"]["data"] = data[:-3]
    assert "'data' is not base64" in refusal(write_lines(tmp_path / "d.ndjson", row))


@pytest.mark.parametrize(
    ("charset", "written"),
    [
        ("", "utf-8"), ("", "utf-8-sig"), ("utf-8", "utf-8-sig"), ("utf-16", "utf-16"),
        ("utf-16le", "utf-16"), ("", "utf-16"), ("ISO-8859-1", "latin-1"),
        ("ISO-8859-1", "cp1252"), ("windows-1252", "cp1252"), ("us-ascii", "cp1252"),
        ("ISO-8859-1", "utf-8"), ("ISO-8859-1", "utf-8-sig"),
    ],
)  # fmt: skip
def test_an_attachment_is_decoded_as_it_was_written(
    tmp_path: Path, charset: str, written: str
) -> None:
    text = "Señor Odo Peña" if written == "latin-1" else "Señor Odo\u2019s \u20ac5"
    kind = f"text/plain; charset={charset}" if charset else "text/plain"
    row = resource("d1", text.encode(written), content_type=kind)
    assert read_corpus(write_lines(tmp_path / "c.ndjson", row))[0].text == text


@pytest.mark.parametrize(
    ("charset", "raw", "problem"),
    [
        ("ISO-8859-1", b"Odo \x81", "is not text of the charset it names"),
        ("utf-8", "Señor".encode("latin-1"), "is not text of the charset it names"),
        ("utf-8", "Odo".encode("utf-16-le"), "it holds NUL bytes as UTF-16LE has them"),
        ("x-odd", b"Odo", "the attachment's charset is not known"),
        ("base64", b"Odo", "the attachment's charset is not known"),
    ],
)
def test_an_attachment_of_another_charset_is_an_error(
    tmp_path: Path, charset: str, raw: bytes, problem: str
) -> None:
    row = resource("d1", raw, content_type=f"text/plain; charset={charset}")
    assert problem in refusal(write_lines(tmp_path / "c.ndjson", row))


@pytest.mark.parametrize("field", ["status", "docStatus"])
def test_a_document_that_was_entered_in_error_is_read_and_counted(
    tmp_path: Path, field: str
) -> None:
    rows = [resource("d1", **{field: "entered-in-error"}), resource("d2")]
    corpus = read_corpus(write_lines(tmp_path / "c.ndjson", *rows))
    assert len(corpus) == 2
    (note,) = corpus.notes
    assert note.startswith("documents with the status entered-in-error, which were read; ")
    assert note.endswith(": 1")


# ---- Bundles, reports and files of other names -------------------------------------------------


@pytest.mark.parametrize("name", ["c.ndjson", "c.jsonl", "c.json"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_bundle_is_read_on_one_line_or_many_whatever_it_is_called(
    tmp_path: Path, name: str, indent: int | None
) -> None:
    whole = bundle({"resource": resource("d1", "one")}, {"resource": resource("d2", "two")})
    (tmp_path / name).write_text(json.dumps(whole, indent=indent))
    assert [(d.id, d.text) for d in read_corpus(tmp_path / name)] == [("d1", "one"), ("d2", "two")]
    (tmp_path / name).write_text(json.dumps(dict(sorted(whole.items())), indent=indent))
    assert len(read_corpus(tmp_path / name)) == 2  # where the type comes last


@pytest.mark.parametrize("name", ["c.ndjson", "c.jsonl", "c.json", "c.JSONL"])
def test_resources_a_line_are_known_whatever_the_file_is_called(tmp_path: Path, name: str) -> None:
    rows = [resource("d1", "one"), bundle({"resource": resource("d2", "two")})]
    assert [d.text for d in read_corpus(write_lines(tmp_path / name, *rows))] == ["one", "two"]


def test_what_a_bundle_holds_besides_is_counted(tmp_path: Path) -> None:
    whole = bundle(
        {"resource": {"resourceType": "Patient", "id": "p1"}},
        {"resource": {"resourceType": "Observation", "id": "o1"}},
        {"request": {"method": "DELETE", "url": "DocumentReference/d0"}},
        {"resource": resource("d1", "one")},
        link=[{"relation": "self"}, {"relation": "next", "url": "x"}],
    )
    corpus = read_corpus(write_lines(tmp_path / "c.ndjson", whole))
    assert len(corpus) == 1
    assert corpus.notes == (
        "Bundles that name a next page, which is not in the file: 1",
        "entries of Bundles without a resource: 1",
        "resources of Bundles that are no documents (such as Patient), and were not read: 2",
    )
    assert "it holds no documents" in refusal(
        write_lines(tmp_path / "e.ndjson", bundle({"resource": {"resourceType": "Patient"}}))
    )


def test_a_problem_in_a_bundle_names_the_entry(tmp_path: Path) -> None:
    broken = resource("d2", subject="Patient/p2")
    broken["content"][0]["attachment"]["data"] = "!"
    path = write_lines(
        tmp_path / "c.ndjson", bundle({"resource": resource("d1")}, {"resource": broken})
    )
    assert refusal(path) == f"{path}, line 1, entry 2: the attachment's 'data' is not base64"
    assert "'entry' of the Bundle is an object" in refusal(
        write_lines(tmp_path / "d.ndjson", {"resourceType": "Bundle", "entry": {}})
    )


def test_reports_are_read_with_their_conclusion(tmp_path: Path) -> None:
    rows = [
        resource("r1", "note"),  # ids are given by type
        report("r1", presentedForm=[plain("one"), plain("two")], conclusion="three"),
        report("r2", conclusion="four"),
        report("r3"),
        report("r4", presentedForm=[{"contentType": "application/pdf", "data": "QQ=="}],
               conclusion="five"),
    ]  # fmt: skip
    corpus = read_corpus(write_lines(tmp_path / "c.ndjson", *rows))
    assert [(d.id, d.text) for d in corpus] == [
        ("r1", "note"),
        ("DiagnosticReport/r1", "one"),
        ("DiagnosticReport/r1/2", "two"),
        ("DiagnosticReport/r1/3", "three"),
        ("DiagnosticReport/r2", "four"),
        ("DiagnosticReport/r4", "five"),
    ]
    assert corpus.notes == (
        "reports without a text, such as values of a laboratory: 1",
        "attachments of another type than plain text, which were not read: 1",
    )
    pdf = report(presentedForm=[{"contentType": "application/pdf", "data": "QQ=="}])
    path = write_lines(tmp_path / "d.ndjson", pdf)
    assert "it has no attachment of type text/plain that holds its data" in refusal(path)


def test_a_resource_without_an_id_in_a_bundle_has_its_address(tmp_path: Path) -> None:
    row = resource()
    del row["id"]
    path = write_lines(tmp_path / "c.ndjson", bundle({"fullUrl": "urn:uuid:5", "resource": row}))
    assert read_corpus(path)[0].id == "urn:uuid:5"
    assert "'id' is missing" in refusal(write_lines(tmp_path / "d.ndjson", row))
