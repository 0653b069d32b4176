"""A report as a page: sections and charts into the templates beside this module."""

from __future__ import annotations

import html

from jinja2 import Environment, PackageLoader, StrictUndefined

from sani.reporting import advice, evidence, process, questions, sentences
from sani.reporting.charts import draw
from sani.reporting.contents import chapters
from sani.reporting.escalation import tried
from sani.reporting.glossary import Links
from sani.reporting.onion import onion
from sani.reporting.readings import reading_of
from sani.reporting.rounds import rounds
from sani.reporting.schema import Report


def render(report: Report, template: str) -> str:
    """Return a report as text, by one of the templates; HTML escapes whatever it is given."""
    environment = Environment(
        loader=PackageLoader("sani.reporting"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    links = Links()
    environment.filters["cell"] = _cell
    environment.filters["linked"] = links.linked
    return environment.get_template(template).render(
        report=report,
        verdict=sentences.verdict(report),
        advice_lines=list(advice.advice_lines(report)),
        next_line=advice.next_line(report.advice),
        what_changed=sentences.what_changed(report),
        beyond_base=sentences.beyond_base(report),
        summary=evidence.summary(report),
        untested=evidence.untested(report),
        limits=process.limits(report),
        evidence=questions.evidence(report),
        tried=tried(report),
        rounds=rounds(report),
        onion=onion(report.onion),
        scan=process.scan(report),
        versions=process.versions(report),
        chapters=chapters(report) if template == "report.html.jinja" else {},
        charts=draw(report) if template == "report.html.jinja" else {},
        begin_section=links.section,
        words=links.entries,
        reading_of=reading_of,
    )


def _cell(text: str) -> str:
    """Escape a label for a Markdown table: nothing in it ends the cell or starts a tag."""
    escaped = html.escape(text, quote=False)
    return escaped.replace("|", "&#124;").replace("\n", " ").replace("\r", " ")
