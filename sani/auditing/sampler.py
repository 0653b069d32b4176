"""Settings of the sampler with which the adversary of the audit samples from a model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampler:
    """Settings of the sampler behind the (n, p)-discoverable extraction rate.

    The defaults are those of Hayes et al. 2024 (2410.19482): temperature 1 and top-k 40.

    Attributes:
        temperature: Divisor of the logits, above 0.
        top_k: Number of likeliest tokens that can be drawn; 0 for all.
        top_p: Probability mass of the likeliest tokens that can be drawn; 1.0 for all.
    """

    temperature: float = 1.0
    top_k: int = 40
    top_p: float = 1.0


DEFAULT_SAMPLER = Sampler()
