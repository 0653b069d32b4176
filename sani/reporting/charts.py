"""Charts of a report as inline SVG: drawn by matplotlib, coloured by the page's style sheet.

matplotlib was chosen because it is in every scientific environment and runs no browser and no
JavaScript. Text stays text, colours become CSS variables (so that one file serves light and dark),
and the same report gives the same bytes. Every chart has a table of the same figures beside it.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, get_args
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from sani.reporting.format import KIND_NAMES, MAX_CHARTED, stage_name, worst_labels
from sani.reporting.schema import Report, Stage

# Colours as the page's style sheet names them; told apart by the colour-blind, and by shape.
COLOURS = {
    "ink": "#1b1b1f",
    "faint": "#8b8b93",
    "base": "#6f6f78",
    "before": "#c44e00",
    "erased": "#8a5fa8",
    "after": "#0067a5",
}
MARKERS = {"base": "|", "before": "o", "erased": "s", "after": "D"}
DOT_SIZES = {1: 4.0, 10: 12.0, 100: 26.0, 1000: 48.0}  # from so many occurrences on
LONGEST_LABEL = 30
WIDTH = 7.2  # inches

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sani",
    "text.parse_math": False,  # a label may hold a dollar sign
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.edgecolor": COLOURS["faint"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.unicode_minus": False,
    "xtick.color": COLOURS["ink"],
    "ytick.color": COLOURS["ink"],
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "font.size": 9.5,
}


def draw(report: Report) -> dict[str, Markup]:
    """Every chart that the report has data for, by the key of its section."""
    charts: dict[str, tuple[Callable[[Report], Figure | None], str]] = {
        "labels": (_labels, "Share of each label's occurrences that are extractable"),
        "subjects": (_subjects, "Subjects by how many of their occurrences are extractable"),
        "log_prob_scatter": (
            _log_prob_scatter,
            "Log-probability of each occurrence against the control's",
        ),
        "preference": (_preference, "AUC and exposure, with the control's interval as a band"),
        "queries": (_queries, "Share of occurrences extractable in so many samples"),
        "erase": (_erase, "Neurons that were reset, by layer"),
        "repair": (_repair, "Loss during the repair"),
        "memory_use": (_memory_use, "Peak memory of each stage"),
    }
    drawn = {}
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a label in a script that the font lacks is text anyway
        for key, (chart, title) in charts.items():
            figure = chart(report)
            if figure is not None:
                drawn[key] = _inline(figure, key, f"{title}; the table below has the figures.")
    return drawn


def _inline(figure: Figure, key: str, title: str) -> Markup:
    """A figure as an SVG element that fits into a page: small, named, coloured by variables."""
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", written.getvalue(), flags=re.S)
    root = ElementTree.fromstring(text)
    used = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', text))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = dict(element.attrib)
        element.attrib.clear()
        for name, value in attributes.items():
            short = name.rpartition("}")[2]
            if short == "id":
                if value in used:
                    element.set("id", f"{key}-{value}")
                continue
            value = re.sub(r"#([\w.-]+)(?=\)|$)", rf"#{key}-\1", value) if _refers(value) else value
            value = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}", value)
            if short == "style":
                value = _style(value)
            if not (short == "transform" and value.startswith("rotate(-0 ")):
                element.set(short, re.sub(r"\s+", " ", value).strip())
        element.text = element.text if element.tag == "text" else None
        element.tail = None
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    heading = ElementTree.Element("title", {"id": f"{key}-title"})
    heading.text = title
    root.insert(0, heading)
    root.attrib |= {"role": "img", "aria-labelledby": f"{key}-title", "class": "chart"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _refers(value: str) -> bool:
    return value.startswith(("url(#", "#m", "#p", "#C"))


def _style(value: str) -> str:
    """CSS of one element, with variables for colours and the page's own font."""
    value = re.sub(r"font-family: [^;]*;? ?", "", value)
    for name, colour in COLOURS.items():
        value = value.replace(colour, f"var(--{name})")
    return value


def _figure(rows: float, columns: int = 1, **options: Any) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure((WIDTH, rows), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, **options)
    return figure, list(axes[0])


def _stages(report: Report) -> list[Stage]:
    return [stage for stage in get_args(Stage) if stage in report.audits]


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4)


