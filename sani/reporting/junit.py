"""JUnit of a report: a test case for each limit of the gate."""

from __future__ import annotations

from xml.etree import ElementTree

from sani.gate import Check
from sani.reporting.format import number
from sani.reporting.schema import Report


def junit(report: Report) -> str:
    """Return a JUnit file with one test case for each limit of the gate."""
    checks = report.gate.checks
    failures = sum(not check.holds for check in checks)
    suite = ElementTree.Element(
        "testsuite",
        name="sani gate",
        tests=str(len(checks)),
        failures=str(failures),
        timestamp=report.provenance.date,
        time=f"{report.provenance.seconds:.1f}",
    )
    if report.gate.weaker:
        properties = ElementTree.SubElement(suite, "properties")
        ElementTree.SubElement(
            properties,
            "property",
            name="limits weaker than the defaults",
            value="; ".join(report.gate.weaker),
        )
    for check in checks:  # a pass has its values too
        case = ElementTree.SubElement(suite, "testcase", classname="sani.gate", name=check.name)
        message = measured_and_allowed(check)
        if check.holds:
            ElementTree.SubElement(case, "system-out").text = f"{message} {check.reason}"
        else:
            ElementTree.SubElement(case, "failure", message=message).text = check.reason
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def measured_and_allowed(check: Check) -> str:
    """Return what was measured and what is allowed, a sentence each."""
    bound = "at least" if check.at_least else "at most"
    return f"Measured: {number(check.measured)}. Allowed: {bound} {number(check.limit)}."
