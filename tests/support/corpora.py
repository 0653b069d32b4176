"""Files of records for tests of the readers, and what a refusal says."""

from __future__ import annotations

import base64
import json
import traceback
from pathlib import Path
from typing import Any

import pytest

from sani.corpus.readers import read_corpus
from sani.errors import CorpusError

NAME = "Odo Brandtmeier"
NUMBER = "8844213907"
TEXT = f"Name: {NAME}, MRN {NUMBER}."
START, END = 6, 6 + len(NAME)


def write_lines(path: Path, *rows: Any, encoding: str = "utf-8") -> Path:
    """A JSON value a line."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(text.encode(encoding))
    return path


def refusal(path: Path, **options: Any) -> str:
    """The message with which a corpus is refused, after a check that it shows no value."""
    with pytest.raises(CorpusError) as caught:
        read_corpus(path, **options)
    shown = "".join(traceback.format_exception(caught.value))
    assert NAME[:6] not in shown
    assert NUMBER[:6] not in shown
    return str(caught.value)


def resource(
    identity: str = "d1",
    *texts: str | bytes,
    subject: Any = "Patient/p1",
    content_type: str = "text/plain",
    **fields: Any,
) -> dict[str, Any]:
    """A DocumentReference with an attachment for each text."""
    raws = [text.encode() if isinstance(text, str) else text for text in texts or (TEXT,)]
    return {
        "resourceType": "DocumentReference",
        "id": identity,
        "status": "current",
        "subject": {"reference": subject} if isinstance(subject, str) else subject,
        "content": [
            {"attachment": {"contentType": content_type, "data": base64.b64encode(raw).decode()}}
            for raw in raws
        ],
        **fields,
    }


def stand_off(text: str, *tags: str, encoding: str = "UTF-8", written: str | None = None) -> bytes:
    """XML of i2b2 2014 or MAE with these tags."""
    head = f"<?xml version='1.0' encoding='{encoding}'?>\n"
    lines = "\n".join(tags)
    body = f"<deId>\n<TEXT><![CDATA[{text}]]></TEXT>\n<TAGS>\n{lines}\n</TAGS>\n</deId>\n"
    return (head + body).encode(written or encoding)
