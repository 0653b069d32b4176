"""Section on the escalation: every rung with its settings, figures, verdict and cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from sani.auditing.record import AuditRecord
from sani.corpus.documents import Kind
from sani.counting import counted
from sani.intervals import Estimate, Rate
from sani.recipe import EraseSettings, FractionSelector, RepairSettings
from sani.reporting.format import KIND_NAMES, Cells, Section, decimals, sampled, share
from sani.reporting.schema import (
    Escalation,
    Measured,
    Report,
    RungFigures,
    RungRates,
    RungSettings,
    TriedRung,
)
from sani.reporting.stage_files import EscalationFile, RungFile
from sani.runfolder import RunFolder

STOPPED = {
    "holds": "The gate holds, so nothing further was tried.",
    "budget": "The budget was spent before the gate held.",
    "ladder": "Every rung was tried, and the gate holds for none.",
}


def escalation(folder: RunFolder) -> Escalation | None:
    """Read the rungs of a run; None if it did not escalate."""
    result = folder.load_as("escalation", EscalationFile)
    if result is None:
        return None
    names = [f"rung-{number + 1}" for number in range(result.tried)]
    return Escalation(
        rule=result.rule,
        best=result.best,
        stopped=result.stopped,
        not_tried=result.not_tried,
        seconds=result.seconds,
        tokens=result.tokens,
        rungs=[_rung(folder.load_finished(name, RungFile)) for name in names],
    )


def _rung(rung: RungFile) -> TriedRung:
    measured = measured_by(rung.audit)
    return TriedRung(
        name=rung.name,
        settings=RungSettings(erase=rung.settings.erase, repair=rung.settings.repair),
        figures=measured.figures,
        jointly=measured.jointly,
        perplexity=measured.perplexity,
        checks=rung.checks,
        holds=rung.holds,
        failed=rung.failed,
        attacked=rung.attack is not None,
        steps=rung.repair.steps if rung.repair else None,
        by_epoch=rung.repair.by_epoch if rung.repair else [],
        seconds=rung.seconds,
        tokens=rung.tokens,
    )


def measured_by(audit: AuditRecord | None) -> Measured:
    """Return what decides, out of an audit: figures by kind, and perplexity."""
    if audit is None:
        return Measured(figures={}, jointly=None, perplexity=None)
    jointly = audit.jointly
    return Measured(
        figures={
            kind: RungFigures(greedy=f.greedy, discoverable=f.discoverable, auc=f.auc)
            for kind in KIND_NAMES
            if (f := audit.figures.get(kind))
        },
        jointly=None
        if jointly is None
        else {
            kind: RungRates(greedy=f.greedy, discoverable=f.discoverable)
            for kind in KIND_NAMES
            if (f := jointly.get(kind))
        },
        perplexity=audit.utility.perplexity if audit.utility else None,
    )


def tried(report: Report) -> Section:
    """Return the section rung by rung, without rows if the run did not escalate."""
    escalation = report.escalation
    title = "What was tried"
    if escalation is None:
        return Section("tried", title)
    kinds = report.gate_settings.kinds
    of = f" ({' / '.join(kinds)})" if len(kinds) > 1 else ""
    return Section(
        "tried",
        title,
        tuple(_sentences(escalation)),
        (
            "rung", "erase", "repair", f"greedy{of}", f"{sampled(report.audit_settings)}{of}",
            f"AUC{of}", "perplexity", "seconds", "tokens", "limits not met",
        ),
        tuple(
            _row(rung, number, kinds, best=number == escalation.best)
            for number, rung in enumerate(escalation.rungs, start=1)
        ),
    )  # fmt: skip


def _sentences(escalation: Escalation) -> Iterator[str]:
    best = escalation.rungs[escalation.best - 1]
    yield (
        f"{STOPPED[escalation.stopped]} {counted(len(escalation.rungs), 'rung')} took "
        f"{escalation.seconds:.0f} s and {escalation.tokens} tokens of training. Each began with "
        "the unsanitized checkpoint."
    )
    yield f"Kept: rung {escalation.best}, {best.name}. The rule: {escalation.rule}"
    if best.settings.erase and best.settings.erase.interpolate_to_base == 1:
        yield (
            "In the rung that was kept, every weight was set to the base's before the repair: "
            "nothing of the unsanitized checkpoint is left in it."
        )
    if escalation.not_tried:
        yield f"Not tried: {'; '.join(escalation.not_tried)}."


def _row(rung: TriedRung, number: int, kinds: Sequence[Kind], *, best: bool) -> Cells:
    broken = ", ".join(check.name for check in rung.checks if not check.holds)
    return (
        f"{number}. {rung.name}{' (kept)' if best else ''}",
        erase_in_words(rung.settings.erase),
        repair_in_words(rung.settings.repair, rung.by_epoch),
        *cells(rung, kinds),
        decimals(rung.seconds, 1),
        str(rung.tokens),
        f"failed: {rung.failed}" if rung.failed else broken or "none: the gate holds",
    )


def cells(measured: Measured, kinds: Sequence[Kind]) -> Cells:
    """Return greedy, (n, p), AUC (of each kind) and perplexity."""
    figures = [measured.figures.get(kind) for kind in kinds]
    rates = [
        _joined(share(_value(f.greedy if f else None)) for f in figures),
        _joined(share(_value(f.discoverable if f else None)) for f in figures),
    ]
    if measured.jointly:
        jointly = [measured.jointly.get(kind) for kind in kinds]
        rates[0] += f"; jointly {_joined(share(_value(f.greedy if f else None)) for f in jointly)}"
        rates[1] += (
            f"; jointly {_joined(share(_value(f.discoverable if f else None)) for f in jointly)}"
        )
    auc = _joined(decimals(_value(f.auc if f else None)) for f in figures)
    return (*rates, auc, decimals(measured.perplexity, 2))


def _joined(values: Iterable[str]) -> str:
    return " / ".join(values)


def _value(figure: Rate | Estimate | None) -> float | None:
    return None if figure is None else figure.value


def erase_in_words(settings: EraseSettings | None) -> str:
    """Return what is erased, in a few words."""
    if settings is None:
        return "nothing erased"
    part_way = settings.interpolate_to_base
    moved = f"all weights {part_way:.0%} of the way to the base's" if part_way else ""
    if not settings.layers and not settings.last_layers:
        return moved
    selector = settings.selector
    fraction = f" {selector.fraction:g}" if isinstance(selector, FractionSelector) else ""
    layers = f"last {settings.last_layers}"
    if settings.layers:
        layers = f"layers {', '.join(map(str, settings.layers))}"
    elif settings.last_layers == "all":
        layers = "every layer"
    erased = f"{selector.kind}{fraction} of {layers}, {settings.reset}"
    return f"{moved}; {erased}" if moved else erased


def repair_in_words(settings: RepairSettings, by_epoch: Sequence[Mapping[str, float]] = ()) -> str:
    """Return how a rung is repaired, in a few words."""
    objective = settings.identifier_loss
    target = getattr(objective, "to", None)
    weight = getattr(objective, "weight", None)
    words = [objective.kind + (f" to {target}" if target is not None else "")]
    if weight is not None:
        words.append(f"weight {weight:g}")
    stopped = by_epoch and by_epoch[-1]["holds"] and len(by_epoch) < settings.epochs
    of = f"{len(by_epoch)} of " if stopped else ""
    words.append(f"{of}{settings.epochs} epochs at {settings.learning_rate:g}")
    if settings.last_layers:
        words.append(f"only the last {settings.last_layers} trained")
    return ", ".join(words)