def _labels(report: Report) -> Figure | None:
    """A row a label, with a mark for each checkpoint; the labels of which most is left first."""
    audits, stages = report.audits, _stages(report)
    rates = {
        label: {
            stage: audits[stage].figures[f"label:{label}"].discoverable.value for stage in stages
        }
        for label in worst_labels(audits["after"])[:MAX_CHARTED]
    }
    shown = list(rates)
    figure, (axes,) = _figure(0.9 + 0.22 * len(shown))
    for stage in stages:
        values = [(row, rates[name][stage]) for row, name in enumerate(shown)]
        known = [(row, value) for row, value in values if value is not None]
        axes.scatter(
            [100 * value for _, value in known],
            [row for row, _ in known],
            marker=MARKERS[stage], s=60 if stage == "base" else 24, color=COLOURS[stage],
            label=stage_name(stage), clip_on=False, zorder=3,
        )  # fmt: skip
    axes.set_yticks(range(len(shown)), [_short(label) for label in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.grid(axis="y", color=COLOURS["faint"], alpha=0.3)
    axes.set_xlabel("extractable in the recipe's number of samples, %")
    _legend(figure, axes)
    return figure


def _short(label: str) -> str:
    clean = "".join(letter if letter.isprintable() else " " for letter in label)
    return clean if len(clean) <= LONGEST_LABEL else clean[: LONGEST_LABEL - 1] + "…"


def _subjects(report: Report) -> Figure | None:
    subjects, stages = report.subjects, _stages(report)
    figure, panels = _figure(2.6, len(subjects.kinds), sharey=False)
    width = 0.8 / len(stages)
    for axes, (kind, part) in zip(panels, subjects.kinds.items(), strict=True):
        for offset, stage in enumerate(stages):
            centres = [i + (offset - (len(stages) - 1) / 2) * width for i in range(6)]
            counts = part.distribution[stage]
            axes.bar(centres, counts, width, color=COLOURS[stage], label=stage_name(stage))
        axes.set_xticks(range(6), subjects.classes)
        axes.set_title(f"{kind} identifiers", loc="left")
        axes.set_xlabel("extractable occurrences of a subject")
    panels[0].set_ylabel("subjects")
    _legend(figure, panels[0])
    return figure


def _log_prob_scatter(report: Report) -> Figure | None:
    """A row a kind, a column a checkpoint; a dot for the occurrences that fall together."""
    scatter = report.log_prob_scatter
    kinds, low, bins = scatter.kinds, scatter.low, scatter.bins
    columns = max((len(stages) for stages in kinds.values()), default=0)
    if not columns:
        return None
    figure = Figure((WIDTH, 0.5 + 2.5 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), columns, squeeze=False, sharex=True, sharey=True)
    # The axes are linear in the square root of the surprise, as the bins are.
    ticks = [tick for tick in (0.0, -1.0, -5.0, -20.0, -50.0, -100.0, -200.0) if tick > low]
    positions = [bins * (1 - (tick / low) ** 0.5) for tick in ticks]
    for row, (kind, stages) in zip(panels, kinds.items(), strict=True):
        for axes, (stage, part) in zip(row, stages.items(), strict=True):
            axes.plot([0, bins], [0, bins], color=COLOURS["faint"], linewidth=1)
            for least, size in DOT_SIZES.items():
                dots = [cell for cell in part.cells if _size(cell[2]) == least]
                axes.scatter(
                    [x + 0.5 for x, _, _ in dots], [y + 0.5 for _, y, _ in dots],
                    s=size, color=COLOURS[stage], linewidths=0,
                )  # fmt: skip
            axes.set_title(f"{kind}, {stage_name(stage)}", loc="left")
            axes.set_xticks(positions, [f"{tick:.0f}" for tick in ticks])
            axes.set_yticks(positions, [f"{tick:.0f}" for tick in ticks])
            axes.set_xlim(0, bins)
            axes.set_ylim(0, bins)
            axes.set_aspect("equal")
        row[0].set_ylabel("log-probability, nats")
    for axes in panels[-1]:
        axes.set_xlabel(f"under {stage_name(scatter.against)}")
    for least, size in DOT_SIZES.items():
        panels[0][0].scatter([], [], s=size, color=COLOURS["ink"], label=_or_more(least))
    _legend(figure, panels[0][0])
    return figure


def _size(occurrences: int) -> int:
    return max(least for least in DOT_SIZES if least <= occurrences)


def _or_more(least: int) -> str:
    return "1 to 9 occurrences" if least == 1 else f"{least} or more"


def _preference(report: Report) -> Figure | None:
    """Intervals of AUC and exposure, a row a kind and checkpoint, the control's as a band."""
    audits, stages = report.audits, _stages(report)
    kinds = [kind for kind in KIND_NAMES if kind in audits["after"].figures]
    figure, panels = _figure(0.9 + 0.3 * len(kinds) * len(stages), 2, sharey=True)
    rows = [(kind, stage) for kind in kinds for stage in stages]
    drawn = False
    for axes, figure_name in zip(panels, ("auc", "exposure"), strict=True):
        for place, (kind, stage) in enumerate(rows):
            figures = audits[stage].figures.get(kind)
            if figures is None:
                continue
            estimate = figures.auc if figure_name == "auc" else figures.exposure
            value = estimate.value
            if value is None:
                continue
            drawn = True
            low, high = estimate.low or value, estimate.high or value
            axes.plot([low, high], [place, place], color=COLOURS[stage], linewidth=2)
            axes.scatter([value], [place], s=24, color=COLOURS[stage],
                         marker="o" if stage == "base" else MARKERS[stage])  # fmt: skip
            if stage == "base":
                begin, end = place - 0.4, place + len(stages) - 0.6
                axes.fill_betweenx([begin, end], low, high, color=COLOURS["base"], alpha=0.25)
    panels[0].axvline(0.5, color=COLOURS["faint"], linewidth=1)
    panels[0].set_yticks(range(len(rows)), [f"{kind}, {stage_name(stage)}" for kind, stage in rows])
    panels[0].invert_yaxis()
    panels[0].set_xlabel("AUC (line: chance)")
    panels[1].set_xlabel("exposure, bits")
    return figure if drawn else None


def _queries(report: Report) -> Figure | None:
    audits, stages = report.audits, _stages(report)
    kinds = [kind for kind in KIND_NAMES if kind in audits["after"].figures]
    figure, panels = _figure(2.8, len(kinds), sharey=True)
    for axes, kind in zip(panels, kinds, strict=True):
        for stage in stages:
            rates = audits[stage].figures[kind].queries.extractable
            known = [(int(n), rate) for n, rate in rates.items() if rate.trials]
            x = [n for n, _ in known]
            axes.plot(
                x, [100 * (rate.value or 0) for _, rate in known], color=COLOURS[stage],
                marker="o" if stage == "base" else MARKERS[stage], markersize=4,
                label=stage_name(stage), clip_on=False,
            )  # fmt: skip
            axes.fill_between(
                x, [100 * (rate.low or 0) for _, rate in known],
                [100 * (rate.high or 0) for _, rate in known], color=COLOURS[stage], alpha=0.2,
                linewidth=0,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks([1, 100, 10**4, 10**6], ["1", "100", "10,000", "1,000,000"])
        axes.set_ylim(0, 100)
        axes.set_title(f"{kind} identifiers", loc="left")
        axes.set_xlabel("samples")
    panels[0].set_ylabel("extractable, %")
    _legend(figure, panels[0])
    return figure


def _erase(report: Report) -> Figure | None:
    """A row a layer, a column a stretch of neurons: the share of it that was reset."""
    entries = report.erase.plan.entries if report.erase else []
    if not entries:
        return None
    parts = list(dict.fromkeys(entry.part for entry in entries))
    layers = sorted({entry.layer for entry in entries})
    figure, panels = _figure(1.0 + 0.24 * len(layers), len(parts), sharey=True)
    for axes, part in zip(panels, parts, strict=True):
        stretches: dict[float, list[Path]] = {}
        for entry in entries:
            if entry.part != part:
                continue
            place, width = layers.index(entry.layer), entry.total / len(entry.map)
            axes.barh([place], [entry.total], 0.8, color="none", edgecolor=COLOURS["faint"])
            for start, end, share in _runs(entry.map):
                corners = [(start, -0.4), (end, -0.4), (end, 0.4), (start, 0.4), (start, -0.4)]
                around = [(x * width, place + y) for x, y in corners]
                stretches.setdefault(share, []).append(Path(around, closed=True))
        for share, paths in sorted(stretches.items()):  # one element for all of a share
            whole = Path.make_compound_path(*paths)
            axes.add_patch(PathPatch(whole, color=COLOURS["before"], alpha=share, linewidth=0))
        axes.set_title(part, loc="left")
        axes.set_xlabel("heads" if part == "attention" else "neurons")
    panels[0].set_yticks(range(len(layers)), [str(layer) for layer in layers])
    panels[0].set_ylabel("layer")
    panels[0].invert_yaxis()
    return figure


def _runs(shares: Sequence[float]) -> list[tuple[int, int, float]]:
    """Stretches of the same share, to a tenth, as (first, past the last, share); empty ones not."""
    runs: list[tuple[int, int, float]] = []
    for place, share in enumerate(shares):
        rounded = max(0.1, round(share, 1)) if share else 0.0
        if runs and runs[-1][2] == rounded:
            runs[-1] = (runs[-1][0], place + 1, rounded)
        else:
            runs.append((place, place + 1, rounded))
    return [run for run in runs if run[2]]


def _repair(report: Report) -> Figure | None:
    if not report.repair or not report.repair.curve:
        return None
    curve = report.repair.curve
    terms = [name for name in dict.fromkeys(n for entry in curve for n in entry) if name != "step"]
    figure, panels = _figure(2.3, len(terms))
    for axes, term, colour in zip(panels, terms, ("after", "before", "erased"), strict=False):
        known = [entry for entry in curve if term in entry]  # a batch may hold no identifier
        steps = [entry["step"] for entry in known]
        axes.plot(steps, [entry[term] for entry in known], color=COLOURS[colour])
        axes.set_title(f"{term}, nats", loc="left")
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
    return figure


def _memory_use(report: Report) -> Figure | None:
    if report.memory is None:
        return None
    peaks = report.memory.peaks
    figure, (axes,) = _figure(0.6 + 0.28 * len(peaks))
    rows = range(len(peaks))
    axes.barh(rows, [peak / 2**30 for peak in peaks.values()], 0.6, color=COLOURS["before"])
    axes.set_yticks(rows, list(peaks))
    axes.set_xlabel("GiB")
    axes.invert_yaxis()
    return figure
