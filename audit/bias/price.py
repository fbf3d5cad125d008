"""B3: who pays for the privacy? A twin trained without it, record by record beside the model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from audit.bias.calibration import group_masks
from audit.bias.gaps import ALPHA, MATTERS
from audit.bias.groups import why_not
from audit.bias.rates import MIN_CELL
from audit.bias.tallies import BoolArray, probabilities_of
from audit.subject import Subject
from audit.training import train_model
from audit.verdicts import (
    FULL,
    AuditTest,
    Budget,
    Cell,
    Figure,
    Interval,
    Measure,
    NotRun,
    Series,
    SmallestEffect,
    Table,
    TestCard,
    TestResult,
    Verdict,
)
from core.data.records import Record, iterate

FloatArray = npt.NDArray[np.float64]
_DRAWS: Final = 1999


@dataclass(frozen=True)
class Paired:
    """The same unseen records, as the model and its twin without privacy see them."""

    private: BoolArray
    """Whether the model under audit is right."""
    twin: BoolArray
    persons: npt.NDArray[np.str_]
    groups: tuple[tuple[str, str, BoolArray], ...]
    """Attribute, value, who has it."""

    @property
    def price(self) -> FloatArray:
        """1 where only the twin is right, -1 where only the private model is."""
        return self.twin.astype(np.float64) - self.private


class Price:
    """Compares the model with one that had no privacy."""

    card = TestCard(
        id="B3",
        title="The price of privacy by group",
        question="Does one group lose more by the noise than another?",
        tier="bias",
        threat_model="No attacker: people for whom the noise drowns what little there was.",
        assumes=(
            "The twin saw all sites' records at once; a federation without privacy may do worse.",
            "One twin: what another seed would change is not in the intervals.",
        ),
        suites=FULL,
        cost_seconds=25.0,
    )

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Trains the twin and compares."""
        reason = why_not(subject)
        if reason is None and not subject.private:
            reason = "the run had no privacy, so nobody paid for it"
        if reason is None and not subject.with_records:
            reason = "a twin needs records, and none are at hand"
        if reason is not None:
            return NotRun(test=self.card.id, reason=reason)
        members = [r for site in subject.with_records.values() for r in iterate(site.members)]
        twin = train_model(subject, members, name="bias/price")
        unseen = _unseen(subject)
        if not unseen:
            return NotRun(test=self.card.id, reason="no record was held out of training")
        private, labels = probabilities_of(subject, unseen)
        plain, _ = probabilities_of(subject, unseen, twin)
        attributes = tuple(subject.config.audit.attributes.items())
        paired = Paired(
            private=private.argmax(axis=1) == labels,
            twin=plain.argmax(axis=1) == labels,
            persons=np.asarray([r.person or f"record {n}" for n, r in enumerate(unseen)]),
            groups=tuple(group_masks(attributes, [record.groups for record in unseen])),
        )
        return judge_price(paired, subject)


def _unseen(subject: Subject) -> list[Record]:
    """Records that neither model saw: held out at the sites, and public."""
    found = [r for site in subject.with_records.values() for r in iterate(site.held_out)]
    public = subject.public_records()
    return found if public is None else [*found, *iterate(public)]


def judge_price(paired: Paired, subject: Subject) -> TestResult:
    """The result of B3 from paired outcomes."""
    tolerance = subject.config.audit.tolerance
    rng = subject.seed.generator("bias/price")
    rows, shown = _price_rows(paired, rng)
    few = [f"{name} {value}" for name, value, who in paired.groups if who.sum() < MIN_CELL]
    gaps = _gaps(paired, rng)
    beyond = [gap for gap in gaps if gap.interval.low > tolerance]
    power = _power(gaps, tolerance)
    verdict = Verdict.PASS
    if beyond:
        verdict = Verdict.FAIL
    elif few or power is None or power.value > MATTERS * tolerance or gaps[0].size > tolerance:
        verdict = Verdict.INCONCLUSIVE
    whole = float(paired.price.mean())
    return TestResult(
        test=Price.card.id,
        verdict=verdict,
        headline=_headline(whole, gaps, beyond, verdict, tolerance),
        measures=_measures(paired, whole, gaps, tolerance, rng),
        smallest_effect=power,
        tables=(
            Table(
                title="Accuracy without and with privacy",
                columns=(
                    *("attribute", "group", "records", "without", "with"),
                    *("price", "price, low", "price, high", "price, relative"),
                ),
                rows=tuple(rows),
                note="Unseen records only. Price: accuracy lost; limits are a paired bootstrap's "
                f"over persons. Groups of fewer than {MIN_CELL} records are suppressed.",
            ),
        ),
        figures=() if not shown else (_figure(shown),),
        notes=(
            "A price below 0 means that the private model is better.",
            *((f"Too few records to be judged: {', '.join(few)}.",) if few else ()),
        ),
    )


