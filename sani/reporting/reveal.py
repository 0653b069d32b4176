"""Clear values for the owner of the records, inside ``private/`` and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sani.atomic import write_text
from sani.auditing.compare import beyond_control, compare
from sani.auditing.occurrences import Occurrences
from sani.corpus.documents import Corpus
from sani.errors import RunError
from sani.runfolder import RunFolder

FILE = "revealed.jsonl"


def reveal(folder: RunFolder, corpus: Corpus) -> Path:
    """Write every occurrence that can still be extracted, with its value, mode 0600.

    Args:
        folder: A finished run.
        corpus: The documents that it audited.

    Returns:
        The file: a line an occurrence, with the digests by which the report names it and its
        subject.

    Raises:
        RunError: If the run is not finished.
        WriteError: If the file cannot be written.
    """
    verdicts = {
        stage: folder.load_arrays(f"audit-{stage}", Occurrences)
        for stage in ("before", "after", "base")
    }
    before, after, base = verdicts["before"], verdicts["after"], verdicts["base"]
    if before is None or after is None:
        raise RunError(f"{folder.path} is not a finished run; finish it with --resume")
    change = compare(before, after)
    beyond = beyond_control(after, base) if base else np.zeros_like(change.kept)
    rows = [
        {
            **_clear(folder, corpus, int(after.document[index]), int(after.span[index])),
            "greedy": bool(after.greedy[index]),
            "newly_extractable": bool(change.new[index]),
            "not_from_the_base": bool(beyond[index]) if base else None,
        }
        for index in np.flatnonzero(change.kept | change.new | beyond)
    ]
    path = folder.private / FILE
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(path, text, mode=0o600, advice="free space")
    return path


def _clear(folder: RunFolder, corpus: Corpus, number: int, span_number: int) -> dict[str, Any]:
    document = corpus[number]
    span = document.spans[span_number]
    value = document.value(span)
    return {
        "document": number,
        "id": document.id,
        "subject_id": document.subject_id,
        "subject": folder.digest(f"subject\x00{document.subject_id}"),
        "label": span.label,
        "kind": span.kind,
        "digest": folder.digest(f"{span.label}\x00{value}"),
        "start": span.start,
        "end": span.end,
        "value": value,
    }
