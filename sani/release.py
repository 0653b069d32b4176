"""What goes into `sanitized/` beside the model: a card that says what it is, and a manifest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sani.checkpoint import Checkpoint
from sani.corpus.documents import Corpus
from sani.errors import CheckpointError
from sani.reporting.report import render

MANIFEST = "manifest.json"
SHORTEST = 4


def check_added_tokens(checkpoint: Checkpoint, corpus: Corpus) -> None:
    """Refuse a tokenizer whose added tokens hold an identifier: it would go out with the model.

    Raises:
        CheckpointError: With how many tokens do, never which.
    """
    added = [token.casefold() for token in checkpoint.tokenizer.get_added_vocab()]
    values = {
        document.value(span).casefold()
        for document in corpus
        for span in document.spans
        if span.kind == "direct" and span.end - span.start >= SHORTEST
    }
    guilty = sum(any(value in token for value in values) for token in added)
    if guilty:
        raise CheckpointError(
            f"model folder {checkpoint.path}: {guilty} of {len(added)} added tokens of the "
            "tokenizer hold a direct identifier of the corpus, and a tokenizer is released in "
            "clear; remove them from tokenizer.json first"
        )


def write_release_files(folder: Path, report: dict[str, Any]) -> None:
    """Add the card and the manifest to a checkpoint folder that is about to be renamed.

    The manifest holds the SHA-256 of every other file, the gate's verdict, and where all of it
    came from.
    """
    (folder / "README.md").write_text(render(report, "card.md.jinja"), encoding="utf-8")
    manifest = {
        "schema_version": 1,
        "gate": report["gate"],
        "provenance": report["provenance"],
        "files": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.iterdir())
        },
    }
    text = json.dumps(manifest, indent=1, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
