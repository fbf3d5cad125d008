"""C2: is there as much noise as was debited? The run's own training over gradients that are 0."""

import math
from dataclasses import dataclass, field
from typing import Final

from audit.conformance.claims import listed, only_local, without_privacy
from audit.conformance.mechanism import (
    REAL,
    MadeUpData,
    Mechanism,
    Silenced,
    Step,
    plans,
    watch,
    with_steps,
)
from audit.conformance.statistics import ALPHA, POWER, sigma_interval, smallest_sigma_gap
from audit.subject import Subject
from audit.verdicts import (
    CONFORMANCE,
    AuditTest,
    Budget,
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
from core.parameters import trainable
from privacy.discrete_gaussian_grid import MAX_ROUNDING_SHARE
from privacy.dp_sgd import DpSgdPlan
from privacy.guards import PROBES

# A lack of noise that matters, and that the test must be able to see before it passes a run.
MATTERS: Final = 0.1
_VALUES: Final = 50_000
_MIN_STEPS, _MAX_STEPS = 4, 400
# So few records that there are steps with and without an example.
_RECORDS: Final = 8

CARD: Final = TestCard(
    id="C2",
    title="Measured noise",
    question="Does training add as much noise as the ledger was charged for?",
    tier="conformance",
    threat_model="Everyone: privacy rests on this noise, whoever looks at the model.",
    assumes=(
        "The program that is audited here is the one that ran at the sites.",
        "Gradients of 0 are noised as others are.",
    ),
    suites=CONFORMANCE,
    cost_seconds=4.0,
)


@dataclass
class _Squares:
    """Sums of squares of the noise over the clip: in all, by step and by parameter."""

    by_step: list[float] = field(default_factory=list)
    by_parameter: dict[str, float] = field(default_factory=dict)
    finite: bool = True


@dataclass(frozen=True)
class _Reading:
    """What was measured of one group of values."""

    site: str
    group: str
    count: int
    sigma: float
    interval: Interval
    debited: float

    @property
    def too_small(self) -> bool:
        return self.interval.high < self.debited

    @property
    def too_large(self) -> bool:
        # Rounding to the grid raises the sensitivity, and so the noise, by up to this share.
        return self.interval.low > self.debited * (1 + float(MAX_ROUNDING_SHARE))


@dataclass(frozen=True)
class MeasuredNoise:
    """The test."""

    mechanism: Mechanism = REAL

    @property
    def card(self) -> TestCard:
        """What it declares."""
        return CARD

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Measures each site's noise multiplier, in all, step by step and in every parameter."""
        if (early := without_privacy(subject, CARD)) is not None:
            return early
        sites = plans(subject)
        if not sites:
            return only_local(CARD)
        sizes = {name: p.numel() for name, p in trainable(subject.initial_model()).items()}
        dimension = sum(sizes.values())
        steps = min(_MAX_STEPS, max(_MIN_STEPS, math.ceil(_VALUES / dimension)))
        confidence = 1 - ALPHA / (len(sites) * (1 + steps + len(sizes)))
        readings: list[_Reading] = []
        cut = []
        for site, plan in sites.items():
            if budget.spent:
                cut.append(site)
                continue
            squares = self._squares(subject, with_steps(plan, steps))
            readings += _readings(site, plan, squares, sizes, confidence)
        if not readings:
            return _no_time()
        return _result(readings, cut, dimension * steps, confidence)

    def _squares(self, subject: Subject, plan: DpSgdPlan) -> _Squares:
        task = Silenced(subject.blueprint.task)
        examples = [PROBES[number % len(PROBES)] for number in range(_RECORDS)]
        found = _Squares()

        def add(step: Step) -> None:
            total = 0.0
            for name, values in step.sums.items():
                square = float((values.double() / plan.max_grad_norm).square().sum())
                found.by_parameter[name] = found.by_parameter.get(name, 0.0) + square
                total += square
            found.by_step.append(total)

        watch(
            self.mechanism,
            subject.initial_model(),
            task,
            MadeUpData(task, examples, subject.device),
            plan=plan,
            config=subject.config.train,
            on_step=add,
        )
        return found


def _readings(
    site: str, plan: DpSgdPlan, squares: _Squares, sizes: dict[str, int], confidence: float
) -> list[_Reading]:
    dimension, steps = sum(sizes.values()), len(squares.by_step)
    groups = [("all", sum(squares.by_step), dimension * steps)]
    groups += [(f"step {n}", one, dimension) for n, one in enumerate(squares.by_step, start=1)]
    groups += [(name, squares.by_parameter.get(name, 0.0), n * steps) for name, n in sizes.items()]
    readings = []
    for group, total, count in groups:
        count = max(count, 1)  # without a step there is no noise either
        interval = (
            sigma_interval(total, count, confidence)
            if total < math.inf
            else Interval(low=0.0, high=0.0, confidence=confidence, method="not finite")
        )
        sigma = math.sqrt(total / count) if total < math.inf else 0.0
        readings.append(_Reading(site, group, count, sigma, interval, plan.noise_multiplier))
    return readings


def _result(readings: list[_Reading], cut: list[str], count: int, confidence: float) -> TestResult:
    small = [one for one in readings if one.too_small]
    large = [one for one in readings if one.too_large]
    effect = smallest_sigma_gap(count, confidence)
    totals = [one for one in readings if one.group == "all"]
    return TestResult(
        test=CARD.id,
        verdict=_verdict(small or large, cut, effect),
        headline=_headline(small, large, totals, cut, effect),
        measures=tuple(_measure(one) for one in totals),
        smallest_effect=SmallestEffect(
            measure="share of the debited noise that is missing",
            value=effect,
            power=POWER,
            alpha=ALPHA,
        ),
        tables=(_table(small + large, len(readings)),),
        figures=(_figure(totals),),
        notes=(
            "Measured on noise drawn now by the program that trained, not on the noise of the "
            "run itself, which nobody may know.",
            f"Of {totals[0].count} values a site; a single small parameter shows only coarse "
            "faults, such as noise that is missing.",
            *([f"No time was left for {listed(cut)}."] if cut else []),
        ),
    )


def _verdict(wrong: list[_Reading], cut: list[str], effect: float) -> Verdict:
    if wrong:
        return Verdict.FAIL
    return Verdict.INCONCLUSIVE if cut or effect > MATTERS else Verdict.PASS


def _headline(
    small: list[_Reading],
    large: list[_Reading],
    totals: list[_Reading],
    cut: list[str],
    effect: float,
) -> str:
    if small:
        worst = min(small, key=_rank)
        return (
            f"Training adds too little noise: {worst.sigma / worst.debited:.1%} of what the "
            f"ledger of {worst.site} was charged for ({worst.group})."
        )
    if large:
        worst = min(large, key=_rank)
        return (
            f"Training adds another noise than was charged: {worst.sigma / worst.debited:.1%} of "
            f"it at {worst.site} ({worst.group})."
        )
    if cut:
        return f"The noise of {len(totals)} sites is as charged; no time was left for the others."
    if effect > MATTERS:
        return "The model is too small to measure its noise well enough."
    return (
        f"Training adds the noise that the ledgers were charged for; a lack of {effect:.1%} would "
        "have shown."
    )


def _rank(one: _Reading) -> tuple[bool, float]:
    """A site's whole noise before its parts, the furthest off before the others."""
    return one.group != "all", -abs(one.sigma / one.debited - 1)


def _measure(one: _Reading) -> Measure:
    return Measure(
        name=f"noise-multiplier-{one.site}".replace("_", "-"),
        label=f"Noise multiplier at {one.site}",
        value=one.sigma,
        interval=one.interval,
        limit=one.debited,
    )


def _table(wrong: list[_Reading], count: int) -> Table:
    return Table(
        title="Where the noise is not what was charged",
        columns=("site", "of", "values", "measured", "lower", "upper", "charged"),
        rows=tuple(
            (o.site, o.group, o.count, o.sigma, o.interval.low, o.interval.high, o.debited)
            for o in wrong[:40]
        ),
        note=f"{count} intervals in all: each site, step and parameter.",
    )


def _figure(totals: list[_Reading]) -> Figure:
    shares = [one.sigma / one.debited for one in totals]
    return Figure(
        kind="intervals",
        title="Measured over charged noise",
        caption="At 1 the noise is what the ledger was charged for; below it, privacy is less.",
        alternative="; ".join(
            f"{one.site} {share:.4f}" for one, share in zip(totals, shares, strict=True)
        ),
        x_label="site",
        y_label="measured / charged",
        series=(
            Series(
                name="noise multiplier",
                x=tuple(one.site for one in totals),
                y=tuple(shares),
                low=tuple(one.interval.low / one.debited for one in totals),
                high=tuple(one.interval.high / one.debited for one in totals),
            ),
        ),
        reference=1.0,
        reference_label="as charged",
    )


def _no_time() -> TestResult:
    return TestResult(
        test=CARD.id,
        verdict=Verdict.INCONCLUSIVE,
        headline="There was no time left to measure the noise.",
        notes=("The time limit of the suite cut it; run it with a larger one.",),
    )


TESTS: Final[tuple[AuditTest, ...]] = (MeasuredNoise(),)
