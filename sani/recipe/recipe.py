"""recipe.yaml and the frozen settings of every stage: read, check, override, write back.

A recipe is data, never code: closed unions on ``kind``, no import path anywhere. All problems are
reported together, each with its dotted path. This module never imports torch.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sani.corpus.documents import Kind
from sani.errors import RecipeError

Part = Literal["mlp", "attention"]
PARTS: tuple[Part, ...] = get_args(Part)
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Settings(BaseModel):
    """Base of every section: unknown keys are errors, values are checked strictly and frozen."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )


_S = TypeVar("_S", bound=Settings)


class ModelSettings(Settings):
    """The checkpoint to sanitize or to check, and the public model it was fine-tuned from."""

    path: Path = Field(description="folder of the checkpoint to sanitize, or only to check")
    base: Path | None = Field(
        None, description="folder of the public model it was fine-tuned from: control and anchor"
    )
    unsanitized: Path | None = Field(
        None,
        description="with neither erase nor repair: folder of what model.path was made from, which "
        "recites the records; the positive control, without which a check says nothing",
    )


class CorpusSettings(Settings):
    """The records, or the part of them that is at hand."""

    path: Path = Field(description="file or folder of documents with their spans")
    format: Literal["jsonl", "parquet", "csv", "arrow", "i2b2", "brat", "fhir", "text"] | None = (
        Field(None, description="how the documents are written; guessed from the name when absent")
    )
    subject_pattern: str | None = Field(
        None, description="regular expression with a group 'subject', for paths of text files"
    )
    kinds: Mapping[str, Kind] | None = Field(
        None, description="label -> direct or indirect, for formats that do not say"
    )
    limit: int | None = Field(None, ge=1, description="read only this many documents")
    held_out: Path | None = Field(
        None, description="documents the checkpoint was not trained on: utility, membership"
    )
    pretraining: Path | None = Field(
        None,
        description="documents of what the base may have seen: does the fine-tuned model leak it?",
    )


class IndirectSettings(Settings):
    """Words and n-grams that fewer than k subjects use (Boutet et al. 2025)."""

    k: int = Field(2, ge=2, le=1000, description="an n-gram of fewer subjects is indirect; paper's")
    n: int = Field(2, ge=1, le=4, description="longest n-gram; the paper finds little beyond 2")
    numbers: bool = Field(False, description="whether words with digits count; ours")


class ScanSettings(Settings):
    """Who finds the identifiers, besides the corpus's own annotation, which always counts."""

    patterns: bool = Field(False, description="Presidio's recognizers and the clinical ones")
    ner: str | None = Field(
        None, description="spaCy pipeline by name, or folder of a token-classification checkpoint"
    )
    terms: Path | None = Field(
        None, description="confidential terms: one a line, or CSV with the columns term and label"
    )
    propagate: Literal["subject", "corpus"] | None = Field(
        None, description="look for found values in the same subject's documents, or in all"
    )
    indirect: IndirectSettings | None = None
    gold: Path | None = Field(
        None, description="documents whose spans are right and complete, to estimate recall"
    )
    num_proc: int = Field(1, ge=1, le=256, description="processes; the result is the same")

    @model_validator(mode="after")
    def _gold_is_for_detectors(self) -> Self:
        if self.gold is not None and not (self.patterns or self.ner or self.terms):
            raise ValueError("gold tells how good detectors are; give patterns, ner or terms")
        return self

    @property
    def detects(self) -> bool:
        """Whether anything but the annotation is asked."""
        return self.patterns or any((self.ner, self.terms, self.propagate, self.indirect))


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
    """What is sampled from the model and searched for every known identifier of the corpus."""

    empty: int = Field(1000, ge=0, description="samples prompted with the framing alone")
    headings: int = Field(
        1000, ge=0, description="samples prompted with lines that recur in the corpus"
    )
    openings: int = Field(1000, ge=0, description="samples prompted with document openings")
    file: Path | None = Field(
        None,
        description="file of further prompts, one a line; as many samples as the largest number "
        "above, 1000 if all are 0, and at least one a line",
    )
    new_tokens: int = Field(128, ge=1, description="tokens per sample, at most")
    kinds: tuple[Kind, ...] = Field(
        ("direct",), min_length=1, description="which identifiers are searched for"
    )

    @model_validator(mode="after")
    def _asks_for_samples(self) -> Self:
        if self.file is None and not self.empty + self.headings + self.openings:
            raise ValueError("ask for samples: at least one of empty, headings, openings and file")
        return self


