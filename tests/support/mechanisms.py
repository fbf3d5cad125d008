"""Mechanisms whose epsilon is known exactly: a score for each canary, from its coin alone."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]
Coins = npt.NDArray[np.bool_]
Mechanism = Callable[[Coins, np.random.Generator], Scores]


def coins(canaries: int, rng: np.random.Generator) -> Coins:
    """Which canaries are in."""
    return rng.random(canaries) < 0.5


def nothing(included: Coins, rng: np.random.Generator) -> Scores:
    """A model that saw no canary at all."""
    return rng.normal(size=len(included))


def laplace(epsilon: float) -> Mechanism:
    """(epsilon, 0)-DP."""
    return lambda included, rng: included + rng.laplace(scale=1 / epsilon, size=len(included))


def randomised_response(epsilon: float) -> Mechanism:
    """(epsilon, 0)-DP, and no mechanism leaks more."""

    def answers(included: Coins, rng: np.random.Generator) -> Scores:
        lies = rng.random(len(included)) < 1 / (1 + np.exp(epsilon))
        return (included ^ lies).astype(np.float64)

    return answers


def gaussian(mu: float) -> Mechanism:
    """Gaussian DP with parameter ``mu``."""
    return lambda included, rng: mu * included + rng.normal(size=len(included))


def sometimes_open(epsilon: float, delta: float) -> Mechanism:
    """(epsilon, delta)-DP: randomised response that gives the truth away with chance ``delta``."""
    answers = randomised_response(epsilon)

    def scores(included: Coins, rng: np.random.Generator) -> Scores:
        given_away = rng.random(len(included)) < delta
        return np.where(given_away, np.where(included, 2.0, -1.0), answers(included, rng))

    return scores
