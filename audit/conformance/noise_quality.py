"""C4: is the noise normal, and is none of it used twice: in one round, in two, at two sites?"""

import itertools
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

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
from audit.conformance.statistics import (
    ALPHA,
    POWER,
    cross_correlation,
    normality_p_value,
    self_correlation,
    smallest_correlation,
)
from audit.intervals import bonferroni
from audit.subject import Subject
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
from privacy.dp_sgd import DpSgdPlan
from privacy.guards import PROBES

FloatArray = npt.NDArray[np.float64]

# A share of repeated noise that matters: one step of a round of ten.
MATTERS: Final = 0.1
_STEPS: Final = 4
_MIN_VALUES: Final = 20_000
_KEPT: Final = 65_536
_SITES: Final = 4
_ROUNDS: Final = 2

CARD: Final = TestCard(
    id="C4",
    title="Quality of the noise",
    question="Is the noise random, and never used a second time?",
    tier="conformance",
    threat_model="Whoever sees two releases and subtracts one from the other.",
    assumes=(
        "The program that is audited here is the one that ran at the sites.",
        "Each round's keys come from the operating system, as they do at a site.",
    ),
    suites=CONFORMANCE,
    cost_seconds=4.0,
)


@dataclass(frozen=True)
class _Noise:
    """The noise of one round at one site."""

    site: str
    number: int
    values: FloatArray

    @property
    def name(self) -> str:
        return f"{self.site}, round {self.number}"


@dataclass(frozen=True)
class _Finding:
    what: str
    where: str
    value: float | None
    p_value: float


@dataclass(frozen=True)
class NoiseQuality:
    """The test."""

    mechanism: Mechanism = REAL

    @property
    def card(self) -> TestCard:
        """What it declares."""
        return CARD

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Draws the noise of two rounds at each of some sites, and compares all with all."""
        if (early := without_privacy(subject, CARD)) is not None:
            return early
        sites = {name: subject.plan(site) for name, site in sorted(subject.sites.items())}
        if not plans(subject):
            return only_local(CARD)
        chosen = [(name, plan) for name, plan in sites.items() if plan is not None][:_SITES]
        drawn: list[_Noise] = []
        for (site, plan), number in itertools.product(chosen, range(1, _ROUNDS + 1)):
            if budget.spent:
                return _no_time()
            drawn.append(_Noise(site, number, self._noise(subject, plan)))
        silent = [one.name for one in drawn if not _varies(one.values)]
        if silent:
            return _no_noise(silent)
        return _result(_findings(drawn), len(drawn[0].values))

    def _noise(self, subject: Subject, plan: DpSgdPlan) -> FloatArray:
        task = Silenced(subject.blueprint.task)
        model = subject.initial_model()
        dimension = sum(p.numel() for p in model.parameters() if p.requires_grad)
        steps = max(_STEPS, math.ceil(_MIN_VALUES / dimension))
        kept = min(dimension, _KEPT)
        found: list[FloatArray] = []
        # Without records every step is noise alone, but a data set has one at the least.
        watch(
            self.mechanism,
            model,
            task,
            MadeUpData(task, PROBES[:1], subject.device),
            plan=with_steps(plan, steps),
            config=subject.config.train,
            on_step=lambda step: found.append(_first(step, kept)),
        )
        return np.concatenate(found) if found else np.zeros(1)


def _first(step: Step, count: int) -> FloatArray:
    return step.flat()[:count]


def _varies(values: FloatArray) -> bool:
    return bool(np.isfinite(values).all()) and float(np.abs(values).max()) > 0


def _findings(drawn: list[_Noise]) -> list[_Finding]:
    found = []
    for one in drawn:
        found.append(_Finding("not normal", one.name, None, normality_p_value(one.values)))
        largest, p_value = self_correlation(one.values)
        found.append(_Finding("repeats itself", one.name, largest, p_value))
    for first, second in itertools.combinations(drawn, 2):
        largest, p_value = cross_correlation(first.values, second.values)
        where = f"{first.name} and {second.name}"
        found.append(_Finding("is the same", where, largest, p_value))
    return found


def _result(findings: list[_Finding], count: int) -> TestResult:
    adjusted = bonferroni([one.p_value for one in findings])
    bad = [one for one, p_value in zip(findings, adjusted, strict=True) if p_value <= ALPHA]
    effect = smallest_correlation(count, count, ALPHA / len(findings))
    verdict = Verdict.PASS if effect <= MATTERS else Verdict.INCONCLUSIVE
    return TestResult(
        test=CARD.id,
        verdict=Verdict.FAIL if bad else verdict,
        headline=_headline(bad, verdict, effect),
        measures=(_largest(findings),),
        smallest_effect=SmallestEffect(
            measure="share of a round's noise that is used twice",
            value=effect,
            power=POWER,
            alpha=ALPHA,
        ),
        p_value=min(adjusted),
        tables=(
            Table(
                title="Checks of the noise",
                columns=("finding", "where", "largest correlation", "p-value"),
                rows=tuple((o.what, o.where, o.value, o.p_value) for o in bad[:40]),
                note=f"{len(findings)} checks, Bonferroni; only those that failed are listed.",
            ),
        ),
        notes=(
            "No test of its output shows that a generator is cryptographic; the program uses "
            "AES-256 under keys of the operating system, once each.",
            "Drawn now by the program that trained; the noise of the run itself is known to "
            "nobody.",
        ),
    )


def _headline(bad: list[_Finding], verdict: Verdict, effect: float) -> str:
    repeated = [one for one in bad if one.what != "not normal"]
    if repeated:
        return (
            f"Noise is used more than once ({repeated[0].where}): whoever subtracts two releases "
            "takes it off again."
        )
    if bad:
        return f"The noise is not that of a normal distribution ({bad[0].where})."
    if verdict is Verdict.INCONCLUSIVE:
        return "The model is too small to judge its noise."
    return (
        "The noise is normal and fresh in every step, round and site; a repeated share of "
        f"{effect:.1%} would have shown."
    )


def _largest(findings: list[_Finding]) -> Measure:
    values = [abs(one.value) for one in findings if one.value is not None]
    return Measure(
        name="noise-correlation",
        label="Largest correlation of noise with other noise, or with itself shifted",
        value=max(values),
    )


def _no_noise(silent: list[str]) -> TestResult:
    return TestResult(
        test=CARD.id,
        verdict=Verdict.FAIL,
        headline=f"What is released has no noise in it at all ({listed(silent)}).",
        notes=("Gradients were 0, and so was what training released.",),
    )


def _no_time() -> TestResult:
    return TestResult(
        test=CARD.id,
        verdict=Verdict.INCONCLUSIVE,
        headline="There was no time left to judge the noise.",
        notes=("The time limit of the suite cut it; run it with a larger one.",),
    )


TESTS: Final[tuple[AuditTest, ...]] = (NoiseQuality(),)