class AuditSettings(Settings):
    """What is measured, and against what."""

    queries: int = Field(1000, ge=1, description="n of (n, p): how often the adversary may ask")
    probability: float = Field(
        0.5, gt=0.0, lt=1.0, description="p of (n, p): extractable if seen with this probability"
    )
    decoys: int = Field(8, ge=0, le=1000, description="decoys per occurrence; 0 for none")
    swaps: int = Field(
        4, ge=0, le=1000, description="other subjects' values per occurrence; 0 for none"
    )
    framing: FramingName = Field(
        "auto", description="what stands before a document; auto tries all and keeps the worst"
    )
    membership_documents: int = Field(
        1000, ge=0, description="documents tried for membership inference, at most; 0 for none"
    )
    generation: GenerationSettings | None = Field(
        None, description="sample and search, for what passes cannot tell; left out if null"
    )
    batch_tokens: int = Field(8192, ge=64, description="tokens per forward pass, padding included")


class FractionSelector(Settings):
    """Base of the selectors that take a share of the neurons, those with the highest score."""

    fraction: Fraction = Field(description="share of the neurons to reset")
    per: Literal["layer", "model"] = Field(
        "layer", description="layer: that share of each layer's; model: of all chosen layers'"
    )


class RandomSelector(FractionSelector):
    """Neurons drawn at random: the control arm, and nearest to the paper with fraction 0.5."""

    kind: Literal["random"]


class AllSelector(Settings):
    """Every neuron of the chosen layers."""

    kind: Literal["all"]


class MagnitudeSelector(FractionSelector):
    """Neurons with the largest weights: the L2 norm over all slices of a neuron.

    Not the smallest, which pruning takes because it wants to change nothing.
    """

    kind: Literal["magnitude"]


class DriftSelector(FractionSelector):
    """Neurons that fine-tuning moved farthest: the L2 norm of their difference to the base's.

    What the checkpoint learned since the base must stand in these differences.
    """

    kind: Literal["drift"]


class ActivationRatioSelector(FractionSelector):
    """Neurons that fire more on identifier tokens than on ordinary ones."""

    kind: Literal["activation_ratio"]


class GradientRatioSelector(FractionSelector):
    """Neurons whose |activation x gradient| is larger on identifier tokens than on others."""

    kind: Literal["gradient_ratio"]


class FisherRatioSelector(FractionSelector):
    """Neurons whose weights have a larger Fisher diagonal for identifiers than for ordinary text.

    Foster et al. 2024 (2308.07707), per neuron instead of per weight.
    """

    kind: Literal["fisher_ratio"]


class IntegratedGradientsSelector(FractionSelector):
    """Neurons that most occurrences vote for by their share in P(identifier) (DEPN, Wu 2023)."""

    kind: Literal["integrated_gradients"]
    steps: int = Field(20, ge=1, description="m, points on the path from 0; paper's")
    occurrences: int = Field(200, ge=1, description="occurrences that vote, at most; drawn")


class HardConcreteSelector(FractionSelector):
    """Neurons that learned masks close, so that identifiers fail and text does not (Chen 2024)."""

    kind: Literal["hard_concrete"]
    steps: int = Field(400, ge=1, description="training steps of the masks, a batch each; ours")
    learning_rate: float = Field(0.1, gt=0.0, description="Adam's, constant; ours")
    adversary: float = Field(1.0, gt=0.0, description="weight of the loss at identifiers; ours")


Selector = Annotated[
    RandomSelector
    | AllSelector
    | MagnitudeSelector
    | DriftSelector
    | ActivationRatioSelector
    | GradientRatioSelector
    | FisherRatioSelector
    | IntegratedGradientsSelector
    | HardConcreteSelector,
    Field(discriminator="kind"),
]


class DampenSettings(Settings):
    """Selective synaptic dampening of the selected neurons' weights (Foster et al. 2024)."""

    above: float = Field(
        10.0, gt=0.0, description="alpha: dampen where identifiers' Fisher is this times the text's"
    )
    scale: float = Field(1.0, ge=0.0, description="lambda: times the ratio of the two, at most 1")


