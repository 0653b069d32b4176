"""The terms of the repair's loss, each a sum over the positions it is given, in nats.

They return sums and not means: a step may be read in chunks, halves and by several processes, and
sums of its parts add up to the sum of the whole. `objective` divides by the counts of the step.

Callers pass logits in float32. A log-softmax over a vocabulary of 50,000 entries loses its
small probabilities in bfloat16, and differences of log-probabilities are the gradient here.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Finite where minus infinity would do: exp(-1e9) is 0 in float32, and 0 * -1e9 is 0, whereas
# 0 * -inf in the KL's product p * log(p) would be NaN.
IMPOSSIBLE = -1e9
NPO_BETA = 0.1  # inverse temperature; Zhang et al. 2024 (2404.05868)


def ordinary_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the summed cross-entropy, -sum_i log p(target_i), in nats.

    Args:
        logits: [n, vocab], float32.
        targets: Token ids, [n].

    Source: PPclm, Boutet et al. 2025 (2501.02407): identifiers carry no loss and stay as context.
    """
    return functional.cross_entropy(logits, targets, reduction="sum")


def anchor_loss(logits: Tensor, anchor: Tensor) -> Tensor:
    """Return the summed KL(a || p) = sum_i sum_v a(v) (log a(v) - log p(v)), in nats.

    This is the forward KL: the model must give mass wherever the anchor does, so its prediction
    becomes the anchor's, and a value that the anchor holds for unlikely becomes unlikely.

    Args:
        logits: The model's (p), [n, vocab], float32.
        anchor: Log-probabilities of a model that never saw the identifiers (a), [n, vocab].

    Source: ours (a distillation term, Hinton et al. 2015, restricted to identifier tokens).
    """
    # torch's kl_div takes (log p, log a) in this order and computes exp(log a) * (log a - log p).
    return functional.kl_div(logits.log_softmax(dim=1), anchor, log_target=True, reduction="sum")


def unlikelihood_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -sum_i log(1 - p(target_i)) in nats.

    There is no gradient where the target is impossible already.

    Args:
        logits: [n, vocab], float32.
        targets: The true tokens, [n].

    Source: Welleck et al. 2019 (1908.04319), with the true identifier as the only negative token.
    """
    # 1 - p rounds to 0 in float32 once p > 1 - 6e-8, as for every value that is memorized well.
    # In logits: 1 - p(t) = sum_{v != t} exp(l_v) / sum_v exp(l_v), whose logarithm is a
    # difference of two logsumexp and stays finite; its gradient at the target is p(t).
    others = logits.scatter(1, targets[:, None], -torch.inf).logsumexp(dim=1)
    return (logits.logsumexp(dim=1) - others).sum()


def npo_loss(
    logits: Tensor, reference: Tensor, targets: Tensor, occurrence: Tensor, *, beta: float
) -> Tensor:
    """Return -2/beta sum_o log sigmoid(-beta log(p(o) / r(o))) over occurrences o, in nats.

    p(o) and r(o) are the probabilities of the whole value under the model and the reference.

    Args:
        logits: The model's (p), [n, vocab], float32.
        reference: Log-probabilities of the unsanitized model (r), [n, vocab].
        targets: The true tokens, [n].
        occurrence: Number of the occurrence that each token belongs to, from 0, [n].
        beta: Inverse temperature; towards 0 this is gradient ascent.

    Source: NPO, Zhang et al. 2024 (2404.05868). Deviation: an occurrence is the unit, not a text.
    """
    ratio = logits.log_softmax(dim=1) - reference
    ratio = ratio.gather(1, targets[:, None]).squeeze(1)
    # The log-ratio of a value is the sum of those of its tokens: p(o) is their product.
    of_value = ratio.new_zeros(int(occurrence.max()) + 1).index_add(0, occurrence, ratio)
    # -log sigmoid(-x) = softplus(x), which does not overflow for a large x.
    return 2 / beta * functional.softplus(beta * of_value).sum()


def log_probs_without_target(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log-probabilities [..., n, vocab] with one token of each row made impossible.

    The probability of that token is shared out among the others in proportion to theirs.

    Source: UNDIAL, Dong et al. 2024 (2402.10052), which subtracts a constant; ours is the limit.
    """
    return logits.scatter(-1, targets[..., None], IMPOSSIBLE).log_softmax(dim=-1)
