"""Utility: a model's skill on held-out documents, on tokens outside identifiers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sani.auditing.membership import TokenScores, score_tokens
from sani.corpus.documents import Corpus
from sani.errors import AuditError
from sani.models.checkpoint import Checkpoint
from sani.recipe import AuditSettings
from sani.text.chat import rendered
from sani.text.framing import framing_of
from sani.text.tokens import encode


@dataclass(frozen=True)
class Utility:
    """Skill on held-out documents, on tokens outside spans.

    Attributes:
        tokens: Tokens measured.
        perplexity: exp of the mean of -log p per token.
        accuracy: Share of tokens that the model finds the likeliest, in [0, 1].
    """

    tokens: int
    perplexity: float
    accuracy: float


def measure_utility(
    checkpoint: Checkpoint, held_out: Corpus, settings: AuditSettings, *, framing: str = "auto"
) -> Utility:
    """Measure perplexity and next-token accuracy on tokens that no identifier touches.

    For a masked language model the perplexity is that of tokens masked an eighth at a time.

    Args:
        checkpoint: The model and its tokenizer.
        held_out: Documents that the model was not trained on.
        settings: Tokens per pass.
        framing: Name of the framing around each document.

    Raises:
        AuditError: If the held-out documents have no such token.
    """
    encoded = encode(rendered(held_out, checkpoint.tokenizer), checkpoint.tokenizer)
    scores = score_tokens(
        checkpoint, encoded, framing_of(checkpoint, framing), batch_tokens=settings.batch_tokens
    )
    return utility_of(scores)


def utility_of(tokens: TokenScores) -> Utility:
    """Compute the utility from the scores of held-out tokens.

    Raises:
        AuditError: If no token stands outside spans.
    """
    ordinary = ~tokens.in_span
    if not ordinary.any():
        raise AuditError(
            "the held-out documents have no token outside spans, so utility cannot be measured; "
            "give held-out documents with ordinary text in them"
        )
    return Utility(
        tokens=int(ordinary.sum()),
        perplexity=float(np.exp(-tokens.log_probability[ordinary].mean())),
        accuracy=float(tokens.likeliest[ordinary].mean()),
    )