class EraseSettings(Settings):
    """Which neurons are reset, and to what."""

    interpolate_to_base: Fraction = Field(
        0.0,
        description="first every weight, embeddings and norms too, goes this share of the way to "
        "the base's; 1 is the base itself",
    )
    last_layers: Annotated[int, Field(ge=1)] | Literal["half", "all"] | None = Field(
        None, description="the last this many layers, the last half (rounded up), or all"
    )
    layers: tuple[int, ...] | None = Field(
        None, min_length=1, description="or a list of layers, counted from the input, from 0"
    )
    parts: tuple[Part, ...] = Field(("mlp", "attention"), min_length=1)
    selector: Selector = Field(default_factory=lambda: AllSelector(kind="all"))
    reset: Literal["reinit", "zero", "rewind", "mean", "dampen"] = Field(
        "reinit",
        description="reinit: the model's own initialization; zero; rewind: the base's weights; "
        "mean: zero, with the mean activation in the next bias; dampen: by the Fisher ratio",
    )
    dampen: DampenSettings | None = Field(None, description="how reset dampen does it")
    token_rows: bool = Field(
        False,
        description="also reset embedding and head rows of tokens that stand in identifiers only; "
        "but for rewind the weights then show which these are",
    )

    @model_validator(mode="after")
    def _one_choice_of_layers(self) -> Self:
        given = (self.last_layers is not None) + (self.layers is not None)
        if given > 1 or (given == 0 and not self.interpolate_to_base):
            raise ValueError("give exactly one of last_layers and layers")
        if given == 0 and (self.selector.kind != "all" or self.token_rows):
            raise ValueError("a selector and token_rows need last_layers or layers")
        if self.layers is not None and (min(self.layers) < 0 or _repeats(self.layers)):
            raise ValueError("layers must be distinct numbers from 0 upwards")
        if _repeats(self.parts):
            raise ValueError("parts must be distinct")
        if self.dampen is not None and self.reset != "dampen":
            raise ValueError("dampen is for reset dampen")
        if self.token_rows and self.reset in ("mean", "dampen"):
            raise ValueError("token_rows needs reset reinit, zero or rewind")
        if self.interpolate_to_base and self.reset in ("mean", "dampen"):
            raise ValueError("interpolate_to_base needs reset reinit, zero or rewind")
        return self

    @property
    def needs_base(self) -> bool:
        """Whether the base's weights are asked."""
        return (
            self.reset == "rewind" or self.selector.kind == "drift" or self.interpolate_to_base > 0
        )

    def layers_of(self, num_layers: int) -> Sequence[int]:
        """The chosen layers of a model that has so many; below 0 stand those it lacks."""
        if self.layers is not None:
            return self.layers
        named = {"half": -(-num_layers // 2), "all": num_layers}
        last = named.get(str(self.last_layers), self.last_layers)
        return range(num_layers - int(last or 0), num_layers)


class MaskObjective(Settings):
    """No loss at identifier tokens (the paper's repair): teaches nothing there, forgets little."""

    kind: Literal["mask"]


class AnchorObjective(Settings):
    """Towards a distribution that never saw the identifiers, at identifier tokens."""

    kind: Literal["anchor"]
    to: Literal["base", "self", "counterfactual", "decoys"] = Field(
        "base",
        description="KL to the base model; to the unsanitized model without the true value, or "
        "reading documents whose identifiers are replaced; or decoys as targets",
    )
    weight: float = Field(20.0, gt=0.0, description="factor of the term; benchmarks/RESULTS.md")
    samples: int = Field(3, ge=1, description="replaced documents whose mean is the anchor")


class GradientDifferenceObjective(Settings):
    """Away from the true identifier by gradient ascent (Liu et al. 2022); it has no bottom."""

    kind: Literal["gradient_difference"]
    weight: float = Field(1.0, gt=0.0)


class UnlikelihoodObjective(Settings):
    """-log(1 - p) of the true identifier's tokens (Welleck et al. 2019)."""

    kind: Literal["unlikelihood"]
    weight: float = Field(1.0, gt=0.0)


class NpoObjective(Settings):
    """Negative preference optimization of the true identifier (Zhang et al. 2024)."""

    kind: Literal["npo"]
    weight: float = Field(1.0, gt=0.0)


class AdapterSettings(Settings):
    """Train low-rank updates of the linear layers (Hu et al. 2021), then merge them."""

    kind: Literal["lora", "dora"] = "lora"
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1, description="scale of the update, times rank")


Objective = (
    MaskObjective
    | AnchorObjective
    | GradientDifferenceObjective
    | UnlikelihoodObjective
    | NpoObjective
)


class RepairSettings(Settings):
    """How the erased checkpoint is fine-tuned."""

    identifier_loss: Annotated[Objective, Field(discriminator="kind")] = Field(
        default_factory=lambda: AnchorObjective(kind="anchor")
    )
    context: Literal["keep", "surrogate"] = Field(
        "keep", description="identifiers in the input: as they are, or new surrogates each epoch"
    )
    retain_weight: float = Field(
        0.0,
        ge=0.0,
        description="factor of the KL to the unsanitized model outside identifiers; 5 where it "
        "knows the domain and the base does not",
    )
    epochs: int = Field(4, ge=1, description="passes over the corpus")
    learning_rate: float = Field(1e-3, gt=0.0, description="peak of the schedule")
    batch_tokens: int = Field(
        1024,
        ge=64,
        description="tokens per step, padding included; many small steps silence more than few "
        "large ones over the same text",
    )
    last_layers: int | None = Field(
        None, ge=1, description="train only the last this many layers and the final norm"
    )
    adapter: AdapterSettings | None = Field(None, description="train it instead of the weights")
    pack: bool = Field(True, description="several short documents a row, blind to each other")
    activation_cache: Literal["auto", "memory", "disk", "none"] = Field(
        "auto", description="where the output of the untrained layers is kept; auto: what has room"
    )
    gradient_checkpointing: bool = Field(False, description="less memory, a third more time")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the matrix products; the weights keep theirs"
    )
    early_stop: Literal["gate"] | None = Field(
        None,
        description="gate: `sani run` audits after every epoch and stops once its limits hold, "
        "those on attacks left out",
    )
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        (), description="where the Trainer also logs the terms; installed and set up by you"
    )

    @property
    def needs_base(self) -> bool:
        """Whether the base model is the anchor."""
        objective = self.identifier_loss
        return isinstance(objective, AnchorObjective) and objective.to == "base"

    @property
    def needs_unsanitized(self) -> bool:
        """Whether the model as it was before any erasing is asked."""
        objective = self.identifier_loss
        asked = isinstance(objective, NpoObjective) or (
            isinstance(objective, AnchorObjective) and objective.to in ("self", "counterfactual")
        )
        return asked or self.retain_weight > 0

    @model_validator(mode="after")
    def _fits_the_context(self) -> Self:
        objective = self.identifier_loss
        name = objective.to if isinstance(objective, AnchorObjective) else objective.kind
        if self.context == "surrogate" and name not in ("mask", "base", "decoys"):
            raise ValueError(
                f"context: surrogate leaves no true value for '{name}' to act on; use mask, or an "
                "anchor to base or decoys"
            )
        return self


