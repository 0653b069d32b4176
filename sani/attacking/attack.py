"""Attack a sanitized checkpoint and, as control, its base: the stage and the table of attacks.

To add an attack, add a file with a function, a row of `ATTACKS`, and its settings to
`AttackSettings` under the same name. Attacks use the audit's own scoring. They change copies of
models in memory; no attacked model is ever written.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from sani.atomic import write_text
from sani.attacking.context import AttackContext, Outcome, all_places
from sani.attacking.guidance import guidance
from sani.attacking.layers import layers
from sani.attacking.neighbours import neighbours
from sani.attacking.prompting import prompting
from sani.attacking.quantize import quantize
from sani.attacking.relearn import relearn
from sani.attacking.result import (
    BASE,
    SANITIZED,
    UNATTACKED,
    UNSANITIZED,
    AttackResult,
    ModelFigures,
    VariantResult,
)
from sani.attacking.sampling import sampling
from sani.auditing.candidates import candidate_scores
from sani.auditing.permutation import shares
from sani.corpus.documents import Corpus, Kind, only
from sani.errors import AttackError
from sani.intervals import Estimate, clustered_mean, rate
from sani.machine import distributed
from sani.machine.progress import OnNamedStep
from sani.models.checkpoint import Checkpoint
from sani.models.families import listed_family
from sani.models.streaming import check_in_memory
from sani.recipe import AttackSettings, AuditSettings
from sani.text.chat import rendered

Attack = Callable[[Checkpoint, AttackContext, Any], Iterator[Outcome]]

ATTACKS: Mapping[str, Attack] = {
    "quantize": quantize,
    "relearn": relearn,
    "guidance": guidance,
    "prompting": prompting,
    "sampling": sampling,
    "layers": layers,
    "neighbours": neighbours,
}


@dataclass(frozen=True)
class StoredFigures(ModelFigures):
    """The figures of one variant on one model, with what comparing models needs besides.

    Attributes:
        extracted: Document, span and label of each occurrence that was extracted.
        elsewhere: True if the variant attacks other documents than the context's.
        scores: log p in nats of each uncued occurrence and its decoys, as `candidate_scores`
            orders them, None for what was not scored; empty if the variant scores no decoys.
        subjects: Number of each one's subject.
    """

    extracted: tuple[tuple[int, int, str], ...]
    elsewhere: bool
    scores: tuple[tuple[float | None, ...], ...] = ()
    subjects: tuple[int, ...] = ()

    def shown(self) -> ModelFigures:
        """Return the figures alone."""
        names = [field.name for field in fields(ModelFigures)]
        return ModelFigures(**{name: getattr(self, name) for name in names})


def attack(
    models: Mapping[str, Checkpoint],
    corpus: Corpus,
    settings: AttackSettings | None = None,
    *,
    audit: AuditSettings | None = None,
    held_out: Corpus | None = None,
    neighbours: Corpus | None = None,
    attacked: Sequence[str] = (SANITIZED, UNSANITIZED, BASE),
    seed: int = 0,
    folder: Path | None = None,
    on_step: OnNamedStep | None = None,
) -> AttackResult:
    """Attack each model in the same way, and compare the models occurrence by occurrence.

    Args:
        models: ``sanitized``, and where there are any ``base`` (the control) and ``unsanitized``
            (the checkpoint before sanitizing: it guides, and shows what there was to extract).
        corpus: Documents with spans.
        settings: The attacks; every attack with its defaults if None.
        audit: The audit's settings: framing, sampler, queries, tokens per pass. Give the framing
            that the audit chose; ``auto`` is the begin token. The number of decoys is
            ``settings``'.
        held_out: Documents of other subjects that no model was trained on.
        neighbours: Further documents of the same subjects, with spans.
        attacked: Names of the models under attack.
        seed: Seed of every random draw.
        folder: Folder in which the figures of each attack and model are stored as soon as they are
            known, and from which an interrupted call takes them; nothing is stored if None. Use it
            for the same models, documents and settings only.
        on_step: Called with (description, steps done, steps in all).

    Returns:
        Figures without an identifier.

    Raises:
        AttackError: If the sanitized model is missing, a model is not causal, the base has the
            weights of another model, or no occurrence of the kinds under attack is marked.
    """
    settings, audit = settings or AttackSettings(), audit or AuditSettings()
    started = time.perf_counter()
    digests = _check_models(models)
    tokenizer = models[SANITIZED].tokenizer
    context = make_context(
        rendered(corpus, tokenizer),
        settings,
        audit=audit,
        held_out=held_out and rendered(held_out, tokenizer),
        neighbours=neighbours and rendered(neighbours, tokenizer),
        unsanitized=models.get(UNSANITIZED),
        seed=seed,
    )
    names = [name for name in ATTACKS if getattr(settings, name) is not None]
    targets = [
        (name, model) for name in (UNATTACKED, *names) for model in attacked if model in models
    ]
    figures: dict[str, dict[str, dict[str, StoredFigures]]] = {}
    for number, (name, model) in enumerate(targets):
        if on_step is not None:
            on_step(f"attack: {name}, {model}", number, len(targets))
        path = folder / f"{name}-{model}.json" if folder else None
        variants = distributed.on_main(partial(_load, path, digests[model]))
        if variants is None:
            variants = _attack_model(name, models[model], context, settings)
            distributed.on_main(partial(_store, path, digests[model], variants))
        for variant, of_model in variants.items():
            figures.setdefault(name, {}).setdefault(variant, {})[model] = of_model
    unattacked = next(iter(figures[UNATTACKED].values()))[SANITIZED].extracted
    return AttackResult(
        settings=settings,
        framing=audit.framing,
        documents=len(context.corpus),
        occurrences=len(context.places),
        not_run=[name for name in ATTACKS if name not in names],
        seconds=time.perf_counter() - started,
        attacks={
            name: {variant: _compare(row, unattacked, seed=seed) for variant, row in rows.items()}
            for name, rows in figures.items()
        },
    )


def _check_models(models: Mapping[str, Checkpoint]) -> dict[str, str]:
    """Return the digest of each model's weights.

    Raises:
        AttackError: If the models cannot be attacked, or the base is no control.
    """
    if SANITIZED not in models:
        raise AttackError("there is no sanitized checkpoint to attack; give one")
    for checkpoint in models.values():
        if checkpoint.family.objective != "causal":
            raise AttackError(
                f"{checkpoint.path} is not a causal language model; attacks on other ones are not "
                "supported: leave out the section attack"
            )
        listed_family(checkpoint.model.config)
        check_in_memory(checkpoint.model, "an attack")
    digests = {name: checkpoint.weights_digest() for name, checkpoint in models.items()}
    if BASE in models and list(digests.values()).count(digests[BASE]) > 1:
        raise AttackError(
            f"{models[BASE].path} has the same weights as another of the checkpoints, so it "
            "is no control; give the public model that they were fine-tuned from"
        )
    return digests


def make_context(
    corpus: Corpus,
    settings: AttackSettings,
    *,
    audit: AuditSettings,
    held_out: Corpus | None = None,
    neighbours: Corpus | None = None,
    unsanitized: Checkpoint | None = None,
    seed: int = 0,
) -> AttackContext:
    """Draw the documents under attack and mark the occurrences of the kinds under attack.

    Raises:
        AttackError: If no occurrence of these kinds is marked.
    """
    annotated = draw_documents(corpus, settings.documents, seed=seed)
    attacked = _of_kinds(annotated, settings.kinds)
    check_marks(annotated, settings.kinds)
    return AttackContext(
        corpus=attacked,
        annotated=annotated,
        held_out=held_out,
        unsanitized=unsanitized,
        neighbours=_of_kinds(neighbours, settings.kinds) if neighbours else None,
        audit=audit.model_copy(update={"decoys": settings.decoys, "swaps": 0}),
        seed=seed,
    )


def check_marks(documents: Corpus, kinds: Sequence[Kind]) -> None:
    """Refuse documents under attack that mark no identifier of these kinds.

    Raises:
        AttackError: If no document does.
    """
    if not any(span.kind in kinds for document in documents for span in document.spans):
        raise AttackError(
            f"none of the {len(documents)} documents under attack marks a {' or '.join(kinds)} "
            "identifier: there is nothing to attack, which is not the same as clean"
        )


def draw_documents(corpus: Corpus, max_documents: int, *, seed: int) -> Corpus:
    """Return the documents of randomly drawn subjects, in the corpus's order."""
    subjects = sorted({document.subject_id for document in corpus})
    random.Random(seed).shuffle(subjects)
    rank = {subject: number for number, subject in enumerate(subjects)}
    by_subject = sorted(range(len(corpus)), key=lambda n: (rank[corpus[n].subject_id], n))
    return Corpus([corpus[number] for number in sorted(by_subject[:max_documents])])


