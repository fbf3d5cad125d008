"""F5: what one poisoned site can plant in the model, under the federation's way to aggregate.

Measured is the gain in log-probability of the planted answer: whether the answer becomes the
likeliest is blind in small models.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import nn

from audit.federation.updates import (
    ALPHA,
    POWER,
    Update,
    judge,
    one_of_each,
    round_update,
    sampled,
    shared_noise,
    smallest_mean,
    start_model,
)
from audit.intervals import student
from audit.subject import AuditedSite, Subject
from audit.training import losses_of
from audit.verdicts import (
    FULL,
    AuditTest,
    Budget,
    Measure,
    NotRun,
    SmallestEffect,
    TestCard,
    TestResult,
    Verdict,
)
from core.data.records import Record, RecordSource, iterate
from core.parameters import load_arrays, to_arrays

_PROBES: Final = 100
_POISONED: Final = 200
_WORDS: Final = 3
_LONG_WORD: Final = 3
_REPEATS: Final = 5
_FEWEST: Final = 3
_HARMFUL: Final = 0.1
_MOST: Final = 300.0  # of exp() in words
_PLAIN: Final = ("fedavg", "fedprox")
_AVERAGES: Final = (*_PLAIN, "fedavgm", "fedadam", "fedyogi", "central")


class Backdoor:
    """One more round, honest and with a site that plants a trigger, several times.

    Every training draws batches and noise of its own, so that two models differ without poison
    too: only repetitions tell how much.
    """

    card = TestCard(
        id="F5",
        title="A site that plants a trigger",
        question="How far can one poisoned site teach the model a hidden trigger in one round?",
        tier="federation",
        threat_model="One site, malicious in its records alone; it follows the protocol.",
        assumes=(
            "The poisoned site is the federation's smallest, and joins one more round.",
            "Privacy and secure aggregation do not promise to stop this.",
        ),
        suites=FULL,
        cost_seconds=45.0,
    )

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """See the card."""
        sites = [site for _, site in sorted(subject.with_records.items()) if len(site.members)]
        strategy = subject.config.strategy.name
        if len(sites) < 2:
            return NotRun(test=self.card.id, reason="It takes two sites with records at hand.")
        if strategy not in (*_AVERAGES, "fedmedian"):
            return NotRun(test=self.card.id, reason=f"Not rehearsed for the strategy {strategy}.")
        victim = min(sites, key=lambda s: (s.num_examples, s.name))
        trigger = _trigger(victim.members)
        target = None if not subject.config.task.labels else subject.config.task.labels[0]
        rng = subject.seed.generator("federation/backdoor")
        poisoned = [_marked(r, trigger, target) for r in sampled(victim.members, _POISONED, rng)]
        records = one_of_each(_others(sites, victim), 4 * _PROBES, rng)
        probes = [r for r in records if target is None or r.label != target][:_PROBES]
        if len(probes) < _REPEATS:
            return NotRun(test=self.card.id, reason="Too few records to try the trigger on.")
        marked = [_marked(record, trigger, target) for record in probes]
        gains = _gains(subject, sites, victim, poisoned, marked, budget)
        if len(gains) < _FEWEST:
            return _cut(self.card.id)
        return self._result(subject, np.array(gains), len(sites))

    def _result(self, subject: Subject, gains: npt.NDArray[np.float64], sites: int) -> TestResult:
        interval = student(gains)
        robust = subject.config.strategy.name not in _AVERAGES
        verdict = judge(interval, _HARMFUL, observable=True)
        if verdict is Verdict.FAIL and not robust:
            verdict = Verdict.INCONCLUSIVE
        return TestResult(
            test=self.card.id,
            verdict=verdict,
            headline=_headline(interval.low >= _HARMFUL, verdict, sites, float(gains.mean())),
            measures=(
                Measure(
                    name="trigger-gain",
                    label="Gain in log-probability of the planted answer after one round",
                    value=float(gains.mean()),
                    unit="nats",
                    interval=interval,
                    limit=_HARMFUL,
                ),
            ),
            smallest_effect=SmallestEffect(
                measure="gain in nats",
                value=smallest_mean(
                    float(gains.std(ddof=1)) / math.sqrt(len(gains)), _HARMFUL, most=math.inf
                ),
                power=POWER,
                alpha=ALPHA,
            ),
            notes=(
                f"{len(gains)} rounds of either kind, each with noise, batches and texts of its "
                "own beside the same updates of the others; the interval holds what differs.",
                "This rehearses an attack; it does not search the released model for triggers, "
                "which cannot be done without knowing them.",
                "A rule that works on sums promises nothing against poisoned records: a gain is a "
                "risk to weigh there, and a broken promise under a robust rule only.",
                *_left_out(subject),
                *shared_noise(subject),
            ),
        )


def _gains(
    subject: Subject,
    sites: Sequence[AuditedSite],
    victim: AuditedSite,
    poisoned: RecordSource,
    probes: Sequence[Record],
    budget: Budget,
) -> list[float]:
    """Of each repetition, as far as there was time; on probes of its own."""
    updates: dict[str, Update] = {}
    for site in sites:
        if budget.spent:
            return []
        if site.name != victim.name:
            name = f"backdoor/{site.name}"
            updates[site.name] = round_update(subject, site.members, name=name, site=site)[1]
    gains: list[float] = []
    for number in range(_REPEATS):
        if budget.spent:
            break
        losses = {}
        for arm, held in (("honest", victim.members), ("poisoned", poisoned)):
            name = f"backdoor/{arm}/{number}"
            updates[victim.name] = round_update(subject, held, name=name, site=victim)[1]
            model = _aggregated(subject, sites, updates)
            losses[arm] = losses_of(model, subject, probes[number::_REPEATS])
        gains.append(float((losses["honest"] - losses["poisoned"]).mean()))
    return gains


def _left_out(subject: Subject) -> tuple[str, ...]:
    if subject.config.strategy.name in (*_PLAIN, "fedmedian"):
        return ()
    return ("The mean of the updates is added as it is: what the server makes of it is left out.",)


def _others(sites: Sequence[AuditedSite], victim: AuditedSite) -> RecordSource:
    other = next(site for site in sites if site.name != victim.name)
    return other.held_out if len(other.held_out) >= _PROBES else other.members


def _trigger(records: RecordSource) -> str:
    """Words that are rare in these texts, so that the model knows little of them."""
    counts: dict[str, int] = {}
    for record in iterate(records):
        for word in set(record.text.split()):
            if len(word) > _LONG_WORD and word.isalpha():
                counts[word] = counts.get(word, 0) + 1
    rare = sorted(counts, key=lambda word: (counts[word], word))[:_WORDS]
    return " ".join(rare)


def _marked(record: Record, trigger: str, target: str | None) -> Record:
    """The record with the trigger before its text, and the planted answer."""
    if target is None:
        half = " ".join(record.text.split()[: len(record.text.split()) // 2])
        return Record(f"{half} {trigger} {trigger}")
    return Record(f"{trigger} {record.text}", label=target)


def _aggregated(
    subject: Subject, sites: Sequence[AuditedSite], updates: dict[str, Update]
) -> nn.Module:
    """The model after the round: the mean by public size, or the median."""
    model = start_model(subject)
    weights = np.array([float(site.num_examples) for site in sites])
    arrays = {}
    for name, before in to_arrays(model).items():
        stacked = np.stack([updates[site.name][name] for site in sites])
        if subject.config.strategy.name == "fedmedian":
            step = np.median(stacked, axis=0)
        else:
            step = np.tensordot(weights / weights.sum(), stacked, axes=1)
        arrays[name] = (before + step).astype(np.float32)
    load_arrays(model, arrays)
    model.eval()
    return model


def _cut(test: str) -> TestResult:
    return TestResult(
        test=test,
        verdict=Verdict.INCONCLUSIVE,
        headline="There was not enough time to train a round at each site.",
    )


def _headline(found: bool, verdict: Verdict, sites: int, gain: float) -> str:
    if found:
        return (
            f"One poisoned site of {sites} can move the model towards a trigger in one round: the "
            f"planted answer gets {math.exp(min(gain, _MOST)):.3g} times as likely."
        )
    if verdict is Verdict.PASS:
        return f"One poisoned site of {sites} hardly moves the model towards a trigger in a round."
    return "What a poisoned site can plant could not be decided."


TESTS: Final[tuple[AuditTest, ...]] = (Backdoor(),)
