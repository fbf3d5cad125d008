"""C5: is each record in each batch by a coin of its own, as the accounting takes it to be?"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from audit.conformance.claims import listed, only_local, without_privacy
from audit.conformance.mechanism import (
    PROBE_WIDTH,
    REAL,
    Mechanism,
    Probe,
    ProbeTask,
    Silenced,
    Step,
    plans,
    probe_config,
    probe_data,
    watch,
    with_steps,
)
from audit.conformance.statistics import (
    ALPHA,
    POWER,
    dispersion_p_value,
    moments,
    sum_p_value,
    truncated_binomial,
)
from audit.intervals import bonferroni, clopper_pearson
from audit.subject import AuditedSite, Subject
from audit.verdicts import (
    CONFORMANCE,
    AuditTest,
    Budget,
    Measure,
    NotRun,
    SmallestEffect,
    Table,
    TestCard,
    TestResult,
    Verdict,
)
from core.train import TrainConfig
from privacy.dp_sgd import DpSgdPlan

IntArray = npt.NDArray[np.int64]

# A sampling rate that is wrong by more than this share would matter.
MATTERS: Final = 0.1
_WANTED_PER_RECORD: Final = 20
_WANTED_DRAWS: Final = 6_000  # a rate wrong by less than a tenth then shows
_MANY_DRAWS: Final = 80_000  # enough for anything
_MIN_STEPS, _MAX_STEPS = 60, 2_000
_MAX_RECORDS: Final = 10_000

CARD: Final = TestCard(
    id="C5",
    title="Sampling",
    question="Are records drawn for each step by chance, as often as was accounted for?",
    tier="conformance",
    threat_model="Everyone: the accounting counts on nobody knowing which step saw a record.",
    assumes=(
        "The program that is audited here is the one that ran at the sites.",
        "Sampling does not look at records or weights: a small model stands for the run's.",
    ),
    suites=CONFORMANCE,
    cost_seconds=5.0,
)


@dataclass(frozen=True)
class _Draws:
    """Which records were in which step: (steps, records), 0 or 1, or more where twice."""

    site: str
    plan: DpSgdPlan
    counts: IntArray


@dataclass(frozen=True)
class _Finding:
    site: str
    what: str
    measured: float
    expected: float
    p_value: float


@dataclass(frozen=True)
class Sampling:
    """The test."""

    mechanism: Mechanism = REAL

    @property
    def card(self) -> TestCard:
        """What it declares."""
        return CARD

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Notes the batches of the run's own sampler over a data set of each site's size."""
        if (early := without_privacy(subject, CARD)) is not None:
            return early
        sites = plans(subject)
        if not sites:
            return only_local(CARD)
        drawn: list[_Draws] = []
        cut = []
        for name, plan in sites.items():
            if budget.spent:
                cut.append(name)
                continue
            count = _records(subject.sites[name], plan)
            drawn.append(self._draws(name, plan, count, subject.config.train))
        if not drawn:
            return _no_time()
        return _result(drawn, cut)

    def _draws(self, site: str, plan: DpSgdPlan, count: int, config: TrainConfig) -> _Draws:
        plan = with_steps(plan, _steps_for(count, plan.sample_rate))
        rows: list[IntArray] = []

        def note(step: Step) -> None:
            rows.append(np.bincount(np.asarray(step.batch, dtype=np.int64), minlength=count))

        watch(
            self.mechanism,
            Probe(min(4, PROBE_WIDTH)),
            Silenced(ProbeTask()),
            probe_data(count),
            plan=plan,
            config=probe_config(config, plan),
            on_step=note,
        )
        return _Draws(site, plan, np.array(rows, dtype=np.int64).reshape(-1, count))


def _records(site: AuditedSite, plan: DpSgdPlan) -> int:
    """The site's own number, or its public size; where that is huge, some of them will do."""
    count = site.num_examples if site.split is None else len(site.split.members)
    return max(1, min(count, plan.max_examples, _MAX_RECORDS))


def _steps_for(records: int, rate: float) -> int:
    """As many as show how often a record is drawn, and how often all are."""
    by_record, together = _WANTED_PER_RECORD / rate, _WANTED_DRAWS / (rate * records)
    often = min(by_record, _MANY_DRAWS / (rate * records))
    return min(_MAX_STEPS, max(_MIN_STEPS, math.ceil(max(often, together))))


def _findings(draws: _Draws) -> list[_Finding]:
    counts, plan = draws.counts, draws.plan
    steps, records = counts.shape
    sizes, chances = truncated_binomial(records, plan.sample_rate, plan.max_batch_size)
    mean, variance, fourth = moments(sizes, chances)
    drawn = counts.sum(axis=1)
    found = [
        _steps(draws),
        _rate(draws, mean, variance),
        _sizes(draws.site, drawn, mean, variance, fourth),
    ]
    if steps > 1:
        found += [_inclusions(draws, mean / records), _overlaps(draws)]
    twice = int(np.count_nonzero(counts > 1))
    found.append(_Finding(draws.site, "records twice in one step", twice, 0, float(twice == 0)))
    most, cap = int(drawn.max(initial=0)), plan.max_batch_size
    found.append(_Finding(draws.site, "largest batch", most, cap, float(most <= cap)))
    return found


def _steps(draws: _Draws) -> _Finding:
    """Empty batches count: a sampler that skips them takes other steps than were charged."""
    ran, wanted = len(draws.counts), draws.plan.steps
    return _Finding(draws.site, "steps", ran, wanted, float(ran == wanted))