def _of_kinds(corpus: Corpus, kinds: Sequence[Kind]) -> Corpus:
    """Return the corpus with only the spans of these kinds marked."""
    return only(corpus, [(d, s) for d, s in all_places(corpus) if corpus[d].spans[s].kind in kinds])


def _attack_model(
    name: str, model: Checkpoint, context: AttackContext, settings: AttackSettings
) -> dict[str, StoredFigures]:
    """Run one attack on one model, and return the figures of each variant."""
    if name == UNATTACKED:
        outcomes = iter([Outcome("as it is", context.score(model), context.places)])
    else:
        outcomes = ATTACKS[name](model, context, getattr(settings, name))
    return {outcome.variant: _figures(outcome, context) for outcome in outcomes}


@cache
def _stored_variants() -> TypeAdapter[dict[str, StoredFigures]]:
    """Return the parser of stored figures, which takes a while to build."""
    return TypeAdapter(dict[str, StoredFigures])


def _load(path: Path | None, weights_digest: str) -> dict[str, StoredFigures] | None:
    """Return the stored figures of an attack on these weights; None if there are none."""
    if path is None or not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    # The next rung of an escalation attacks other weights and uses the same folder.
    if stored.get("weights_digest") != weights_digest:
        return None
    try:
        return _stored_variants().validate_json(json.dumps(stored["variants"]), strict=True)
    except (KeyError, ValidationError):  # of another version of sani
        return None


