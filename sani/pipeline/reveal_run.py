"""`sani report --reveal`: what a finished run still recites, in clear."""

from __future__ import annotations

from pathlib import Path

from sani.errors import RunError
from sani.pipeline.inputs import read_documents
from sani.pipeline.scan_stage import scan_documents
from sani.recipe import load_recipe
from sani.reporting.reveal import reveal
from sani.runfolder import RECIPE, RunFolder


def reveal_run(path: Path) -> Path:
    """Write what a finished run still recites, in clear, into its ``private/``.

    Args:
        path: The run folder; its corpus must still stand where its recipe says.

    Returns:
        The file.

    Raises:
        RunError: If the run is not finished, or the corpus changed since.
        CorpusError: If the corpus cannot be read.
    """
    folder = RunFolder(path)
    if not folder.finished("report") or not (folder.private / "key").is_file():
        raise RunError(f"{path} is not a finished run with its private/; finish it with --resume")
    folder.read_key()
    recipe = load_recipe(path / RECIPE)
    documents = read_documents(recipe)
    documents = scan_documents(recipe, folder, documents, lambda stage, done, total: None)
    return reveal(folder, documents.corpus)
