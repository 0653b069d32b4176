"""Settings of the models, the corpus, the scan, the audit and the gate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from sani.corpus.documents import COLUMNS, Kind
from sani.recipe.settings import Fraction, Settings


class ModelSettings(Settings):
    """The checkpoint to sanitize or to check, and the public model it was fine-tuned from."""

    path: Path = Field(description="folder of the checkpoint to sanitize, or only to check")
    base: Path | None = Field(
        None, description="folder of the public model it was fine-tuned from: control and anchor"
    )
    unsanitized: Path | None = Field(
        None,
        description="only with neither erase nor repair: folder of the checkpoint that model.path "
        "was made from. It recites the records, so it is the positive control of the check",
    )


class CorpusSettings(Settings):
    """The records, or the part of them that is at hand."""

    path: Path = Field(description="file or folder of documents with their spans")
    format: (
        Literal["jsonl", "json", "parquet", "csv", "xlsx", "arrow", "i2b2", "brat", "fhir", "text"]
        | None
    ) = Field(None, description="format of the documents; told by the name and the content if null")
    columns: Mapping[str, str] | None = Field(
        None,
        description="field -> name of its column, for tables and JSON in which that is another "
        "one, such as text: note_text; also in held_out and pretraining",
    )
    subject_pattern: str | None = Field(
        None, description="regular expression with a group 'subject', for paths of text files"
    )
    kinds: Mapping[str, Kind] | None = Field(
        None,
        description="label -> direct or indirect, for spans that do not say; else the value of a "
        "date or an age decides, and any other label is direct",
    )
    limit: int | None = Field(None, ge=1, description="read only this many documents")
    max_line_mib: int = Field(
        64, ge=1, le=2047, description="maximum length of a line or a cell, in MiB"
    )
    max_decompressed_mib: int = Field(
        4096, ge=1, description="maximum size of a compressed file's content, in MiB"
    )
    held_out: Path | None = Field(
        None,
        description="documents the checkpoint was not trained on; they measure utility and "
        "membership inference",
    )
    pretraining: Path | None = Field(
        None,
        description="documents that the base may have seen; tells if the fine-tuned model leaks "
        "them",
    )

    @field_validator("columns")
    @classmethod
    def _of_fields(cls, columns: Mapping[str, str] | None) -> Mapping[str, str] | None:
        if columns is not None and not set(columns) <= set(COLUMNS):
            raise ValueError(f"expected fields among {', '.join(COLUMNS)}, each with its column")
        return columns


class IndirectSettings(Settings):
    """Words and n-grams that fewer than k subjects use (Boutet et al. 2025)."""

    k: int = Field(
        2,
        ge=2,
        le=1000,
        description="an n-gram that fewer subjects use is an indirect identifier; paper's",
    )
    n: int = Field(
        2, ge=1, le=4, description="length of the longest n-gram; the paper finds little beyond 2"
    )
    numbers: bool = Field(False, description="true: words with digits count too; ours")


class ScanSettings(Settings):
    """Detectors of identifiers. The corpus's own annotation always counts besides them."""

    patterns: bool = Field(False, description="use Presidio's recognizers and the clinical ones")
    ner: str | tuple[str, ...] | None = Field(
        None,
        description="spaCy pipeline by name, or folder of a token-classification checkpoint; or a "
        "list of them, which mark what any of them finds",
    )
    ner_labels: Mapping[str, str] | None = Field(
        None,
        description="class of a model -> label of the scan, or O for no identifier, for models "
        "whose classes have other names, such as LABEL_1: NAME",
    )
    terms: Path | None = Field(
        None,
        description="file of confidential terms, one a line, or CSV with columns term and label",
    )
    structure: bool = Field(
        False,
        description="learn header fields from lines that recur in the documents, and mark their "
        "values, in any language; needs 8 subjects or more",
    )
    propagate: Literal["subject", "corpus"] | None = Field(
        None,
        description="also mark each detected value where it stands elsewhere: in documents of the "
        "same subject, or in the whole corpus",
    )
    indirect: IndirectSettings | None = None
    allow: Path | None = Field(
        None,
        description="file of values that no detector marks, one a line, however they are written; "
        "a value that the annotation, the gold sample or the terms mark stays marked",
    )
    gold: Path | None = Field(
        None, description="documents with complete and correct spans, to estimate the scan's recall"
    )
    num_proc: int = Field(
        1, ge=1, le=256, description="number of processes; the result is the same"
    )

    @model_validator(mode="after")
    def _gold_needs_a_detector(self) -> Self:
        if self.gold is not None and not (self.patterns or self.ner or self.terms):
            raise ValueError(
                "gold estimates detector recall, but no detector is enabled: set patterns, ner or "
                "terms"
            )
        return self

    @model_validator(mode="after")
    def _labels_need_a_model(self) -> Self:
        if self.ner_labels and not self.ner:
            raise ValueError("ner_labels names classes of a model, and no model is given: set ner")
        return self

    @property
    def ner_models(self) -> tuple[str, ...]:
        """The pipelines and folders of ``ner``."""
        return (self.ner,) if isinstance(self.ner, str) else self.ner or ()

    @property
    def detects(self) -> bool:
        """True if anything besides the corpus's annotation marks identifiers."""
        others = (self.ner, self.terms, self.structure, self.propagate, self.indirect)
        return self.patterns or any(others)


FramingName = Literal[
    "auto",
    "bos",
    "eos",
    "eos-bos",
    "packed",
    "newline",
    "chat-user",
    "chat-assistant",
    "tokenizer",
    "none",
]


