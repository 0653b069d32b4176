"""What an escalation tried: every rung with its settings, figures, verdict and cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sani.reporting.format import KIND_NAMES, Cells, Section, sampled
from sani.runfolder import RunFolder

STOPPED = {
    "holds": "The gate holds, so nothing further was tried.",
    "budget": "The budget was spent before the gate held.",
    "ladder": "Every rung was tried, and the gate holds for none.",
}
FIGURES = ("greedy", "discoverable", "auc")


def escalation(folder: RunFolder) -> dict[str, Any] | None:
    """The rungs of a run as `sani.reporting.schema.Escalation`; None if it did not escalate."""
    found = folder.load("escalation")
    if found is None:
        return None
    rungs = [folder.load(f"rung-{number + 1}") for number in range(found["tried"])]
    return {
        **{name: value for name, value in found.items() if name != "tried"},
        "rungs": [_rung(rung) for rung in rungs],
    }


def _rung(found: Mapping[str, Any]) -> dict[str, Any]:
    audit, repair = found["audit"], found["repair"]
    copied = ("name", "holds", "failed", "checks", "seconds", "tokens")
    return {
        **{name: found[name] for name in copied},
        "settings": {name: found["settings"][name] for name in ("erase", "repair")},
        "attacked": found["attack"] is not None,
        "steps": repair["steps"] if repair else None,
        "by_epoch": repair["by_epoch"] if repair else [],
        **figures_of(audit),
    }


def figures_of(audit: Mapping[str, Any] | None) -> dict[str, Any]:
    """What decides, out of an audit: figures by kind, of a masked model jointly too; perplexity."""
    jointly = audit["jointly"] if audit else None
    return {
        "figures": _by_kind(audit["figures"] if audit else {}, FIGURES),
        "jointly": None if jointly is None else _by_kind(jointly, FIGURES[:2]),
        "perplexity": audit["utility"]["perplexity"] if audit and audit["utility"] else None,
    }


def _by_kind(figures: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {
        kind: {name: figures[kind][name] for name in names}
        for kind in KIND_NAMES
        if kind in figures
    }


def tried(report: Mapping[str, Any]) -> Section:
    """Rung by rung, from the cheapest; a section without rows if the run did not escalate."""
    found = report["escalation"]
    title = "What was tried"
    if found is None:
        return Section("tried", title)
    kinds: Sequence[str] = report["gate_settings"]["kinds"]
    of = f" ({' / '.join(kinds)})" if len(kinds) > 1 else ""
    return Section(
        "tried",
        title,
        tuple(_sentences(found)),
        (
            "rung", "erase", "repair", f"greedy{of}", f"{sampled(report)}{of}",
            f"AUC{of}", "perplexity", "seconds", "tokens", "limits not met",
        ),
        tuple(
            _row(rung, number, kinds, kept=number == found["best"])
            for number, rung in enumerate(found["rungs"], start=1)
        ),
    )  # fmt: skip


def _sentences(found: Mapping[str, Any]) -> Iterator[str]:
    best = found["rungs"][found["best"] - 1]
    yield (
        f"{STOPPED[found['stopped']]} {len(found['rungs'])} rungs took {found['seconds']:.0f} s "
        f"and {found['tokens']} tokens of training. Each began with the unsanitized "
        "checkpoint."
    )
    yield f"Kept: rung {found['best']}, {best['name']}. The rule: {found['rule']}"
    if (best["settings"]["erase"] or {}).get("interpolate_to_base") == 1:
        yield (
            "In the rung that was kept all weights were the base's before the repair: nothing of "
            "the unsanitized checkpoint is left in it."
        )
    if found["not_tried"]:
        yield f"Not tried: {'; '.join(found['not_tried'])}."


def _row(rung: Mapping[str, Any], number: int, kinds: Sequence[str], *, kept: bool) -> Cells:
    broken = ", ".join(check["name"] for check in rung["checks"] if not check["holds"])
    return (
        f"{number}. {rung['name']}{' (kept)' if kept else ''}",
        erase_in_words(rung["settings"]),
        repair_in_words(rung["settings"]["repair"], rung["by_epoch"]),
        *cells(rung, kinds),
        f"{rung['seconds']:.1f}",
        str(rung["tokens"]),
        f"failed: {rung['failed']}" if rung["failed"] else broken or "none: the gate holds",
    )


def cells(found: Mapping[str, Any], kinds: Sequence[str]) -> Cells:
    """Greedy, (n, p), AUC (of each kind) and perplexity, as `figures_of` gives them."""

    def of_each(form: str, name: str, digits: str) -> str:
        figures = [found[form].get(kind) for kind in kinds]
        return " / ".join(_value(of and of[name]["value"], digits) for of in figures)

    rates = [of_each("figures", name, "{:.1%}") for name in ("greedy", "discoverable")]
    if found.get("jointly"):
        rates[0] += f"; jointly {of_each('jointly', 'greedy', '{:.1%}')}"
        rates[1] += f"; jointly {of_each('jointly', 'discoverable', '{:.1%}')}"
    auc = of_each("figures", "auc", "{:.3f}")
    return (*rates, auc, _value(found["perplexity"], "{:.2f}"))


def _value(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def erase_in_words(rung: Mapping[str, Any]) -> str:
    """What is erased, in a few words."""
    settings = rung["erase"]
    if settings is None:
        return "nothing erased"
    share_back = settings["interpolate_to_base"]
    way = f"all weights {share_back:.0%} of the way to the base's" if share_back else ""
    if not settings["layers"] and not settings["last_layers"]:
        return way
    selector = settings["selector"]
    share = f" {selector['fraction']:g}" if "fraction" in selector else ""
    layers = f"last {settings['last_layers']}"
    if settings["layers"]:
        layers = f"layers {', '.join(map(str, settings['layers']))}"
    elif settings["last_layers"] == "all":
        layers = "every layer"
    erased = f"{selector['kind']}{share} of {layers}, {settings['reset']}"
    return f"{way}; {erased}" if way else erased


def repair_in_words(settings: Mapping[str, Any], by_epoch: Sequence[Any] = ()) -> str:
    """How a rung is repaired, in a few words."""
    objective = settings["identifier_loss"]
    words = [objective["kind"] + (f" to {objective['to']}" if "to" in objective else "")]
    if "weight" in objective:
        words.append(f"weight {objective['weight']:g}")
    stopped = by_epoch and by_epoch[-1]["holds"] and len(by_epoch) < settings["epochs"]
    of = f"{len(by_epoch)} of " if stopped else ""
    words.append(f"{of}{settings['epochs']} epochs at {settings['learning_rate']:g}")
    if settings["last_layers"]:
        words.append(f"only the last {settings['last_layers']} trained")
    return ", ".join(words)
