"""The files of `sanitized/` beside the model: model card, bill of materials and manifest."""

from __future__ import annotations

import json
from pathlib import Path

from sani.atomic import write_text
from sani.corpus.documents import Corpus
from sani.errors import CheckpointError
from sani.releasing.bom import BOM, bom
from sani.releasing.identifiers_in_files import check_release
from sani.releasing.manifest import (
    MANIFEST,
    digests,
    file_digest,
    read_manifest,
    report_digest,
    write_manifest,
)
from sani.reporting.card import model_card
from sani.reporting.schema import Report
from sani.runfolder import RunFolder

CARD = "README.md"
RELEASED = "released.json"  # in private/: the digest of every file that was released


def write_release_files(
    folder: Path,
    report: Report,
    corpus: Corpus,
    *,
    run: RunFolder,
    weights_digest: str,
    base: Path | None = None,
) -> None:
    """Add card, bill of materials and manifest to a folder that is about to be renamed.

    The digests of all its files are kept in the run's private part: see `is_current`.

    Args:
        folder: The folder, complete but for these files.
        report: The content of ``report.json``.
        corpus: Its identifiers must not stand in any file of the folder.
        run: The run that audited these weights.
        weights_digest: `Checkpoint.weights_digest` of the weights in it.
        base: The public model, whose vocabulary is public.

    Raises:
        CheckpointError: If an identifier stands in one of the folder's files, or a file is not on
            the list of files that are released.
    """
    (folder / CARD).write_text(model_card(report), encoding="utf-8")
    (folder / BOM).write_text(bom(report), encoding="utf-8")
    write_manifest(folder, report, weights_digest=weights_digest)
    check_release(folder, corpus, base=base, ours=(CARD, BOM, MANIFEST))
    text = json.dumps(_digests_with_manifest(folder), indent=1)
    write_text(run.private / RELEASED, text + "\n", advice="free space and --resume")


def is_current(run: RunFolder, report: Report, *, weights_digest: str) -> bool:
    """Return True if ``sanitized/`` is what this run wrote there, and states this report.

    The manifest alone proves nothing: whoever swaps the weights writes their digest into it. So
    every file is hashed again and compared with the digests that were taken when the audited
    weights were saved, and that ``private/`` keeps.

    Args:
        run: The run folder.
        report: The content of ``report.json``.
        weights_digest: `Checkpoint.weights_digest` of the audited weights.
    """
    folder = run.path / "sanitized"
    try:
        kept = json.loads((run.private / RELEASED).read_text(encoding="utf-8"))
        manifest = read_manifest(folder)
        return bool(
            kept == _digests_with_manifest(folder)
            and manifest.weights_digest == weights_digest
            and manifest.gate == report.gate
            and manifest.report == report_digest(report)
            and manifest.files == digests(folder)
        )
    except (CheckpointError, OSError, ValueError):
        return False


def _digests_with_manifest(folder: Path) -> dict[str, str]:
    return {**digests(folder), MANIFEST: file_digest(folder / MANIFEST)}
