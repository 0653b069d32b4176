"""Audit one checkpoint on one corpus: what it recites, exactly, from forward passes alone.

Greedy decoding reproduces an identifier from its left context if and only if the likeliest token
equals the identifier's token at each of its positions. So one pass over a document answers for
every occurrence in it. What passes cannot tell is measured by generation, if the settings ask.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sani.auditing.figures import Figures, figures_by_scope, frame_of
from sani.auditing.framing_search import rank_framings
from sani.auditing.generation import Decoys, GenerationResult, generate_audit
from sani.auditing.membership import (
    DocumentScores,
    Membership,
    join_documents,
    membership,
    sampled_documents,
    score_documents,
    score_tokens,
)
from sani.auditing.notes import notes_of
from sani.auditing.occurrences import Occurrences, join_framings, recited_either_way
from sani.auditing.scoring import score_both_ways
from sani.auditing.utility import Utility, utility_of
from sani.corpus.documents import Corpus
from sani.errors import AuditError
from sani.intervals import Rate
from sani.machine.progress import OnStep
from sani.models.checkpoint import Checkpoint
from sani.recipe import AuditSettings
from sani.tabular import Tabular
from sani.text.chat import check_source, rendered
from sani.text.framing import Framing, framing_of
from sani.text.tokens import Encoded, encode
from sani.values.decoys import DecoyMaker, decoy_maker

if TYPE_CHECKING:
    import pandas as pd

MIN_FRAMINGS = 2  # that every document is read behind
RECITES = 0.1  # of the sample: so much tells that an unsanitized model recites


@dataclass(frozen=True)
class AuditResult(Tabular):
    """The result of an audit.

    Attributes:
        framing: Name of the framing around each document: the worst of those tried.
        framings: Names of all framings behind which every document was read; an occurrence counts
            as recited if it is recited behind any of them.
        framings_tried: Greedy extraction on the sample, by framing.
        figures: By scope: ``all``, ``direct``, ``indirect``, ``direct:cued``, ``direct:uncued``,
            ``label:NAME``, ...
        jointly: The same for a masked language model with all tokens of an identifier masked at
            once; None for a causal model.
        unscored: Occurrences that could not be scored, by reason.
        without_decoys: Scored occurrences for which no decoy could be made.
        utility: Skill on held-out documents; None if there are none.
        membership: Attacks that need no other model; None without held-out documents.
        tokens: Tokens of the corpus.
        seconds: Wall time.
        occurrences: Verdicts one by one. A masked language model recites an occurrence that it
            gives in either way of masking.
        held_out_occurrences: The same of held-out documents, whose people the model never read;
            None where they have no span.
        documents: Membership scores document by document; None without held-out documents.
        generation: What sampling brought up; None if the settings do not ask for it.
        notes: What was switched off, or could not be tried, in whole sentences.
    """

    framing: str
    framings: tuple[str, ...]
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
    held_out_occurrences: Occurrences | None = field(repr=False)
    documents: DocumentScores | None = field(repr=False)
    generation: GenerationResult | None
    notes: list[str] = field(default_factory=list)

    def to_frame(self) -> pd.DataFrame:
        """Return a row a scope: occurrences, the rates of both verdicts and the AUC."""
        return frame_of(self.figures)

    def to_json(self) -> dict[str, Any]:
        """Return all but the single verdicts as plain data."""
        arrays = ("occurrences", "held_out_occurrences", "documents", "generation")
        shown: Any = replace(self, **dict.fromkeys(arrays))  # type: ignore[arg-type]
        data = {name: value for name, value in asdict(shown).items() if name not in arrays}
        return {**data, "generation": self.generation.to_json() if self.generation else None}


@dataclass(frozen=True)
class _Documents:
    """Documents as this checkpoint reads them: rendered and tokenized, once an audit."""

    corpus: Corpus
    encoded: list[Encoded]


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
        held_out: Documents it was not trained on, for utility and membership.
        control_framing: Name of the framing that was worst for the unsanitized checkpoint, for
            the audits of all others. Documents are read behind it too, and it alone stands around
            prompts and around held-out documents for utility. None for the worst of this audit.
        seed: Seed of the decoys, the bootstrap and the sampling.
        on_step: Called with (steps done, steps in all) of the longest parts in turn.

    Raises:
        UnsupportedModelError: If the family is not one of `sani.models.families`.
        AuditError: If there is no occurrence, none can be scored, the model gives NaN, or the
            tokenizer is not one for this model.
        CorpusError: If a conversation does not fit the model's chat template.

    Source: discoverable extraction, Carlini et al. 2022 (2202.07646), by teacher forcing;
    (n, p), Hayes et al. 2024 (2410.19482); exposure, Carlini et al. 2019 (1802.08232). Deviations:
    the prefix is the whole left context instead of 50 tokens; a token that overlaps a span by a
    character belongs to the identifier, so its other characters must be reproduced too.
    """
    settings = settings or AuditSettings()
    started = time.perf_counter()
    _check_spans(corpus)
    checkpoint.check_tokenizer()
    documents = _read(checkpoint, corpus)
    outside = _read(checkpoint, held_out) if held_out else None
    framings = _choose_framings(checkpoint, documents, settings, control_framing)
    corpora = [documents.corpus, *([outside.corpus] if outside else [])]
    maker = decoy_maker(corpora, seed=seed)
    occurrences, jointly = _score_behind(
        checkpoint, documents, framings, settings, maker=maker, on_step=on_step
    )
    _check_scored(occurrences)
    utility = documents_scores = generation = held_out_occurrences = None
    if outside:
        held_out_occurrences = _score_held_out_people(
            checkpoint, outside, framings, settings, maker=maker, on_step=on_step
        )
        scored = _score_held_out(checkpoint, documents, outside, framings.control, settings)
        utility, documents_scores = scored
    if settings.generation is not None:
        generation = generate_audit(
            checkpoint, documents.corpus, settings.generation, encoded=documents.encoded,
            framing=framings.control, decoys=Decoys(maker, settings.decoys), seed=seed,
            batch_tokens=settings.batch_tokens, on_step=on_step,
        )  # fmt: skip
    return AuditResult(
        framing=framings.worst.name,
        framings=tuple(each.name for each in (*framings.with_decoys, *framings.without_decoys)),
        framings_tried=framings.tried,
        figures=figures_by_scope(documents.corpus, occurrences, settings, seed=seed),
        jointly=_figures_or_none(documents.corpus, jointly, settings, seed),
        unscored=occurrences.count_unscored(),
        without_decoys=occurrences.count_without_decoys(),
        utility=utility,
        membership=membership(documents_scores, seed=seed) if documents_scores else None,
        tokens=sum(len(item.ids) for item in documents.encoded),
        seconds=time.perf_counter() - started,
        occurrences=recited_either_way(occurrences, jointly),
        held_out_occurrences=held_out_occurrences,
        documents=documents_scores,
        generation=generation,
        notes=notes_of(checkpoint),
    )


