"""Membership attacks with the base as reference: slow versions, and a model that leaks."""

from dataclasses import replace

import numpy as np
import pytest

from sani.auditing.audit import audit
from sani.auditing.membership import DocumentScores, membership
from sani.auditing.membership_by_reference import (
    WINDOW_SIZES,
    error_zone,
    hard_tokens,
    reference_attacks,
    windows,
)
from sani.models.checkpoint import Checkpoint
from sani.recipe import AuditSettings
from tests.support.clinic import Clinic
from tests.support.optional import present

SETTINGS = AuditSettings(decoys=0, swaps=0, framing="bos")
NAMES = ("reference", "error_zone", "windows", "hard_tokens")


def test_each_score_is_that_of_a_loop_over_the_tokens() -> None:
    chance = np.random.default_rng(0)
    for tokens in (1, 2, 7, 61):
        log_p, base = -chance.exponential(size=(2, tokens))
        wrong = chance.random(tokens) < 0.5
        shift = log_p - base
        zone = [s for s, w in zip(shift, wrong, strict=True) if w or not wrong.any()]
        up, down = sum(s for s in zone if s > 0), -sum(s for s in zone if s < 0)
        assert error_zone(shift, wrong) == pytest.approx(np.log((up + 1e-6) / (down + 1e-6)))
        shares = []
        for size in [size for size in WINDOW_SIZES if size <= tokens] or [tokens]:
            votes = [sum(shift[i : i + size]) > 0 for i in range(tokens - size + 1)]
            shares.append(sum(votes) / len(votes))
        assert windows(shift) == pytest.approx(sum(shares) / len(shares))
        hardest = sorted(range(tokens), key=lambda i: base[i])[: max(1, tokens // 5)]
        gains = [np.exp(log_p[i]) - np.exp(base[i]) for i in hardest]
        assert hard_tokens(log_p, base) == pytest.approx(np.mean(gains))


def test_a_document_known_by_heart_scores_high_in_the_error_zone() -> None:
    known = error_zone(np.full(8, 3.0), np.zeros(8, dtype=bool))
    assert known > error_zone(np.array([3.0, -3.0]), np.ones(2, dtype=bool)) == 0.0


def scores_of(checkpoint: Checkpoint, clinic: Clinic) -> DocumentScores:
    return present(audit(checkpoint, clinic.private, SETTINGS, held_out=clinic.held_out).documents)


def test_a_model_that_read_the_records_is_told_from_one_that_did_not(
    clinic: Clinic, leaky: Checkpoint, base: Checkpoint
) -> None:
    leaks, control = scores_of(leaky, clinic), scores_of(base, clinic)
    attacks = present(membership(leaks, reference=control, seed=0)).attacks
    for level in ("document", "subject"):
        for name in NAMES:
            assert present(attacks[level][name].auc.value) > 0.9, (level, name)
    # The base, compared with itself, tells nothing apart.
    itself = present(membership(control, reference=control, seed=0)).attacks["document"]
    assert [itself[name].auc.value for name in NAMES] == [0.5] * len(NAMES)


def test_the_tokens_are_those_of_their_document(clinic: Clinic, leaky: Checkpoint) -> None:
    scores = scores_of(leaky, clinic)
    ends = np.cumsum(scores.num_tokens)
    parts = np.split(scores.token_log_probability, ends[:-1])
    assert [part.mean() for part in parts] == pytest.approx(scores.loss.tolist())
    assert len(scores.token_likeliest) == ends[-1]


def test_models_with_other_tokens_are_compared_by_loss_alone(
    clinic: Clinic, leaky: Checkpoint
) -> None:
    scores = scores_of(leaky, clinic)
    other = replace(scores, num_tokens=scores.num_tokens + 1)
    assert list(reference_attacks(scores, other)) == ["reference"]
    with pytest.raises(ValueError, match="other documents"):
        reference_attacks(scores, replace(scores, document=scores.document + 1))
