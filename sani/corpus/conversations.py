"""Messages as chat exports have them: content that is null, lists of parts, and tool calls."""

from __future__ import annotations

from collections.abc import Mapping

from sani.corpus.annotations import with_spans
from sani.corpus.reading import Notes
from sani.corpus.records import RecordError, Row, type_name

_READ = ("role", "content", "spans")
_CALLS = ("tool_calls", "function_call")
_TEXT_PARTS = ("text", "input_text", "output_text")


def with_plain_contents(row: Row, notes: Notes) -> Row:
    """Return a record whose messages have text as content; other records as they are.

    A content of null is no text. Of a list of parts the text parts are joined. What is not read
    (tool calls, pictures, other fields) is counted.

    Raises:
        RecordError: If a part is of no known form.
    """
    messages = row.get("messages")
    if not isinstance(messages, list):
        return row
    plain: list[object] = []
    for number, message in enumerate(messages, start=1):
        try:
            plain.append(_plain(message, notes) if isinstance(message, Mapping) else message)
        except RecordError as problem:
            raise RecordError(f"message {number}: {problem}") from None
    return {**row, "messages": plain}


def _plain(message: Row, notes: Notes) -> Row:
    calls = [name for name in _CALLS if message.get(name)]
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_text_of(part, notes) for part in content)
    elif content is None and (calls or "content" in message):
        notes.count("messages without content, read as no text")
        content = ""
    if calls:
        notes.count("messages with tool calls, whose names and arguments were not read")
    read = with_spans({**message, "content": content}) if "content" in message or calls else message
    for name, value in read.items():
        if name not in (*_READ, *_CALLS) and value not in (None, [], {}, ""):
            notes.leave_out(f"messages.{name}")
    return read


def _text_of(part: object, notes: Notes) -> str:
    """Return the text of a part; empty for a picture, a sound or a call."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise RecordError(f"a part of 'content' is {type_name(part)}; expected an object")
    text = part.get("text")
    if part.get("type", "text") in _TEXT_PARTS:
        if not isinstance(text, str):
            raise RecordError(f"the 'text' of a part is {type_name(text)}; expected a string")
        return text
    notes.count("parts of messages that are not text, and were not read")
    return ""
