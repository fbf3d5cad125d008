"""Rates of a group and gaps between two, from counts that may hold noise of known variance.

Without noise these are Wilson's and Newcombe's intervals. With it, a rate's variance grows by what
the noise in its two parts adds (delta method), and the same intervals are drawn for the smaller
number of records that would be as uncertain.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

from audit.bias.tallies import BoolArray, Tally
from audit.intervals import newcombe, smallest_gap, wilson
from audit.verdicts import Interval
from core.record_counts import IntArray

MIN_CELL: Final = 30
"""Records below which a rate is not judged."""
MIN_SHOWN: Final = 5
"""Records below which a rate is not shown either."""
# Noise may make a cell of nobody look like one of a few: what is judged stands well above it.
_NOISE_DEVIATIONS: Final = 4.0


@dataclass(frozen=True)
class Metric:
    """Share of a part among a whole, both sets of (label, prediction)."""

    name: str
    part: BoolArray
    """(labels, labels)."""
    whole: BoolArray


def accuracy(labels: int) -> Metric:
    """Share of right predictions."""
    return Metric("accuracy", np.eye(labels, dtype=np.bool_), np.ones((labels, labels), np.bool_))


def error_rates(labels: tuple[str, ...]) -> tuple[Metric, ...]:
    """TPR and FPR of each label against the rest; of the second alone where there are two."""
    return tuple(m for n, label in _judged(labels) for m in _errors(n, label, len(labels)))


def metrics_of(labels: tuple[str, ...]) -> tuple[Metric, ...]:
    """Accuracy; selection rate, TPR, FPR and PPV of each label against the rest."""
    found = [accuracy(len(labels))]
    for number, label in _judged(labels):
        true, predicted = _masks(number, len(labels))
        everything = np.ones_like(true)
        found.append(Metric(f"selection rate of {label}", predicted, everything))
        found.extend(_errors(number, label, len(labels)))
        found.append(Metric(f"PPV of {label}", true & predicted, predicted))
    return tuple(found)


def label_shares(labels: tuple[str, ...]) -> tuple[Metric, ...]:
    """Share of each true label; of the second alone where there are two."""
    shape = (len(labels), len(labels))
    return tuple(
        Metric(f"share of {label}", _masks(number, len(labels))[0], np.ones(shape, np.bool_))
        for number, label in _judged(labels)
    )


def _judged(labels: tuple[str, ...]) -> list[tuple[int, str]]:
    """Of two labels, the second says all that the first does."""
    numbered = list(enumerate(labels))
    return numbered[1:] if len(labels) == 2 else numbered


def _masks(number: int, labels: int) -> tuple[BoolArray, BoolArray]:
    true = np.zeros((labels, labels), dtype=np.bool_)
    true[number] = True
    return true, true.T.copy()


def _errors(number: int, label: str, labels: int) -> tuple[Metric, Metric]:
    true, predicted = _masks(number, labels)
    return (
        Metric(f"TPR of {label}", true & predicted, true),
        Metric(f"FPR of {label}", ~true & predicted, ~true),
    )


@dataclass(frozen=True)
class Rate:
    """A part of a whole, with the variance of the noise in both."""

    successes: int
    trials: int
    success_noise: float = 0.0
    """Variance of the noise in the part."""
    failure_noise: float = 0.0
    """Variance of the noise in the rest of the whole."""

    @property
    def exact(self) -> bool:
        """Whether there is no noise."""
        return self.success_noise + self.failure_noise == 0

    @property
    def judged(self) -> bool:
        """Whether there are enough records for a verdict, beyond what noise could feign."""
        deviation = math.sqrt(self.success_noise + self.failure_noise)
        return self.trials >= max(MIN_CELL, _NOISE_DEVIATIONS * deviation)

    @property
    def value(self) -> float:
        """The rate; of noised counts, kept within 0 and 1."""
        return min(max(self.successes / self.trials, 0.0), 1.0)

    def interval(self, confidence: float = 0.95) -> Interval:
        """Wilson's, widened by the noise."""
        if self.exact:
            return wilson(self.successes, self.trials, confidence)
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        trials = self.effective_trials(z)
        rate, weight = self.value, z * z / trials
        middle = (rate + weight / 2) / (1 + weight)
        half = z / (1 + weight) * math.sqrt(rate * (1 - rate) / trials + weight / (4 * trials))
        return Interval(
            low=max(middle - half, 0.0),
            high=min(middle + half, 1.0),
            confidence=confidence,
            method="Wilson, widened by the noise",
        )

    def effective_trials(self, z: float = 1.96) -> float:
        """Exact records that would leave the rate as uncertain."""
        rate = (self.value * self.trials + z * z / 2) / (self.trials + z * z)
        return self.trials / (1 + self._noise(rate) * self.trials / (rate * (1 - rate)))

    def _noise(self, rate: float) -> float:
        """What the noise adds to the variance of the rate."""
        spread = (1 - rate) ** 2 * self.success_noise + rate**2 * self.failure_noise
        return spread / self.trials**2

    @property
    def worst_case_trials(self) -> int:
        """The same at a rate of one half, where planning looks."""
        return max(int(self.trials / (1 + 4 * self._noise(0.5) * self.trials)), 1)


def difference(first: Rate, second: Rate, confidence: float) -> Interval:
    """Newcombe's interval of ``first`` minus ``second``, widened by the noise."""
    if first.exact and second.exact:
        return newcombe(first.successes, first.trials, second.successes, second.trials, confidence)
    one, two = first.interval(confidence), second.interval(confidence)
    gap = first.value - second.value
    low = gap - math.hypot(first.value - one.low, two.high - second.value)
    high = gap + math.hypot(one.high - first.value, second.value - two.low)
    return Interval(
        low=max(low, -1.0),
        high=min(high, 1.0),
        confidence=confidence,
        method="Newcombe, widened by the noise",
    )


def detectable(first: Rate, second: Rate, *, alpha: float, tolerance: float) -> float:
    """The smallest gap between these two that surely shows, with 95 % power."""
    trials = first.worst_case_trials, second.worst_case_trials
    return smallest_gap(*trials, power=0.95, alpha=alpha, tolerance=tolerance)


@dataclass(frozen=True)
class Sums:
    """Part and whole of a metric by site and group, and the noise in them."""

    part: IntArray
    """(sites, groups)."""
    whole: IntArray
    part_noises: int
    """Noised numbers in each entry of ``part``."""
    rest_noises: int
    """Noised numbers in each entry of ``whole - part``."""

    @classmethod
    def of(cls, tally: Tally, metric: Metric) -> "Sums":
        """Adds up a tally's cells."""
        return cls(
            part=tally.cells[..., metric.part].sum(axis=-1),
            whole=tally.cells[..., metric.whole].sum(axis=-1),
            part_noises=tally.merged * int(metric.part.sum()),
            rest_noises=tally.merged * int((metric.whole & ~metric.part).sum()),
        )

    def rate(self, tally: Tally, group: int, sites: list[int] | None = None) -> Rate | None:
        """A group's rate over some sites, or all; ``None`` where there is nobody."""
        chosen = list(range(len(tally.sites))) if sites is None else sites
        variance = sum(tally.variances[site] for site in chosen)
        trials = int(self.whole[chosen, group].sum())
        if trials < 1:
            return None
        return Rate(
            successes=int(self.part[chosen, group].sum()),
            trials=trials,
            success_noise=self.part_noises * variance,
            failure_noise=self.rest_noises * variance,
        )