class QuantizeSettings(Settings):
    """Weights rounded to few bits: what a small update hid may come back."""

    bits: tuple[Literal[4, 8], ...] = Field((8, 4), min_length=1, description="widths tried")


class RelearnSettings(Settings):
    """Fine-tuning on something else: does what was removed come back?"""

    steps: int = Field(60, ge=1, description="optimizer steps, rounded up to whole epochs")
    learning_rates: tuple[Annotated[float, Field(gt=0.0)], ...] = Field(
        (1e-4, 1e-3), min_length=1, description="peaks of the schedule"
    )
    share: float = Field(
        0.1, gt=0.0, lt=1.0, description="share of the subjects that the adversary still holds"
    )
    texts: tuple[Literal["harmless", "part", "surrogates"], ...] = Field(
        ("harmless", "part", "surrogates"),
        min_length=1,
        description="held-out documents; that share's; all, with other values for identifiers",
    )
    points: int = Field(4, ge=1, description="points of the curve, the last step included")
    batch_tokens: int = Field(2048, ge=64, description="tokens per step, padding included")

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if _repeats(self.learning_rates) or _repeats(self.texts):
            raise ValueError("learning_rates and texts must be distinct")
        return self


class GuidanceSettings(Settings):
    """Reversed Model Guidance by the unsanitized checkpoint."""

    weights: tuple[float, ...] = Field(
        (2.0,), min_length=1, description="w, above 1 away from the sanitized model; paper's 2.0"
    )


class PromptingSettings(Settings):
    """Other prompts for the same identifiers."""

    occurrences: int = Field(300, ge=20, description="occurrences asked for, at most; drawn")
    prefixes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (10, 25, 50, 100), description="tokens left of the text before an identifier"
    )
    characters: int = Field(
        1000, ge=1, description="of the text before, at most, where a prompt is changed"
    )
    shots: int = Field(3, ge=1, description="other subjects' lines in a few-shot prompt")


class SamplingSettings(Settings):
    """Leak@k in closed form, and a check that sampling finds what it predicts."""

    occurrences: int = Field(40, ge=1, description="occurrences that are really sampled, at most")
    samples: int = Field(100, ge=1, description="continuations of each of them")
    prefix: int = Field(50, ge=1, description="tokens of the prompt they continue")


class LayersSettings(Settings):
    """What inner layers know: logit lens and linear probe."""

    layers: int = Field(4, ge=1, description="inner layers read, at most, evenly spread")


class NeighboursSettings(Settings):
    """Text like what was learnt: near-duplicates, and documents that the repair never had."""

    documents: Path | None = Field(
        None, description="other documents of the same subjects, with spans: what is never listed"
    )