@dataclass(frozen=True)
class _PriceGap:
    attribute: str
    dearer: str
    cheaper: str
    size: float
    interval: Interval
    deviation: float
    comparisons: int


def _price_rows(
    paired: Paired, rng: np.random.Generator
) -> tuple[list[tuple[Cell, ...]], list[tuple[str, str, float, Interval]]]:
    rows: list[tuple[Cell, ...]] = []
    shown = []
    for name, value, who in paired.groups:
        if who.sum() < MIN_CELL:
            rows.append((name, value, *(None,) * 7))
            continue
        without, within = float(paired.twin[who].mean()), float(paired.private[who].mean())
        price = without - within
        interval = _interval(paired.price[who], paired.persons[who], rng)
        relative = price / without if without else None
        figures = (without, within, price, interval.low, interval.high)
        rounded = [round(figure, 6) for figure in figures]
        last = None if relative is None else round(relative, 6)
        rows.append((name, value, int(who.sum()), *rounded, last))
        shown.append((name, value, price, interval))
    return rows, shown


def _interval(
    price: FloatArray, persons: npt.NDArray[np.str_], rng: np.random.Generator
) -> Interval:
    """Of the mean price, whole persons drawn together."""
    if np.all(price == price[0]):  # all alike: what bounds it is the number of records
        slack = 3 / len(price)  # the rule of three
        middle = float(price[0])
        return Interval(
            low=max(middle - slack, -1.0),
            high=min(middle + slack, 1.0),
            confidence=0.95,
            method="rule of three",
        )
    weights, index = _drawn(persons, rng)
    return _percentiles(_means(weights, index, price, np.ones_like(price)), 0.95)


def _drawn(
    persons: npt.NDArray[np.str_], rng: np.random.Generator
) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """How often each person is drawn (draws, persons), and each record's person."""
    names, index = np.unique(persons, return_inverse=True)
    even = np.full(len(names), 1 / len(names))
    return rng.multinomial(len(names), even, size=_DRAWS).astype(np.float64), index


def _means(
    weights: FloatArray,
    index: npt.NDArray[np.int64],
    price: FloatArray,
    who: FloatArray,
) -> FloatArray:
    """Mean price of some records in every draw; nobody drawn counts as no price."""
    people = weights.shape[1]
    totals = weights @ np.bincount(index, price * who, people)
    sizes = weights @ np.bincount(index, who, people)
    return np.asarray(totals / np.maximum(sizes, 1), dtype=np.float64)


