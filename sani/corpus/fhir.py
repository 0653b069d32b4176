"""FHIR R4: documents in ``DocumentReference`` and ``DiagnosticReport``, one a line or in Bundles.

Every ``text/plain`` attachment that holds its data (base64), and the conclusion of a report, is a
document. The subject is the id in the last part of ``subject.reference``, without a version. What
is not in the file (an attachment by address, a PDF) is an error and not an empty document, unless
the resource also has plain text; then it is counted in a note.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path

from sani.corpus.encodings import decode_declared
from sani.corpus.lines import read_lines
from sani.corpus.reading import Notes, Reading
from sani.corpus.records import RecordError, Row, Rows, type_name
from sani.corpus.tables import first_line, parse_json, read_json_values

_DOCUMENTS = ("DocumentReference", "DiagnosticReport")
_IN_ERROR = "entered-in-error"
_HEAD = 65_536  # characters of a file within which its first resource says what it is
_REFERENCE = re.compile(
    r"(?P<server>.*/)?(?P<type>[A-Z][A-Za-z]+)/(?P<id>[A-Za-z0-9.-]{1,64})(/_history/[^/]*)?/?"
)
_BLANKS = re.compile(r"[ \t\r\n]+")


@dataclass
class _Context:
    """The file around a resource.

    Attributes:
        notes: Where it is counted what was not read.
        servers: Addresses of servers in subjects, without the type and the id; in file order.
        bundle: Resources of the Bundle around it, by their address and by type and id.
    """

    notes: Notes
    servers: list[str] = field(default_factory=list)
    bundle: dict[str, Row] = field(default_factory=dict)


def read_fhir(path: Path, reading: Reading) -> Rows:
    """Read the resources of a file: one a line, or one JSON value over many lines."""
    context = _Context(reading.notes)
    for place, value in read_json_values(path, reading):
        for inner, resource in _resources(value, context):
            where = ", ".join(filter(None, (place, inner)))
            try:
                if isinstance(resource, RecordError):
                    raise resource
                for row in _rows(resource, context, in_bundle=bool(inner)):
                    yield where, row
            except RecordError as problem:
                yield where, problem


def holds_fhir(path: Path, *, one_value: bool) -> bool:
    """Return True if a JSON file holds FHIR resources, as its head tells.

    Args:
        path: The file.
        one_value: True if the file is one value over many lines, false if one a line.
    """
    if one_value:
        return re.search(r'"resourceType"\s*:\s*"[A-Z]', _head(path)) is not None
    try:
        value = parse_json(first_line(path))
    except RecordError:
        return False
    return isinstance(value, Mapping) and "resourceType" in value


def _head(path: Path) -> str:
    head = ""
    try:
        for line in read_lines(path, Reading()):
            head += line
            if len(head) >= _HEAD:
                break
    except RecordError:  # which the reader will report
        pass
    return head[:_HEAD]


def _resources(value: object, context: _Context) -> Iterator[tuple[str, Row | RecordError]]:
    """Yield a value's resources, and where in it each stands; those of a Bundle one by one."""
    context.bundle = {}
    if isinstance(value, RecordError):
        yield "", value
    elif not isinstance(value, Mapping):
        yield "", RecordError(f"it holds {type_name(value)}; expected a FHIR resource")
    elif value.get("resourceType") != "Bundle":
        yield "", value
    else:
        yield from _entries(value, context)


def _entries(bundle: Row, context: _Context) -> Iterator[tuple[str, Row | RecordError]]:
    entries = bundle.get("entry", [])
    if not isinstance(entries, list):
        yield "", RecordError(f"'entry' of the Bundle is {type_name(entries)}; expected a list")
        return
    links = bundle.get("link")
    for link in links if isinstance(links, list) else []:
        if isinstance(link, Mapping) and link.get("relation") == "next":
            context.notes.count("Bundles that name a next page, which is not in the file")
    inside: list[tuple[str, Row]] = []
    for number, entry in enumerate(entries, start=1):
        resource = entry.get("resource") if isinstance(entry, Mapping) else None
        if not isinstance(resource, Mapping):
            context.notes.count("entries of Bundles without a resource")
            continue
        address = entry.get("fullUrl")
        if "id" not in resource and isinstance(address, str):
            resource = {**resource, "id": address}
        context.bundle[f"{resource.get('resourceType')}/{resource.get('id')}"] = resource
        if isinstance(address, str):
            context.bundle[address] = resource
        inside.append((f"entry {number}", resource))
    yield from inside


