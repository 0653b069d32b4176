"""The files of `sanitized/` beside the model: the model card and the manifest."""

from __future__ import annotations

from pathlib import Path

from sani.corpus.documents import Corpus
from sani.errors import CheckpointError
from sani.releasing.identifiers_in_files import check_release
from sani.releasing.manifest import MANIFEST, digests, read_manifest, write_manifest
from sani.reporting.card import model_card
from sani.reporting.schema import Report

CARD = "README.md"


def write_release_files(
    folder: Path,
    report: Report,
    corpus: Corpus,
    *,
    weights_digest: str,
    base: Path | None = None,
) -> None:
    """Add the card and the manifest to a checkpoint folder that is about to be renamed.

    Args:
        folder: The folder, complete but for these two files.
        report: The content of ``report.json``.
        corpus: Its identifiers must not stand in any file of the folder.
        weights_digest: `Checkpoint.weights_digest` of the weights in it.
        base: The public model, whose vocabulary is public.

    Raises:
        CheckpointError: If an identifier stands in one of the folder's files, or a file is not on
            the list of files that are released.
    """
    (folder / CARD).write_text(model_card(report), encoding="utf-8")
    write_manifest(folder, report, weights_digest=weights_digest)
    check_release(folder, corpus, base=base, ours=(CARD, MANIFEST))


def is_current(folder: Path, report: Report, *, weights_digest: str) -> bool:
    """Return True if a release folder is whole, of these weights, and states this report's gate."""
    try:
        manifest = read_manifest(folder)
        return bool(
            manifest.weights_digest == weights_digest
            and manifest.gate == report.gate.model_dump(mode="json")
            and manifest.files == digests(folder)
        )
    except CheckpointError:
        return False
