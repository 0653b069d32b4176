"""Check of sampling: what the model writes by itself, beyond the base and beyond chance."""

from __future__ import annotations

from dataclasses import replace

from sani.auditing.record import AuditRecord
from sani.auditing.sampled_test import SampledTest
from sani.corpus.documents import Kind
from sani.counting import counted, verb
from sani.gate.check import MIN_TRIALS, Check, count_check, few_decoys
from sani.recipe import CountLimit

NOT_SAMPLED = (
    "What the model writes by itself was not compared with a control for this kind of identifiers."
)


def check_sampling(kind: Kind, limit: CountLimit, before: AuditRecord, after: AuditRecord) -> Check:
    """Check how many values the sanitized checkpoint writes by itself and its control does not.

    Args:
        kind: The kind of identifiers.
        limit: A number, or ``test`` for what chance allows.
        before: Audit of the unsanitized checkpoint: what it writes says if the samples are enough.
        after: Audit of the sanitized checkpoint, with its control tests.
    """
    name = f"sampled_beyond_control.{kind}"
    tests = (after.control_tests or {}).get(kind)
    test = tests.sampled if tests else None
    if test is None:
        return Check(name, None, None, False, NOT_SAMPLED)
    problem = _too_little(test, decoys=limit == "test")
    if problem is not None:
        return Check(name, None, None, False, problem)
    highest = test.limit if limit == "test" else int(limit)
    source = (
        "a model that never saw the records writes more in 5 of 100 cases"
        if limit == "test"
        else "the recipe sets the limit"
    )
    sentence = (
        f"Of {counted(test.searched, 'value')}, {test.count} (of "
        f"{counted(test.subjects, 'subject')}) {verb(test.count, 'is', 'are')} written in "
        f"{counted(test.samples, 'sample')} and not by the control; at most {highest} may be: "
        f"{source}."
    )
    check = count_check(name, test, limit, sentence)
    return replace(check, reason=f"{check.reason} {_power(before)}")


def _too_little(test: SampledTest, *, decoys: bool) -> str | None:
    """Return why the samples decide nothing; None if they do."""
    if test.searched < MIN_TRIALS:
        return (
            f"Only {counted(test.searched, 'value')} {verb(test.searched, 'is', 'are')} long "
            f"enough to be searched for; fewer than {MIN_TRIALS} say too little."
        )
    if not decoys:
        return None
    return few_decoys(test.searched - test.without_decoys, test.searched, "values")


def _power(before: AuditRecord) -> str:
    """Return what as many samples of the unsanitized checkpoint bring up."""
    number = before.generation.recited["all"].identifiers if before.generation else 0
    if not number:
        return (
            "As many samples of the unsanitized checkpoint bring up none, so this check says "
            "little: draw more (audit.generation)."
        )
    return f"As many samples of the unsanitized checkpoint bring up {number}."
