"""How often a rule raises an alarm where nothing is wrong, ours beside those in common use.

    python benchmarks/calibration.py [--quick] [--json]

Leakage: 1,000 canaries whose scores know nothing of who was included; an alarm is a lower bound
of epsilon above 0 at a nominal 5 %. Bias: four groups of 500, 300, 100 and 30 records that are
served alike, three in ten selected; an alarm is whatever the rule calls unfair. A rule that never
raises an alarm would look best, so ``detected/<rule>`` is measured too: on a Gaussian mechanism of
epsilon 0.93, and with ten points less for the group of 300. Every rule gets the same draws. It
exits 0 whatever falls short.
"""

import argparse
import sys
from collections.abc import Callable
from itertools import combinations

import numpy as np
import numpy.typing as npt

# `audit` is the package, and not the benchmark of that name beside this file.
sys.path.append(sys.path.pop(0))

from parts import common_rules as common
from parts.report import Figure, Report

from audit.intervals import clopper_pearson, newcombe, permutation_chi_square
from audit.one_run import one_run_bound

CANARIES, DELTA, SHIFT = 1000, 1e-5, 0.25
SIZES = np.array([500, 300, 100, 30])
RATE, GAP = 0.3, np.array([0.0, 0.1, 0.0, 0.0])
OURS = ("preregistered_grid", "permutation_chi_square", "newcombe_bonferroni")

LeakRule = Callable[[common.FloatArray, common.BoolArray], bool]
BiasRule = Callable[[common.IntArray, np.random.Generator], bool]


def newcombe_bonferroni(right: npt.NDArray[np.int64]) -> bool:
    """Some pair's interval, at its share of 5 %, lies on one side of 0."""
    pairs = list(combinations(range(len(SIZES)), 2))
    for first, second in pairs:
        counts = [int(x) for i in (first, second) for x in (right[i], SIZES[i])]
        interval = newcombe(*counts, confidence=1 - 0.05 / len(pairs))
        if interval.low > 0 or interval.high < 0:
            return True
    return False


def leak_rules() -> dict[str, LeakRule]:
    """Whether a rule says that a model leaks, from scores and coins."""
    return {
        "tf_privacy_bailey": lambda s, i: common.tf_privacy(s, i, "bailey"),
        "tf_privacy_clopper_pearson": lambda s, i: common.tf_privacy(s, i, "clopper_pearson"),
        "privacy_meter_argmax": common.privacy_meter,
        "bonferroni_all_thresholds": lambda s, i: common.bonferroni_all_thresholds(s, i, DELTA),
        "preregistered_grid": lambda s, i: one_run_bound(s, i, DELTA).epsilon > 0,
    }


def bias_rules() -> dict[str, BiasRule]:
    """Whether a rule says that groups are served differently, from counts."""

    def chi_square(right: npt.NDArray[np.int64], rng: np.random.Generator) -> bool:
        table = np.stack([right, SIZES - right], axis=1)[None]
        return permutation_chi_square(table, rng, draws=199) <= 0.05

    return {
        "four_fifths": lambda right, rng: common.four_fifths(right, SIZES),
        "gap_above_0.1": lambda right, rng: common.gap_above_a_tenth(right, SIZES),
        "bootstrap_max_min": lambda right, rng: common.bootstrap_of_the_gap(right, SIZES, rng),
        "permutation_chi_square": chi_square,
        "newcombe_bonferroni": lambda right, rng: newcombe_bonferroni(right),
    }


def alarms(trials: int, *, planted: bool) -> dict[str, int]:
    """In how many of ``trials`` each rule raises an alarm."""
    leaks, biases = leak_rules(), bias_rules()
    counts = dict.fromkeys([*leaks, *biases], 0)
    for trial in range(trials):
        rng = np.random.default_rng([trial, planted])
        included = rng.random(CANARIES) < 0.5
        scores = rng.normal(size=CANARIES) + planted * SHIFT * included
        for name, leak in leaks.items():
            counts[name] += leak(scores, included)
        right = rng.binomial(SIZES, RATE - planted * GAP)
        for name, bias in biases.items():
            counts[name] += bias(right, rng)
    return counts


def measure(report: Report, trials: int) -> None:
    """All rules on the same draws, without and with something to find."""
    for kind, planted in (("false_alarm", False), ("detected", True)):
        for rule, hits in alarms(trials, planted=planted).items():
            interval = clopper_pearson(hits, trials)
            target, holds = None, None
            if rule in OURS and not planted:
                target, holds = "<= 0.05", interval.low <= 0.05
            name = f"{kind}/{rule}"
            report.figures.append(Figure(name, hits / trials, "share", target, holds))
            report.figures.append(Figure(f"{name}_low", interval.low, "share"))
            report.figures.append(Figure(f"{name}_high", interval.high, "share"))
    report.notes.append(f"{trials} trials; _low and _high are the 95 % Clopper-Pearson interval")
    report.notes.append("a target holds unless the interval lies above it")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="False alarms of audit rules, side by side.")
    parser.add_argument("--quick", action="store_true", help="seconds; rough figures")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    common.check()
    report = Report()
    measure(report, trials=400 if options.quick else 4000)
    report.print(("cloister", "numpy", "scipy"), as_json=options.json)


if __name__ == "__main__":
    main()
