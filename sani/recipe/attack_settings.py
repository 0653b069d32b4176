"""Settings of the attacks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sani.corpus.documents import Kind
from sani.recipe.settings import Settings, has_duplicates


class QuantizeSettings(Settings):
    """Weights rounded to few bits, which may bring back what a small update hid."""

    bits: tuple[Literal[4, 8], ...] = Field(
        (8, 4), min_length=1, description="numbers of bits a weight that are tried"
    )


class RelearnSettings(Settings):
    """Fine-tuning on other text, which may bring back what was removed."""

    steps: int = Field(60, ge=1, description="optimizer steps, rounded up to whole epochs")
    learning_rates: tuple[Annotated[float, Field(gt=0.0)], ...] = Field(
        (1e-4, 1e-3), min_length=1, description="peaks of the schedule that are tried"
    )
    share: float = Field(
        0.1, gt=0.0, lt=1.0, description="share of the subjects that the adversary still holds"
    )
    texts: tuple[Literal["harmless", "part", "surrogates"], ...] = Field(
        ("harmless", "part", "surrogates"),
        min_length=1,
        description="training text. harmless: held-out documents; part: the documents of that "
        "share; surrogates: all documents, with other values for identifiers",
    )
    points: int = Field(
        4, ge=1, description="number of audits along the training, the last step included"
    )
    batch_tokens: int = Field(2048, ge=64, description="tokens per step, padding included")

    @model_validator(mode="after")
    def _values_are_distinct(self) -> Self:
        if has_duplicates(self.learning_rates) or has_duplicates(self.texts):
            raise ValueError("learning_rates and texts must be distinct")
        return self


class GuidanceSettings(Settings):
    """Reversed Model Guidance by the unsanitized checkpoint (2505.24379)."""

    weights: tuple[float, ...] = Field(
        (2.0,), min_length=1, description="w, above 1 away from the sanitized model; paper's 2.0"
    )


class PromptingSettings(Settings):
    """Other prompts for the same identifiers."""

    occurrences: int = Field(
        300, ge=20, description="maximum number of occurrences that are attacked; drawn at random"
    )
    prefixes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (10, 25, 50, 100), description="tokens that are left of the text before an identifier"
    )
    characters: int = Field(
        1000,
        ge=1,
        description="maximum number of characters of the text before, where a prompt is changed",
    )
    shots: int = Field(3, ge=1, description="number of other subjects' lines in a few-shot prompt")


class SamplingSettings(Settings):
    """Leak@k in closed form, and a check that sampling finds what it predicts."""

    occurrences: int = Field(
        40, ge=1, description="maximum number of occurrences that are really sampled"
    )
    samples: int = Field(100, ge=1, description="number of continuations of each of them")
    prefix: int = Field(50, ge=1, description="tokens of the prompt that they continue")


class LayersSettings(Settings):
    """Readout of inner layers, by logit lens and linear probe."""

    layers: int = Field(
        4, ge=1, description="maximum number of inner layers that are read, evenly spaced"
    )


class NeighboursSettings(Settings):
    """Text like the corpus: near-duplicates, and documents that the repair never had."""

    documents: Path | None = Field(
        None, description="other documents of the same subjects, with spans"
    )


class AttackSettings(Settings):
    """Attacks of an adversary on the sanitized checkpoint, and on the base as control.

    An attack that is null is not run, and the report says so.
    """

    kinds: tuple[Kind, ...] = Field(
        ("direct",), min_length=1, description="kinds of identifiers that are attacked"
    )
    documents: int = Field(
        1000,
        ge=1,
        description="maximum number of documents that are attacked; drawn, whole subjects first",
    )
    decoys: int = Field(4, ge=0, le=1000, description="decoys per occurrence; 0 for none")
    quantize: QuantizeSettings | None = Field(default_factory=QuantizeSettings)
    relearn: RelearnSettings | None = Field(default_factory=RelearnSettings)
    guidance: GuidanceSettings | None = Field(default_factory=GuidanceSettings)
    prompting: PromptingSettings | None = Field(default_factory=PromptingSettings)
    sampling: SamplingSettings | None = Field(default_factory=SamplingSettings)
    layers: LayersSettings | None = Field(default_factory=LayersSettings)
    neighbours: NeighboursSettings | None = Field(default_factory=NeighboursSettings)


QUICK = AttackSettings(
    documents=6,
    decoys=1,
    quantize=QuantizeSettings(bits=(4,)),
    relearn=RelearnSettings(steps=4, learning_rates=(1e-3,), texts=("part",), points=1),
    prompting=PromptingSettings(occurrences=20, prefixes=(25,), characters=200),
    sampling=SamplingSettings(occurrences=10, samples=20, prefix=25),
    layers=LayersSettings(layers=1),
)
"""Every attack, on few documents and in one or two variants: a first look."""