def _rate(draws: _Draws, mean: float, variance: float) -> _Finding:
    steps, records = draws.counts.shape
    total = float(draws.counts.sum())
    p_value = sum_p_value(total, steps * mean, steps * variance) if steps else 0.0
    rate = total / max(1, steps * records)
    return _Finding(draws.site, "sampling rate", rate, mean / records, p_value)


def _sizes(site: str, drawn: IntArray, mean: float, variance: float, fourth: float) -> _Finding:
    """How much batches differ in size: not at all, where a data set is shuffled and dealt."""
    what = "variance of the batch size"
    if variance == 0:
        return _Finding(site, what, float(drawn.var()), 0.0, float((drawn == mean).all()))
    if not len(drawn):
        return _Finding(site, what, 0.0, variance, 0.0)
    squares = float(((drawn - mean) ** 2).sum() / variance)
    spread = len(drawn) * (fourth / variance**2 - 1)
    p_value = dispersion_p_value(squares, len(drawn), spread)
    return _Finding(site, what, squares * variance / len(drawn), variance, p_value)


def _inclusions(draws: _Draws, rate: float) -> _Finding:
    """How much records differ in how often they are drawn: hardly, where they are dealt out."""
    what = "variance of how often a record is drawn"
    steps, records = draws.counts.shape
    _, variance, fourth = moments(*truncated_binomial(steps, rate, steps))
    often = draws.counts.sum(axis=0)
    if variance <= 1e-12:
        return _Finding(draws.site, what, float(often.var()), 0.0, float((often == steps).all()))
    squares = float(((often - steps * rate) ** 2).sum() / variance)
    spread = records * (fourth / variance**2 - 1)
    p_value = dispersion_p_value(squares, records, spread)
    return _Finding(draws.site, what, squares * variance / records, variance, p_value)


def _overlaps(draws: _Draws) -> _Finding:
    """Records that two steps in a row have in common, given how many each has."""
    counts = draws.counts
    records = counts.shape[1]
    drawn = counts.sum(axis=1).astype(np.float64)
    common = float((counts[1:] * counts[:-1]).sum())
    expected = drawn[1:] * drawn[:-1] / records
    left = (records - drawn[1:]) * (records - drawn[:-1])
    variance = float((expected * left).sum()) / (records * max(1, records - 1))
    p_value = sum_p_value(common, float(expected.sum()), variance)
    pairs = len(counts) - 1
    return _Finding(
        draws.site,
        "records that two steps in a row share",
        common / pairs,
        float(expected.sum()) / pairs,
        p_value,
    )


def _result(drawn: list[_Draws], cut: list[str]) -> TestResult:
    findings = [one for draws in drawn for one in _findings(draws)]
    adjusted = bonferroni([one.p_value for one in findings])
    bad = [one for one, p_value in zip(findings, adjusted, strict=True) if p_value <= ALPHA]
    effect = max(_smallest_rate_gap(draws, len(findings)) for draws in drawn)
    verdict = Verdict.INCONCLUSIVE if cut or effect > MATTERS else Verdict.PASS
    return TestResult(
        test=CARD.id,
        verdict=Verdict.FAIL if bad else verdict,
        headline=_headline(bad, cut, effect),
        measures=tuple(_measure(draws, len(findings)) for draws in drawn),
        smallest_effect=SmallestEffect(
            measure="relative error of the sampling rate", value=effect, power=POWER, alpha=ALPHA
        ),
        p_value=min(adjusted),
        tables=(
            Table(
                title="Batches drawn by the run's sampler",
                columns=("site", "of", "measured", "expected", "p-value"),
                rows=tuple((o.site, o.what, o.measured, o.expected, o.p_value) for o in findings),
                note="Expected: each record by its own coin, a too large batch cut by chance.",
            ),
        ),
        notes=(
            "Batches drawn now by the program that trained; those of the run itself are secret.",
            *([f"No time was left for {listed(cut)}."] if cut else []),
        ),
    )


def _smallest_rate_gap(draws: _Draws, tests: int) -> float:
    """Relative; of a sum that is nearly normal."""
    normal = NormalDist()
    steps, records = draws.counts.shape
    rate = draws.plan.sample_rate
    z = -normal.inv_cdf(ALPHA / tests / 2) + normal.inv_cdf(POWER)
    return min(1.0, z * math.sqrt((1 - rate) / (rate * max(1, steps * records))))


def _headline(bad: list[_Finding], cut: list[str], effect: float) -> str:
    if bad:
        worst = min(bad, key=lambda one: one.p_value)
        return (
            f"Records are not drawn as was accounted for: {worst.what} is {worst.measured:.4g} "
            f"where {worst.expected:.4g} was expected ({worst.site})."
        )
    if cut:
        return "Sampling is as accounted for where it was looked at; no time was left for the rest."
    if effect > MATTERS:
        return "Too few records and steps to judge the sampling."
    return (
        "Each step draws records by chance, as often as was accounted for; a rate wrong by "
        f"{effect:.1%} would have shown."
    )


def _measure(draws: _Draws, tests: int) -> Measure:
    steps, records = draws.counts.shape
    trials, drawn = max(1, steps * records), int(np.minimum(draws.counts, 1).sum())
    return Measure(
        name=f"sampling-rate-{draws.site}".replace("_", "-"),
        label=f"Sampling rate at {draws.site}",
        value=drawn / trials,
        interval=clopper_pearson(drawn, trials, 1 - ALPHA / tests),
        limit=draws.plan.sample_rate,
    )


def _no_time() -> TestResult:
    return TestResult(
        test=CARD.id,
        verdict=Verdict.INCONCLUSIVE,
        headline="There was no time left to judge the sampling.",
        notes=("The time limit of the suite cut it; run it with a larger one.",),
    )


TESTS: Final[tuple[AuditTest, ...]] = (Sampling(),)
