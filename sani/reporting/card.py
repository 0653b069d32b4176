"""The model card of a sanitized checkpoint: metadata that the Hub reads, and plain words.

The figures are those of the audit, the limits those of the report; nothing is claimed beyond them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sani.corpus.documents import Corpus
from sani.intervals import Estimate, Rate
from sani.models.folder_files import read_card
from sani.releasing.identifiers_in_files import check_strings
from sani.reporting.format import KIND_NAMES
from sani.reporting.page import render
from sani.reporting.schema import Report, SourceCard

TASKS = {False: "text-generation", True: "fill-mask"}  # by whether it predicts masked tokens
NAME = "sanitized"
METRICS = {
    "greedy": "greedy extraction rate",
    "discoverable": "(n, p)-discoverable extraction rate",
    "auc": "discrimination AUC against decoys",
}


def model_card(report: Report) -> str:
    """Return the card as text, made and read back by huggingface_hub's own classes.

    Raises:
        ValueError: If huggingface_hub does not read back what was written.
    """
    source, adapter = report.source_card, report.recipe.get("output") == "adapter"
    data = ModelCardData(
        base_model=source.base_model,
        language=source.language or None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag=task(report),
        tags=["sani", "sanitized", "privacy", "unlearning"],
        model_name=NAME,
        eval_results=list(_results(report)),
        license=source.license,
        license_name=source.license_name,
        license_link=source.license_link,
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{render(report, 'card.md.jinja')}"
    read = ModelCard(text)
    if read.data.to_yaml() != data.to_yaml():
        raise ValueError("huggingface_hub reads another card than was written")
    return str(read)


def task(report: Report) -> str:
    """Return the task of the model, in the words of the Hub."""
    return TASKS[report.audits["after"].jointly is not None]


def _results(report: Report) -> Iterator[EvalResult]:
    """Yield the figures of the sanitized checkpoint, with the control's beside them."""
    after, base = report.audits["after"], report.audits.get("base")
    corpus: dict[str, Any] = {
        "task_type": task(report),
        "dataset_type": "private",
        "dataset_name": "the corpus it was fine-tuned on (private)",
    }
    forms = [("", "", after.figures, base.figures if base else {})]
    if after.jointly:
        controls = (base.jointly if base else None) or {}
        forms.append(("_jointly", ", masked jointly", after.jointly, controls))
    for suffix, words, figures, controls in forms:
        for kind in KIND_NAMES:
            if kind not in figures:
                continue
            measured, control = figures[kind], controls.get(kind)
            pairs: list[tuple[str, Rate | Estimate, Rate | Estimate | None]] = [
                ("greedy", measured.greedy, control.greedy if control else None),
                ("discoverable", measured.discoverable, control.discoverable if control else None),
            ]
            if not suffix:  # decoys are scored jointly, once
                pairs.append(("auc", measured.auc, control.auc if control else None))
            for name, figure, other in pairs:
                if figure.value is None:
                    continue
                limits = {
                    "low_95": figure.low,
                    "high_95": figure.high,
                    "control": other.value if other else None,
                }
                yield EvalResult(
                    **corpus,
                    metric_type=f"{name}_{kind}{suffix}",
                    metric_name=f"{METRICS[name]}, {kind} identifiers{words}",
                    metric_value=_rounded(figure.value),
                    metric_args={
                        "trials": figure.trials,
                        **{key: _rounded(value) for key, value in limits.items()},
                    },
                )
    if after.utility:
        yield EvalResult(
            task_type=task(report),
            dataset_type="private",
            dataset_name="held-out documents (private)",
            metric_type="perplexity",
            metric_name="perplexity outside identifiers",
            metric_value=_rounded(after.utility.perplexity),
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def read_source_card(model: Path, base: Path | None, corpus: Corpus) -> SourceCard:
    """Read what the released card carries over from the cards of the source.

    Args:
        model: Folder of the checkpoint that is sanitized; its own card comes first.
        base: Folder of the public model; named by the folder if no card gives its name.
        corpus: None of its identifiers may stand in what is read.

    Raises:
        CheckpointError: If one does: it would go into the report and the new card.
    """
    cards = [read_card(folder) for folder in (model, base) if folder is not None]
    name = cards[0].get("base_model")
    licensed = next((card for card in cards if card.get("license")), {})
    language = cards[0].get("language")
    languages = [language] if isinstance(language, str) else language
    card = SourceCard(
        base_model=name if isinstance(name, str) else base.name if base else None,
        license=_text(licensed.get("license")),
        license_name=_text(licensed.get("license_name")),
        license_link=_text(licensed.get("license_link")),
        # Whatever else stands in the list may be a list of lists, without end in its aliases.
        language=[each for each in languages if isinstance(each, str)]
        if isinstance(languages, list)
        else [],
    )
    texts = [card.base_model, card.license, card.license_name, card.license_link, *card.language]
    check_strings(
        filter(None, texts), corpus, origin=f"the model card of {model} or of its base (or a name)"
    )
    return card


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
