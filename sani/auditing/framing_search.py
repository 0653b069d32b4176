"""The search for the framing that training used: the one under which a model recites most.

Nobody may know any more what stood around a document in training, and a wrong guess hides leaks.
So every plausible framing is tried on a sample of the documents, and the audit uses the worst.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sani.auditing.permutation import Bools
from sani.auditing.scoring import score_both_ways
from sani.corpus.documents import Corpus
from sani.intervals import Rate, rate
from sani.models.checkpoint import Checkpoint
from sani.recipe import AuditSettings
from sani.text.chat import rendered
from sani.text.framing import Framing, block_framings, framing_of, framings_of, other_blocks
from sani.text.tokens import Encoded, encode

MAX_SUBJECTS = 2000  # a document of each is in the sample; of more subjects, so many are drawn
MIN_OCCURRENCES = 300  # of the sample
MIN_DOCUMENTS = 8  # of the sample
# A framing that fills more of the context than this is not tried: it leaves too little to read.
# A chat template's own opening may be long; the stand-in for a packed document need not be there.
MAX_FRAMING_SHARE = 0.75
MAX_PACKED_SHARE = 0.25


@dataclass(frozen=True)
class RankedFramings:
    """The framings of a search, the worst first.

    Attributes:
        framings: The framings; one alone if the settings fix it.
        tried: Greedy extraction on the sample, by framing.
        recited: True for the uncued occurrences of the sample that are recited greedily, by
            framing.
    """

    framings: list[Framing]
    tried: dict[str, Rate]
    recited: dict[str, Bools]


def worst_framing(
    checkpoint: Checkpoint, corpus: Corpus, settings: AuditSettings | None = None
) -> Framing:
    """Return the framing under which a sample of documents leaks most.

    Args:
        checkpoint: The model and its tokenizer.
        corpus: Documents with spans.
        settings: Tokens per pass, and the framing itself if it is not ``auto``.
    """
    corpus = rendered(corpus, checkpoint.tokenizer)
    encoded = encode(corpus, checkpoint.tokenizer)
    return rank_framings(checkpoint, corpus, encoded, settings or AuditSettings()).framings[0]


def rank_framings(
    checkpoint: Checkpoint, corpus: Corpus, encoded: Sequence[Encoded], settings: AuditSettings
) -> RankedFramings:
    """Rank the framings by how much a sample leaks, the worst first.

    The worst framing has most uncued occurrences recited greedily. Among equal ones, blocks of
    packed documents come last, and the highest mean log-probability first. The sample has a
    document of every subject: one person who is recited behind one framing only must not be missed.

    Args:
        checkpoint: The model and its tokenizer.
        corpus: Documents with spans, rendered.
        encoded: The same documents as tokens.
        settings: Tokens per pass, and the framing itself if it is not ``auto``.
    """
    if settings.framing != "auto":
        return RankedFramings([framing_of(checkpoint, settings.framing)], {}, {})
    search = _Search(checkpoint, corpus, _sample(corpus, encoded), settings)
    alone, blocks = _candidates(checkpoint), block_framings(checkpoint)
    for framing in [*alone, *blocks]:
        search.add(framing)
    if blocks:
        # Each costs a pass: other blocks are tried around the best one, and only where blocks tell
        # more, or where a model with learnt positions may know them at one place of a block alone.
        best = max(blocks, key=search.leakage)
        more = search.leakage(best) > max(map(search.leakage, alone))
        if more or checkpoint.learns_positions:
            half_a_block_later = best.shifted()[1]
            for framing in [*other_blocks(checkpoint, best), half_a_block_later]:
                search.add(framing)
    ranked = sorted(search.framings, key=search.leakage, reverse=True)
    return RankedFramings(ranked, search.tried, search.recited)


class _Search:
    """Framings tried on a sample, and what is recited behind each."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        corpus: Corpus,
        sample: Sequence[Encoded],
        settings: AuditSettings,
    ) -> None:
        self._checkpoint, self._corpus, self._settings = checkpoint, corpus, settings
        self._sample = sample
        self._num_tokens = np.array([last - first for item in sample for first, last in item.spans])
        # An identifier at the start of a document would look likelier under `none`, which gives its
        # first token away.
        self._inside = np.array([first > 0 for item in sample for first, _ in item.spans])
        self._mean: dict[str, float] = {}
        self.framings: list[Framing] = []
        self.tried: dict[str, Rate] = {}
        self.recited: dict[str, Bools] = {}

    def add(self, framing: Framing) -> None:
        """Score the sample behind a framing, greedily: nothing else ranks framings."""
        occurrences, _ = score_both_ways(
            self._checkpoint, self._corpus, self._sample, framing, self._settings, sampler=None
        )
        scored, greedy = occurrences.scored, occurrences.greedy
        self.framings.append(framing)
        self.tried[framing.name] = rate(int(greedy[scored].sum()), int(scored.sum()))
        compared = occurrences.log_probability[scored & self._inside]
        self._mean[framing.name] = float(compared.mean()) if len(compared) else -np.inf
        # What the text or a document packed before gives away is no memory, nor is a value of which
        # the first token was given.
        complete = occurrences.num_tokens == self._num_tokens
        self.recited[framing.name] = greedy & complete & ~occurrences.cued

    def leakage(self, framing: Framing) -> tuple[int, bool, float]:
        """Return what ranks a framing: occurrences recited, then the mean log-probability.

        That of blocks is of fewer occurrences, since their ends cut some: they come second.
        """
        recited = int(self.recited[framing.name].sum())
        return recited, not framing.block, self._mean[framing.name]


def _candidates(checkpoint: Checkpoint) -> list[Framing]:
    """Return the framings of this tokenizer that leave enough of the context to read."""
    return [
        framing
        for framing in framings_of(checkpoint)
        if len(framing.prefix)
        <= (MAX_PACKED_SHARE if framing.name == "packed" else MAX_FRAMING_SHARE)
        * checkpoint.context_tokens
    ]


def _sample(corpus: Corpus, encoded: Sequence[Encoded]) -> list[Encoded]:
    """Return a document of every subject, or of `MAX_SUBJECTS` drawn ones, and a few more.

    It is the subject's document with most spans. Evenly spaced documents are added until there are
    enough occurrences.
    """
    with_spans = [item for item in encoded if item.spans]
    of_subject: dict[str, Encoded] = {}
    for item in with_spans:
        subject = corpus[item.document].subject_id
        if subject not in of_subject or len(item.spans) > len(of_subject[subject].spans):
            of_subject[subject] = item
    subjects = list(of_subject)
    if len(subjects) > MAX_SUBJECTS:
        subjects = random.Random(0).sample(subjects, MAX_SUBJECTS)
    chosen = {of_subject[subject].document for subject in subjects}
    num_occurrences = sum(len(item.spans) for item in with_spans)
    step = min(num_occurrences // MIN_OCCURRENCES, len(with_spans) // MIN_DOCUMENTS)
    chosen |= {item.document for item in with_spans[:: max(1, step)]}
    return [item for item in with_spans if item.document in chosen]
