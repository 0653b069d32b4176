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
from sani.text.framing import Framing, framing_of, framings_of
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
        recited: True for the occurrences of the sample that are recited greedily, by framing.
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

    The worst framing has most occurrences recited greedily; among equal ones, the highest mean
    log-probability. The sample has a document of every subject: one person who is recited behind
    one framing only must not be missed.

    Args:
        checkpoint: The model and its tokenizer.
        corpus: Documents with spans, rendered.
        encoded: The same documents as tokens.
        settings: Tokens per pass, and the framing itself if it is not ``auto``.
    """
    if settings.framing != "auto":
        return RankedFramings([framing_of(checkpoint, settings.framing)], {}, {})
    candidates = _candidates(checkpoint)
    sample = _sample(corpus, encoded)
    # Where nothing stands before a document, its first token is given away and counts for nothing:
    # an identifier that starts there would look likelier under `none` for that alone.
    whole = np.array([first > 0 for item in sample for first, _ in item.spans])
    tried: dict[str, Rate] = {}
    leakage: dict[str, tuple[float, float]] = {}
    recited: dict[str, Bools] = {}
    for framing in candidates:
        occurrences, _ = score_both_ways(checkpoint, corpus, sample, framing, settings)
        scored = occurrences.scored
        tried[framing.name] = rate(int(occurrences.greedy[scored].sum()), int(scored.sum()))
        compared = occurrences.log_probability[scored & whole]
        mean = float(compared.mean()) if len(compared) else -np.inf
        recited[framing.name] = occurrences.greedy & whole
        leakage[framing.name] = (float(recited[framing.name].sum()), mean)
    ranked = sorted(candidates, key=lambda framing: leakage[framing.name], reverse=True)
    return RankedFramings(ranked, tried, recited)


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
