"""Rarefaction: estimate how many distinct identifiers more samples would recite.

The question is ecology's, with samples for plots and identifiers for species. No torch, no file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import gammaln

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Distinct:
    """Expected number of distinct identifiers in ``samples`` samples, with a 95 % interval."""

    samples: int
    value: float
    low: float
    high: float


class Incidence:
    """Incidence of identifiers in samples, and the estimates for other numbers of samples.

    Args:
        sample: Sample of each hit, below ``samples``, [hits].
        identifier: Identifier of each hit, [hits]; each pair stands once.
        samples: Samples in all.
        searched: Identifiers that could be found.
    """

    def __init__(self, sample: Ints, identifier: Ints, *, samples: int, searched: int) -> None:
        self._samples = samples
        self._searched = searched
        self._row = sample
        _, which, counts = np.unique(identifier, return_inverse=True, return_counts=True)
        self._counts = counts  # samples that hold each identifier, [identifiers]
        self._of_hit = counts[which]  # the same for each hit, [hits]

    def expected(self, size: int) -> Distinct:
        """Distinct identifiers expected in ``size`` of the samples, drawn without replacement.

        Source: rarefaction by samples, Colwell, Mao & Chang 2004 (the hypergeometric mean of
        Hurlbert 1971), unbiased where a bootstrap of a distinct count is not. Deviation: the
        variance is the delete-one jackknife's, never too small in expectation (Efron & Stein 1981)
        and without assuming that identifiers come up independently; the interval is Fay &
        Feuer's (1997), which does not shrink to nothing where nothing was found.
        """
        value = float(_found(self._counts, self._samples, size).sum())
        others = self._samples - 1, min(size, self._samples - 1)
        lost = _found(self._of_hit, *others) - _found(self._of_hit - 1, *others)
        change = np.bincount(self._row, weights=lost, minlength=self._samples)
        variance = float(((change - change.mean()) ** 2).sum())
        weight = max(float(change.max()), size / self._samples)
        low, high = _gamma_interval(value, variance, weight)
        return Distinct(size, value, low, min(high, float(self._searched)))

    def still_to_come(self) -> tuple[float | None, float | None]:
        """Identifiers not found that more samples would find: in the end, and by doubling them.

        Both None where no sample holds an identifier: then nothing can be estimated.

        Source: a lower bound, Chao 1987 for incidences (bias-corrected where no identifier was
        found twice), after Good 1953; extrapolation, Colwell et al. 2012, equation 18. Deviation:
        at most as many as are searched for.
        """
        if not len(self._counts):
            return None, None
        once, twice = int((self._counts == 1).sum()), int((self._counts == 2).sum())
        samples = self._samples
        pairs = once**2 / (2 * twice) if twice else once * (once - 1) / 2
        unseen = min((samples - 1) / samples * pairs, float(self._searched - len(self._counts)))
        if not unseen:
            return 0.0, 0.0
        return unseen, unseen * (1 - (1 - once / (samples * unseen + once)) ** samples)


def _found(counts: Ints, samples: int, size: int) -> NDArray[np.float64]:
    """Probability that ``size`` of the samples hold an identifier that ``counts`` of them hold."""
    without = samples - counts
    some = without >= size  # else any ``size`` of the samples hold it
    missed = np.exp(
        gammaln(without[some] + 1.0)
        - gammaln(without[some] - size + 1.0)
        - gammaln(samples + 1.0)
        + gammaln(samples - size + 1.0)
    )
    probabilities = np.ones(len(counts))
    probabilities[some] = 1.0 - missed
    return probabilities


def _gamma_interval(value: float, variance: float, weight: float) -> tuple[float, float]:
    """95 % interval of a weighted sum of Poisson counts, the largest weight being ``weight``."""
    low = value
    if variance:
        low = variance / (2 * value) * float(stats.chi2.ppf(0.025, 2 * value**2 / variance))
    wide, more = variance + weight**2, value + weight
    return low, wide / (2 * more) * float(stats.chi2.ppf(0.975, 2 * more**2 / wide))
