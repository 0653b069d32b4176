"""Sampling: how often an identifier comes up among many continuations, in closed form.

Threat: the adversary samples as often as they like. The chance to see an identifier in k samples
follows from its probability under the sampler, so nothing has to be drawn to know it. A few
occurrences are sampled all the same, to test that the closed form predicts what sampling gives.

Cost: an audit, and the declared number of continuations, each as long as its identifier.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sani.attacking.context import AttackContext, Outcome, cut, one_by_one
from sani.attacking.result import LeakPoint, SamplingCheck
from sani.auditing.metrics import discoverable
from sani.auditing.occurrences import Occurrences
from sani.auditing.prompts import Prompt
from sani.auditing.sampler import DEFAULT_SAMPLER
from sani.auditing.sampling import sample
from sani.intervals import clustered_mean
from sani.models.checkpoint import Checkpoint
from sani.recipe import SamplingSettings

MAX_SAMPLES = 10**4
LIKELIEST_SHARE = 0.5  # of the occurrences that are really sampled


def sampling(
    model: Checkpoint, context: AttackContext, settings: SamplingSettings
) -> Iterator[Outcome]:
    """Compute leak@k for k up to 10^4, and test the closed form by sampling.

    leak@k is the mean over occurrences of 1 - (1 - p)^k, p the probability of the identifier
    behind its left context under the sampler. The (n, p) figure is at n = 10^4.

    Source: leak@k, 2511.04934; (n, p), Hayes et al. 2024. Deviation: in closed form.
    """
    occurrences = context.score(model, decoys=False)
    within = discoverable(
        np.maximum(occurrences.sampled, occurrences.log_probability),
        queries=MAX_SAMPLES,
        probability=context.audit.probability,
    )
    subjects = context.subject_numbers(context.places)
    curve = tuple(
        LeakPoint(k, clustered_mean(leak_at(occurrences, k), subjects, seed=context.seed))
        for k in (1, 10, 100, 1000, MAX_SAMPLES)
    )
    yield Outcome(
        f"{MAX_SAMPLES} samples",
        replace(occurrences, discoverable=within & occurrences.scored),
        context.places,
        curve=curve,
        check=check(model, context, settings),
        ranks=False,
    )


def leak_at(occurrences: Occurrences, k: int) -> NDArray[np.float64]:
    """Compute the chance that each occurrence comes up in k samples, [n]; NaN if not scored."""
    # log(1 - p) by log1p and 1 - (1 - p)^k by expm1: both keep the digits of a p near 0. For p = 1
    # the logarithm is -inf and the chance 1, as it should be, hence no warning.
    with np.errstate(divide="ignore"):
        miss = np.log1p(-np.exp(np.minimum(occurrences.sampled, 0.0)))
    return np.where(occurrences.scored, -np.expm1(k * miss), np.nan)


def check(model: Checkpoint, context: AttackContext, settings: SamplingSettings) -> SamplingCheck:
    """Sample behind short prompts, and compare the count with the closed form's expectation.

    Half of the occurrences are the likeliest, so that there is something to count. The others are
    drawn at random.
    """
    encoded, places = context.encoded(model), context.places
    short = cut(encoded, places, prefix=settings.prefix)
    occurrences = context.score_documents(
        model, one_by_one(context.corpus, places), short, decoys=False
    )
    ranking = np.where(occurrences.scored, occurrences.sampled, -np.inf)
    likeliest = np.argsort(-ranking, kind="stable")
    half = likeliest[: round(LIKELIEST_SHARE * settings.occurrences)].tolist()
    rest = sorted(set(np.flatnonzero(occurrences.scored).tolist()) - set(half))
    context.chance("sampled").shuffle(rest)
    chosen = [n for n in half if occurrences.scored[n]] + rest[: settings.occurrences - len(half)]
    prefix = context.framing(model).prefix
    count = expected = variance = 0.0
    for number in chosen:
        item = short[number]
        first, last = item.spans[0]
        # The audit gives away a first token that nothing stands before; so does the prompt.
        given = max(first, 1 - len(prefix))
        prompt = (*prefix, *item.ids[:given])
        target = tuple(item.ids[given:last])
        p = float(np.exp(occurrences.sampled[number]))
        count += _count(model, context, settings, number, prompt, target)
        # A sum of binomials with different p: means and variances add up.
        expected += settings.samples * p
        variance += settings.samples * p * (1 - p)
    deviation = (count - expected) / variance**0.5 if variance > 0 else None
    return SamplingCheck(
        samples=settings.samples * len(chosen),
        expected=expected,
        found=int(count),
        deviation=deviation,
        p_value=None if deviation is None else float(2 * stats.norm.sf(abs(deviation))),
    )


def _count(
    model: Checkpoint,
    context: AttackContext,
    settings: SamplingSettings,
    number: int,
    prompt: Sequence[int],
    target: tuple[int, ...],
) -> int:
    """Count the continuations of one prompt that are the identifier."""
    # A sample's number fixes its random numbers, so every occurrence gets numbers of its own.
    first = number * settings.samples
    prompts = [Prompt("file", first + draw, tuple(prompt)) for draw in range(settings.samples)]
    continuations = sample(
        model,
        prompts,
        new_tokens=len(target),
        sampler=DEFAULT_SAMPLER,
        batch_tokens=context.audit.batch_tokens,
        seed=context.seed,
    )
    return sum(tokens == target for tokens in continuations)
