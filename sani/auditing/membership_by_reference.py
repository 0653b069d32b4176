"""Membership attacks that compare each token's score with the base's: two passes, no training.

Whoever has the base, as a rule everybody, divides by it: what is left is what the fine-tuning
taught. Each attack turns a document into one number, higher for a member.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sani.auditing.membership import DocumentScores

# About evenly spaced on a log scale, from pairs of tokens to phrases; the paper's range.
WINDOW_SIZES = (2, 3, 4, 6, 9, 13, 18, 25, 32, 40)
HARD_SHARE = 0.2  # of the tokens, as in min-k
SMALLEST_SHIFT = 1e-6  # nats; keeps the ratio of the error zone finite

Floats = NDArray[np.float64]


def reference_attacks(scores: DocumentScores, reference: DocumentScores) -> dict[str, Floats]:
    """Compute every attack that looks at the base, one number a document.

    Args:
        scores: Document scores of the checkpoint.
        reference: Those of the base, of the same documents.

    Returns:
        By name, [d]: ``reference``, mean log p minus the base's (Carlini et al. 2021;
        Mireshghallah et al. 2022); and, where both models read the same tokens, ``error_zone``,
        ``windows`` and ``hard_tokens``.

    Raises:
        ValueError: If the reference is of other documents.
    """
    if not np.array_equal(reference.document, scores.document):
        raise ValueError("the reference scores are of other documents")
    values = {"reference": scores.loss - reference.loss}
    if not np.array_equal(reference.num_tokens, scores.num_tokens):
        return values
    counts = scores.num_tokens
    ends = np.cumsum(counts)
    tokens_of = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    log_p, base_log_p = scores.token_log_probability, reference.token_log_probability
    wrong = ~scores.token_likeliest
    shift = log_p - base_log_p
    return {
        **values,
        "error_zone": _each(tokens_of, lambda at: error_zone(shift[at], wrong[at])),
        "windows": _each(tokens_of, lambda at: windows(shift[at])),
        "hard_tokens": _each(tokens_of, lambda at: hard_tokens(log_p[at], base_log_p[at])),
    }


def error_zone(shift: Floats, wrong: NDArray[np.bool_]) -> float:
    """Return the log of upward over downward shifts at the tokens that the checkpoint gets wrong.

    Args:
        shift: log p of each token minus the base's, nats, [t].
        wrong: True where the checkpoint finds another token likelier, [t].

    Source: EZ-MIA, Ilić et al. 2026 (2601.12104). Deviations: the log of the ratio, so that means
    over a subject's documents make sense; a document without a wrong token counts all its tokens,
    since one that is known by heart would have no score.
    """
    zone = shift[wrong] if wrong.any() else shift
    up, down = zone.clip(min=0).sum(), (-zone).clip(min=0).sum()
    return float(np.log((up + SMALLEST_SHIFT) / (down + SMALLEST_SHIFT)))


def windows(shift: Floats) -> float:
    """Return the share of windows whose loss is lower than the base's, averaged over their sizes.

    Args:
        shift: log p of each token minus the base's, nats, [t].

    Source: WBC, Chen et al. 2026 (2601.02751). Deviation: a document shorter than the shortest
    window is one window.
    """
    sums = np.concatenate([[0.0], np.cumsum(shift)])
    sizes = [size for size in WINDOW_SIZES if size <= len(shift)] or [len(shift)]
    return float(np.mean([(sums[size:] - sums[:-size] > 0).mean() for size in sizes]))


def hard_tokens(log_p: Floats, base_log_p: Floats) -> float:
    """Return how much likelier the checkpoint makes the tokens that the base finds hardest.

    Args:
        log_p: log p of each token, nats, [t].
        base_log_p: The base's, [t].

    Source: HT-MIA, Jawad et al. 2026 (2601.20885). Deviations: hard are the fifth of the tokens
    that the base gives the lowest probability, so that training cannot change which ones they are.
    """
    count = max(1, int(HARD_SHARE * len(log_p)))
    hard = np.argpartition(base_log_p, count - 1)[:count]
    return float((np.exp(log_p[hard]) - np.exp(base_log_p[hard])).mean())


def _each(tokens_of: list[slice], score: Callable[[slice], float]) -> Floats:
    return np.array([score(at) for at in tokens_of], dtype=np.float64)
