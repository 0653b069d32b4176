"""The advice in words: every branch, the same in the terminal and in every format."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import pytest

from sani.auditing.record import AuditRecord
from sani.cli.main import main
from sani.gate import Check
from sani.gate.advice import Advice, Cause, Next, Setting, Why
from sani.gate.failed import FailedLimit
from sani.releasing.manifest import Verification
from sani.reporting import next_steps
from sani.reporting.advice import (
    CAUSES,
    MEASURED,
    advice_lines,
    better_base,
    failed_in_words,
    next_line,
    settings_in_words,
)
from sani.reporting.junit import junit
from sani.reporting.schema import Report
from sani.reporting.sentences import doubt, verdict
from tests.support.reports import corpus_of, finished_run, report_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose gate does not hold."""
    folder = tmp_path_factory.mktemp("run") / "first"
    finished_run(folder, corpus_of(40, 8))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """The report of such a run as plain data."""
    _, _, report = finished_run(tmp_path_factory.mktemp("run") / "other", corpus_of(40, 8))
    return report.to_json()


PLAIN = Advice([], [], "decide", [], None, base_is_better=False, unsettled={})


def with_advice(data: Mapping[str, Any], **changes: Any) -> Report:
    return report_of({**data, "advice": asdict(replace(PLAIN, **changes))})


def limit(name: str, *counts: int | None, noise: bool | None = False) -> FailedLimit:
    values, occurrences, subjects = counts
    return FailedLimit(name, "direct", values, occurrences, subjects, False, noise)


def test_a_failed_limit_says_how_much_and_if_chance(data: Mapping[str, Any]) -> None:
    missing = FailedLimit("unscored", None, None, None, None, missing=True, noise=None)
    failed = [
        limit("greedy_beyond_control.direct", 1, 11, 4),
        limit("subjects.direct", None, None, 1, noise=True),
        limit("labels.direct", 2, None, None),
        limit("perplexity_ratio", None, None, None, noise=None),
        missing,
    ]
    assert failed_in_words(with_advice(data, failed=failed)) == [
        "greedy_beyond_control.direct: 1 value, 11 occurrences, 4 subjects. That is more than "
        "chance is likely to give.",
        "subjects.direct: 1 subject. Chance may be the reason.",
        "labels.direct: 2 labels. That is more than chance is likely to give.",
        "perplexity_ratio: not met.",
        "unscored: not decided; the table of limits says what is missing.",
    ]


def test_labels_above_the_limit_are_named(data: Mapping[str, Any]) -> None:
    report = with_advice(data, failed=[limit("labels.direct", 2, None, None)])
    named = replace_at_risk(report, ["NAME", "EMAIL"])
    assert failed_in_words(named) == [
        "labels.direct: 2 labels (NAME, EMAIL). That is more than chance is likely to give."
    ]


def replace_at_risk(report: Report, labels: list[str]) -> Report:
    """Return a report in which these labels stand out."""
    return report_of(
        {**report.to_json(), "at_risk": {"direct": {"subjects": [], "labels": labels}}}
    )


def test_every_cause_and_every_measurement_has_a_sentence(data: Mapping[str, Any]) -> None:
    assert CAUSES.keys() == set(get_args(Cause))
    assert MEASURED.keys() == set(get_args(Why))
    for cause, sentence in CAUSES.items():
        lines = list(advice_lines(with_advice(data, causes=[cause])))
        assert lines == [f"Likely cause. {sentence}"]


NEXT: dict[Next, str] = {
    "decide": "sani verify runs/a/sanitized",
    "share_base": "share the base instead",
    "fix_inputs": "correct what the reasons",
    "annotate": "look at what the corpus marks",
    "more_records": "audit more records",
    "give_base": "give the public model",
    "sanitize": "sanitize the unsanitized checkpoint again",
    "settings": "sani run runs/a --try-next changes erase to {interpolate_to_base: 0.9}.",
    "retrain": "retrain from the base with identifiers masked: no other setting",
    "nothing": "no setting is known to help",
}


def test_every_next_step_is_one_line() -> None:
    assert NEXT.keys() == set(get_args(Next))
    near = Setting("erase", "{interpolate_to_base: 0.9}", "near_base")
    for step, start in NEXT.items():
        settings = [near] if step == "settings" else []
        line = next_line(replace(PLAIN, next=step, settings=settings), run="runs/a")
        assert line.startswith(f"Next: {start}")
        assert "\n" not in line


def test_retraining_has_its_cost() -> None:
    settings = [Setting("erase", "{interpolate_to_base: 1.0}", "retraining")]
    retrain = replace(PLAIN, next="retrain", settings=settings, seconds=61.4)
    assert "at the cost of a repair (61 s in this run)." in next_line(retrain)
    assert "cost" not in next_line(replace(retrain, seconds=None))


