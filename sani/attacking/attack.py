"""Attack a sanitized checkpoint, and its base as control: the stage, and the table of attacks.

Adding an attack is adding a file with a function and a row to `ATTACKS`, and its settings to
`AttackSettings` under the same name. Attacks ask by the audit's own scoring. They change copies of
models in memory; no attacked model is ever written.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sani.atomic import write_text
from sani.attacking.context import AttackContext, Outcome, all_places
from sani.attacking.guidance import guidance
from sani.attacking.layers import layers
from sani.attacking.neighbours import neighbours
from sani.attacking.prompting import prompting
from sani.attacking.quantize import quantize
from sani.attacking.relearn import relearn
from sani.attacking.sampling import sampling
from sani.corpus.documents import Corpus, Kind, only
from sani.errors import AttackError
from sani.intervals import clustered_mean, rate
from sani.machine import distributed
from sani.machine.progress import OnNamedStep
from sani.models.checkpoint import Checkpoint
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
UNATTACKED = "unattacked"
SANITIZED, UNSANITIZED, BASE = "sanitized", "unsanitized", "base"


def attack(
    models: Mapping[str, Checkpoint],
    corpus: Corpus,
    settings: AttackSettings | None = None,
    *,
    audit: AuditSettings | None = None,
    framing: str = "auto",
    held_out: Corpus | None = None,
    neighbours: Corpus | None = None,
    attacked: Sequence[str] = (SANITIZED, UNSANITIZED, BASE),
    seed: int = 0,
    folder: Path | None = None,
    on_step: OnNamedStep | None = None,
) -> dict[str, Any]:
    """Attack each model alike, and compare occurrence by occurrence.

    Args:
        models: ``sanitized``, and where they are to be had ``base`` (the control) and ``unsanitized``
            (the unsanitized checkpoint: it guides, and shows what there was to find).
        corpus: Documents with spans.
        settings: Which attacks; all by their defaults if None.
        audit: How the audit asks: sampler, queries, tokens per pass. Decoys are the settings' own.
        framing: What stands before each document, by name: the one the audit found.
        held_out: Documents of others.
        neighbours: Further documents of the same subjects, with spans.
        attacked: Which of the models are attacked.
        seed: Of every draw.
        folder: What is done is kept here and found again, an attack and model at a time; kept
            nowhere if None. It must be of the same models, documents and settings.
        on_step: Called with (what, steps done, steps in all).

    Returns:
        Plain data without an identifier: ``attacks``, by attack and variant, with the figures of
        each model and, of the sanitized one, the occurrences extracted ``beyond_control`` (not
        from the base by the same attack) and ``recovered`` (not without the attack), by label.

    Raises:
        AttackError: If the sanitized model is missing or is not causal, the base has the weights
            of another, or no occurrence of the kinds under attack is marked.
    """
    settings, audit = settings or AttackSettings(), audit or AuditSettings()
    started = time.perf_counter()
    if SANITIZED not in models:
        raise AttackError("there is no sanitized checkpoint to attack; give one")
    for checkpoint in models.values():
        if checkpoint.family.objective != "causal":
            raise AttackError(
                f"{checkpoint.path} is not a causal language model; attacks on other ones are not "
                "supported: leave out the section attack"
            )
    digests = {name: checkpoint.weights_digest() for name, checkpoint in models.items()}
    if BASE in models and list(digests.values()).count(digests[BASE]) > 1:
        raise AttackError(
            f"{models[BASE].path} has the same weights as another of the checkpoints, so it "
            "is no control; give the public model that they were fine-tuned from"
        )
    tokenizer = models[SANITIZED].tokenizer
    corpus = rendered(corpus, tokenizer)
    held_out = held_out and rendered(held_out, tokenizer)
    neighbours = neighbours and rendered(neighbours, tokenizer)
    scene = make_scene(
        corpus, settings, audit=audit, framing=framing, held_out=held_out, neighbours=neighbours,
        old=models.get(UNSANITIZED), seed=seed,
    )  # fmt: skip
    names = [name for name in attacked if name in models]
    chosen = [name for name in ATTACKS if getattr(settings, name) is not None]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for number, (attack_name, model) in enumerate(
        (attack_name, model) for attack_name in (UNATTACKED, *chosen) for model in names
    ):
        if on_step is not None:
            on_step(f"attack: {attack_name}, {model}", number, (1 + len(chosen)) * len(names))
        place = folder / f"{attack_name}-{model}.json" if folder else None
        variants = distributed.on_main(partial(_kept, place, digests[model]))
        if variants is None:
            variants = {
                outcome.variant: _figures(outcome, scene)
                for outcome in _outcomes(attack_name, models[model], scene, settings)
            }
            if place is not None:
                kept = {"weights_digest": digests[model], "variants": variants}
                text = json.dumps(kept, allow_nan=False)
                distributed.on_main(partial(write_text, place, text))
        for variant, figures in variants.items():
            found.setdefault(attack_name, {}).setdefault(variant, {})[model] = figures
    plain = next(iter(found[UNATTACKED].values()))[SANITIZED]["extracted"]
    return {
        "settings": settings.model_dump(mode="json"),
        "framing": framing,
        "documents": len(scene.corpus),
        "occurrences": len(scene.places),
        "not_run": [name for name in ATTACKS if name not in chosen],
        "seconds": time.perf_counter() - started,
        "attacks": {
            attack_name: {variant: _compared(by_model, plain) for variant, by_model in rows.items()}
            for attack_name, rows in found.items()
        },
    }


def make_scene(
    corpus: Corpus,
    settings: AttackSettings,
    *,
    audit: AuditSettings,
    framing: str,
    held_out: Corpus | None,
    neighbours: Corpus | None,
    old: Checkpoint | None,
    seed: int,
) -> AttackContext:
    """The scene of all attacks: the documents under attack, with the kinds under attack marked.

    Raises:
        AttackError: If no occurrence of these kinds is marked.
    """
    annotated = _sample(corpus, settings.documents, seed=seed)
    attacked = _of_kinds(annotated, settings.kinds)
    if not attacked.num_spans:
        raise AttackError(
            f"none of the {len(annotated)} documents under attack marks a "
            f"{' or '.join(settings.kinds)} identifier: there is nothing to attack, which is not "
            "the same as clean"
        )
    return AttackContext(
        corpus=attacked,
        annotated=annotated,
        held_out=held_out,
        old=old,
        neighbours=_of_kinds(neighbours, settings.kinds) if neighbours else None,
        framing=framing,
        audit=audit.model_copy(update={"decoys": settings.decoys, "swaps": 0}),
        seed=seed,
    )


def _sample(corpus: Corpus, most: int, *, seed: int) -> Corpus:
    """At most so many documents, in order: those of some subjects, drawn."""
    subjects = sorted({document.subject_id for document in corpus})
    random.Random(seed).shuffle(subjects)
    order = {subject: number for number, subject in enumerate(subjects)}
    by_subject = sorted(range(len(corpus)), key=lambda n: (order[corpus[n].subject_id], n))
    return Corpus([corpus[number] for number in sorted(by_subject[:most])])


def _of_kinds(corpus: Corpus, kinds: Sequence[Kind]) -> Corpus:
    return only(corpus, [(d, s) for d, s in all_places(corpus) if corpus[d].spans[s].kind in kinds])


def _outcomes(
    name: str, model: Checkpoint, scene: AttackContext, settings: AttackSettings
) -> Iterator[Outcome]:
    if name == UNATTACKED:
        yield Outcome("as it is", scene.score(model), scene.places)
    else:
        yield from ATTACKS[name](model, scene, getattr(settings, name))


def _kept(place: Path | None, weights_digest: str) -> dict[str, Any] | None:
    """What was kept of an attack on these weights; nothing if it was on others."""
    if place is None or not place.is_file():
        return None
    kept = json.loads(place.read_text(encoding="utf-8"))
    found: dict[str, Any] | None = kept.get("variants")
    return found if kept.get("weights_digest") == weights_digest else None


def _figures(outcome: Outcome, scene: AttackContext) -> dict[str, Any]:
    """One variant on one model as plain data; ``extracted`` is for `_compared` alone."""
    data: dict[str, Any] = {
        "not_run": outcome.not_run,
        "greedy": None,
        "discoverable": None,
        "auc": asdict(outcome.auc) if outcome.auc else None,
        "unscored": 0,
        "curve": outcome.curve,
        "check": outcome.check,
        "extracted": [],
        "elsewhere": outcome.corpus is not None,
    }
    found = outcome.occurrences
    if found is None:
        return data
    scored, corpus = found.scored, outcome.corpus or scene.corpus
    trials = int(scored.sum())
    extracted = scored & (found.greedy | found.discoverable)
    subjects = [corpus[document].subject_id for document, _ in outcome.places]
    numbers = np.unique(subjects, return_inverse=True)[1].tolist()
    labels = [corpus[d].spans[s].label for d, s in outcome.places]
    return data | {
        "greedy": asdict(rate(int(found.greedy[scored].sum()), trials)),
        "discoverable": asdict(rate(int(found.discoverable[scored].sum()), trials)),
        "auc": asdict(clustered_mean(found.auc, numbers, seed=scene.seed))
        if outcome.ranks
        else None,
        "unscored": int((~scored).sum()),
        "extracted": [[*outcome.places[n], labels[n]] for n in np.flatnonzero(extracted).tolist()],
    }


def _compared(
    by_model: Mapping[str, dict[str, Any]], plain: Sequence[Sequence[Any]]
) -> dict[str, Any]:
    """A variant's figures by model, and what it took out of the sanitized one, by label."""
    sanitized, base = by_model.get(SANITIZED), by_model.get(BASE)
    models = {
        name: {
            key: value for key, value in figures.items() if key not in ("extracted", "elsewhere")
        }
        for name, figures in by_model.items()
    }
    beyond = recovered = None
    if sanitized is not None and sanitized["greedy"] is not None:
        taken = [tuple(place) for place in sanitized["extracted"]]
        if base is not None:
            given = {tuple(place) for place in base["extracted"]}
            beyond = _by_label(place for place in taken if place not in given)
        if not sanitized["elsewhere"]:
            known = {tuple(place) for place in plain}
            recovered = _by_label(place for place in taken if place not in known)
    return {"models": models, "beyond_control": beyond, "recovered": recovered}


def _by_label(places: Iterator[tuple[Any, ...]]) -> dict[str, int]:
    return dict(sorted(Counter(str(label) for _, _, label in places).items()))
