"""The gate: the limits of a run, and the checks that decide whether it meets them."""

from sani.gate.attacks import judge_attacks
from sani.gate.check import Check
from sani.gate.judge import judge
from sani.gate.positive_control import positive_control_of_attacks

__all__ = [
    "Check",
    "judge",
    "judge_attacks",
    "positive_control_of_attacks",
]
