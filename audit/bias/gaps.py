"""Gaps between groups: found, corrected for their number, and judged by one rule.

FAIL: some gap surely exceeds the tolerance (its interval, Bonferroni over all pairs of all
metrics, lies beyond it) and does not come from the sites alone (permutation within site, Holm over
metrics). PASS: none does, one twice the tolerance would have been found, and no measured gap is
beyond the tolerance. Else INCONCLUSIVE.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from audit.bias.permutations import Strata, dependence
from audit.bias.rates import MIN_CELL, MIN_SHOWN, Metric, Rate, Sums, detectable, difference
from audit.bias.tallies import Tally
from audit.intervals import holm
from audit.verdicts import Cell, Figure, Interval, Series, SmallestEffect, Table, Verdict

ALPHA: Final = 0.05
MATTERS: Final = 2.0
"""Times the tolerance: a gap that a PASS promises would have been found."""
FEWEST_DRAWS: Final = 1999
DRAWS_PER_TEST: Final = 40
"""Holm multiplies by the number of tests: the smallest p-value of a permutation must bear that."""


@dataclass(frozen=True)
class Gap:
    """The difference of one metric between two groups."""

    tally: str
    metric: str
    worse: str
    """The group with the lower rate."""
    better: str
    size: float
    """Never negative."""
    interval: Interval
    """Of the difference ``better - worse``, simultaneous over all gaps."""
    p_value: float
    """Of any dependence of the metric on the group; Holm over metrics."""

    def surely_beyond(self, tolerance: float) -> bool:
        """Whether there is evidence of a gap larger than this."""
        return self.interval.low > tolerance and self.p_value <= ALPHA


@dataclass(frozen=True)
class Findings:
    """All gaps of a family of tests."""

    gaps: tuple[Gap, ...]
    too_few: tuple[str, ...]
    """Groups, or metrics of groups, with too few records to be judged."""
    smallest_effect: SmallestEffect | None
    """Of the main metric; ``None`` where nothing could be judged."""

    @property
    def p_value(self) -> float | None:
        """The smallest, after Holm."""
        return min((gap.p_value for gap in self.gaps), default=None)

    def beyond(self, tolerance: float) -> tuple[Gap, ...]:
        """Those surely larger than the tolerance, the largest first."""
        found = [gap for gap in self.gaps if gap.surely_beyond(tolerance)]
        return tuple(sorted(found, key=lambda gap: -gap.interval.low))

    def largest(self, metric: str) -> Gap | None:
        """The largest gap of a metric between groups of a single attribute."""
        found = [gap for gap in self.gaps if gap.metric == metric and " x " not in gap.tally]
        return max(found, key=lambda gap: gap.size, default=None)

    def surest(self, metric: str) -> Gap | None:
        """The one of them whose lower limit is the largest: what limits are held against."""
        found = [gap for gap in self.gaps if gap.metric == metric and " x " not in gap.tally]
        return max(found, key=lambda gap: (gap.interval.low, gap.size), default=None)

    def verdict(self, tolerance: float, main: Sequence[str]) -> Verdict:
        """By the rule of this module; ``main`` are the metrics that a PASS speaks of."""
        if self.beyond(tolerance):
            return Verdict.FAIL
        power = self.smallest_effect
        wide = any(gap.size > tolerance for gap in self.gaps if gap.metric in main)
        if power is None or power.value > MATTERS * tolerance or wide or self.too_few:
            return Verdict.INCONCLUSIVE
        return Verdict.PASS


@dataclass(frozen=True)
class _Pair:
    tally: Tally
    metric: Metric
    first: int
    second: int
    rates: tuple[Rate, Rate]
    test: int


@dataclass(frozen=True)
class LineUp:
    """What is going to be compared, before any permutation is drawn."""

    pairs: tuple[_Pair, ...]
    tests: tuple[Strata, ...]
    too_few: tuple[str, ...]
    smallest_effect: SmallestEffect | None

    def suffices(self, tolerance: float) -> bool:
        """Whether a PASS is within reach."""
        power = self.smallest_effect
        return power is not None and power.value <= MATTERS * tolerance and not self.too_few

    def findings(self, rng: np.random.Generator) -> Findings:
        """Carries out all tests; ``rng`` is of the audit's seed."""
        if not self.pairs:
            return Findings((), self.too_few, None)
        draws = max(FEWEST_DRAWS, DRAWS_PER_TEST * len(self.tests))
        p_values = holm([dependence(test, rng, draws) for test in self.tests])
        confidence = 1 - ALPHA / len(self.pairs)
        gaps = tuple(_gap(pair, p_values[pair.test], confidence) for pair in self.pairs)
        return Findings(gaps, self.too_few, self.smallest_effect)


def line_up(
    tallies: Sequence[Tally], metrics: Sequence[Metric], *, main: Sequence[str], tolerance: float
) -> LineUp:
    """Pairs every two groups of every tally in every metric, where both have enough records.

    Args:
        tallies: The ways to group.
        metrics: What is compared.
        main: Names of the metrics in which no group may be too small, and whose power is stated.
        tolerance: For the power.
    """
    pairs: list[_Pair] = []
    tests: list[Strata] = []
    too_few: list[str] = []
    for tally, metric in ((tally, metric) for tally in tallies for metric in metrics):
        sums = Sums.of(tally, metric)
        rates = {n: sums.rate(tally, n) for n in range(len(tally.groups))}
        judged = {n: rate for n, rate in rates.items() if rate is not None and rate.judged}
        if metric.name in main and tally.single:
            names = [name for n, name in enumerate(tally.groups) if n not in judged]
            too_few += [f"{tally.name} {name}" for name in names]
        for first, second in combinations(judged, 2):
            both = judged[first], judged[second]
            pairs.append(_Pair(tally, metric, first, second, both, len(tests)))
        if len(judged) > 1:
            tests.append(Strata.within_sites(sums, tally, list(judged)))
    power = _power(pairs, main, tolerance)
    return LineUp(tuple(pairs), tuple(tests), tuple(dict.fromkeys(too_few)), power)


