"""The text of the recipe that `sani init` writes, with comments that say what it was fitted to."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap

import yaml

from sani.corpus.documents import KINDS
from sani.errors import RecipeError
from sani.gate.learning_rate import usual_rate
from sani.machine.memory import REPAIR_COPIES, needed_memory
from sani.models.families import FAMILIES
from sani.models.folder_files import is_adapter
from sani.pipeline.estimate import RunTime
from sani.pipeline.suggest_recipe import (
    BATCH_TOKENS,
    MAX_ERASED_LAYERS,
    NEAR_BASE,
    NEW_TOKENS,
    SKILL_WEIGHT,
    Fit,
    anchor_objective,
    samples,
    schedule,
)
from sani.recipe import CorpusSettings, Recipe, ScanSettings, parse_recipe
from sani.runfolder import PRIVATE
from sani.scanning.inventory import subjects_in_words

_MERGED = "  # an adapter; it is merged, into a whole model (output: adapter keeps it one)"


def write_recipe(
    path: Path,
    facts: Fit,
    *,
    model: Path,
    corpus: CorpusSettings,
    base: Path | None,
    takes: RunTime | None = None,
) -> None:
    """Write the recipe; its comments say what it was fitted to and what to run first.

    Args:
        path: The recipe's file.
        facts: The facts that it is fitted to.
        model: Folder of the checkpoint.
        corpus: Its documents, and those it was not trained on.
        base: Folder of the public model it was fine-tuned from.
        takes: The estimated time of the run; None if it was not measured.

    Raises:
        RecipeError: If the file already exists or cannot be written.
    """
    lines = _lines(path, facts, model=model, corpus=corpus, base=base, takes=takes)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    except FileExistsError:
        raise RecipeError(f"{path} already exists; choose another --out") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be written ({error.strerror})") from None


def suggested_recipe(
    facts: Fit, *, model: Path, corpus: CorpusSettings, base: Path | None
) -> Recipe:
    """Return the recipe that `write_recipe` writes."""
    lines = _lines(Path("recipe.yaml"), facts, model=model, corpus=corpus, base=base, takes=None)
    return parse_recipe("\n".join(lines), source="recipe")


def values_file(recipe: Path) -> Path:
    """Return the file beside a recipe that holds the most frequent values of the scan in clear."""
    return recipe.parent / PRIVATE / f"{recipe.stem}-values.tsv"


def _lines(
    path: Path,
    facts: Fit,
    *,
    model: Path,
    corpus: CorpusSettings,
    base: Path | None,
    takes: RunTime | None,
) -> Iterator[str]:
    occurrences = {
        kind: sum(count.of_kinds([kind]) for count in facts.labels.values()) for kind in KINDS
    }
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in occurrences.items() if count)
    long = " (longer documents are read in windows)" if facts.longest > facts.context else ""
    of_subjects = subjects_in_words(facts.documents, facts.subjects, facts.without_subject_id)
    yield f"# Sanitize a {facts.family} model of {facts.layers} layers; made by sani init."
    yield (
        f"# Model:  {facts.parameters:,} parameters, {facts.vocabulary:,} tokens in the "
        f"vocabulary, {facts.context:,} in its context"
    )
    yield (
        f"# Corpus: {of_subjects}, {facts.tokens:,} "
        f"tokens, at most {facts.longest:,} a document{long}; identifiers: {kinds or 'none marked'}"
    )
    for name, lines in (("Kinds: ", facts.judged), ("Scan:  ", facts.scan_in_words)):
        for line in lines:
            first, *more = wrap(line if line.isprintable() else ascii(line), width=90)
            yield f"# {name} {first}"
            yield from (f"#         {part}" for part in more)
    if facts.scan.detects:
        yield f"# First:  look at {_in_shell(values_file(path))}: what the scan marks, in clear"
        yield f"#         sani run {_in_shell(path)} --check"
    else:
        yield f"# First:  sani run {_in_shell(path)} --check"
    yield f"# Run:    sani run {_in_shell(path)} --out {_in_shell(Path('runs') / path.stem)}"
    if not facts.fits:
        yield (
            "# Memory: too little here: the repair needs "
            f"{needed_memory(facts.parameters, copies=REPAIR_COPIES):,} bytes and more"
        )
    elif takes is not None:
        yield f"# Takes:  {takes.in_words}"
    yield "version: 2"
    yield "seed: 0"
    yield "model:"
    yield f"  path: {_quoted(model)}{_MERGED if is_adapter(model) else ''}"
    if base:
        yield f"  base: {_quoted(base)}  # control and anchor"
    else:
        yield "  # base: models/public-base  # the public model it was fine-tuned from: give it if"
        yield "  #   you have it, and set repair and gate as in recipes/own.yaml"
    yield "corpus:"
    yield from _files(corpus)
    if corpus.held_out:
        yield f"  held_out: {_quoted(corpus.held_out)}  # utility, membership"
    else:
        yield "  # held_out: held_out.jsonl  # records it was not trained on: utility, membership"
    yield from _scan(facts.scan)
    yield from _audit(facts)
    yield from _erase(facts, has_base=base is not None)
    yield from _repair(facts, has_base=base is not None)
    yield "gate:"
    yield "  kinds: [direct]"
    yield "  # limits come from the base, decoys and held-out people; see docs/gate.md"
    yield f"  perplexity_ratio: {'1.03' if corpus.held_out else 'null  # needs held_out'}"


def _scan(settings: ScanSettings) -> Iterator[str]:
    """Yield the lines of the scan, which the records and the held-out documents go through."""
    if not settings.detects:
        yield "scan: {}  # the annotation of the documents counts; see docs/scanning.md"
        return
    yield "scan:  # of the records and of the held-out documents; see docs/scanning.md"
    chosen = settings.model_dump(mode="json", exclude_defaults=True)
    for key, value in chosen.items():
        yield f"  {key}: {json.dumps(value)}"
    yield "  # gold: gold.jsonl  # notes that people annotated completely: how much the scan misses"
    yield "  # allow: allow.txt  # values that are no identifiers, one a line"


def _audit(facts: Fit) -> Iterator[str]:
    """Yield the lines of the audit: a causal model also writes by itself."""
    if FAMILIES[facts.family].objective == "causal":
        number = samples(facts.tokens)
        yield "audit:"
        yield (
            f"  generation: {{empty: {number}, headings: {number}, openings: {number}, "
            f"new_tokens: {NEW_TOKENS}}}  # what it writes by itself is judged too"
        )


def _erase(facts: Fit, *, has_base: bool) -> Iterator[str]:
    """Yield the lines of the erase.

    A causal model goes near its base, and keeps its layers: fresh ones cost a pretrained model
    skill that a small corpus cannot give back. What is near the unsanitized model still prefers
    what it memorized, however silent it is.
    """
    layers = f"last_layers: {max(1, min(MAX_ERASED_LAYERS, facts.layers // 2))}"
    masked = FAMILIES[facts.family].objective == "masked"
    if not has_base or masked:
        yield "erase:  # or leave it out and write strategy: escalate; see recipes/escalate.yaml"
        yield f"  {layers}  # of {facts.layers}; more removes more and costs skill"
        yield "  selector: {kind: all}"
        yield "  reset: reinit"
    else:
        skill = (
            "the repair brings its skill back" if facts.learnt_the_domain else "as good on new text"
        )
        yield "erase:  # or leave it out and write strategy: escalate; see recipes/escalate.yaml"
        yield f"  interpolate_to_base: {NEAR_BASE}  # nine tenths to the base; {skill}"
        yield f"  # {layers}  # of {facts.layers}: also resets these"


def _repair(facts: Fit, *, has_base: bool) -> Iterator[str]:
    """Yield the lines of the repair."""
    yield "repair:"
    anchor = anchor_objective(facts.family, has_base=has_base)
    why = "raise the weight if the AUC stays" if has_base else "a base would be better"
    masked = FAMILIES[facts.family].objective == "masked"
    skill = facts.learnt_the_domain and not masked
    weight = SKILL_WEIGHT if skill else anchor.weight
    yield f"  identifier_loss: {{kind: anchor, to: {anchor.to}, weight: {weight}}}  # {why}"
    if facts.learnt_the_domain and masked:
        yield f"  retain_weight: 5.0  # {_perplexities(facts)}: that is worth keeping"
    epochs, batch_tokens = schedule(
        facts.tokens, parameters=facts.parameters, masked=masked, skill=skill
    )
    comment = f"  # {_perplexities(facts)}: enough to learn that again" if skill else ""
    yield f"  epochs: {epochs}{comment}"
    if batch_tokens != BATCH_TOKENS:
        yield f"  batch_tokens: {batch_tokens}  # few records: many small steps silence more"
    rate = f"{usual_rate(facts.parameters):.0e}".replace("e-0", "e-")
    yield f"  learning_rate: {rate}  # by the model's size; try half and twice"


def _perplexities(facts: Fit) -> str:
    """Return the perplexities of both models on held-out text, in words."""
    perplexity, base_perplexity = facts.perplexities or (math.nan, math.nan)
    return f"held-out perplexity {perplexity:.1f}, the base's {base_perplexity:.1f}"


def _files(corpus: CorpusSettings) -> Iterator[str]:
    """Yield where the documents are and how they are read."""
    yield f"  path: {_quoted(corpus.path)}"
    if corpus.format:
        yield f"  format: {corpus.format}"
    if corpus.subject_pattern:
        yield f"  subject_pattern: {_quoted(corpus.subject_pattern)}"
    if corpus.columns:
        names = ", ".join(f"{field}: {_quoted(name)}" for field, name in corpus.columns.items())
        yield f"  columns: {{{names}}}"


def _quoted(path: Path | str) -> str:
    """Return a path or an expression as a YAML string on one line."""
    return yaml.safe_dump(str(path), default_style='"', allow_unicode=True, width=math.inf).strip()


def _in_shell(path: Path) -> str:
    """Return a path as it is written in a shell, for a comment of one line."""
    return shlex.quote(str(path)) if str(path).isprintable() else "..."
