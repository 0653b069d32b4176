"""The report of a finished run, read back from its file."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from sani.errors import RunError
from sani.releasing.verdict import verdict_problems
from sani.reporting.schema import SCHEMA_VERSION, Report
from sani.runfolder import check_is_run, check_report


def read_report(folder: Path) -> Report:
    """Read the report of a finished run.

    Raises:
        RunError: If there is none, it is not of this version's shape, its verdict does not follow
            from its checks, or it was changed since the run wrote it: its digest stands in
            ``private/`` and in the manifest of ``sanitized/``.
    """
    check_is_run(folder)
    path = folder / "report.json"
    try:
        text = path.read_text(encoding="utf-8")
        version = json.loads(text).get("schema_version")
    except FileNotFoundError:
        raise RunError(f"{folder} holds no report.json; finish the run with --resume") from None
    except (OSError, ValueError, AttributeError):
        raise RunError(f"{path} cannot be read as JSON; make it again with --resume") from None
    check_report(folder, text)
    if version != SCHEMA_VERSION:
        raise RunError(
            f"{path} has schema_version {version!r:.20}, this sani reads {SCHEMA_VERSION}; make "
            "it again with sani run --resume"
        )
    try:
        report = Report.model_validate_json(text)
    except ValidationError as error:
        field = ".".join(map(str, error.errors(include_input=False)[0]["loc"]))
        raise RunError(
            f"{path}: {error.error_count()} of its fields do not fit the schema, the first is "
            f"{field}; make it again with sani run --resume"
        ) from None
    if problems := verdict_problems(report.gate, report.gate_settings.model_dump(mode="json")):
        raise RunError(f"{path} contradicts itself: {' '.join(problems)} Make the report again")
    return report
