"""Commands after a run: report, verify, sign; and what they print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sani.cli import console
from sani.cli.errors import GATE_FAILED
from sani.cli.options import Json, ReleasedFolder
from sani.counting import counted, verb
from sani.errors import UsageError
from sani.reporting.format import share

if TYPE_CHECKING:
    from sani.reporting.schema import Report

NOT_SIGNED = " (so whoever changed a file may have changed the manifest too)"


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folder; two of them with --compare.")],
    compare: Annotated[
        bool, typer.Option("--compare", help="Show two runs side by side; write nothing.")
    ] = False,
    reveal: Annotated[
        bool,
        typer.Option(
            "--reveal",
            help="Also write what is still extractable, in clear, for the owner of the records: "
            "private/revealed.jsonl, mode 0600.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Render a finished run's report again. The exit code is 3 if its gate does not hold."""
    if len(runs) != 1 + compare or (compare and reveal):
        raise UsageError("give one run folder, or two with --compare (without --reveal)")
    from sani.runfolder import check_is_run

    for folder in runs:  # before the heavy libraries are loaded
        check_is_run(folder)
    if compare:
        _compare_runs(runs[0], runs[1], as_json=as_json)
        return
    from sani.reporting.advice import next_line
    from sani.reporting.report import write_pages
    from sani.reporting.stored_report import read_report

    folder = runs[0]
    report = read_report(folder)
    write_pages(folder, report)
    console.show_json(report.to_json()) if as_json else show_report(report, folder)
    if reveal:
        _reveal(folder)
    console.show_next(next_line(report.advice, run=str(folder)), as_json=as_json)
    raise typer.Exit(0 if report.gate.holds else GATE_FAILED)


def _reveal(folder: Path) -> None:
    """Write what is still extractable in clear, and print where."""
    from sani.pipeline.reveal_run import reveal_run

    file = reveal_run(folder)
    if file.stat().st_size:
        console.say(f"{file} holds identifiers in the clear (mode 0600)")
    else:
        console.say(f"{file} is empty: nothing was extracted, and none is beyond the base")


def _compare_runs(first: Path, second: Path, *, as_json: bool) -> None:
    """Print two runs side by side."""
    from dataclasses import asdict

    from sani.reporting.compare_runs import side_by_side
    from sani.reporting.next_steps import after_comparison

    sections = side_by_side(first, second)
    if as_json:
        console.show_json([asdict(section) for section in sections])
    else:
        for section in sections:
            console.show_section(section)
    console.show_next(after_comparison(), as_json=as_json)


def show_report(report: Report, folder: Path) -> None:
    """Print the compact table, the gate, and where the whole report stands."""
    from sani.reporting.advice import advice_lines
    from sani.reporting.escalation import tried
    from sani.reporting.evidence import summary, untested
    from sani.reporting.rounds import rounds
    from sani.reporting.sentences import beyond_base, verdict
    from sani.scanning.inventory import subjects_in_words

    console.show_section(tried(report))
    console.show_section(rounds(report))
    console.show_section(summary(report))
    console.show_checks(report.gate.checks)
    scan = report.scan
    console.show(
        f"{subjects_in_words(scan.documents, scan.subjects, scan.without_subject_id)}; "
        f"{counted(scan.documents_without_spans, 'document')} without any span; "
        f"{counted(scan.unmarked, 'place')} {verb(scan.unmarked, 'looks', 'look')} forgotten (see "
        f"sani scan). {beyond_base(report)}"
    )
    console.show(verdict(report))
    for line in advice_lines(report, run=str(folder)):
        console.show(f"- {line}")
    if scan.quality:
        recall = scan.quality.recall
        console.show(
            f"Estimated recall of the scan: {share(recall.value)} ({recall.hits} of "
            f"{recall.trials} direct gold identifiers found whole)."
        )
    console.show(f"Not tested: {'; '.join(untested(report))}.")
    holds = "holds" if report.gate.holds else "DOES NOT HOLD"
    console.show(f"The gate {holds}. Report: {folder / 'report.html'}")


def warn_of_files_not_released(model: Path, *, only_checked: bool = False) -> None:
    """Print which files of the source folder are neither copied nor judged, by kind."""
    from sani.releasing.released_files import files_not_released

    kinds = ", ".join(f"{kind} ({count})" for kind, count in files_not_released(model).items())
    if kinds:
        console.say(f"{'Not judged' if only_checked else 'Left behind'} in {model}: {kinds}")


def verify(
    folder: ReleasedFolder,
    key: Annotated[
        Path | None,
        typer.Option(help="Public key (PEM). The signature must then be valid."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Hash a released checkpoint again, and derive its verdict from the manifest's checks.

    The exit code is 3 if a file differs from the manifest, or the gate does not hold.
    """
    from dataclasses import asdict

    from sani.releasing.manifest import verify as verify_folder
    from sani.reporting.next_steps import after_verify

    result = verify_folder(folder, public_key=key)
    if as_json:
        console.show_json(asdict(result))
    else:
        for change in ("added", "missing", "changed"):
            for name in getattr(result, change):
                console.show(f"{change}: {name}")
        console.show(
            f"{counted(result.files, 'file')} in the manifest: {len(result.added)} added, "
            f"{len(result.missing)} missing, {len(result.changed)} changed. "
            f"Signature: {result.signature}"
            f"{NOT_SIGNED if result.signature in ('none', 'not checked') else ''}. "
            f"The gate of the run {'held' if result.gate_holds else 'DID NOT HOLD'}. "
            f"The run's report: {result.report}."
        )
        for problem in result.problems:
            console.show(problem)
        if result.weaker_limits:
            console.show(f"Weaker than the defaults: {'; '.join(result.weaker_limits)}.")
    console.show_next(after_verify(folder, result), as_json=as_json)
    raise typer.Exit(0 if result.holds else GATE_FAILED)


def sign(
    folder: ReleasedFolder,
    key: Annotated[Path, typer.Option(help="Private key (PEM, elliptic curve).")],
) -> None:
    r"""Sign a released checkpoint with your own key. Needs pip install 'sani-llm\[sign]'."""
    from sani.releasing.manifest import sign as sign_folder
    from sani.reporting.next_steps import after_sign

    console.show(f"Signature: {sign_folder(folder, key)}")
    console.show_next(after_sign(folder))