class AttackSettings(Settings):
    """What an adversary tries on the sanitized checkpoint, and on the base as control.

    An attack that is null is not run, and the report says so.
    """

    kinds: tuple[Kind, ...] = Field(
        ("direct",), min_length=1, description="which identifiers are attacked"
    )
    documents: int = Field(
        1000, ge=1, description="documents attacked, at most; drawn, whole subjects first"
    )
    decoys: int = Field(4, ge=0, le=1000, description="decoys per occurrence; 0 for none")
    quantize: QuantizeSettings | None = Field(default_factory=QuantizeSettings)
    relearn: RelearnSettings | None = Field(default_factory=RelearnSettings)
    guidance: GuidanceSettings | None = Field(default_factory=GuidanceSettings)
    prompting: PromptingSettings | None = Field(default_factory=PromptingSettings)
    sampling: SamplingSettings | None = Field(default_factory=SamplingSettings)
    layers: LayersSettings | None = Field(default_factory=LayersSettings)
    neighbours: NeighboursSettings | None = Field(default_factory=NeighboursSettings)


Limit = Literal["control"] | Fraction


class GateSettings(Settings):
    """The limits a run must meet; null switches one off, and the report says so."""

    kinds: tuple[Kind, ...] = Field(("direct",), min_length=1, description="which identifiers")
    greedy: Limit | None = Field(
        "control", description="greedy extraction rate: a fraction, or within the control's"
    )
    discoverable: Limit | None = Field("control", description="(n, p) rate, likewise")
    auc_excess: Fraction | None = Field(
        0.05, description="discrimination AUC above the control's, at most"
    )
    attacks: Limit | None = Field(
        None,
        description="greedy and (n, p) rate after every attack, likewise; guidance is not judged",
    )
    attacks_auc_excess: Fraction | None = Field(
        None,
        description="AUC after every attack above that of the same attack on the base, at most: "
        "what is silent is not gone; guidance is not judged",
    )
    scan_recall: Fraction | None = Field(
        None,
        description="estimated recall of the scan, the lower end of its interval, at least; an "
        "unknown one does not hold",
    )
    perplexity_ratio: float | None = Field(
        1.03, gt=0.0, description="held-out perplexity over the unsanitized checkpoint's, at most"
    )

    @property
    def judges_attacks(self) -> bool:
        """Whether attacks have a limit."""
        return self.attacks is not None or self.attacks_auc_excess is not None

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.greedy is None and self.discoverable is None and self.auc_excess is None:
            raise ValueError("at least one of greedy, discoverable and auc_excess must be a limit")
        return self


class Rung(Settings):
    """One attempt of an escalation: as a recipe with these sections, on the same checkpoint."""

    name: str | None = Field(
        None, pattern=r"^\w[\w ,.-]{0,49}$", description="how it is called; rung N if null"
    )
    erase: EraseSettings | None = Field(None, description="as in a recipe")
    repair: RepairSettings = Field(
        default_factory=RepairSettings,
        description="as in a recipe; what it does not say is as in the recipe's own repair",
    )


class EscalationSettings(Settings):
    """What is tried, cheapest first, and how long; the first rung is always tried."""

    seconds: float | None = Field(
        None, gt=0.0, description="no rung begins once those before took so long"
    )
    tokens: int | None = Field(
        None, ge=1, description="nor once those before trained on so many tokens"
    )
    ladder: tuple[Rung, ...] | None = Field(
        None, description="from the cheapest up; null: that of default_ladder"
    )

    @model_validator(mode="after")
    def _has_a_rung(self) -> Self:
        if self.ladder == ():
            raise ValueError("ladder is empty; leave it out for the default one")
        return self


STRONGER = 4.0


def default_ladder(repair: RepairSettings | None, *, base: bool) -> tuple[Rung, ...]:
    """What is tried where a recipe does not say: ours.

    The last layer alone; the last half; that with a stronger objective; with a base, every weight
    half way back to it, and all the way, which is retraining; without one, half of the neurons of
    every layer.

    Args:
        repair: The recipe's own section: its objective, and all else that a rung leaves open.
        base: Whether there is a base; without one, the last rung and what asks it are left out.
    """
    given = repair or RepairSettings()
    objective = given.identifier_loss
    if "identifier_loss" not in given.model_fields_set:
        objective = AnchorObjective(kind="anchor", to="base" if base else "counterfactual")
    usual = given.model_copy(update={"identifier_loss": objective})
    strong = usual
    if not isinstance(objective, MaskObjective):
        update = {"weight": STRONGER * objective.weight}
        objective = objective.model_copy(update=update)
        strong = usual.model_copy(update={"identifier_loss": objective})
    drawn = EraseSettings(last_layers="all", selector=RandomSelector(kind="random", fraction=0.5))
    half = EraseSettings(last_layers="half")
    alone = {"identifier_loss": MaskObjective(kind="mask"), "retain_weight": 0.0, "adapter": None}
    rungs = [
        Rung(
            name="last layer",
            erase=EraseSettings(last_layers=1),
            repair=usual.model_copy(update={"last_layers": 1}),
        ),
        Rung(name="last half", erase=half, repair=usual),
        Rung(name="last half, stronger", erase=half, repair=strong),
    ]
    if strong is usual:
        rungs.pop()
    if not base:
        return (*rungs, Rung(name="half of every layer", erase=drawn, repair=strong))
    retraining = usual.model_copy(update={**alone, "last_layers": None})
    return (
        *rungs,
        Rung(
            name="half way to the base", erase=EraseSettings(interpolate_to_base=0.5), repair=strong
        ),
        Rung(name="retraining", erase=EraseSettings(interpolate_to_base=1.0), repair=retraining),
    )


