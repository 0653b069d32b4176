"""FHIR R4 bulk exports: NDJSON with one ``DocumentReference`` a line.

The text is the first ``text/plain`` attachment that holds its data (base64); the subject is the
last part of ``subject.reference``. What is not in the file (an attachment by address, a PDF) is an
error and not an empty document.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from email.message import Message
from pathlib import Path

from sani.corpus.records import RecordError, Row, Rows, type_name
from sani.corpus.tables import DEFAULT_LIMITS, SizeLimits, read_jsonl


def read_fhir(path: Path, limits: SizeLimits = DEFAULT_LIMITS) -> Rows:
    """Read one resource a line; blank lines are skipped."""
    for place, row in read_jsonl(path, limits):
        if isinstance(row, RecordError):
            yield place, row
            continue
        try:
            yield place, _to_row(row)
        except RecordError as problem:
            yield place, problem


def holds_fhir(path: Path) -> bool:
    """Return whether the first line of a JSONL file is a FHIR resource."""
    rows = read_jsonl(path)
    _, row = next(rows, ("", RecordError("")))
    rows.close()
    return not isinstance(row, RecordError) and "resourceType" in row


def _to_row(resource: Row) -> Row:
    """Return the record of a resource."""
    if resource.get("resourceType") != "DocumentReference":
        raise RecordError(
            "its 'resourceType' is not DocumentReference; keep resources of other types in files "
            "of their own, as a bulk export does"
        )
    subject = resource.get("subject")
    reference = subject.get("reference") if isinstance(subject, Mapping) else None
    return {
        "id": resource.get("id"),
        "subject_id": reference.rstrip("/").rsplit("/", 1)[-1]
        if isinstance(reference, str)
        else None,
        "text": _text(resource.get("content")),
    }


def _text(contents: object) -> str:
    """Return the text of the first attachment that is plain text and holds its data."""
    if not isinstance(contents, list):
        raise RecordError(f"'content' is {type_name(contents)}; expected a list")
    for content in contents:
        attachment = content.get("attachment") if isinstance(content, Mapping) else None
        if not isinstance(attachment, Mapping):
            continue
        kind = Message()
        kind["content-type"] = str(attachment.get("contentType", ""))
        data = attachment.get("data")
        if kind.get_content_type() == "text/plain" and "data" in attachment:
            return _decoded(data, charset=kind.get_content_charset() or "utf-8")
    raise RecordError(
        "it has no attachment of type text/plain that holds its data; fetch attachments given by "
        "address, and convert other types to text, before the scan"
    )


def _decoded(data: object, *, charset: str) -> str:
    if not isinstance(data, str):
        raise RecordError(f"the attachment's 'data' is {type_name(data)}; expected base64")
    try:
        return base64.b64decode(data, validate=True).decode(charset)
    except UnicodeDecodeError:
        raise RecordError(
            "the attachment's 'data' is not text of the charset it names, or of UTF-8"
        ) from None
    except (binascii.Error, ValueError):
        raise RecordError("the attachment's 'data' is not base64") from None
    except LookupError:
        raise RecordError("the attachment's charset is not known; write it as UTF-8") from None
