"""Recipes of runs: what they share stands here once, and a test adds the sections it is about."""

from pathlib import Path

from sani.corpus.tables import write_jsonl
from tests.support.clinic import Clinic


def gate_on_totals(perplexity_ratio: str) -> str:
    """Return a section ``gate`` with limits on totals alone, which need no decoys."""
    off = ("auc_excess", "greedy_beyond_control", "discoverable_beyond_control",
           "sampled_beyond_control", "subjects", "auc_to_base")  # fmt: skip
    lines = "".join(f"  {name}: null\n" for name in off)
    return (
        f"gate:\n  greedy: control\n  discoverable: control\n{lines}"
        f"  perplexity_ratio: {perplexity_ratio}\n"
    )


def recipe_text(
    sections: str,
    *,
    folder: Path,
    unsanitized: Path,
    base: Path,
    corpus: str = "private.jsonl",
    held_out: str | None = "held_out.jsonl",
) -> str:
    """Return a recipe as YAML.

    Args:
        sections: YAML of everything but the version, the model and the corpus.
        folder: Folder of the documents.
        unsanitized: Folder of the checkpoint to sanitize.
        base: Folder of the public model it was fine-tuned from.
        corpus: File name of the documents to sanitize.
        held_out: File name of the held-out documents; None leaves them out.
    """
    held = f", held_out: {folder / held_out}" if held_out else ""
    return (
        f"version: 2\nmodel: {{path: {unsanitized}, base: {base}}}\n"
        f"corpus: {{path: {folder / corpus}{held}}}\n{sections}"
    )


def write_recipe(
    folder: Path, sections: str, *, clinic: Clinic, unsanitized: Path, base: Path
) -> Path:
    """Write a clinic's notes and a recipe for them into a folder; return the recipe's path."""
    write_jsonl(clinic.private, folder / "private.jsonl")
    write_jsonl(clinic.held_out, folder / "held_out.jsonl")
    path = folder / "recipe.yaml"
    path.write_text(recipe_text(sections, folder=folder, unsanitized=unsanitized, base=base))
    return path