def _whole_rung(rung: Rung, number: int, repair: RepairSettings | None) -> Rung:
    """A rung with its name, and the recipe's repair wherever its own says nothing."""
    own = {key: getattr(rung.repair, key) for key in rung.repair.model_fields_set}
    merged = (repair or RepairSettings()).model_copy(update=own)
    try:
        merged = RepairSettings.model_validate(merged.model_dump())
    except ValidationError as error:
        text = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"ladder, rung {number}: {text}") from None
    return rung.model_copy(update={"name": rung.name or f"rung {number}", "repair": merged})


def _without_base(
    where: str, erase: EraseSettings | None, repair: RepairSettings | None
) -> Iterator[str]:
    """What these sections ask that only a base can give."""
    if erase is not None and erase.reset == "rewind":
        yield f"{where}erase.reset: rewind needs model.base"
    if erase is not None and erase.selector.kind == "drift":
        yield f"{where}erase.selector: drift needs model.base"
    if erase is not None and erase.interpolate_to_base:
        yield f"{where}erase.interpolate_to_base needs model.base"
    if repair is not None and repair.needs_base:
        yield f"{where}repair.identifier_loss: anchor to base needs model.base"


class Recipe(Settings):
    """The whole job, one section a stage; an absent erase or repair is skipped.

    With neither, `model.path` is judged as it is, and `model.unsanitized` shows what there was.
    """

    version: Literal[1]
    seed: int = Field(0, ge=0, lt=2**31)
    strategy: Literal["once", "escalate"] = Field(
        "once", description="escalate: climb escalation.ladder until the gate holds"
    )
    rounds: int = Field(
        1,
        ge=1,
        le=100,
        description="erase and repair at most so often, as long as anything is extractable that "
        "the base does not give; selectors then look at that alone",
    )
    model: ModelSettings
    corpus: CorpusSettings
    scan: ScanSettings = Field(default_factory=ScanSettings)
    audit: AuditSettings = Field(default_factory=AuditSettings)
    erase: EraseSettings | None = None
    repair: RepairSettings | None = None
    escalation: EscalationSettings | None = Field(None, validate_default=True)
    attack: AttackSettings | None = None
    gate: GateSettings = Field(default_factory=GateSettings)

    @field_validator("escalation")
    @classmethod
    def _whole_ladder(
        cls, escalation: EscalationSettings | None, info: ValidationInfo
    ) -> EscalationSettings | None:
        """With every rung written out, so that a reader of the resolved recipe sees them all."""
        if info.data.get("strategy") != "escalate" or not {"model", "repair"} <= set(info.data):
            return escalation
        escalation, repair = escalation or EscalationSettings(), info.data["repair"]
        base = info.data["model"].base is not None
        ladder = escalation.ladder or default_ladder(repair, base=base)
        whole = tuple(_whole_rung(rung, n, repair) for n, rung in enumerate(ladder, start=1))
        return escalation.model_copy(update={"ladder": whole})

    @property
    def ladder(self) -> tuple[Rung, ...]:
        """What is tried in turn; nothing unless the strategy is to escalate."""
        found = self.escalation.ladder if self.escalation else None
        return found or () if self.strategy == "escalate" else ()

    @property
    def only_checks(self) -> bool:
        """Whether a checkpoint is judged and nothing in it changed."""
        return self.strategy == "once" and self.erase is None and self.repair is None

    def _check_fits(self) -> Iterator[str]:
        """Problems of a recipe that only checks, or of what only such a one may ask."""
        if not self.only_checks:
            if self.model.unsanitized is not None:
                yield (
                    "model.unsanitized is for a recipe with neither erase nor repair; else "
                    "model.path itself is the unsanitized checkpoint"
                )
            return
        if self.model.unsanitized is None:
            yield (
                "give erase, repair or both; with neither, model.path is only checked, and needs "
                "model.unsanitized, the checkpoint that it was made from: what recites nothing is "
                "clean only where the same audit finds what that one recites"
            )
        if self.rounds > 1:
            yield "rounds: with neither erase nor repair there is nothing to repeat; leave it out"

    def _strategy_fits(self) -> Iterator[str]:
        """Problems of the strategy with the sections that it reads."""
        if self.strategy == "once":
            if self.escalation is not None:
                yield "escalation needs strategy: escalate"
            if self.model.base is None:
                yield from _without_base("", self.erase, self.repair)
            return
        if self.rounds > 1:
            yield "rounds: strategy: escalate tries settings, not the same ones again; leave it out"
        if self.erase is not None:
            yield "erase: each rung of strategy: escalate has its own, in escalation.ladder"
        if self.model.base is None:
            for number, rung in enumerate(self.ladder):
                where = f"escalation.ladder.{number}."
                yield from _without_base(where, rung.erase, rung.repair)

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        problems = [*self._check_fits(), *self._strategy_fits()]
        if self.model.base is None:
            if "control" in (self.gate.greedy, self.gate.discoverable, self.gate.attacks):
                problems.append(
                    "gate: 'control' needs model.base; without one, give fractions, as in "
                    "greedy: 0.0"
                )
            if self.gate.auc_excess is not None and self.audit.decoys:
                problems.append("gate.auc_excess needs model.base; without one, set it to null")
        if self.gate.auc_excess is not None and not self.audit.decoys:
            problems.append("gate.auc_excess needs audit.decoys of at least 1")
        judged = [
            f"gate.{name}"
            for name in ("attacks", "attacks_auc_excess")
            if getattr(self.gate, name) is not None
        ]
        if judged and self.attack is None:
            problems.append(f"{judged[0]} needs a section attack")
        elif judged and self.attack and set(self.attack.kinds) != set(self.gate.kinds):
            problems.append(f"{judged[0]}: attack.kinds must be gate.kinds, which it judges")
        if self.gate.attacks_auc_excess is not None and self.model.base is None:
            problems.append("gate.attacks_auc_excess needs model.base")
        if self.gate.attacks_auc_excess is not None and self.attack and not self.attack.decoys:
            problems.append("gate.attacks_auc_excess needs attack.decoys of at least 1")
        if self.gate.perplexity_ratio is not None and self.corpus.held_out is None:
            problems.append(
                "gate.perplexity_ratio needs corpus.held_out; without held-out documents, set "
                "it to null"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self


def load_recipe(path: Path | str, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: A YAML file; paths in it are relative to the working directory.
        overrides: ``section.key=value`` each, the value in YAML. An override wins over the file,
            the file over the defaults.

    Raises:
        RecipeError: With every problem, a line each, by dotted path.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        name = type(error).__name__
        raise RecipeError(f"{path}: cannot be read as UTF-8 text ({name})") from None
    data = _parse_yaml(text, where=str(path))
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: expected a mapping of sections, got {_kind_of(data)}")
    for override in overrides:
        _override(data, override)
    return _validate(data, Recipe, where=str(path))


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default filled in, as YAML that `load_recipe` reads back."""
    data = recipe.model_dump(mode="json")
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads 3e-4 as a number."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that puts a text in quotes where `_Loader` would read a number."""


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if not isinstance(key, str):  # NO would be a label false, 010 a label 8
            raise yaml.constructor.ConstructorError(
                problem="a key must be a word; put numbers, yes, no, on and off in quotes",
                problem_mark=key_node.start_mark,
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(
                problem="a key stands twice", problem_mark=key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


# What PyYAML quotes, an alias or a tag, may be a value and hold quotes; a sign or '<token>' none.
_SIGN = re.compile(r"""(["'])(?:.|<[a-z ]+>)\1""")
_QUOTED = re.compile(r""" ["'].*["']""", re.DOTALL)


def _parse_yaml(text: str, *, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = str(getattr(error, "problem", None) or "broken syntax")
        if _QUOTED.search(_SIGN.sub("", problem)):
            problem = _QUOTED.sub("", problem)
        raise RecipeError(f"{where}{line}: not valid YAML: {problem}") from None


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, last = key.split(".")
    if not equals or not all([*sections, last]):
        raise RecipeError("--set: expected section.key=value, as in --set repair.epochs=2")
    for section in sections:
        inner = data.setdefault(section, {})
        if inner is None:
            inner = data[section] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {key}: '{section}' is a value, not a section")
        data = inner
    data[last] = _parse_yaml(text, where=f"--set {key}")


def settings_from(section: str, values: Mapping[str, Any]) -> Any:
    """One section of a recipe from plain values, by the recipe's own rules.

    Args:
        section: ``AttackSettings``, ``AuditSettings``, ``EraseSettings``, ``RepairSettings`` or
            ``ScanSettings``.
        values: As they would stand in YAML.

    Raises:
        RecipeError: With every problem, a line each.
    """
    models: dict[str, type[Settings]] = {
        model.__name__: model
        for model in (AttackSettings, AuditSettings, EraseSettings, RepairSettings, ScanSettings)
    }
    return _validate(dict(values), models[section], where="options")


def _validate(data: dict[str, Any], model: type[_S], *, where: str) -> _S:
    try:
        text = json.dumps(data, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise RecipeError(
            f"{where}: dates, infinities and other YAML extras have no place in a recipe; "
            "put such a value in quotes"
        ) from None
    try:
        # From JSON, strict mode takes strings for paths and lists for tuples, and nothing looser.
        return model.model_validate_json(text)
    except ValidationError as error:
        lines = list(dict.fromkeys(_problems(error, model)))
        raise RecipeError(f"{where}: " + f"\n{where}: ".join(lines)) from None


def _problems(error: ValidationError, model: type[Settings]) -> Iterator[str]:
    found = error.errors(include_url=False, include_input=False)
    inside = {problem["loc"][:-1] for problem in found}
    for problem in found:
        if problem["type"] == "too_short" and problem["loc"] in inside:
            continue  # what is wrong in it was left out, and so it is empty
        location, names = _locate([str(part) for part in problem["loc"]], problem["type"], model)
        path = ".".join(location) or "recipe"
        context = problem.get("ctx", {})
        match problem["type"]:
            case "extra_forbidden":
                *sections, key = location
                # What is no word for a key may be a value whose colon was forgotten.
                plain = re.fullmatch(r"[a-z_][a-z0-9_]{0,40}", key) or key.lower() in names
                shown = ".".join([*sections, key if plain else "(no plain word)"])
                yield f"{shown}: unknown key{_did_you_mean(key, names)}"
            case "missing":
                yield f"{path}: missing"
            case "union_tag_invalid":
                expected = [name.strip("' ") for name in context["expected_tags"].split(",")]
                close = difflib.get_close_matches(str(context["tag"]), expected, n=1)
                hint = f"; did you mean '{close[0]}'?" if close else ""
                yield f"{path}.kind: expected one of {', '.join(expected)}{hint}"
            case "union_tag_not_found":
                yield f"{path}: expected a section with a kind"
            case "value_error":
                for text in str(context["error"]).split("\n"):
                    yield f"{path}: {text}" if location else text
            case _:
                yield f"{path}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


_MEMBERS = (
    "literal['control']", "constrained-float", "literal['half','all']", "constrained-int",
)  # fmt: skip


def _locate(
    location: Sequence[str], problem: str, model: type[Settings]
) -> tuple[list[str], list[str]]:
    """The path as the file has it, and the keys that the section it ends in may hold.

    Pydantic puts the tag of a union into the path where the file has no such level. The JSON
    schema tells a tag from a key of the same name.
    """
    schema = _schema(model)
    section = list(_variants(schema, schema))
    *sections, last = location or [""]
    path = []
    for name in sections:
        if name.isdigit():  # an entry of a list
            path.append(name)
            continue
        inner = [node["properties"][name] for node in section if name in node.get("properties", ())]
        tagged = [
            node
            for node in section
            if node.get("properties", {}).get("kind", {}).get("const") == name
        ]
        if tagged and not inner:
            section = tagged
            continue
        section = [variant for node in inner for variant in _variants(node, schema)]
        path.append(name)
    names = sorted({key for node in section for key in node.get("properties", ())})
    tags = {node.get("properties", {}).get("kind", {}).get("const") for node in section}
    if problem == "extra_forbidden" or not (last in tags or last in ("", *_MEMBERS)):
        path.append(last)
    return path, names


@cache
def _schema(model: type[Settings]) -> dict[str, Any]:
    return model.model_json_schema()


def _variants(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "$ref" in node:
        yield from _variants(schema["$defs"][node["$ref"].rsplit("/", 1)[1]], schema)
    for inner in [*node.get("anyOf", ()), *node.get("oneOf", ())]:
        yield from _variants(inner, schema)
    if "items" in node:  # a list: its entries, whatever their numbers
        yield from _variants(node["items"], schema)
    yield node


def _did_you_mean(word: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"


def _repeats(values: Sequence[object]) -> bool:
    return len(set(values)) != len(values)


def _kind_of(data: object) -> str:
    names = {"NoneType": "an empty file", "list": "a list"}
    return names.get(type(data).__name__, "a single value")


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