def _rows(resource: Row, context: _Context, *, in_bundle: bool) -> Iterator[Row]:
    """Yield a record for each text of a resource."""
    kind = resource.get("resourceType")
    if kind not in _DOCUMENTS:
        if not in_bundle:
            raise RecordError(
                f"its 'resourceType' is not one of {', '.join(_DOCUMENTS)}, Bundle; keep resources "
                "of other types in files of their own, as a bulk export does"
            )
        context.notes.count(
            "resources of Bundles that are no documents (such as Patient), and were not read"
        )
        return
    if _IN_ERROR in (resource.get("status"), resource.get("docStatus")):
        context.notes.count(
            f"documents with the status {_IN_ERROR}, which were read; their subject may be wrong"
        )
    texts = _texts(resource, context)
    if not texts:
        context.notes.count("reports without a text, such as values of a laboratory")
    identity, subject = resource.get("id"), _subject(resource, context)
    if kind != "DocumentReference" and identity is not None:
        identity = f"{kind}/{identity}"  # ids are given by type
    for number, text in enumerate(texts, start=1):
        named = number == 1 or identity is None
        yield {
            "id": identity if named else f"{identity}/{number}",
            "subject_id": identity if subject is None else subject,
            "text": text,
        }


def _texts(resource: Row, context: _Context) -> list[str]:
    """Return the text of every attachment in plain text, and the conclusion of a report."""
    is_report = resource.get("resourceType") != "DocumentReference"
    attachments = _attachments(resource, is_report=is_report)
    texts = [text for text in (_text(item, context) for item in attachments) if text is not None]
    others = len(attachments) - len(texts)
    conclusion = resource.get("conclusion")
    if is_report and isinstance(conclusion, str) and conclusion.strip():
        texts.append(conclusion)
    if not texts and (attachments or not is_report):
        raise RecordError(
            "it has no attachment of type text/plain that holds its data; fetch attachments given "
            "by address, and convert other types to text, before the scan"
        )
    context.notes.count("attachments of another type than plain text, which were not read", others)
    return texts


def _attachments(resource: Row, *, is_report: bool) -> list[Row]:
    """Return the attachments of a resource, whatever their type."""
    key = "presentedForm" if is_report else "content"
    items = resource.get(key, [] if is_report else None)
    if not isinstance(items, list):
        raise RecordError(f"{key!r} is {type_name(items)}; expected a list")
    if not is_report:
        items = [item.get("attachment") if isinstance(item, Mapping) else None for item in items]
    return [item for item in items if isinstance(item, Mapping)]


def _text(attachment: Row, context: _Context) -> str | None:
    """Return the text of an attachment; None where it is of another type.

    Raises:
        RecordError: If it is plain text that is not here, or cannot be decoded.
    """
    kind = Message()
    kind["content-type"] = str(attachment.get("contentType", ""))
    untyped = "contentType" not in attachment and "data" not in attachment
    if untyped or kind.get_content_type() != "text/plain":
        return None
    charset = kind.get_content_charset()
    if "data" in attachment:
        return _decoded(attachment["data"], charset, context.notes)
    address = attachment.get("url")
    binary = context.bundle.get(address) if isinstance(address, str) else None
    if binary is not None and "data" in binary:
        return _decoded(binary["data"], charset, context.notes)
    raise RecordError(
        "it has an attachment of type text/plain without its data; fetch attachments given by "
        "address, before the scan"
    )


def _decoded(data: object, charset: str | None, notes: Notes) -> str:
    """Decode an attachment; FHIR lets white space stand in base64."""
    if not isinstance(data, str):
        raise RecordError(f"the attachment's 'data' is {type_name(data)}; expected base64")
    try:
        raw = base64.b64decode(_BLANKS.sub("", data), validate=True)
    except (binascii.Error, ValueError):
        raise RecordError("the attachment's 'data' is not base64") from None
    try:
        return decode_declared(raw, charset or "utf-8", notes)
    except UnicodeError:
        raise RecordError(
            "the attachment's 'data' is not text of the charset it names, or of UTF-8"
        ) from None
    except LookupError:
        raise RecordError("the attachment's charset is not known; write it as UTF-8") from None


def _subject(resource: Row, context: _Context) -> str | None:
    """Return whom a resource is about: one name for one person, and for no other.

    A reference is ``Patient/p1``, also with a server before it and a version behind it, the address
    of another entry of the Bundle, or that of a resource within this one (``#p1``), which says
    nothing outside it. Without one, an identifier stands for the person.
    """
    subject = resource.get("subject")
    if not isinstance(subject, Mapping):
        return None
    reference = subject.get("reference")
    if not isinstance(reference, str) or not reference.strip():
        return _by_identifier(subject.get("identifier"))
    if reference.startswith("#"):
        context.notes.count("documents whose subject is described within them: each is one person")
        return None
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        entry = context.bundle.get(reference)
        return str(entry["id"]) if entry is not None and "id" in entry else reference
    server, kind, identity = match["server"], match["type"], match["id"]
    if server is not None and server not in context.servers:
        context.servers.append(server)
    name = identity if kind == "Patient" else f"{kind}/{identity}"
    if server is None or server == context.servers[0]:
        return name
    return f"{server}{kind}/{identity}"  # the same id on another server is another person


def _by_identifier(identifier: object) -> str | None:
    if not isinstance(identifier, Mapping) or not isinstance(identifier.get("value"), str):
        return None
    system = identifier.get("system")
    return f"{system}|{identifier['value']}" if isinstance(system, str) else identifier["value"]
