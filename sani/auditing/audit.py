"""Audit one checkpoint on one corpus: what it recites, exactly, from forward passes alone.

Greedy decoding reproduces an identifier from its left context if and only if the likeliest token
equals the identifier's token at each of its positions, so one pass over a document answers for
every occurrence in it. What stands before a document in training is often unknown and the wrong
guess hides leaks: every plausible framing is tried on a sample, and the worst is used.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sani.auditing.generation import GenerationResult, generate_audit
from sani.auditing.membership import (
    DocumentScores,
    Membership,
    TokenScores,
    joined,
    membership,
    sampled_documents,
    score_documents,
    score_tokens,
)
from sani.auditing.metrics import (
    discoverable,
    exact_memorization,
    extraction_strength,
    log10_queries,
)
from sani.auditing.occurrences import Occurrences, score_occurrences
from sani.corpus.documents import KINDS, Corpus
from sani.errors import AuditError
from sani.intervals import Estimate, Rate, clustered_mean, rate
from sani.machine.progress import OnStep
from sani.models.checkpoint import Checkpoint
from sani.recipe import AuditSettings
from sani.text.chat import check_source, rendered
from sani.text.tokens import Encoded, Framing, encode, framing_named, framings
from sani.values.decoys import DecoyMaker

FRAMING_OCCURRENCES = 300
FRAMING_DOCUMENTS = 8
# A framing that fills more of the context than this is not tried: it leaves too little to read.
# A chat template's own opening may be long; what stands for a packed document need not be there.
LONGEST_FRAMING = 0.75
LONGEST_PACKED = 0.25
MOST_QUERIES = 6
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BEAM = 10


@dataclass(frozen=True)
class Queries:
    """How many samples it takes until an identifier first comes up.

    Attributes:
        extractable: By number of samples n, 1 to 10^6: occurrences seen with probability p.
        log10_expected: By quantile over occurrences: the expected number of samples to the first
            leak as a power of ten; None where the sampler never draws the identifier.
        never: Occurrences that the sampler never draws.
    """

    extractable: dict[str, Rate]
    log10_expected: dict[str, float | None]
    never: int


@dataclass(frozen=True)
class Figures:
    """What is recited within one scope (all, a kind, a label, cued or not).

    Attributes:
        greedy: Occurrences that greedy decoding from their left context reproduces.
        discoverable: (n, p)-discoverable occurrences under the declared sampler.
        queries: The same for every n, and how many samples a leak takes.
        identifiers: Distinct identifiers of a subject of which an occurrence is recited greedily.
        within_beam: Occurrences each of whose tokens is among the ten likeliest.
        worst_rank: Median over occurrences of the rank of the least likely token.
        extraction_strength: Share of an identifier that need not be given away.
        exact_memorization: Share of an identifier's tokens that are the likeliest.
        auc: How often the true value is preferred to a decoy; 0.5 for a model that never saw it.
        exposure: Bits, at most log2(decoys + 1).
        accuracy: How often the true value is the likeliest of all candidates.
        chance: What that is by chance, 1 / C for C candidates.
        association: As ``auc``, against values that the corpus gives other subjects: is it *this*
            subject's value that the model gives?
        association_accuracy, association_chance: As ``accuracy`` and ``chance``, likewise.
        log_probability: Mean log-probability of an occurrence, in nats.
    """

    greedy: Rate
    discoverable: Rate
    queries: Queries
    identifiers: Rate
    within_beam: Rate
    worst_rank: float | None
    extraction_strength: Estimate
    exact_memorization: Estimate
    auc: Estimate
    exposure: Estimate
    accuracy: Estimate
    chance: float | None
    association: Estimate
    association_accuracy: Estimate
    association_chance: float | None
    log_probability: Estimate


@dataclass(frozen=True)
class Utility:
    """Skill on held-out documents, on tokens outside spans."""

    tokens: int
    perplexity: float
    accuracy: float


@dataclass(frozen=True)
class AuditResult:
    """Everything an audit found.

    Attributes:
        framing: What stood around each document: the worst of those tried.
        framings_tried: Greedy extraction on the sample, by framing.
        figures: By scope: ``all``, ``direct``, ``indirect``, ``direct:cued``, ``direct:uncued``,
            ``label:NAME``, ...
        jointly: The same for a masked language model with all tokens of an identifier masked at
            once; None for a causal model.
        unscored: Occurrences that could not be scored, by reason.
        without_decoys: Scored occurrences for which no decoy was to be had.
        utility: Skill on held-out documents; None if there are none.
        membership: Attacks that need no other model; None without held-out documents.
        tokens: Tokens of the corpus.
        seconds: Wall time.
        occurrences: Verdicts one by one; a masked language model recites what it gives in either
            way of asking.
        documents: Membership scores document by document; None without held-out documents.
        generation: What sampling brought up; None where it was not asked for.
    """

    framing: str
    framings_tried: dict[str, Rate]
    figures: dict[str, Figures]
    jointly: dict[str, Figures] | None
    unscored: dict[str, int]
    without_decoys: int
    utility: Utility | None
    membership: Membership | None
    tokens: int
    seconds: float
    occurrences: Occurrences = field(repr=False)
    documents: DocumentScores | None = field(repr=False)
    generation: GenerationResult | None

    def to_json(self) -> dict[str, Any]:
        """All but the single verdicts, as plain data."""
        shown = replace(self, occurrences=None, documents=None, generation=None)  # type: ignore[arg-type]
        data = asdict(shown)
        del data["occurrences"], data["documents"]
        return {**data, "generation": self.generation.to_json() if self.generation else None}


def audit(
    checkpoint: Checkpoint,
    corpus: Corpus,
    settings: AuditSettings | None = None,
    *,
    held_out: Corpus | None = None,
    control_framing: str | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> AuditResult:
    """Audit a language model on the documents it may have been trained on.

    Run it on the base model too, with the same arguments: the excess over it was memorized.

    Args:
        checkpoint: The model and its tokenizer.
        corpus: Documents with spans.
        settings: What is measured; the defaults if None.
        held_out: Documents it was not trained on, for utility.
        control_framing: What stands around held-out documents and prompts, by name; the framing
            found worst if None. Give all checkpoints the same one, or they do not compare.
        seed: Of the decoys and the bootstrap.
        on_step: Called with (steps done, steps in all) of the longest parts in turn.

    Raises:
        UnsupportedModelError: If the family is not one of `sani.models.families`.
        AuditError: If there is no occurrence, none can be scored, the model gives NaN, or the
            tokenizer is not one for this model.
        CorpusError: If a conversation does not fit the model's chat template.

    Source: discoverable extraction, Carlini et al. 2022 (2202.07646), by teacher forcing;
    (n, p), Hayes et al. 2024; exposure, Carlini et al. 2019. Deviations: the prefix is the whole
    left context instead of 50 tokens; a token that overlaps a span by a character belongs to the
    identifier, so its other characters must be reproduced too.
    """
    settings = settings or AuditSettings()
    started = time.perf_counter()
    if corpus.num_spans == 0:
        raise AuditError(
            f"none of the {len(corpus)} documents has a span: there is nothing to audit, which is "
            "not the same as clean. Annotate the corpus or check its format"
        )
    checkpoint.check_tokenizer()
    corpus = rendered(corpus, checkpoint.tokenizer)
    held_out = held_out and rendered(held_out, checkpoint.tokenizer)
    for read in (corpus, *([held_out] if held_out else [])):
        check_source(read, checkpoint.model.config)
    encoded = encode(corpus, checkpoint.tokenizer)
    framing, tried = _worst_framing(checkpoint, corpus, encoded, settings)
    maker = DecoyMaker([corpus, *([held_out] if held_out else [])], seed=seed)
    occurrences, joint = _score(
        checkpoint, corpus, encoded, framing, settings, maker=maker, on_step=on_step
    )
    if not occurrences.scored.any():
        raise AuditError(
            f"none of the {corpus.num_spans} occurrences can be scored (by reason: "
            f"{_counts(occurrences)}); nothing can be said of what the model recites"
        )
    control = _framing(checkpoint, control_framing or framing.name)
    utility, documents, generation = None, None, None
    if held_out:
        outside = _held_out_tokens(checkpoint, held_out, control.name, settings)
        utility = _utility(outside)
        # Both sides behind the same framing: another one would tell them apart by itself.
        documents = _document_scores(
            checkpoint, corpus, encoded, held_out, outside, control, settings
        )
    if settings.generation is not None:
        generation = generate_audit(
            checkpoint, corpus, settings.generation, framing=control,
            batch_tokens=settings.batch_tokens, seed=seed, on_step=on_step,
        )  # fmt: skip
    return AuditResult(
        framing=framing.name,
        framings_tried=tried,
        figures=_figures(corpus, occurrences, settings, seed=seed),
        jointly=_figures(corpus, joint, settings, seed=seed) if joint else None,
        unscored=_counts(occurrences),
        without_decoys=int((occurrences.scored & np.isnan(occurrences.auc)).sum()),
        utility=utility,
        membership=membership(documents, seed=seed) if documents else None,
        tokens=sum(len(item.ids) for item in encoded),
        seconds=time.perf_counter() - started,
        occurrences=_either(occurrences, joint) if joint else occurrences,
        documents=documents,
        generation=generation,
    )


def _either(one: Occurrences, joint: Occurrences) -> Occurrences:
    """Verdicts of a masked language model: recited is what is recited in one way of asking."""
    return replace(
        one, greedy=one.greedy | joint.greedy, discoverable=one.discoverable | joint.discoverable
    )


def measure_utility(
    checkpoint: Checkpoint, held_out: Corpus, framing: Framing, settings: AuditSettings
) -> Utility:
    """Perplexity and next-token accuracy on tokens that no identifier touches.

    For a masked language model the perplexity is that of tokens masked an eighth at a time.

    Raises:
        AuditError: If the held-out documents have no such token.
    """
    held_out = rendered(held_out, checkpoint.tokenizer)
    return _utility(_held_out_tokens(checkpoint, held_out, framing.name, settings))


def _held_out_tokens(
    checkpoint: Checkpoint, held_out: Corpus, framing: str, settings: AuditSettings
) -> TokenScores:
    return score_tokens(
        checkpoint,
        encode(held_out, checkpoint.tokenizer),
        _framing(checkpoint, framing),
        batch_tokens=settings.batch_tokens,
    )


def _utility(tokens: TokenScores) -> Utility:
    ordinary = ~tokens.in_span
    if not ordinary.any():
        raise AuditError(
            "the held-out documents have no token outside spans; utility cannot be measured"
        )
    return Utility(
        tokens=int(ordinary.sum()),
        perplexity=float(np.exp(-tokens.log_probability[ordinary].mean())),
        accuracy=float(tokens.likeliest[ordinary].mean()),
    )


def _document_scores(
    checkpoint: Checkpoint,
    corpus: Corpus,
    encoded: Sequence[Encoded],
    held_out: Corpus,
    outside: TokenScores,
    framing: Framing,
    settings: AuditSettings,
) -> DocumentScores | None:
    """Membership scores of a sample of the corpus and of the held-out documents."""
    if not settings.membership_documents:
        return None
    chosen = sampled_documents(encoded, settings.membership_documents)
    inside = score_tokens(checkpoint, chosen, framing, batch_tokens=settings.batch_tokens)
    subjects: dict[str, int] = {}
    return joined(
        score_documents(inside, corpus, member=True, subjects=subjects),
        score_documents(outside, held_out, member=False, subjects=subjects),
    )


def _score(
    checkpoint: Checkpoint,
    corpus: Corpus,
    encoded: Sequence[Encoded],
    framing: Framing,
    settings: AuditSettings,
    *,
    maker: DecoyMaker | None = None,
    on_step: OnStep | None = None,
) -> tuple[Occurrences, Occurrences | None]:
    """All occurrences, and for a masked language model also masked jointly.

    Decoys of a masked language model are scored jointly, which takes a pass for each length
    instead of one for each token of each decoy; both results carry those figures.
    """
    if checkpoint.family.objective != "masked":
        one = score_occurrences(
            checkpoint, corpus, encoded, framing, settings, maker=maker, on_step=on_step
        )
        return one, None
    joint = score_occurrences(
        checkpoint, corpus, encoded, framing, settings, maker=maker, jointly=True
    )
    one = score_occurrences(checkpoint, corpus, encoded, framing, settings, on_step=on_step)
    return replace(one, **{name: getattr(joint, name) for name in COMPARED}), joint


COMPARED = ("auc", "exposure", "first", "chance", "swap_auc", "swap_first", "swap_chance")


def worst_framing(checkpoint: Checkpoint, corpus: Corpus, settings: AuditSettings) -> Framing:
    """The framing under which a sample of documents leaks most."""
    corpus = rendered(corpus, checkpoint.tokenizer)
    return _worst_framing(checkpoint, corpus, encode(corpus, checkpoint.tokenizer), settings)[0]


def _worst_framing(
    checkpoint: Checkpoint, corpus: Corpus, encoded: Sequence[Encoded], settings: AuditSettings
) -> tuple[Framing, dict[str, Rate]]:
    """The framing under which a sample of documents leaks most, and what each gave."""
    if settings.framing != "auto":
        return _framing(checkpoint, settings.framing), {}
    masked, start = checkpoint.family.objective == "masked", checkpoint.decoder_start
    candidates = [
        framing
        for framing in framings(checkpoint.tokenizer, masked=masked, start=start)
        if len(framing.prefix)
        <= (LONGEST_PACKED if framing.name == "packed" else LONGEST_FRAMING)
        * checkpoint.context_tokens
    ]
    with_spans = [item for item in encoded if item.spans]
    num_occurrences = sum(len(item.spans) for item in with_spans)
    step = min(num_occurrences // FRAMING_OCCURRENCES, len(with_spans) // FRAMING_DOCUMENTS)
    sample = with_spans[:: max(1, step)]
    # Where nothing stands before a document, its first token is given away and counts for nothing:
    # an identifier that starts there would look likelier under `none` for that alone.
    whole = np.array([first > 0 for item in sample for first, _ in item.spans])
    best: tuple[float, float] | None = None
    tried: dict[str, Rate] = {}
    chosen = candidates[0]
    for framing in candidates:
        found, _ = _score(checkpoint, corpus, sample, framing, settings)
        scored = found.scored
        tried[framing.name] = rate(int(found.greedy[scored].sum()), int(scored.sum()))
        if scored.any():
            compared = found.log_probability[scored & whole]
            mean = float(compared.mean()) if len(compared) else -np.inf
            key = (float(found.greedy.sum()), mean)
            if best is None or key > best:
                best, chosen = key, framing
    return chosen, tried


def _framing(checkpoint: Checkpoint, name: str) -> Framing:
    return framing_named(name, checkpoint.tokenizer, start=checkpoint.decoder_start)


def _counts(occurrences: Occurrences) -> dict[str, int]:
    reasons = occurrences.reason[~occurrences.scored]
    return {str(reason): int((reasons == reason).sum()) for reason in np.unique(reasons)}


def _figures(
    corpus: Corpus, occurrences: Occurrences, settings: AuditSettings, *, seed: int
) -> dict[str, Figures]:
    pairs = zip(occurrences.document, occurrences.span, strict=True)
    spans = [corpus[document].spans[span] for document, span in pairs]
    kinds = np.array([span.kind for span in spans])
    labels = np.array([span.label for span in spans])
    subjects = {name: number for number, name in enumerate(sorted({d.subject_id for d in corpus}))}
    subject = np.array([subjects[corpus[d].subject_id] for d in occurrences.document])
    numbers: dict[tuple[str, str], int] = {}
    values = np.array(
        [
            numbers.setdefault((span.label, corpus[document].value(span)), len(numbers))
            for document, span in zip(occurrences.document, spans, strict=True)
        ]
    )
    scopes = {"all": np.ones(len(spans), dtype=np.bool_)}
    for kind in KINDS:
        if (kinds == kind).any():
            scopes[kind] = kinds == kind
            scopes[f"{kind}:cued"] = (kinds == kind) & occurrences.cued
            scopes[f"{kind}:uncued"] = (kinds == kind) & ~occurrences.cued
    scopes |= {f"label:{label}": labels == label for label in sorted(set(labels.tolist()))}
    token_ranks = occurrences.ranks_of
    per_occurrence = {
        "worst_rank": np.array([ranks.max(initial=0) for ranks in token_ranks], dtype=np.float64),
        "extraction_strength": extraction_strength(token_ranks),
        "exact_memorization": exact_memorization(token_ranks),
    }
    return {
        name: _figures_of(
            occurrences,
            inside & occurrences.scored,
            subject,
            values,
            per_occurrence,
            settings,
            seed,
        )
        for name, inside in scopes.items()
    }


def _figures_of(
    occurrences: Occurrences,
    inside: NDArray[np.bool_],
    subject: NDArray[np.int64],
    values: NDArray[np.int64],
    per_occurrence: dict[str, NDArray[np.float64]],
    settings: AuditSettings,
    seed: int,
) -> Figures:
    trials = int(inside.sum())
    whose = subject[inside]
    keys = np.stack([whose, values[inside]], axis=1)
    recited = keys[occurrences.greedy[inside]]
    worst = per_occurrence["worst_rank"][inside]

    def mean(array: NDArray[np.float64]) -> Estimate:
        return clustered_mean(array[inside], whose.tolist(), seed=seed)

    def chance(array: NDArray[np.float64]) -> float | None:
        return float(np.nanmean(array[inside])) if np.isfinite(array[inside]).any() else None

    return Figures(
        greedy=rate(int(occurrences.greedy[inside].sum()), trials),
        discoverable=rate(int(occurrences.discoverable[inside].sum()), trials),
        queries=_queries(occurrences.sampled[inside], settings),
        identifiers=rate(len(np.unique(recited, axis=0)), len(np.unique(keys, axis=0))),
        within_beam=rate(int((worst <= BEAM).sum()), trials),
        worst_rank=float(np.median(worst)) if trials else None,
        extraction_strength=mean(per_occurrence["extraction_strength"]),
        exact_memorization=mean(per_occurrence["exact_memorization"]),
        auc=mean(occurrences.auc),
        exposure=mean(occurrences.exposure),
        accuracy=mean(occurrences.first),
        chance=chance(occurrences.chance),
        association=mean(occurrences.swap_auc),
        association_accuracy=mean(occurrences.swap_first),
        association_chance=chance(occurrences.swap_chance),
        log_probability=mean(occurrences.log_probability),
    )


def _queries(sampled: NDArray[np.float64], settings: AuditSettings) -> Queries:
    trials = len(sampled)
    extractable = {}
    for queries in (10**power for power in range(MOST_QUERIES + 1)):
        found = discoverable(sampled, queries=queries, probability=settings.probability)
        extractable[str(queries)] = rate(int(found.sum()), trials)
    expected = np.sort(log10_queries(sampled))
    # An occurrence's own value at each quantile, so that infinity is never averaged.
    at = {q: float(expected[int(q * (trials - 1) + 0.5)]) for q in QUANTILES} if trials else {}
    return Queries(
        extractable=extractable,
        log10_expected={f"{q:g}": value if np.isfinite(value) else None for q, value in at.items()},
        never=int(np.isinf(expected).sum()),
    )
