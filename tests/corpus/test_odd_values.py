"""Any JSON under any key that the readers look at is read or refused, and shows no value."""

import json
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sani.corpus.annotations import ANNOTATION_FIELDS
from sani.corpus.readers import read_corpus
from sani.errors import CorpusError
from tests.support.corpora import END, NAME, NUMBER, START, TEXT

SPAN_KEYS = (
    "start", "end", "label", "labels", "start_offset", "end_offset", "entity_type", "text",
    "entity_value", "globalOffsets", "source", "score", "kind", "value", "result",
)  # fmt: skip
ODD = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 40), st.floats(allow_nan=False),
        st.sampled_from([NAME, TEXT, NUMBER, "", " ", "NAME", "text", "reject", "\0", "#p"]),
        st.just([START, END, "NAME"]),
        st.just({"start": START, "end": END, "label": "NAME"}),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(SPAN_KEYS), inner, max_size=4),
    ),
    max_leaves=8,
)  # fmt: skip
KEYS = (
    "id", "subject_id", "text", "spans", "messages", "source_text", *ANNOTATION_FIELDS, "full_text",
    "data", "completions", "predictions", "tokens", "answer", "items",
)  # fmt: skip
MESSAGE = st.dictionaries(
    st.sampled_from(["role", "content", "spans", "tool_calls", "entities", "label"]), ODD
)
RECORD = st.dictionaries(st.sampled_from(KEYS), ODD, max_size=6).map(lambda row: {"id": 1, **row})
CHAT = st.lists(MESSAGE, max_size=3).map(lambda messages: {"id": 2, "messages": messages})
RESOURCE_KEYS = (
    "id", "status", "subject", "content", "presentedForm", "conclusion", "entry", "link",
)  # fmt: skip
ATTACHMENT = st.dictionaries(st.sampled_from(["contentType", "data", "url"]), ODD)
RESOURCE = st.builds(
    lambda kind, fields, attachments: {
        "resourceType": kind, "id": "d", "subject": {"reference": "Patient/1"},
        "content": [{"attachment": item} for item in attachments], **fields,
    },
    st.sampled_from(["DocumentReference", "DiagnosticReport", "Bundle", "Patient"]),
    st.dictionaries(st.sampled_from(RESOURCE_KEYS), ODD, max_size=3),
    st.lists(ATTACHMENT, max_size=2),
)  # fmt: skip
BUNDLE = st.lists(st.one_of(ODD, RESOURCE.map(lambda inner: {"resource": inner})), max_size=3).map(
    lambda entries: {"resourceType": "Bundle", "entry": entries}
)


@pytest.mark.parametrize("name", ["c.jsonl", "c.json", "c.ndjson"])
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_odd_values_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: Any
) -> None:
    kind = st.one_of(RESOURCE, BUNDLE) if name == "c.ndjson" else st.one_of(RECORD, CHAT, ODD)
    rows = data.draw(st.lists(kind, min_size=1, max_size=3))
    path: Path = tmp_path_factory.getbasetemp() / name
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(json.dumps(rows) if name == "c.json" else lines)
    try:
        corpus = read_corpus(path)
    except CorpusError as error:
        shown = "".join(traceback.format_exception(error))
    else:
        shown = "".join(corpus.notes)
        assert all(0 <= s.start < s.end <= len(d.text) for d in corpus for s in d.spans)
    assert NAME[:6] not in shown
    assert NUMBER[:6] not in shown
