"""Attacks that try less than by default are named."""

import pytest

from sani.recipe import QUICK, AttackSettings, GateSettings, settings_from
from sani.recipe.weaker_limits import weaker_attacks

JUDGED = GateSettings(attacks_auc_excess=0.05)


def test_attacks_of_the_defaults_or_more_are_not_weaker() -> None:
    more = settings_from(AttackSettings, {"documents": 2000, "quantize": {"bits": [8, 4]}})
    for settings in (None, AttackSettings(), more):
        assert weaker_attacks(settings, JUDGED) == []


def test_attacks_that_are_not_judged_are_not_named() -> None:
    assert weaker_attacks(QUICK, GateSettings()) == []


@pytest.mark.false_clean
def test_every_setting_by_which_an_attack_tries_less_is_named() -> None:
    relearn = {"steps": 1, "learning_rates": [1e-12], "texts": ["harmless"]}
    settings = settings_from(AttackSettings, {"decoys": 1, "relearn": relearn, "layers": None})
    assert weaker_attacks(settings, JUDGED) == [
        "attack.decoys is 1, by default 4",
        "attack.relearn.steps is 1, by default 60",
        "attack.relearn.learning_rates is 1e-12, by default 0.0001, 0.001",
        "attack.relearn.texts is harmless, by default harmless, part, surrogates",
    ]