def _gap(pair: _Pair, p_value: float, confidence: float) -> Gap:
    one, two = pair.rates
    first, second = pair.first, pair.second
    if one.value > two.value:
        one, two, first, second = two, one, second, first
    return Gap(
        tally=pair.tally.name,
        metric=pair.metric.name,
        worse=pair.tally.groups[first],
        better=pair.tally.groups[second],
        size=two.value - one.value,
        interval=difference(two, one, confidence),
        p_value=p_value,
    )


def _power(pairs: list[_Pair], main: Sequence[str], tolerance: float) -> SmallestEffect | None:
    """What the weakest comparison of the main metrics finds with 95 % power."""
    alpha = ALPHA / max(len(pairs), 1)
    chosen = [p for p in pairs if p.metric.name in main and p.tally.single]
    found = [detectable(*p.rates, alpha=alpha, tolerance=tolerance) for p in chosen]
    if not found:
        return None
    return SmallestEffect(
        measure=f"gap in {main[0]} between any two groups of an attribute",
        value=max(found),
        power=0.95,
        alpha=ALPHA,
    )


def rate_tables(
    tallies: Sequence[Tally], metrics: Sequence[Metric], *, title: str, note: str
) -> tuple[Table, ...]:
    """Each group's rate of each metric; what rests on too few records is suppressed."""
    return tuple(_rate_table(tally, metrics, title, note) for tally in tallies)


def _rate_table(tally: Tally, metrics: Sequence[Metric], title: str, note: str) -> Table:
    groups = range(len(tally.groups))
    sums = [Sums.of(tally, metric) for metric in metrics]
    rates = [[each.rate(tally, group) for group in groups] for each in sums]
    sizes = (rate.trials if rate is not None and _shown(rate) else None for rate in rates[0])
    rows: list[tuple[Cell, ...]] = [("records", *sizes)]
    for metric, found in zip(metrics, rates, strict=True):
        rows.append((metric.name, *(_cell(rate) for rate in found)))
    suppressed = f"Cells of fewer than {MIN_SHOWN} records are suppressed. "
    return Table(
        title=f"{title} {tally.name}".strip(),
        columns=("metric", *(name or "all" for name in tally.groups)),
        rows=tuple(rows),
        note=suppressed + note,
    )


def _shown(rate: Rate) -> bool:
    """Noised cells may be shown whatever they say, but those drowned in noise say nothing."""
    noise = math.sqrt(rate.success_noise + rate.failure_noise)
    return rate.trials >= max(MIN_SHOWN, 2 * noise)


def _cell(rate: Rate | None) -> Cell:
    return None if rate is None or not _shown(rate) else round(rate.value, 6)


def gap_table(findings: Findings, tolerance: float, *, largest: int = 12) -> Table:
    """The widest gaps, with their intervals."""
    ordered = sorted(findings.gaps, key=lambda gap: (-gap.interval.low, -gap.size))[:largest]
    rows = tuple(
        (
            *(gap.tally, gap.metric, gap.worse, gap.better, round(gap.size, 6)),
            *(round(gap.interval.low, 6), round(gap.interval.high, 6), round(gap.p_value, 6)),
            "yes" if gap.surely_beyond(tolerance) else "no",
        )
        for gap in ordered
    )
    return Table(
        title="Largest gaps",
        columns=(
            *("attribute", "metric", "lower group", "higher group", "gap", "low", "high"),
            *("p (Holm)", "surely beyond the tolerance"),
        ),
        rows=rows,
        note=(
            f"Of {len(findings.gaps)} gaps, the {len(rows)} whose lower limit is largest; limits "
            f"hold for all of them together (95 %, Bonferroni). Groups of fewer than {MIN_CELL} "
            "are not compared."
        ),
    )


def rate_figure(
    tallies: Sequence[Tally], metric: Metric, *, title: str, caption: str
) -> Figure | None:
    """A metric with its 95 % interval for each group; ``None`` where no group can be shown."""
    series = []
    told = []
    for tally in tallies:
        sums = Sums.of(tally, metric)
        found = [(n, sums.rate(tally, g)) for g, n in enumerate(tally.groups)]
        shown = [(name, rate) for name, rate in found if rate is not None and _shown(rate)]
        if not shown:
            continue
        limits = [rate.interval() for _, rate in shown]
        series.append(
            Series(
                name=tally.name,
                x=tuple(name for name, _ in shown),
                y=tuple(rate.value for _, rate in shown),
                low=tuple(limit.low for limit in limits),
                high=tuple(limit.high for limit in limits),
            )
        )
        told += [f"{name} {rate.value:.3f}" for name, rate in shown]
    if not series:
        return None
    return Figure(
        kind="intervals",
        title=title,
        caption=caption,
        alternative=f"{title}: {', '.join(told)}.",
        x_label="group",
        y_label=metric.name,
        series=tuple(series),
    )
