"""The model card of a sanitized checkpoint: metadata that the Hub reads, and plain words.

The figures are those of the audit, the limits those of the report; nothing is claimed beyond them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sani.models.folder import read_card
from sani.reporting.format import KIND_NAMES
from sani.reporting.page import render

TASKS = {False: "text-generation", True: "fill-mask"}  # by whether it predicts masked tokens
NAME = "sanitized"
CARRIED = ("license", "license_name", "license_link")
METRICS = {
    "greedy": "greedy extraction rate",
    "discoverable": "(n, p)-discoverable extraction rate",
    "auc": "discrimination AUC against decoys",
}


def model_card(report: Mapping[str, Any]) -> str:
    """The card as text, made and read back by huggingface_hub's own classes.

    Raises:
        ValueError: If huggingface_hub does not read back what was written.
    """
    source = report["source_card"]
    data = ModelCardData(
        base_model=source["base_model"],
        language=source["language"] or None,
        library_name="transformers",
        pipeline_tag=_task(report),
        tags=["sani", "sanitized", "privacy", "unlearning"],
        model_name=NAME,
        eval_results=list(_results(report)),
        **{name: source[name] for name in CARRIED},
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{render(report, 'card.md.jinja')}"
    read = ModelCard(text)
    if read.data.to_yaml() != data.to_yaml():
        raise ValueError("huggingface_hub reads another card than was written")
    return str(read)


def _task(report: Mapping[str, Any]) -> str:
    return TASKS[report["audits"]["after"]["jointly"] is not None]


def _results(report: Mapping[str, Any]) -> Iterator[EvalResult]:
    """Figures of the sanitized checkpoint, with the control's beside them."""
    after, base = report["audits"]["after"], report["audits"].get("base")
    corpus: dict[str, Any] = {
        "task_type": _task(report),
        "dataset_type": "private",
        "dataset_name": "the corpus it was fine-tuned on (private)",
    }
    asked = [(kind, "figures", figure) for kind in KIND_NAMES for figure in METRICS]
    asked += [
        (kind, "jointly", figure) for kind in KIND_NAMES for figure in ("greedy", "discoverable")
    ]
    for kind, form, figure in asked:
        found = (after[form] or {}).get(kind, {}).get(figure)
        if not found or found["value"] is None:
            continue
        control = base[form][kind][figure] if base else {"value": None}
        suffix, words = ("_jointly", ", masked jointly") if form == "jointly" else ("", "")
        args = {"low_95": found["low"], "high_95": found["high"], "control": control["value"]}
        yield EvalResult(
            **corpus,
            metric_type=f"{figure}_{kind}{suffix}",
            metric_name=f"{METRICS[figure]}, {kind} identifiers{words}",
            metric_value=_rounded(found["value"]),
            metric_args={
                "trials": found["trials"],
                **{k: _rounded(v) for k, v in args.items()},
            },
        )
    if after["utility"]:
        yield EvalResult(
            task_type=_task(report),
            dataset_type="private",
            dataset_name="held-out documents (private)",
            metric_type="perplexity",
            metric_name="perplexity outside identifiers",
            metric_value=_rounded(after["utility"]["perplexity"]),
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def read_source_card(model: Path, base: Path | None) -> dict[str, Any]:
    """What the released card carries over, as `sani.reporting.schema.SourceCard`.

    Args:
        model: Folder of the checkpoint that is sanitized; its own card comes first.
        base: Folder of the public model; named by the folder if no card tells its name.
    """
    cards = [read_card(folder) for folder in (model, base) if folder is not None]
    own = cards[0]
    told = own.get("base_model")
    licensed = next((card for card in cards if card.get("license")), {})
    language = own.get("language")
    return {
        "base_model": told if isinstance(told, str) else base.name if base else None,
        **{name: _text(licensed.get(name)) for name in CARRIED},
        "language": [language] if isinstance(language, str) else list(map(str, language or ())),
    }


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
