"""What goes into `sanitized/` beside the model: a card that says what it is, and a manifest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sani.checkpoint import CONFIG_FILES, TOKENIZER_FILES
from sani.corpus.documents import ANNOTATION, TERM_SOURCE, Corpus
from sani.errors import CheckpointError
from sani.reporting.card import model_card

MANIFEST = "manifest.json"
SHORTEST = 5
# Files that hold a vocabulary: a surname may be a word of any tokenizer, a record number may not.
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")


def check_texts(folder: Path, corpus: Corpus) -> None:
    """Refuse a checkpoint folder in whose text files an identifier stands: it would be released.

    Looks for direct identifiers, document ids and subject ids of `SHORTEST` characters or more as
    words of their own; in vocabularies, for those that hold a digit or a blank; in the added
    tokens, for all of them, anywhere. Binary vocabularies (``*.model``) are not looked into. Words
    without digit or blank that only a detector took for a name are looked for in the added tokens
    alone: it takes ordinary words for names too, and a release would fail for "Repair".

    Raises:
        CheckpointError: With the files and how many identifiers each holds, never which.
    """
    values = {
        (document.value(s), s.source in (ANNOTATION, TERM_SOURCE))
        for document in corpus
        for s in document.spans
        if s.kind == "direct"
    }
    values |= {(name, True) for document in corpus for name in (document.id, document.subject_id)}
    values = {(value, sure) for value, sure in values if len(value) >= SHORTEST}
    secrets = {value for value, sure in values if sure or not value.isalpha()}
    telling = {s for s in secrets if re.search(r"[\d\s]", s) and not s.isalpha()}
    for name in (*TOKENIZER_FILES, *CONFIG_FILES, "README.md", MANIFEST):
        if not (folder / name).is_file() or name.endswith(".model"):
            continue
        text = (folder / name).read_text(encoding="utf-8", errors="replace")
        strings = "\n".join(_strings(text))
        found = _standing(telling if name in VOCABULARIES else secrets, strings)
        if name == "tokenizer.json":
            added = "\n".join(_added_tokens(text)).casefold()
            found |= {value for value, _ in values if value.casefold() in added}
        if found:
            raise CheckpointError(
                f"model folder {folder}: {name} holds {len(found)} direct identifiers or ids of "
                "the corpus, and it is released in clear; remove them first"
            )


def _standing(secrets: set[str], text: str) -> set[str]:
    """The secrets that stand in a text as words of their own, by whole words and then exactly."""
    folded = text.casefold()
    return {
        secret
        for secret in secrets
        if secret.casefold() in folded
        and re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", text, re.IGNORECASE)
    }


def _strings(text: str) -> Iterable[str]:
    """Every string of a JSON file, unescaped; the text itself if it is none."""
    try:
        data = json.loads(text)
    except ValueError:
        return [text]
    found = []
    waiting = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str | int):
            found.append(str(value))
    return found


def _added_tokens(text: str) -> list[str]:
    try:
        return [str(token["content"]) for token in json.loads(text).get("added_tokens", [])]
    except (ValueError, AttributeError, TypeError, KeyError):
        return [text]


def write_release_files(
    folder: Path, report: dict[str, Any], corpus: Corpus, *, weights_digest: str
) -> None:
    """Add the card and the manifest to a checkpoint folder that is about to be renamed.

    The manifest holds the SHA-256 of every other file, the gate's verdict, and where all of it
    came from.

    Raises:
        CheckpointError: If an identifier stands in one of the folder's text files.
    """
    (folder / "README.md").write_text(model_card(report), encoding="utf-8")
    manifest = {
        "schema_version": 1,
        "gate": report["gate"],
        "provenance": report["provenance"],
        "weights_digest": weights_digest,
        "files": _digests(folder),
    }
    text = json.dumps(manifest, indent=1, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    check_texts(folder, corpus)


def is_current(folder: Path, report: dict[str, Any], *, weights_digest: str) -> bool:
    """Whether a release folder is whole, of these weights, and says what this report says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(
            manifest["weights_digest"] == weights_digest
            and manifest["gate"] == report["gate"]
            and manifest["files"] == _digests(folder)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for file in sorted(folder.iterdir()):
        if file.name != MANIFEST:
            with file.open("rb") as content:
                found[file.name] = hashlib.file_digest(content, "sha256").hexdigest()
    return found
