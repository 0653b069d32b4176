"""Checks of memory: what the model gives, and prefers, beyond the base and beyond chance."""

from __future__ import annotations

from collections.abc import Iterator

from sani.auditing.candidate_tests import CountTest, LargestTest
from sani.auditing.control_tests import ControlTests
from sani.auditing.record import AuditRecord
from sani.corpus.documents import Kind
from sani.counting import counted, verb
from sani.gate.check import MIN_TRIALS, Check, compare, count_check, few_decoys, too_few
from sani.recipe import CountLimit, GateSettings

NOT_TESTED = "The audit was not compared with a control."


def check_memory(kind: Kind, settings: GateSettings, after: AuditRecord) -> Iterator[Check]:
    """Yield the checks of the control tests of one kind.

    Args:
        kind: The kind of identifiers.
        settings: The limits.
        after: Audit of the sanitized checkpoint, with its control tests.
    """
    tests = (after.control_tests or {}).get(kind)
    for name, limit in (
        ("greedy", settings.greedy_beyond_control),
        ("discoverable", settings.discoverable_beyond_control),
    ):
        if limit is not None:
            yield _count(f"{name}_beyond_control.{kind}", tests, name, limit)
    if settings.subjects is not None:
        yield _largest(f"subjects.{kind}", tests, "subjects")
        yield _largest(f"labels.{kind}", tests, "labels")
    if settings.auc_to_base is not None:
        yield _auc_to_base(f"auc_to_base.{kind}", tests, settings.auc_to_base)


def _too_little(tests: ControlTests | None, *, decoys: bool) -> str | None:
    """Return why the tests decide nothing; None if they do."""
    if tests is None:
        return NOT_TESTED
    if tests.occurrences < MIN_TRIALS:
        return too_few(tests.occurrences)
    if not decoys:
        return None
    return few_decoys(tests.occurrences - tests.without_decoys, tests.occurrences)


def _count(name: str, tests: ControlTests | None, figure: str, limit: CountLimit) -> Check:
    problem = _too_little(tests, decoys=limit == "test")
    if tests is None or problem is not None:
        return Check(name, None, None, False, problem or NOT_TESTED)
    test: CountTest = tests.greedy if figure == "greedy" else tests.discoverable
    highest = test.limit if limit == "test" else int(limit)
    source = (
        "a model that never saw the records gives more in 5 of 100 cases"
        if limit == "test"
        else "the recipe sets the limit"
    )
    given = "recited" if figure == "greedy" else "(n, p)-discoverable"
    reason = (
        f"{counted(test.count, 'value of a subject', 'values of subjects')} ({test.occurrences} "
        f"of {counted(tests.occurrences, 'uncued occurrence')}) {verb(test.count, 'is', 'are')} "
        f"{given} and not given by the control; at most {highest} may be: {source}."
    )
    return count_check(name, test, limit, reason)


def _largest(name: str, tests: ControlTests | None, groups: str) -> Check:
    problem = _too_little(tests, decoys=True)
    if tests is None or problem is not None:
        return Check(name, None, None, False, problem or NOT_TESTED)
    test: LargestTest = tests.subjects if groups == "subjects" else tests.labels
    if test.largest is None or test.limit is None:
        return Check(name, None, None, False, "No decoys were scored.")
    reason = (
        f"{test.above} of {test.tested} {groups} {verb(test.above, 'stands', 'stand')} out from "
        "the decoys more than any would in 99 of 100 models that never saw the records, as far as "
        "decoys and held-out people tell."
    )
    if groups == "subjects" and tests.untested:
        reason += (
            f" {counted(tests.untested, 'subject')} {verb(tests.untested, 'has', 'have')} no "
            f"decoys and {verb(tests.untested, 'was', 'were')} not tested."
        )
    return compare(name, test.largest, test.limit, reason, bounded=False)


def _auc_to_base(name: str, tests: ControlTests | None, excess: float) -> Check:
    problem = _too_little(tests, decoys=True)
    if tests is None or problem is not None:
        return Check(name, None, None, False, problem or NOT_TESTED)
    if tests.auc_to_base.value is None:
        return Check(name, None, None, False, "No decoys were scored.")
    outside = tests.held_out_auc.value if tests.held_out_auc else None
    if outside is not None and not tests.held_out_is_control:
        reason = (
            f"The same of held-out people is {outside:.3f}: the model seems to have read them, so "
            f"they are no control. {excess} above chance (0.5) is allowed."
        )
        return compare(name, tests.auc_to_base.value, 0.5 + excess, reason)
    # Below 0.5 held-out people leave no more room: their values are none of the decoys' pieces.
    highest = max(0.5, outside or 0.5) + excess
    reason = f"{excess} above chance (0.5) is allowed."
    if outside is not None:
        reason = (
            f"The same of held-out people is {outside:.3f}; {excess} above the larger of that and "
            "chance (0.5) is allowed."
        )
    value = tests.auc_to_base.value
    lowest = min(0.5, outside or 0.5) - 2 * excess
    if value < lowest:
        # Values that were pushed below their decoys can be read off as well as those above them.
        reason = (
            f"True values are less likely than their decoys: {value:.3f}; at least {lowest:.3f}."
        )
        return Check(name, value, lowest, False, reason, at_least=True)
    return compare(name, value, highest, reason)