def _percentiles(values: FloatArray, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return Interval(
        low=float(low),
        high=float(high),
        confidence=confidence,
        method="paired bootstrap over persons",
    )


def _gaps(paired: Paired, rng: np.random.Generator) -> list[_PriceGap]:
    """Differences in price between every two groups of an attribute, the largest first."""
    enough = [(name, value, who) for name, value, who in paired.groups if who.sum() >= MIN_CELL]
    pairs = [(a, b) for a, b in combinations(enough, 2) if a[0] == b[0]]
    found = []
    for one, two in pairs:
        if paired.price[one[2]].mean() < paired.price[two[2]].mean():
            one, two = two, one
        own, other = paired.price[one[2]], paired.price[two[2]]
        size = float(own.mean() - other.mean())
        persons = paired.persons[one[2]], paired.persons[two[2]]
        deviation = math.hypot(_error(own, persons[0]), _error(other, persons[1]))
        interval = _gap_interval(paired, one[2], two[2], len(pairs), rng)
        found.append(_PriceGap(one[0], one[1], two[1], size, interval, deviation, len(pairs)))
    return sorted(found, key=lambda gap: -gap.size)


def _error(price: FloatArray, persons: npt.NDArray[np.str_]) -> float:
    """Standard error of a mean price, records of one person taken together.

    Prices that are all alike are no certainty.
    """
    names, index = np.unique(persons, return_inverse=True)
    totals = np.bincount(index, price - price.mean())
    least = 3 / len(names) ** 2
    return math.sqrt(max(float(np.square(totals).sum()) / len(price) ** 2, least))


def _gap_interval(
    paired: Paired, one: BoolArray, two: BoolArray, pairs: int, rng: np.random.Generator
) -> Interval:
    both = one | two
    price = paired.price[both]
    weights, index = _drawn(paired.persons[both], rng)
    first = _means(weights, index, price, one[both].astype(np.float64))
    second = _means(weights, index, price, two[both].astype(np.float64))
    return _percentiles(first - second, 1 - ALPHA / pairs)


def _power(gaps: Sequence[_PriceGap], tolerance: float) -> SmallestEffect | None:
    if not gaps:
        return None
    normal = NormalDist()
    factor = normal.inv_cdf(1 - ALPHA / (2 * gaps[0].comparisons)) + normal.inv_cdf(0.95)
    return SmallestEffect(
        measure="difference in price between two groups of an attribute",
        value=tolerance + factor * max(gap.deviation for gap in gaps),
        power=0.95,
        alpha=ALPHA,
    )


def _measures(
    paired: Paired,
    whole: float,
    gaps: Sequence[_PriceGap],
    tolerance: float,
    rng: np.random.Generator,
) -> tuple[Measure, ...]:
    everyone = Measure(
        name="privacy-price",
        label="accuracy that privacy costs, of all",
        value=whole,
        interval=_interval(paired.price, paired.persons, rng),
    )
    if not gaps:
        return (everyone,)
    widest = Measure(
        name="privacy-price-gap",
        label=f"price for {gaps[0].dearer} minus price for {gaps[0].cheaper}",
        value=gaps[0].size,
        interval=gaps[0].interval,
        limit=tolerance,
    )
    return (everyone, widest)


def _headline(
    whole: float,
    gaps: Sequence[_PriceGap],
    beyond: Sequence[_PriceGap],
    verdict: Verdict,
    tolerance: float,
) -> str:
    told = f"Privacy costs {100 * whole:.1f} points of accuracy in all"
    if beyond:
        gap = beyond[0]
        return (
            f"{gap.dearer} pays {100 * gap.size:.1f} points more for privacy than {gap.cheaper}, "
            f"surely more than the {100 * tolerance:.0f} points that are tolerated. {told}."
        )
    if not gaps:
        return f"{told}; no two groups have enough unseen records to be compared."
    gap = gaps[0]
    most = f"for {gap.dearer} {100 * gap.size:.1f} points more than for {gap.cheaper}"
    if verdict is Verdict.PASS:
        return f"{told}, and no group surely pays more than is tolerated: {most}."
    return f"{told}; whether a group pays more than is tolerated remains open: {most}."


def _figure(shown: Sequence[tuple[str, str, float, Interval]]) -> Figure:
    attributes = dict.fromkeys(name for name, _, _, _ in shown)
    series = []
    for attribute in attributes:
        own = [row for row in shown if row[0] == attribute]
        series.append(
            Series(
                name=attribute,
                x=tuple(value for _, value, _, _ in own),
                y=tuple(price for _, _, price, _ in own),
                low=tuple(interval.low for _, _, _, interval in own),
                high=tuple(interval.high for _, _, _, interval in own),
            )
        )
    told = ", ".join(f"{value} {price:.3f}" for _, value, price, _ in shown)
    return Figure(
        kind="intervals",
        title="Accuracy lost by privacy, by group",
        caption="Accuracy of a twin without privacy minus accuracy of the model, on unseen "
        "records, with 95 % intervals.",
        alternative=f"Accuracy lost by privacy: {told}.",
        x_label="group",
        y_label="accuracy lost",
        series=tuple(series),
        reference=0.0,
        reference_label="no price",
    )


TESTS: Final[tuple[AuditTest, ...]] = (Price(),)
