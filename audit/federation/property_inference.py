"""F4: does an update tell what a site's records have in common? Shadow sites, and a classifier.

Source: Melis et al. 2019, "Exploiting unintended feature leakage", section 4.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from audit.federation.updates import ALPHA, Update, notes_on, observable, round_update
from audit.intervals import permutation_p
from audit.subject import AuditedSite, Subject
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

_SHADOWS: Final = 12
_RECORDS: Final = 64
_STEPS: Final = 4
_SHARES: Final = (0.8, 0.2)
_FEATURES: Final = 128
_RIDGE: Final = 10.0
_DRAWS: Final = 1999
_MIN_SHADOWS: Final = 6
_MIN_MATCHING: Final = 16


class PropertyInference:
    """Shadow sites with much and with little of a property; can their updates be told apart?"""

    card = TestCard(
        id="F4",
        title="What a site's records have in common",
        question="Can the coordinator tell from an update whether a property is common at a site?",
        tier="federation",
        threat_model="The coordinator, curious, with records of its own like the site's.",
        assumes=(
            "Record-level privacy does not promise to stop this: it protects each record, not what "
            "many have in common.",
            f"Shadow sites of {_RECORDS} records, of which 80 % or 20 % have the property; they "
            "are drawn from the site's own records, which are nearer to it than a coordinator's.",
        ),
        suites=FULL,
        cost_seconds=45.0,
    )

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """See the card."""
        sites = subject.with_records
        if not sites:
            return NotRun(test=self.card.id, reason="No site's records are at hand.")
        site = max(sites.values(), key=lambda s: (len(s.members), s.name))
        chosen = _property(subject, site)
        if chosen is None:
            return NotRun(test=self.card.id, reason="The records have neither groups nor labels.")
        name, has = chosen
        rng = subject.seed.generator("federation/property")
        parts = _parts(site.members, has)
        if min(map(len, parts)) < _MIN_MATCHING:
            return NotRun(test=self.card.id, reason=f"Too few records with and without {name}.")
        updates: list[npt.NDArray[np.float64]] = []
        truths: list[int] = []
        for number in range(2 * _SHADOWS):
            if budget.spent:
                break
            truth = number % 2
            records = _shadow(parts, _SHARES[truth], rng)
            label = f"property/{number}"
            _, update = round_update(subject, records, name=label, site=site, steps=_STEPS)
            updates.append(_projected(update, subject))
            truths.append(truth)
        if len(updates) < 2 * _MIN_SHADOWS:
            return TestResult(
                test=self.card.id,
                verdict=Verdict.INCONCLUSIVE,
                headline="There was not enough time to train shadow sites.",
            )
        rng = subject.seed.generator("federation/property/permutations")
        right, by_chance = told_apart(np.stack(updates), np.array(truths), rng)
        return self._result(subject, name, right, by_chance, len(updates))

    def _result(
        self,
        subject: Subject,
        name: str,
        right: int,
        by_chance: npt.NDArray[np.float64],
        trials: int,
    ) -> TestResult:
        p_value = permutation_p(right, by_chance)
        found = p_value <= ALPHA
        seen = observable(subject)
        verdict = Verdict.PASS if not seen else Verdict.INCONCLUSIVE
        if seen and found and not subject.private:
            verdict = Verdict.FAIL
        return TestResult(
            test=self.card.id,
            verdict=verdict,
            headline=_headline(name, found=found, seen=seen),
            measures=(
                Measure(
                    name="property-accuracy",
                    label=f"Shadow sites told apart by how common it is: {name} (0.5 is chance)",
                    value=right / trials,
                ),
            ),
            smallest_effect=SmallestEffect(
                measure="share of shadow sites told apart",
                value=_needed(by_chance, trials) / trials,
                power=0.5,
                alpha=ALPHA,
            ),
            p_value=p_value,
            notes=(
                "Record-level privacy does not promise that this cannot be told; it is a risk to "
                "weigh, not a broken promise.",
                "Every shadow site is told by a classifier that saw all others; these guesses hang "
                "together, so that the p-value comes from exchanging the shadow sites' kinds.",
                *notes_on(subject),
            ),
        )


def _property(subject: Subject, site: AuditedSite) -> tuple[str, Callable[[Record], bool]] | None:
    """The first public attribute that splits the site's records; else their commonest label."""
    for attribute, values in subject.config.audit.attributes.items():
        first = values[0]
        has = [record.groups.get(attribute) == first for record in iterate(site.members)]
        if min(sum(has), len(has) - sum(has)) >= _MIN_MATCHING:
            return f"{attribute} = {first}", partial(_in_group, attribute, first)
    if subject.config.task.labels:
        label = subject.config.task.labels[0]
        return f"label = {label}", lambda record: record.label == label
    return None


def _in_group(attribute: str, value: str, record: Record) -> bool:
    return record.groups.get(attribute) == value


def _parts(
    records: RecordSource, has: Callable[[Record], bool]
) -> tuple[list[Record], list[Record]]:
    everything = list(iterate(records))
    return [r for r in everything if has(r)], [r for r in everything if not has(r)]


def _shadow(
    parts: tuple[list[Record], list[Record]], share: float, rng: np.random.Generator
) -> tuple[Record, ...]:
    counts = (round(share * _RECORDS), _RECORDS - round(share * _RECORDS))
    chosen = []
    for part, count in zip(parts, counts, strict=True):
        chosen += [part[int(index)] for index in rng.integers(0, len(part), count)]
    return tuple(chosen)


def _projected(update: Update, subject: Subject) -> npt.NDArray[np.float64]:
    """The update in a random subspace, the same for all."""
    rng = subject.seed.generator("federation/property/projection")
    found = np.zeros(_FEATURES)
    for name in sorted(update):
        flat = update[name].reshape(-1).astype(np.float64)
        found += flat @ rng.standard_normal((flat.size, _FEATURES))
    return found


def told_apart(
    updates: npt.NDArray[np.float64], truths: npt.NDArray[np.int64], rng: np.random.Generator
) -> tuple[int, npt.NDArray[np.float64]]:
    """How many are classified rightly, each by a ridge regression on all others.

    Returns:
        The number, and the same for kinds that were exchanged at random: what chance gives. Its
        mean is below one half of them, because who is left out is missing from his own kind.
    """
    spread = updates.std(axis=0)
    scaled = (updates - updates.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    products = scaled @ scaled.T
    size = len(truths)
    hat = np.linalg.solve(products + _RIDGE * np.eye(size), products) + 1 / size
    own = np.diag(hat)[:, None]
    kinds = np.tile(2.0 * truths[:, None] - 1, 1 + _DRAWS)
    kinds[:, 1:] = rng.permuted(kinds[:, 1:], axis=0)
    guesses = (hat @ kinds - own * kinds) / (1 - own)
    right = (guesses * kinds > 0).sum(axis=0)
    return int(right[0]), right[1:].astype(np.float64)


def _needed(by_chance: npt.NDArray[np.float64], trials: int) -> int:
    """The fewest right answers that chance does not explain."""
    enough = (n for n in range(trials + 1) if permutation_p(n, by_chance) <= ALPHA)
    return next(enough, trials)


def _headline(name: str, *, found: bool, seen: bool) -> str:
    if not seen:
        return "Nobody sees a single site's update, so nobody can tell what its records share."
    if found:
        return f"The coordinator can tell from an update whether {name} is common at a site."
    return f"That {name} is common at a site was not found in its updates; no promise is made."


TESTS: Final[tuple[AuditTest, ...]] = (PropertyInference(),)
