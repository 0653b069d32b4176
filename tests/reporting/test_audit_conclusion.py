"""`sani audit` ends with two sentences: how much is recited, and whether that is memory."""

from dataclasses import replace

import pytest

from sani.auditing.candidate_tests import CountTest
from sani.auditing.record import AuditRecord
from sani.recipe import AuditSettings
from sani.reporting.next_steps import conclusion_of_audit
from tests.support.reports import corpus_of, finished_run


@pytest.fixture(scope="module")
def audits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AuditRecord]:
    _, _, report = finished_run(tmp_path_factory.mktemp("run") / "run", corpus_of(40, 8))
    return {"model": report.audits["after"], "base": report.audits["base"]}


def conclusion(audits: dict[str, AuditRecord]) -> str:
    text = conclusion_of_audit(audits, AuditSettings())
    assert text.count(". ") == 1, "two sentences"
    assert text.endswith(".")
    return text


def with_tests(audits: dict[str, AuditRecord], *, leaks: bool) -> dict[str, AuditRecord]:
    tests = (audits["model"].control_tests or {})["direct"]
    count = CountTest(9 if leaks else 0, 2, 9, 0, 0)
    changed = replace(tests, greedy=count, discoverable=CountTest(0, 2, 0, 0, 0), at_risk=0)
    model = replace(audits["model"], control_tests={"direct": changed})
    return {**audits, "model": model}


def test_it_says_memory_only_where_more_is_given_than_chance_allows(
    audits: dict[str, AuditRecord],
) -> None:
    greedy = audits["model"].figures["direct"].greedy
    leaky = conclusion(with_tests(audits, leaks=True))
    assert leaky.startswith(
        f"Of {greedy.trials} direct identifiers the model recites {greedy.hits}"
    )
    assert "This is memory: the base, which never saw the records, recites" in leaky
    clean = conclusion(with_tests(audits, leaks=False))
    assert "No memory was found, which is no proof that there is none" in clean


def test_without_a_base_or_an_identifier_it_concludes_nothing(
    audits: dict[str, AuditRecord],
) -> None:
    alone = {"model": audits["model"]}
    assert "Without --base nobody can tell" in conclusion(alone)
    empty = replace(audits["model"], figures={})
    assert "says nothing of whether the model recites" in conclusion({"model": empty})
    untested = replace(audits["model"], control_tests=None)
    assert "to be compared with the base" in conclusion({**audits, "model": untested})
