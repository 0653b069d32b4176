"""The search for the framing that training used: the one under which a model recites most.

Nobody may know any more what stood around a document in training, and a wrong guess hides leaks.
So every plausible framing is tried on a sample of the documents, and the audit uses the worst.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sani.auditing.scoring import score_both_ways
from sani.corpus.documents import Corpus
from sani.intervals import Rate, rate
from sani.models.checkpoint import Checkpoint
from sani.recipe import AuditSettings
from sani.text.chat import rendered
from sani.text.framing import Framing, framing_of, framings_of
from sani.text.tokens import Encoded, encode

MIN_OCCURRENCES = 300  # of the sample
MIN_DOCUMENTS = 8  # of the sample
# A framing that fills more of the context than this is not tried: it leaves too little to read.
# A chat template's own opening may be long; the stand-in for a packed document need not be there.
MAX_FRAMING_SHARE = 0.75
MAX_PACKED_SHARE = 0.25


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
    return find_worst_framing(checkpoint, corpus, encoded, settings or AuditSettings())[0]


def find_worst_framing(
    checkpoint: Checkpoint, corpus: Corpus, encoded: Sequence[Encoded], settings: AuditSettings
) -> tuple[Framing, dict[str, Rate]]:
    """Return the framing under which a sample leaks most, and the greedy rate under each.

    The worst framing has most occurrences recited greedily; among equal ones, the highest mean
    log-probability.

    Args:
        checkpoint: The model and its tokenizer.
        corpus: Documents with spans, rendered.
        encoded: The same documents as tokens.
        settings: Tokens per pass, and the framing itself if it is not ``auto``.
    """
    if settings.framing != "auto":
        return framing_of(checkpoint, settings.framing), {}
    candidates = _candidates(checkpoint)
    sample = _sample(encoded)
    # Where nothing stands before a document, its first token is given away and counts for nothing:
    # an identifier that starts there would look likelier under `none` for that alone.
    whole = np.array([first > 0 for item in sample for first, _ in item.spans])
    best: tuple[float, float] | None = None
    tried: dict[str, Rate] = {}
    worst = candidates[0]
    for framing in candidates:
        occurrences, _ = score_both_ways(checkpoint, corpus, sample, framing, settings)
        scored = occurrences.scored
        tried[framing.name] = rate(int(occurrences.greedy[scored].sum()), int(scored.sum()))
        if scored.any():
            compared = occurrences.log_probability[scored & whole]
            mean = float(compared.mean()) if len(compared) else -np.inf
            key = (float(occurrences.greedy.sum()), mean)
            if best is None or key > best:
                best, worst = key, framing
    return worst, tried


def _candidates(checkpoint: Checkpoint) -> list[Framing]:
    """Return the framings of this tokenizer that leave enough of the context to read."""
    return [
        framing
        for framing in framings_of(checkpoint)
        if len(framing.prefix)
        <= (MAX_PACKED_SHARE if framing.name == "packed" else MAX_FRAMING_SHARE)
        * checkpoint.context_tokens
    ]


def _sample(encoded: Sequence[Encoded]) -> list[Encoded]:
    """Return evenly spaced documents with spans, as few as give enough occurrences."""
    with_spans = [item for item in encoded if item.spans]
    num_occurrences = sum(len(item.spans) for item in with_spans)
    step = min(num_occurrences // MIN_OCCURRENCES, len(with_spans) // MIN_DOCUMENTS)
    return with_spans[:: max(1, step)]
