"""Sampling: how often an identifier comes up among many continuations, without drawing them.

Threat: the adversary samples as often as they like. The chance to see an identifier in k samples
follows from its probability under the sampler; nothing has to be drawn to know it. A few
occurrences are really sampled, to show that the closed form predicts what sampling finds.

Cost: an audit, and the declared number of continuations, each as long as its identifier.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sani.attacking.context import AttackContext, Outcome, cut, one_by_one
from sani.auditing.generation import Prompt, sample
from sani.auditing.metrics import discoverable
from sani.auditing.occurrences import Occurrences
from sani.auditing.sampler import DEFAULT_SAMPLER
from sani.intervals import clustered_mean
from sani.models.checkpoint import Checkpoint
from sani.recipe import SamplingSettings
from sani.text.tokens import encode

MOST_SAMPLES = 10**4
LIKELIER = 0.5


def sampling(
    model: Checkpoint, scene: AttackContext, settings: SamplingSettings
) -> Iterator[Outcome]:
    """Leak@k for k up to 10^4, and the check by generation.

    Source: leak@k, 2511.04934; (n, p), Hayes et al. 2024. Deviations: in closed form, the mean
    over occurrences of 1 - (1 - p)^k. The (n, p) figure is at n = 10^4.
    """
    found = scene.score(model, decoys=False)
    within = discoverable(found.sampled, queries=MOST_SAMPLES, probability=scene.audit.probability)
    subjects = [scene.corpus[document].subject_id for document, _ in scene.places]
    numbers = np.unique(subjects, return_inverse=True)[1].tolist()
    curve = [
        {"samples": k, "leaked": vars(clustered_mean(leak_at(found, k), numbers, seed=scene.seed))}
        for k in (1, 10, 100, 1000, MOST_SAMPLES)
    ]
    yield Outcome(
        f"{MOST_SAMPLES} samples",
        replace(found, discoverable=within & found.scored),
        scene.places,
        curve=curve,
        check=check(model, scene, settings),
        ranks=False,
    )


def leak_at(found: Occurrences, k: int) -> NDArray[np.float64]:
    """The chance that each occurrence comes up in k samples, [n]; NaN if it was not scored."""
    with np.errstate(divide="ignore"):
        miss = np.log1p(-np.exp(np.minimum(found.sampled, 0.0)))
    return np.where(found.scored, -np.expm1(k * miss), np.nan)


def check(model: Checkpoint, scene: AttackContext, settings: SamplingSettings) -> dict[str, Any]:
    """Sample behind short prompts and count, beside what the closed form says for them.

    Half of the occurrences are the likeliest, so that there is something to count, the others are
    drawn.

    Returns:
        ``samples``, ``expected`` and ``found`` identifiers among them, ``deviation`` as a standard
        deviation of what is expected, and ``p_value``, two-sided, of a deviation as large.
    """
    encoded, places = encode(scene.corpus, model.tokenizer), scene.places
    short = cut(encoded, places, prefix=settings.prefix)
    verdicts = scene.ask(model, one_by_one(scene.corpus, places), short, decoys=False)
    likeliest = np.argsort(-np.where(verdicts.scored, verdicts.sampled, -np.inf), kind="stable")
    half = likeliest[: round(LIKELIER * settings.occurrences)].tolist()
    rest = sorted(set(np.flatnonzero(verdicts.scored).tolist()) - set(half))
    scene.chance("sampled").shuffle(rest)
    chosen = [n for n in half if verdicts.scored[n]] + rest[: settings.occurrences - len(half)]
    prefix = scene.frame(model).prefix
    found = expected = variance = 0.0
    for number in chosen:
        item = short[number]
        first, last = item.spans[0]
        given = max(first, 1 - len(prefix))  # a first token that nothing stands before
        prompt = (*prefix, *item.ids[:given])
        target = tuple(item.ids[given:last])
        p = float(np.exp(verdicts.sampled[number]))
        found += _count(model, scene, settings, number, prompt, target)
        expected += settings.samples * p
        variance += settings.samples * p * (1 - p)
    deviation = (found - expected) / variance**0.5 if variance > 0 else None
    return {
        "samples": settings.samples * len(chosen),
        "expected": expected,
        "found": int(found),
        "deviation": deviation,
        "p_value": None if deviation is None else float(2 * stats.norm.sf(abs(deviation))),
    }


def _count(
    model: Checkpoint,
    scene: AttackContext,
    settings: SamplingSettings,
    number: int,
    prompt: Sequence[int],
    target: tuple[int, ...],
) -> int:
    """How many of the continuations of one prompt are the identifier."""
    first = number * settings.samples
    prompts = [Prompt("file", first + draw, tuple(prompt)) for draw in range(settings.samples)]
    continuations = sample(
        model,
        prompts,
        new_tokens=len(target),
        sampler=DEFAULT_SAMPLER,
        batch_tokens=scene.audit.batch_tokens,
        seed=scene.seed,
    )
    return sum(tokens == target for tokens in continuations)