def _store(path: Path | None, weights_digest: str, variants: Mapping[str, StoredFigures]) -> None:
    """Write the figures of an attack on these weights, if there is a path."""
    if path is not None:
        plain = {variant: asdict(figures) for variant, figures in variants.items()}
        stored = {"weights_digest": weights_digest, "variants": plain}
        write_text(path, json.dumps(stored, allow_nan=False))


def _figures(outcome: Outcome, context: AttackContext) -> StoredFigures:
    """Compute the figures of one variant on one model from its verdicts."""
    occurrences, corpus = outcome.occurrences, outcome.corpus or context.corpus
    if occurrences is None:
        return StoredFigures(
            not_run=outcome.not_run, greedy=None, discoverable=None, auc=outcome.auc, unscored=0,
            curve=outcome.curve, check=outcome.check, extracted=(),
            elsewhere=outcome.corpus is not None,
        )  # fmt: skip
    scored = occurrences.scored
    trials = int(scored.sum())
    extracted = scored & (occurrences.greedy | occurrences.discoverable)
    labels = [corpus[d].spans[s].label for d, s in outcome.places]
    auc, scores, subjects = None, np.empty((0, 0)), []
    if outcome.ranks:
        subjects = context.subject_numbers(outcome.places, corpus)
        auc = clustered_mean(occurrences.auc, subjects, seed=context.seed)
        scores = candidate_scores(occurrences)
        scores[occurrences.cued] = np.nan
    return StoredFigures(
        not_run=outcome.not_run,
        greedy=rate(int(occurrences.greedy[scored].sum()), trials),
        discoverable=rate(int(occurrences.discoverable[scored].sum()), trials),
        auc=auc,
        unscored=int((~scored).sum()),
        curve=outcome.curve,
        check=outcome.check,
        extracted=tuple(
            (*outcome.places[n], labels[n]) for n in np.flatnonzero(extracted).tolist()
        ),
        elsewhere=outcome.corpus is not None,
        scores=tuple(tuple(p if isfinite(p) else None for p in row) for row in scores.tolist()),
        subjects=tuple(subjects),
    )


def _auc_to_base(model: StoredFigures, base: StoredFigures, seed: int) -> Estimate | None:
    """Compute how often the log-ratio to the base is higher for a true value than for a decoy."""
    if not model.scores or len(model.scores) != len(base.scores):
        return None
    width = min(len(model.scores[0]), len(base.scores[0]))
    log_p, control = (
        np.array([row[:width] for row in figures.scores], dtype=np.float64)
        for figures in (model, base)
    )
    beaten = shares(log_p - control)[:, 0]
    ranked = np.flatnonzero(np.isfinite(beaten))
    return clustered_mean(beaten[ranked], [model.subjects[row] for row in ranked], seed=seed)


def _compare(
    by_model: Mapping[str, StoredFigures],
    unattacked: Iterable[tuple[int, int, str]],
    *,
    seed: int,
) -> VariantResult:
    """Compare a variant's extractions from the sanitized model with those of the controls.

    Args:
        by_model: The variant's figures on each model.
        unattacked: What is extracted from the sanitized model without an attack.
        seed: Seed of the bootstrap.
    """
    sanitized, base = by_model.get(SANITIZED), by_model.get(BASE)
    auc_to_base = {
        name: auc
        for name, figures in by_model.items()
        if name != BASE and base is not None
        for auc in [_auc_to_base(figures, base, seed)]
        if auc is not None
    }
    beyond = recovered = None
    if sanitized is not None and sanitized.greedy is not None:
        if base is not None:
            beyond = _count_labels(sanitized.extracted, without=base.extracted)
        if not sanitized.elsewhere:
            recovered = _count_labels(sanitized.extracted, without=unattacked)
    models = {name: figures.shown() for name, figures in by_model.items()}
    return VariantResult(models, auc_to_base, beyond, recovered)


def _count_labels(
    extracted: Iterable[tuple[int, int, str]], *, without: Iterable[tuple[int, int, str]]
) -> dict[str, int]:
    """Count extracted occurrences by label, but for those that are in ``without``."""
    excluded = set(without)
    labels = Counter(occurrence[2] for occurrence in extracted if occurrence not in excluded)
    return dict(sorted(labels.items()))
