"""Recipes: the settings of every stage, and how they are read from YAML.

A recipe is data, never code: unions are closed on ``kind``, and no key names an import path. All
problems are reported together, each with its dotted path. This package never imports torch.
"""

from sani.recipe.attack_settings import (
    QUICK,
    AttackSettings,
    GuidanceSettings,
    LayersSettings,
    NeighboursSettings,
    PromptingSettings,
    QuantizeSettings,
    RelearnSettings,
    SamplingSettings,
)
from sani.recipe.erase_settings import (
    ActivationRatioSelector,
    AllSelector,
    DampenSettings,
    DriftSelector,
    EraseSettings,
    FisherRatioSelector,
    FractionSelector,
    GradientRatioSelector,
    HardConcreteSelector,
    IntegratedGradientsSelector,
    MagnitudeSelector,
    RandomSelector,
    Selector,
)
from sani.recipe.ladder import EscalationSettings, Rung
from sani.recipe.load import dump_recipe, load_recipe, parse_recipe, settings_from
from sani.recipe.recipe import Recipe
from sani.recipe.repair_settings import (
    AdapterSettings,
    AnchorObjective,
    GradientDifferenceObjective,
    MaskObjective,
    NpoObjective,
    Objective,
    RepairSettings,
    UnlikelihoodObjective,
)
from sani.recipe.sections import (
    AuditSettings,
    CorpusSettings,
    CountLimit,
    GateSettings,
    GenerationSettings,
    IndirectSettings,
    Limit,
    ModelSettings,
    ScanSettings,
)
from sani.recipe.settings import PARTS, Fraction, Part, PlacementChoice, Settings
from sani.recipe.stage_defaults import complete_erase_settings, complete_repair_settings

__all__ = [
    "PARTS",
    "QUICK",
    "ActivationRatioSelector",
    "AdapterSettings",
    "AllSelector",
    "AnchorObjective",
    "AttackSettings",
    "AuditSettings",
    "CorpusSettings",
    "CountLimit",
    "DampenSettings",
    "DriftSelector",
    "EraseSettings",
    "EscalationSettings",
    "FisherRatioSelector",
    "Fraction",
    "FractionSelector",
    "GateSettings",
    "GenerationSettings",
    "GradientDifferenceObjective",
    "GradientRatioSelector",
    "GuidanceSettings",
    "HardConcreteSelector",
    "IndirectSettings",
    "IntegratedGradientsSelector",
    "LayersSettings",
    "Limit",
    "MagnitudeSelector",
    "MaskObjective",
    "ModelSettings",
    "NeighboursSettings",
    "NpoObjective",
    "Objective",
    "Part",
    "PlacementChoice",
    "PromptingSettings",
    "QuantizeSettings",
    "RandomSelector",
    "Recipe",
    "RelearnSettings",
    "RepairSettings",
    "Rung",
    "SamplingSettings",
    "ScanSettings",
    "Selector",
    "Settings",
    "UnlikelihoodObjective",
    "complete_erase_settings",
    "complete_repair_settings",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
    "settings_from",
]
