"""The report of a run: result files in, JSON, Markdown, HTML and JUnit out. Never reads a model."""

from __future__ import annotations

import html
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from sani.checkpoint import write_text
from sani.corpus.documents import Corpus
from sani.gate import Check
from sani.recipe import Recipe
from sani.reporting.compare import beyond_control, compare
from sani.runfolder import RunFolder

SCHEMA_VERSION = 1
STAGES = ("base", "before", "erased", "after")
MOST_LISTED = 50

NOT_TESTED = (
    "sampling, prompts other than the documents' own text, relearning, quantization, and guidance "
    "by the unsanitized checkpoint (no attack was run)",
    "identifiers that the corpus does not mark",
    "an identifier written with other tokens or in another form than in its document",
    "membership inference",
    "documents that were not given to this run",
)


def build_report(
    folder: RunFolder, recipe: Recipe, corpus: Corpus, checks: Sequence[Check]
) -> dict[str, Any]:
    """Everything a run found, as ``report.json`` holds it; no identifier, no document id."""
    return {
        "schema_version": SCHEMA_VERSION,
        "gate": {
            "holds": bool(checks) and all(check.holds for check in checks),
            "checks": [check.to_json() for check in checks],
        },
        "scan": folder.load("scan"),
        "audits": {
            stage: data for stage in STAGES if (data := folder.load(f"audit-{stage}")) is not None
        },
        "changes": _changes(folder, corpus),
        "erase": _erased(folder.load("erase")),
        "repair": folder.load("repair"),
        "audit_settings": recipe.audit.model_dump(mode="json"),
        "gate_settings": recipe.gate.model_dump(mode="json"),
        "not_asked": [name for name, limit in recipe.gate.model_dump().items() if limit is None],
        "corpus_limit": recipe.corpus.limit,
        "not_tested": list(NOT_TESTED),
        "provenance": {
            "seed": recipe.seed,
            "python": platform.python_version(),
            "versions": {
                name: version(name)
                for name in ("sani-llm", "torch", "transformers", "accelerate", "safetensors")
            },
            "recipe_digest": folder.digest((folder.path / "recipe.resolved.yaml").read_text()),
            "corpus_digest": folder.digest(corpus.digest()),
        },
    }


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write ``report.json``, ``report.md``, ``report.html`` and ``junit.xml``."""
    text = json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False)
    write_text(folder / "report.json", text + "\n")
    write_text(folder / "report.md", render(report, "report.md.jinja"))
    write_text(folder / "report.html", render(report, "report.html.jinja"))
    write_text(folder / "junit.xml", junit(report))


def render(report: dict[str, Any], template: str) -> str:
    """A report as text, by one of the templates beside this module."""
    environment = Environment(
        loader=PackageLoader("sani.reporting"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "rate": format_rate,
        "estimate": format_estimate,
        "number": _number,
        "cell": _cell,
    }
    return environment.get_template(template).render(report=report, stage_names=STAGE_NAMES)


STAGE_NAMES = {
    "base": "base (control)",
    "before": "before",
    "erased": "after erase",
    "after": "after (sanitized)",
}


def format_rate(rate: dict[str, Any] | None) -> str:
    """A rate with its numerator, denominator and interval; a dash where nothing was tried."""
    if not rate or rate["value"] is None:
        return "-"
    return (
        f"{rate['value']:.1%} ({rate['hits']}/{rate['trials']}; "
        f"{rate['low']:.1%} to {rate['high']:.1%})"
    )


def format_estimate(estimate: dict[str, Any] | None) -> str:
    """A mean with its interval; a dash where there is none."""
    if not estimate or estimate["value"] is None:
        return "-"
    if estimate["low"] is None:
        return f"{estimate['value']:.3f} (one subject, no interval)"
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


def junit(report: dict[str, Any]) -> str:
    """One test case for each limit of the gate."""
    checks = report["gate"]["checks"]
    failures = sum(not check["holds"] for check in checks)
    suite = ElementTree.Element(
        "testsuite", name="sani gate", tests=str(len(checks)), failures=str(failures)
    )
    for check in checks:
        case = ElementTree.SubElement(suite, "testcase", classname="sani.gate", name=check["name"])
        if not check["holds"]:
            message = f"{_number(check['measured'])}, limit {_number(check['limit'])}"
            ElementTree.SubElement(case, "failure", message=message).text = check["why"]
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _cell(text: str) -> str:
    """A label inside a Markdown table: nothing in it ends the cell or starts a tag."""
    return html.escape(text).replace("|", "&#124;").replace("\n", " ").replace("\r", " ")


def _erased(erase: dict[str, Any] | None) -> dict[str, Any] | None:
    """The erase, with numbers of neurons in place of their lists, which ``erase.json`` has."""
    if erase is None:
        return None
    entries = [
        {
            "layer": entry["layer"],
            "part": entry["part"],
            "neurons": len(entry["neurons"]),
            "of": entry["of"],
        }
        for entry in erase["plan"]["entries"]
    ]
    return {**erase, "plan": {**erase["plan"], "entries": entries}}


def _changes(folder: RunFolder, corpus: Corpus) -> dict[str, Any]:
    """Before against after, with what is still or newly extractable named by digest."""
    before = folder.load_occurrences("audit-before")
    after = folder.load_occurrences("audit-after")
    change = compare(before, after)
    beyond = np.zeros_like(change.kept)
    if folder.finished("audit-base"):
        beyond = beyond_control(after, folder.load_occurrences("audit-base"))

    def named(index: int) -> dict[str, Any]:
        document = corpus[int(after.document[index])]
        span = document.spans[int(after.span[index])]
        return {
            "document": int(after.document[index]),
            "label": span.label,
            "kind": span.kind,
            "digest": folder.digest(f"{span.label}\x00{document.value(span)}"),
        }

    return {
        "cured": int(change.cured.sum()),
        "kept": int(change.kept.sum()),
        "new": int(change.new.sum()),
        "beyond_control": int(beyond.sum()),
        "beyond_control_listed": [named(i) for i in np.flatnonzero(beyond)[:MOST_LISTED]],
        "kept_listed": [named(i) for i in np.flatnonzero(change.kept)[:MOST_LISTED]],
        "new_listed": [named(i) for i in np.flatnonzero(change.new)[:MOST_LISTED]],
    }
