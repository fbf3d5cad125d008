"""C6: does one record more or less change anything but the sum: its scale, the rate, the steps?"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from audit.conformance.claims import only_local, without_privacy
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
from audit.conformance.statistics import ALPHA, POWER, ratio_interval, smallest_sigma_gap
from audit.intervals import clopper_pearson
from audit.subject import Subject
from audit.verdicts import (
    CONFORMANCE,
    AuditTest,
    Budget,
    Interval,
    Measure,
    NotRun,
    SmallestEffect,
    Table,
    TestCard,
    TestResult,
    Verdict,
)
from core.errors import ScoreError
from core.train import TrainConfig
from privacy.dp_sgd import DpSgdPlan
from privacy.random_source import RandomSource

FloatArray = npt.NDArray[np.float64]

_STEPS: Final = 24
_MAX_RECORDS: Final = 10_000
_SITES: Final = 4

CARD: Final = TestCard(
    id="C6",
    title="Neighbouring data sets",
    question="Are noise, sampling rate and steps the same with one record more?",
    tier="conformance",
    threat_model="Who knows all records but one and looks at the scale of what is released.",
    assumes=("The program that is audited here is the one that ran at the sites.",),
    suites=CONFORMANCE,
    cost_seconds=3.0,
)


@dataclass(frozen=True)
class _Run:
    """One training over so many records under a known key."""

    records: int
    noise: FloatArray
    """(steps, values)"""
    batches: tuple[tuple[int, ...], ...]

    @property
    def drawn(self) -> int:
        return sum(len(batch) for batch in self.batches)


@dataclass(frozen=True)
class _Pair:
    """The same with one record more."""

    site: str
    plan: DpSgdPlan
    fewer: _Run
    more: _Run
    repeatable: bool
    """Whether the same key gives the same noise again: then nothing is left to chance."""


@dataclass(frozen=True)
class Neighbours:
    """The test."""

    mechanism: Mechanism = REAL

    @property
    def card(self) -> TestCard:
        """What it declares."""
        return CARD

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Trains on N and on N + 1 records with the same key; only the sum may differ."""
        if (early := without_privacy(subject, CARD)) is not None:
            return early
        sites = plans(subject)
        if not sites:
            return only_local(CARD)
        pairs: list[_Pair] = []
        for name, plan in list(sites.items())[:_SITES]:
            for records in _sizes(subject.sites[name].num_examples, plan):
                if not budget.spent:
                    pairs.append(self._pair(name, plan, records, subject))
        return _result(pairs) if pairs else _no_time()

    def _pair(self, site: str, plan: DpSgdPlan, records: int, subject: Subject) -> _Pair:
        key = subject.seed.key(f"neighbours/{site}/{records}")
        plan = with_steps(plan, _STEPS)
        config = subject.config.train
        fewer, again, more = (
            self._trained(plan, config, count, key) for count in (records, records, records + 1)
        )
        same = fewer.noise.shape == again.noise.shape and bool((fewer.noise == again.noise).all())
        return _Pair(site, plan, fewer, more, same and fewer.batches == again.batches)

    def _trained(self, plan: DpSgdPlan, config: TrainConfig, records: int, key: bytes) -> _Run:
        steps: list[Step] = []
        watch(
            self.mechanism,
            Probe(PROBE_WIDTH),
            Silenced(ProbeTask()),
            probe_data(records),
            plan=plan,
            config=probe_config(config, plan),
            on_step=steps.append,
            source=RandomSource.for_tests(key, "neighbours"),
        )
        noise = np.array([step.flat() for step in steps], dtype=np.float64)
        return _Run(records, noise, tuple(tuple(sorted(step.batch)) for step in steps))


