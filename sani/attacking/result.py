"""The result of all attacks: figures by attack, variant and model. No torch, no identifier."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from sani.errors import AttackError
from sani.intervals import Estimate, Rate
from sani.recipe import AttackSettings
from sani.tabular import Tabular

if TYPE_CHECKING:
    import pandas as pd

UNATTACKED = "unattacked"
SANITIZED, UNSANITIZED, BASE = "sanitized", "unsanitized", "base"


@dataclass(frozen=True)
class RelearnPoint:
    """Extraction after ``step`` training steps, as shares of the scored occurrences."""

    step: int
    greedy: float
    discoverable: float


@dataclass(frozen=True)
class LeakPoint:
    """The mean chance that an occurrence comes up at least once in ``samples`` samples."""

    samples: int
    leaked: Estimate


@dataclass(frozen=True)
class SamplingCheck:
    """Identifiers counted in real samples, beside the number that the closed form expects.

    Attributes:
        samples: Continuations drawn in all.
        expected: Expected number of identifiers among them.
        found: Identifiers among them.
        deviation: ``found`` minus ``expected``, in standard deviations of the expected number;
            None where that number cannot vary.
        p_value: Two-sided p of a deviation as large; None likewise.
    """

    samples: int
    expected: float
    found: int
    deviation: float | None
    p_value: float | None


@dataclass(frozen=True)
class ModelFigures:
    """The figures of one variant of an attack on one model.

    Attributes:
        not_run: The reason why the variant was not run; empty if it was.
        greedy: Occurrences that greedy decoding reproduces; None if the variant gives no rate.
        discoverable: (n, p)-discoverable occurrences; None likewise.
        auc: Share of decoys that the model finds less likely than the true value; None if the
            variant scores no decoys.
        unscored: Occurrences that could not be scored.
        curve: Points on the way, of relearning and of sampling; empty for other attacks.
        check: The sampling attack's test of its closed form; None for other attacks.
    """

    not_run: str
    greedy: Rate | None
    discoverable: Rate | None
    auc: Estimate | None
    unscored: int
    curve: tuple[RelearnPoint, ...] | tuple[LeakPoint, ...]
    check: SamplingCheck | None


@dataclass(frozen=True)
class VariantResult:
    """One variant of an attack on every model, and what it extracted from the sanitized one.

    Attributes:
        models: Figures by model: `SANITIZED`, `UNSANITIZED`, `BASE`.
        auc_to_base: By model other than the base, the share of its decoys that the true value of an
            uncued occurrence beats by the log-ratio to the base after the same attack; empty
            without a base or decoys.
        beyond_control: By label, occurrences extracted from the sanitized model and not from the
            base by the same variant; None if one of the two has no rates.
        recovered: By label, occurrences extracted from the sanitized model by the variant and not
            without an attack; None if the variant has no rates or attacks other documents.
    """

    models: dict[str, ModelFigures]
    auc_to_base: dict[str, Estimate]
    beyond_control: dict[str, int] | None
    recovered: dict[str, int] | None


@dataclass(frozen=True)
class AttackResult(Tabular):
    """The figures of every attack.

    Attributes:
        settings: The attacks' settings.
        framing: Name of the framing around each document.
        documents: Documents under attack.
        occurrences: Occurrences under attack.
        not_run: Attacks for which there were no settings.
        seconds: Wall time.
        attacks: ``attacks[attack][variant]``; the attack `UNATTACKED` is the audit of each model as
            it is.
    """

    settings: AttackSettings
    framing: str
    documents: int
    occurrences: int
    not_run: list[str]
    seconds: float
    attacks: dict[str, dict[str, VariantResult]]

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each attack, variant and model: its rates and its AUCs."""
        import pandas as pd

        rows = [
            (
                name,
                variant,
                model,
                *map(_value, (of_model.greedy, of_model.discoverable, of_model.auc)),
                _value(result.auc_to_base.get(model)),
            )
            for name, variants in self.attacks.items()
            for variant, result in variants.items()
            for model, of_model in result.models.items()
        ]
        columns = ["attack", "variant", "model", "greedy", "discoverable", "auc", "auc_to_base"]
        return pd.DataFrame(rows, columns=columns).set_index(columns[:3])

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data, for JSON."""
        return {**asdict(self), "settings": self.settings.model_dump(mode="json")}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AttackResult:
        """Return the result of which `to_json` made ``data``.

        Raises:
            AttackError: If a field is missing or has another type.
        """
        try:
            return _adapter().validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            field = ".".join(map(str, error.errors(include_input=False)[0]["loc"]))
            raise AttackError(
                f"the stored attack result does not fit this version of sani: "
                f"{error.error_count()} of its fields do not fit, the first is {field}; run the "
                "attacks again"
            ) from None


@cache
def _adapter() -> TypeAdapter[AttackResult]:
    """Return the parser of `AttackResult.from_json`, which takes a while to build."""
    return TypeAdapter(AttackResult)


def _value(figure: Rate | Estimate | None) -> float | None:
    return figure.value if figure else None
