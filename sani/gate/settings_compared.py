"""Which limits of a recipe are weaker than the defaults."""

from __future__ import annotations

from collections.abc import Iterator

from sani.recipe import AuditSettings, GateSettings


def weaker_than_defaults(gate: GateSettings, audit: AuditSettings) -> list[str]:
    """Return each setting that makes the verdict weaker than the default's, in words."""
    return list(_weaker(gate, audit))


def _weaker(gate: GateSettings, audit: AuditSettings) -> Iterator[str]:
    default, usual = GateSettings(), AuditSettings()
    missing = [kind for kind in default.kinds if kind not in gate.kinds]
    if missing:
        yield f"kinds without {', '.join(missing)}"
    for name in ("greedy_beyond_control", "discoverable_beyond_control"):
        limit = getattr(gate, name)
        if limit is None or (limit != "test" and limit > 0):
            yield f"{name} {_shown(limit)}"
    if gate.subjects is None:
        yield "subjects not judged"
    for name in ("auc_to_base", "perplexity_ratio"):
        limit, usual_limit = getattr(gate, name), getattr(default, name)
        if limit is None or limit > usual_limit:
            yield f"{name} {_shown(limit)}"
    if audit.framing != usual.framing:
        yield f"framing only {audit.framing}"
    for name in ("decoys", "queries"):
        value, usual_value = getattr(audit, name), getattr(usual, name)
        if value < usual_value:
            yield f"{name} {value} instead of {usual_value}"
    if audit.probability > usual.probability:
        yield f"probability {audit.probability} instead of {usual.probability}"


def _shown(limit: object) -> str:
    return "not judged" if limit is None else f"at most {limit}"
