"""The scan as a stage of a run: records and held-out documents go through the same one."""

from __future__ import annotations

from sani.corpus.documents import Corpus
from sani.corpus.readers import read_corpus
from sani.errors import RunError
from sani.machine.progress import OnNamedStep
from sani.pipeline.inputs import Documents, check_held_out, size_limits
from sani.recipe import Recipe
from sani.runfolder import RunFolder
from sani.scanning.scan import scan, scan_held_out


def read_gold(recipe: Recipe) -> Corpus | None:
    """Read the gold sample that a recipe names; return None if it names none."""
    if recipe.scan.gold is None:
        return None
    return read_corpus(
        recipe.scan.gold,
        kinds=recipe.corpus.kinds,
        columns=recipe.corpus.columns,
        limits=size_limits(recipe.corpus),
    )


def scan_documents(
    recipe: Recipe, folder: RunFolder, documents: Documents, on_step: OnNamedStep
) -> Documents:
    """Return the documents with the spans that the scan finds, and keep its inventory.

    Held-out documents go through the same scan; see `scan_held_out`.

    Args:
        recipe: Its ``scan`` section says which detectors run.
        folder: The run folder; detections are cached in its private part.
        documents: The documents as they were read.
        on_step: Called with (stage, steps done, steps in all).

    Raises:
        RunError: If the spans are not those that an earlier process of this run found.
        RecipeError: If held-out documents have no span and were not looked at for new people.
    """
    settings, held_out = recipe.scan, documents.held_out
    cache = folder.private / "scan"
    finished = folder.finished("scan")  # the detectors were measured when the run began
    gold = read_gold(recipe)
    result = scan(
        documents.corpus,
        settings,
        gold=gold,
        cache_folder=cache,
        on_step=on_step,
        measure=not finished,
    )
    if held_out is not None:
        known = [result.corpus, gold] if gold else [result.corpus]
        held_out = scan_held_out(
            held_out, settings, annotated=known, cache_folder=cache, on_step=on_step
        )
    check_held_out(result.corpus, held_out, settings)
    digest = folder.digest(result.corpus.digest())
    if not finished:
        quality = result.quality.to_json() if result.quality else None
        folder.save("scan", {**result.inventory.to_json(), "quality": quality, "digest": digest})
    elif folder.load("scan")["digest"] != digest:
        raise RunError(
            f"{folder.path}: what the scan finds changed since this run began (another version "
            "of a library or a model?); start again in another --out"
        )
    return documents.with_spans(result.corpus, held_out)