def _figures_or_none(
    corpus: Corpus, occurrences: Occurrences | None, settings: AuditSettings, seed: int
) -> dict[str, Figures] | None:
    """Return the figures of a second way of masking; None where there is none."""
    if occurrences is None:
        return None
    return figures_by_scope(corpus, occurrences, settings, seed=seed)


def _check_spans(corpus: Corpus) -> None:
    """Refuse a corpus without a span."""
    if corpus.num_spans == 0:
        raise AuditError(
            f"none of the {len(corpus)} documents has a span: there is nothing to audit, which is "
            "not the same as clean. Annotate the corpus or check its format"
        )


@dataclass(frozen=True)
class _Framings:
    """The framings of an audit.

    Attributes:
        worst: The one behind which most of the sample is recited.
        control: The one around prompts and around held-out documents for utility.
        with_decoys: Those behind which documents and their decoys are read.
        without_decoys: Those behind which documents alone are read.
        tried: Greedy extraction on the sample, by framing.
    """

    worst: Framing
    control: Framing
    with_decoys: list[Framing]
    without_decoys: list[Framing]
    tried: dict[str, Rate]


def _choose_framings(
    checkpoint: Checkpoint,
    documents: _Documents,
    settings: AuditSettings,
    control_framing: str | None,
) -> _Framings:
    """Choose the framings that every document is read behind.

    With decoys: that of the control, and another one behind which more of the sample is recited;
    of packed documents, also the same blocks cut at other places, since what a block's end cuts is
    not scored in it.
    Without: each behind which something of the sample is recited that no chosen one brings up, and
    the next ones if there are fewer than `MIN_FRAMINGS`, since the sample may have missed the
    worst. The unsanitized checkpoint is read behind so few only once it recites a tenth of the
    sample: nobody asks whether it is clean. A framing that the settings fix is the only one.
    """
    search = rank_framings(checkpoint, documents.corpus, documents.encoded, settings)
    worst = search.framings[0]
    control = framing_of(checkpoint, control_framing or worst.name)
    if settings.framing != "auto":
        return _Framings(worst, control, [worst], [], search.tried)
    nothing = np.zeros_like(search.recited[worst.name])
    recited = search.recited.get(control.name, nothing)
    with_decoys, without_decoys = _with_shifted(control), []
    if search.recited[worst.name].sum() > recited.sum():
        with_decoys += [each for each in _with_shifted(worst) if each not in with_decoys]
        recited = recited | search.recited[worst.name]
    chosen = {framing.name for framing in with_decoys}
    for framing in search.framings:
        known = control_framing is None and recited.mean() >= RECITES
        new = not known and bool((search.recited[framing.name] & ~recited).any())
        # Blocks that are cut at other places are one framing, not two.
        too_few = len({name.partition("+")[0] for name in chosen}) < MIN_FRAMINGS
        if framing.name not in chosen and (new or too_few):
            without_decoys.append(framing)
            chosen.add(framing.name)
            recited = recited | search.recited[framing.name]
    return _Framings(worst, control, with_decoys, without_decoys, search.tried)