def _sizes(num_examples: int, plan: DpSgdPlan) -> list[int]:
    """The site's size, and one at which a further record fills one more batch."""
    most = min(plan.max_examples - 1, _MAX_RECORDS)
    batch = plan.expected_batch_size
    wanted = {min(num_examples, most), min(num_examples, most) // batch * batch}
    return sorted(size for size in wanted if 1 <= size <= most)


@dataclass(frozen=True)
class _Finding:
    pair: _Pair
    what: str
    fewer: float
    more: float
    differs: bool

    @property
    def row(self) -> tuple[str, str, int, float, float, str]:
        site, records = self.pair.site, self.pair.fewer.records
        return (
            site,
            self.what,
            records,
            self.fewer,
            self.more,
            "differs" if self.differs else "same",
        )


def _findings(pair: _Pair, confidence: float) -> list[_Finding]:
    fewer, more = pair.fewer, pair.more
    return [
        _Finding(pair, "steps", len(fewer.noise), len(more.noise), not _as_many_steps(pair)),
        _Finding(
            pair, "scale of noise", _scale(fewer), _scale(more), _other_scale(pair, confidence)
        ),
        _Finding(pair, "sampling rate", _rate(fewer), _rate(more), _other_rate(pair, confidence)),
    ]


def _as_many_steps(pair: _Pair) -> bool:
    return len(pair.fewer.noise) == len(pair.more.noise) == pair.plan.steps


def _scale(run: _Run) -> float:
    return math.sqrt(float(np.mean(np.square(run.noise)))) if run.noise.size else 0.0


def _rate(run: _Run) -> float:
    return run.drawn / (run.records * max(1, len(run.batches)))


def _other_scale(pair: _Pair, confidence: float) -> bool:
    """Under one key: any difference at all. Else: one beyond chance."""
    if pair.repeatable:
        return not np.array_equal(pair.fewer.noise, pair.more.noise)
    ratio = _ratio(pair, confidence)
    return ratio is None or not ratio.low <= 1.0 <= ratio.high


def _ratio(pair: _Pair, confidence: float) -> Interval | None:
    try:
        return ratio_interval(pair.fewer.noise.ravel(), pair.more.noise.ravel(), confidence)
    except ScoreError:
        return None  # no noise at all


def _other_rate(pair: _Pair, confidence: float) -> bool:
    """Under one key the same coins fall on the records that both have. Else: beyond chance.

    Only in the first step: from then on the one record more has used up a coin.
    """
    if not pair.fewer.batches or not pair.more.batches:
        return True
    first, second = pair.fewer.batches[0], pair.more.batches[0]
    cut = max(len(first), len(second)) >= pair.plan.max_batch_size
    if pair.repeatable and not cut:
        return first != tuple(index for index in second if index < pair.fewer.records)
    return any(_off(run, pair.plan, confidence) for run in (pair.fewer, pair.more))


def _off(run: _Run, plan: DpSgdPlan, confidence: float) -> bool:
    trials = run.records * max(1, len(run.batches))
    if run.drawn > trials:
        return True
    interval = clopper_pearson(run.drawn, trials, confidence)
    cut = plan.max_batch_size <= run.records * plan.sample_rate * 1.5
    return interval.low > plan.sample_rate or (interval.high < plan.sample_rate and not cut)


def _result(pairs: list[_Pair]) -> TestResult:
    confidence = 1 - ALPHA / (3 * len(pairs))
    findings = [finding for pair in pairs for finding in _findings(pair, confidence)]
    bad = [one for one in findings if one.differs]
    exact = all(pair.repeatable for pair in pairs)
    values = min(pair.fewer.noise.size for pair in pairs)
    effect = 1e-6 if exact else smallest_sigma_gap(max(1, values), confidence)
    return TestResult(
        test=CARD.id,
        verdict=Verdict.FAIL if bad else Verdict.PASS,
        headline=_headline(bad, exact),
        measures=(_measure(pairs, confidence),),
        smallest_effect=SmallestEffect(
            measure="relative change of the noise by one record",
            value=effect,
            power=POWER,
            alpha=ALPHA,
        ),
        tables=(
            Table(
                title="The same with one record more",
                columns=("site", "of", "records", "with N", "with N + 1", "finding"),
                rows=tuple(one.row for one in findings),
                note="Compared bit by bit under one key."
                if exact
                else "The key does not decide the noise, so scales were compared beyond chance.",
            ),
        ),
        notes=(
            "Rates differ by chance from step two on; the finding goes by the coins of the "
            "first, which must fall alike.",
        ),
    )


def _headline(bad: list[_Finding], exact: bool) -> str:
    if bad:
        one = bad[0]
        return (
            f"One record more changes the {one.what} at {one.pair.site}: what is released tells "
            "how many records there are, and the claimed epsilon does not hold."
        )
    how = "bit by bit" if exact else "as far as can be measured"
    return f"With one record more, noise, sampling rate and steps stay the same, {how}."


def _measure(pairs: list[_Pair], confidence: float) -> Measure:
    ratios = [_scale(pair.fewer) / (_scale(pair.more) or math.inf) for pair in pairs]
    worst = max(range(len(pairs)), key=lambda n: abs(ratios[n] - 1))
    exact = pairs[worst].repeatable and ratios[worst] == 1.0
    return Measure(
        name="noise-ratio-of-neighbours",
        label="Scale of the noise with N over that with N + 1 records",
        value=ratios[worst],
        interval=None if exact else _ratio(pairs[worst], confidence),
        limit=1.0,
    )


def _no_time() -> TestResult:
    return TestResult(
        test=CARD.id,
        verdict=Verdict.INCONCLUSIVE,
        headline="There was no time left to compare neighbouring data sets.",
        notes=("The time limit of the suite cut it; run it with a larger one.",),
    )


TESTS: Final[tuple[AuditTest, ...]] = (Neighbours(),)
