"""Membership inference against slow versions, hand-made cases and a model that really memorized."""

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from sani.auditing.audit import audit
from sani.auditing.membership import DocumentScores, _area, membership
from sani.corpus.documents import Corpus
from sani.demo.clinic import invent_clinics
from sani.models.checkpoint import Checkpoint
from sani.recipe import AuditSettings
from tests.support.clinic import Clinic
from tests.support.optional import present

ASKED = AuditSettings(decoys=0, swaps=0, framing="bos")


@torch.no_grad()
def slow_scores(checkpoint: Checkpoint, text: str) -> Any:
    """Loss, zlib, min-k and min-k++ of one text, from one plain forward pass."""
    tokenizer = checkpoint.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    inputs = torch.tensor([[tokenizer.bos_token_id, *ids]])
    chances = checkpoint.model(input_ids=inputs).logits[0, :-1].double().log_softmax(dim=1)
    own = [float(chances[place, token]) for place, token in enumerate(ids)]
    scaled = []
    for place, value in enumerate(own):
        p = chances[place].exp()
        mean = float((p * chances[place]).sum())
        spread = float((p * chances[place] ** 2).sum() - mean**2) ** 0.5
        scaled.append((value - mean) / spread)
    lowest = max(1, len(ids) // 5)
    return (
        np.mean(own),
        sum(own) / len(zlib.compress(text.encode())),
        np.mean(sorted(own)[:lowest]),
        np.mean(sorted(scaled)[:lowest]),
    )


def test_document_scores_equal_those_of_plain_forward_passes(
    clinic: Clinic, leaky: Checkpoint
) -> None:
    found = audit(leaky, clinic.private, ASKED, held_out=clinic.held_out).documents
    assert present(found).member.tolist() == [True] * len(clinic.private) + [False] * len(
        clinic.held_out
    )
    documents = [*clinic.private, *clinic.held_out]
    for number, document in enumerate(documents):
        expected = slow_scores(leaky, document.text)
        names = ("loss", "zlib", "min_k", "min_k_plus")
        got = [float(getattr(found, name)[number]) for name in names]
        assert got == pytest.approx(expected, abs=1e-3)


def test_a_model_that_memorized_is_found_out_and_one_that_saw_neither_is_not(
    clinic: Clinic, leaky: Checkpoint, base: Checkpoint
) -> None:
    memorized = audit(leaky, clinic.private, ASKED, held_out=clinic.held_out)
    control = audit(base, clinic.private, ASKED, held_out=clinic.held_out)
    unseen = invent_clinics([20, 8, 5, 60], seed=11)[3]
    subjects = sorted({document.subject_id for document in unseen})
    halves = [
        Corpus([d for d in unseen if (subjects.index(d.subject_id) < 30) == first])
        for first in (True, False)
    ]
    neither = audit(base, halves[0], ASKED, held_out=halves[1])
    for level in ("document", "subject"):
        for attack in present(memorized.membership).attacks[level].values():
            assert present(attack.auc.value) > 0.9
        for attack in present(neither.membership).attacks[level].values():
            assert present(attack.auc.low) <= 0.5 <= present(attack.auc.high)
    with_reference = membership(present(memorized.documents), reference=control.documents, seed=0)
    assert present(present(with_reference).attacks["document"]["reference"].auc.value) > 0.9
    assert present(with_reference).non_members == len(clinic.held_out)
    wanted = {"1.0% FPR by document", "0.1% FPR by document", "1.0% FPR by subject"}
    assert all(any(part in line for line in present(with_reference).warnings) for part in wanted)


def scores(values: Any, member: Any, subject: Any = None, tokens: Any = None) -> Any:
    values = np.array(values, dtype=float)
    number = len(values)
    return DocumentScores(
        member=np.array(member),
        document=np.arange(number),
        subject=np.arange(number) if subject is None else np.array(subject),
        num_tokens=np.full(number, 10) if tokens is None else np.array(tokens),
        loss=values,
        zlib=values,
        min_k=values,
        min_k_plus=values,
        token_log_probability=np.repeat(values, 10 if tokens is None else tokens),
        token_likeliest=np.zeros(int(np.sum(10 if tokens is None else tokens)), dtype=bool),
    )


def test_the_area_is_that_of_all_pairs_and_its_interval_covers_the_truth() -> None:
    chance = np.random.default_rng(0)
    covered = 0
    for round_ in range(60):
        # Three documents a subject, which move together: the area of one draw varies by subject.
        moved = np.repeat(chance.normal(size=60), 3)
        member = np.repeat(np.arange(60) < 30, 3)
        values = np.round(moved + chance.normal(scale=0.3, size=180) + member, 1)
        subject = np.repeat(np.arange(60), 3)
        area = _area(values, member, subject, round_)
        if round_ == 0:
            found = membership(scores(values, member, subject), seed=round_)
            assert present(found).attacks["document"]["loss"].auc == area
        pairs = values[member][:, None] - values[~member][None]
        assert area.value == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
        truth = stats.norm.cdf(1 / np.sqrt(2 * (1 + 0.3**2)))
        covered += present(area.low) <= truth <= present(area.high)
    # Resampling documents, of members or of others or of both, covers it 53, 51 and 46 times.
    assert covered >= 54, "95 % intervals that resample subjects must cover nearly always"


def test_true_positives_at_a_false_positive_rate_match_a_count_by_hand() -> None:
    outside = list(np.linspace(0, 1, 200))
    inside = [0.5, 0.991, 0.996, 1.0, 2.0]
    found = membership(scores([*inside, *outside], [True] * 5 + [False] * 200), seed=0)
    attack = present(found).attacks["document"]["loss"]
    # 1 % of 200 is two false alarms: above the third highest, 197/199, stand four of five.
    assert (attack.tpr["0.01"].hits, attack.tpr["0.01"].trials) == (4, 5)
    assert attack.tpr["0.001"].hits == 1  # none may be wrong: above 1.0 stands one
    assert not any("1.0% FPR" in line for line in present(found).warnings)
    assert any("0.1% FPR" in line for line in present(found).warnings)


def test_subjects_are_judged_by_the_mean_over_their_tokens() -> None:
    found = membership(
        scores([1.0, 4.0, 2.0, 2.5], [True, True, False, False], [0, 0, 1, 2], [30, 10, 5, 5]),
        seed=0,
    )
    assert (present(found).member_subjects, present(found).non_member_subjects) == (1, 2)
    assert present(found).attacks["subject"]["loss"].auc.value == 0.0  # 1.75 is below both
    assert present(found).attacks["subject"]["loss"].either_way == 1.0
    assert present(found).attacks["document"]["loss"].auc.value == 0.5


def test_without_one_side_there_is_nothing_to_tell_apart() -> None:
    assert membership(scores([1.0, 2.0], [True, True]), seed=0) is None


def test_a_reference_of_other_documents_is_refused() -> None:
    one = scores([1.0, 2.0], [True, False])
    with pytest.raises(ValueError, match="other documents"):
        membership(one, reference=replace(one, document=np.array([3, 4])), seed=0)


def test_no_more_documents_are_tried_than_asked_for(clinic: Clinic, base: Checkpoint) -> None:
    few = audit(
        base,
        clinic.private,
        AuditSettings(decoys=0, swaps=0, framing="bos", membership_documents=3),
        held_out=clinic.held_out,
    )
    assert int(present(few.documents).member.sum()) == 3
    assert present(few.membership).members == 3
    none = AuditSettings(decoys=0, swaps=0, framing="bos", membership_documents=0)
    assert audit(base, clinic.private, none, held_out=Corpus(clinic.held_out[:])).membership is None