def test_settings_name_their_measurement_once() -> None:
    settings = [Setting("a.b", "1", "skill"), Setting("c", "null", "skill")]
    words = settings_in_words(replace(PLAIN, settings=settings))
    assert words == f"--set 'a.b=1' --set 'c=null' ({MEASURED['skill']})"
    assert settings_in_words(PLAIN) == ""


def test_a_better_base_and_a_doubt_are_said(data: Mapping[str, Any]) -> None:
    better = with_advice(data, base_is_better=True)
    assert "perplexity 6.000 against 3.000" in better_base(better)
    assert better_base(with_advice(data)) == ""
    assert doubt(with_advice(data)) == ""
    unsettled = with_advice(data, unsettled={"auc_to_base.direct": 766})
    assert doubt(unsettled) in verdict(unsettled)
    assert doubt(unsettled) == (
        "766 occurrences do not settle auc_to_base.direct: the limit lies within the 95 % interval."
    )


def test_all_formats_and_the_terminal_say_the_same(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run)]) == 3
    said = capsys.readouterr().out
    report = Report.model_validate_json((run / "report.json").read_text())
    lines = list(advice_lines(report))
    assert len(lines) > 3
    page, short = (run / "report.html").read_text(), (run / "report.md").read_text()
    first_screen = page[: page.index('id="details"')].replace("&#39;", "'")
    for line in [*lines, next_line(report.advice)]:
        assert line in first_screen
        assert line in short
    for line in advice_lines(report, run=str(run)):
        assert f"- {line}\n" in said
    assert said.splitlines()[-1] == next_line(report.advice, run=str(run))


def test_a_pass_has_its_values_in_junit(data: Mapping[str, Any]) -> None:
    gate = {
        "holds": True,
        "weaker": [],
        "checks": [asdict(Check("unscored", 0.0, 0.0, True, "All."))],
    }
    suite = ElementTree.fromstring(junit(report_of({**data, "gate": gate})))
    (case,) = suite.findall("testcase")
    assert case.findtext("system-out") == "Measured: 0. Allowed: at most 0. All."
    assert case.find("failure") is None


# ---- commands that are no run ----------------------------------------------------------------


def verification(*changed: str, holds: bool = True, signature: Any = "none") -> Verification:
    return Verification(
        files=1, added=(), missing=(), changed=changed, signature=signature, gate_holds=holds,
        weaker_limits=(), problems=(), report="as written", holds=holds and not changed,
    )  # fmt: skip


def test_a_verification_says_what_next(tmp_path: Path) -> None:
    said = [
        next_steps.after_verify(tmp_path, result)
        for result in (
            verification("model.safetensors"),
            verification(holds=False),
            verification(),
            verification(signature="valid"),
        )
    ]
    starts = ["find out who", "do not share", "sani sign", "keep the verdict"]
    assert all(line.startswith(f"Next: {start}") for line, start in zip(said, starts, strict=True))


def test_an_audit_says_what_next(data: Mapping[str, Any]) -> None:
    audit: AuditRecord = report_of(dict(data)).audits["after"]
    silent = replace(audit.figures["direct"], greedy=nothing(audit), discoverable=nothing(audit))
    cases: Sequence[tuple[AuditRecord, bool, str]] = [
        (audit, False, "the same with --base"),
        (replace(audit, figures={}), True, "mark direct identifiers"),
        (audit, True, "sani init"),
        (replace(audit, figures={"direct": silent}), True, "a recipe with model.unsanitized"),
    ]
    for record, base, start in cases:
        line = next_steps.after_audit({"model": record}, base=base)
        assert line.startswith(f"Next: {start}")


def nothing(audit: AuditRecord) -> Any:
    return replace(audit.figures["direct"].greedy, hits=0)


def test_other_commands_say_what_next(tmp_path: Path) -> None:
    failed = Check("attack.relearn.greedy", 0.5, 0.1, False, "")
    lines = [
        next_steps.after_check(tmp_path, holds=True),
        next_steps.after_check(tmp_path, holds=False),
        next_steps.after_attack([failed]),
        next_steps.after_attack([replace(failed, holds=True)]),
        next_steps.after_plan(),
        next_steps.after_erase(tmp_path),
        next_steps.after_repair(tmp_path),
        next_steps.after_sample(tmp_path),
        next_steps.after_review_page(tmp_path),
        next_steps.after_review(),
        next_steps.after_comparison(),
        next_steps.after_sign(tmp_path),
    ]
    assert len(set(lines)) == len(lines)
    assert all(line.startswith("Next: ") and "\n" not in line for line in lines)
    assert "attack.relearn.greedy" in lines[2]
    assert "attack.relearn.greedy" not in lines[3]