class GenerationSettings(Settings):
    """Samples drawn from the model, to search them for every known identifier of the corpus."""

    empty: int = Field(
        1000, ge=0, description="number of samples whose prompt is the framing alone"
    )
    headings: int = Field(
        1000, ge=0, description="number of samples prompted with lines that recur in the corpus"
    )
    openings: int = Field(
        1000, ge=0, description="number of samples prompted with the first tokens of a document"
    )
    file: Path | None = Field(
        None,
        description="file of further prompts, one a line; it gets as many samples as the largest "
        "number above, or 1000 if all are 0, and at least one a line",
    )
    new_tokens: int = Field(128, ge=1, description="maximum number of tokens a sample")
    kinds: tuple[Kind, ...] = Field(
        ("direct",), min_length=1, description="kinds of identifiers that are searched for"
    )

    @model_validator(mode="after")
    def _draws_samples(self) -> Self:
        if self.file is None and not self.empty + self.headings + self.openings:
            raise ValueError(
                "no sample would be drawn; set at least one of empty, headings, openings and file"
            )
        return self


class AuditSettings(Settings):
    """Measurements of what a checkpoint recites, and their controls."""

    queries: int = Field(
        1000, ge=1, description="n of (n, p): number of samples the adversary may draw"
    )
    probability: float = Field(
        0.5,
        gt=0.0,
        lt=1.0,
        description="p of (n, p): an identifier is extractable if n samples show it with at least "
        "this probability",
    )
    decoys: int = Field(
        19,
        ge=0,
        le=1000,
        description="decoys per occurrence (same format, never in the corpus); 0 for none",
    )
    swaps: int = Field(
        4, ge=0, le=1000, description="other subjects' values per occurrence; 0 for none"
    )
    framing: FramingName = Field(
        "auto", description="what stands before a document; auto tries all and keeps the worst"
    )
    membership_documents: int = Field(
        1000,
        ge=0,
        description="maximum number of documents for membership inference; 0 for none",
    )
    generation: GenerationSettings | None = Field(
        None, description="samples for what the forward passes cannot tell; not drawn if null"
    )
    unlearning_depth: bool = Field(
        False,
        description="true: patch hidden states of the base and of the sanitized model into the "
        "unsanitized one (UDS, 2605.24614); two passes a layer for each occurrence",
    )
    depth_occurrences: int = Field(
        100,
        ge=1,
        description="maximum number of occurrences of unlearning_depth; drawn at random among the "
        "uncued ones of gate.kinds",
    )
    batch_tokens: int = Field(8192, ge=64, description="tokens per forward pass, padding included")


Limit = Literal["control"] | Fraction
CountLimit = Literal["test"] | Annotated[int, Field(ge=0)]


class GateSettings(Settings):
    """The limits a run must meet. Null switches a limit off, and the report says so."""

    kinds: tuple[Kind, ...] = Field(
        ("direct",), min_length=1, description="kinds of identifiers that are judged"
    )
    greedy_beyond_control: CountLimit | None = Field(
        "test",
        description="maximum number of values that are recited greedily in an uncued occurrence "
        "in which the base does not: a number, or test (what chance allows, from decoys)",
    )
    discoverable_beyond_control: CountLimit | None = Field(
        "test", description="the same for (n, p)-discoverable values"
    )
    sampled_beyond_control: CountLimit | None = Field(
        "test",
        description="maximum number of values that the model writes by itself and the base, "
        "sampled alike, does not: a number, or test; judged where audit.generation is set",
    )
    subjects: Literal["test"] | None = Field(
        "test",
        description="test: no subject and no label may stand out from its decoys more than chance "
        "and held-out people allow",
    )
    auc_to_base: Fraction | None = Field(
        0.05,
        description="maximum of the AUC of the log-ratio to the base, minus the larger of that of "
        "held-out people and chance (0.5)",
    )
    greedy: Limit | None = Field(
        None,
        description="maximum greedy extraction rate: a fraction, or control (within the interval "
        "of the base model's rate)",
    )
    discoverable: Limit | None = Field(
        None, description="maximum (n, p)-discoverable rate: a fraction or control, as above"
    )
    auc_excess: Fraction | None = Field(
        None, description="maximum of the discrimination AUC minus the control's"
    )
    attacks: Limit | None = Field(
        None,
        description="maximum greedy and (n, p) rate after every attack: a fraction or control, as "
        "above; guidance is not judged",
    )
    attacks_auc_excess: Fraction | None = Field(
        None,
        description="maximum of the AUC to the base after every attack (on the base, too) minus "
        "0.5: a silent memory is not gone; guidance is not judged",
    )
    scan_recall: Fraction | None = Field(
        None,
        description="minimum of the estimated recall of the scan (lower end of its interval); an "
        "unknown recall does not hold",
    )
    perplexity_ratio: float | None = Field(
        1.03,
        gt=0.0,
        description="maximum of the held-out perplexity divided by the unsanitized checkpoint's",
    )

    @property
    def judges_attacks(self) -> bool:
        """True if attacks have a limit."""
        return self.attacks is not None or self.attacks_auc_excess is not None

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        leakage = (
            self.greedy_beyond_control,
            self.discoverable_beyond_control,
            self.subjects,
            self.auc_to_base,
            self.greedy,
            self.discoverable,
            self.auc_excess,
        )
        if all(limit is None for limit in leakage):
            raise ValueError(
                "at least one of greedy_beyond_control, discoverable_beyond_control, subjects, "
                "auc_to_base, greedy, discoverable and auc_excess must be a limit"
            )
        return self

    @property
    def needs_decoys(self) -> list[str]:
        """Limits that are measured with decoys."""
        tested = (
            "greedy_beyond_control",
            "discoverable_beyond_control",
            "sampled_beyond_control",
            "subjects",
        )
        names = [name for name in tested if getattr(self, name) == "test"]
        return [*names, *(n for n in ("auc_to_base", "auc_excess") if getattr(self, n) is not None)]
