"""Whether a count of false alarms, or of misses, is what a stated rate allows."""

from scipy.stats import binom, kstest

EVIDENCE = 1e-3
"""A correct rate is refused once in a thousand choices of the seed; a seed is chosen once."""


def at_most(hits: int, trials: int, rate: float) -> bool:
    """Whether ``hits`` are no evidence that the rate is above ``rate``."""
    return bool(binom.sf(hits - 1, trials, rate) > EVIDENCE)


def at_least(hits: int, trials: int, rate: float) -> bool:
    """Whether ``hits`` are no evidence that the rate is below ``rate``."""
    return bool(binom.cdf(hits, trials, rate) > EVIDENCE)


def uniform(p_values: list[float]) -> bool:
    """Whether p-values are no evidence against a uniform distribution."""
    return bool(kstest(p_values, "uniform").pvalue > EVIDENCE)