def _with_shifted(framing: Framing) -> list[Framing]:
    """Return a framing, and for packed documents the same blocks cut at other places."""
    return [framing, *(framing.shifted() if framing.block else ())]


def _score_behind(
    checkpoint: Checkpoint,
    documents: _Documents,
    framings: _Framings,
    settings: AuditSettings,
    *,
    maker: DecoyMaker,
    on_step: OnStep | None,
) -> tuple[Occurrences, Occurrences | None]:
    """Score documents behind each framing; return the worst verdicts, see `join_framings`."""
    both = [
        score_both_ways(
            checkpoint, documents.corpus, documents.encoded, framing, settings,
            maker=maker if framing in framings.with_decoys else None, on_step=on_step,
        )
        for framing in (*framings.with_decoys, *framings.without_decoys)
    ]  # fmt: skip
    full = len(framings.with_decoys)
    occurrences = [each for each, _ in both]
    jointly = [each for _, each in both if each is not None]
    return (
        join_framings(occurrences[:full], occurrences[full:]),
        join_framings(jointly[:full], jointly[full:]) if jointly else None,
    )


def _score_held_out_people(
    checkpoint: Checkpoint,
    documents: _Documents,
    framings: _Framings,
    settings: AuditSettings,
    *,
    maker: DecoyMaker,
    on_step: OnStep | None,
) -> Occurrences | None:
    """Score held-out identifiers and their decoys, a control; None where there are none.

    Nothing is asked of their swaps, so none are scored.
    """
    if not (documents.corpus.num_spans and settings.decoys):
        return None
    settings = settings.model_copy(update={"swaps": 0})
    return recited_either_way(
        *_score_behind(checkpoint, documents, framings, settings, maker=maker, on_step=on_step)
    )


def _check_scored(occurrences: Occurrences) -> None:
    """Raise an error if no occurrence was scored, for no figure would follow from that."""
    if not occurrences.scored.any():
        raise AuditError(
            f"none of the {len(occurrences.scored)} occurrences can be scored (by reason: "
            f"{occurrences.count_unscored()}); nothing can be said of what the model recites"
        )


def _read(checkpoint: Checkpoint, corpus: Corpus) -> _Documents:
    """Render and tokenize documents for a checkpoint.

    Raises:
        CorpusError: If a document does not fit the model.
    """
    corpus = rendered(corpus, checkpoint.tokenizer)
    check_source(corpus, checkpoint.model.config)
    return _Documents(corpus, encode(corpus, checkpoint.tokenizer))


def _score_held_out(
    checkpoint: Checkpoint,
    documents: _Documents,
    held_out: _Documents,
    framing: Framing,
    settings: AuditSettings,
) -> tuple[Utility, DocumentScores | None]:
    """Measure utility on held-out documents, and membership scores of both sides.

    Both sides stand behind the same framing: another one would tell them apart by itself.
    """
    outside = score_tokens(
        checkpoint, held_out.encoded, framing, batch_tokens=settings.batch_tokens
    )
    utility = utility_of(outside)
    if not settings.membership_documents:
        return utility, None
    members = sampled_documents(documents.encoded, settings.membership_documents)
    inside = score_tokens(checkpoint, members, framing, batch_tokens=settings.batch_tokens)
    subjects: dict[str, int] = {}
    return utility, join_documents(
        score_documents(inside, documents.corpus, member=True, subjects=subjects),
        score_documents(outside, held_out.corpus, member=False, subjects=subjects),
    )
