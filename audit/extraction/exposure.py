"""X1: how much better than chance a model ranks secrets that stood in its records."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from torch import nn

from audit.canaries.claim import Claim, claim_of
from audit.canaries.records import losses_of
from audit.extraction.secrets import (
    Secrets,
    draw_alike,
    draw_secrets,
    group_delta,
    rounds_of,
    secret_site,
    train_on,
    why_no_secrets,
)
from audit.intervals import holm
from audit.subject import Subject
from audit.verdicts import (
    FULL,
    Budget,
    Figure,
    Measure,
    NotRun,
    Series,
    SmallestEffect,
    Table,
    TestCard,
    TestResult,
    Verdict,
)

REFERENCES: Final = 511
"""Other secrets that each is ranked among: the exposure is at most 9 bits."""
ALPHA: Final = 0.05
POWER: Final = 0.8
# A secret that is not seen to beat nine others in ten is no evidence of its absence.
_LARGEST_USEFUL: Final = 0.9
_LARGEST_EXPONENT: Final = 50.0  # beyond it every rank is allowed


@dataclass(frozen=True)
class Exposed:
    """The secrets of one number of repetitions."""

    times: int
    ranks: tuple[int, ...]
    """Of each among itself and its references; 1 is the most likely of all."""
    p_value: float
    """Exact: of the sum of the ranks."""

    @property
    def bits(self) -> list[float]:
        """Exposure of each: bits that the model saves who guesses it."""
        return [math.log2((REFERENCES + 1) / rank) for rank in self.ranks]


class Exposure:
    """Random secrets in 1, 4 and 16 records, ranked among secrets that were in none."""

    card = TestCard(
        id="X1",
        title="Exposure of planted secrets",
        question="Does the model remember what stood in one record, or in several?",
        tier="records",
        threat_model="Anyone who can ask the model for its loss on a text and knows its form.",
        assumes=(
            "A copy of the run's model is trained further, on some of one site's records and the "
            "secrets among them, with the site's own constants.",
            "Secrets are random; what is predictable is easier to guess and not counted here.",
        ),
        suites=FULL,
        cost_seconds=15,
    )

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Plants, trains, ranks."""
        why = why_no_secrets(subject)
        if why is not None:
            return NotRun(test=self.card.id, reason=why)
        secrets = draw_secrets(subject, "exposure")
        model = train_on(subject, secrets.records, name="exposure", budget=budget)
        claim = claim_of(subject, secret_site(subject), rounds_of(subject))
        return exposure_result(self.card.id, exposed(model, subject, secrets), claim)


def exposed(model: nn.Module, subject: Subject, secrets: Secrets) -> list[Exposed]:
    """Ranks every secret among references of its own, drawn as it was and never trained on."""
    found = []
    for times, planted in secrets.by_repetition.items():
        rng = subject.seed.generator(f"secrets/references/{times}")
        ranks = []
        for secret in planted:
            others = draw_alike(subject, rng, REFERENCES, secret)
            losses = losses_of(model, subject, [secret, *others]).numpy()
            # Ties go against the secret's being remembered.
            ranks.append(1 + int((losses[1:] <= losses[0]).sum()))
        found.append(Exposed(times, tuple(ranks), rank_sum_p_value(ranks, REFERENCES + 1)))
    return found


def rank_sum_p_value(ranks: Sequence[int], n: int) -> float:
    """Exact p-value of a sum of independent ranks, each uniform on 1..n under the hypothesis.

    Guarantees:
        At most alpha with probability at most alpha where no secret is remembered.
    """
    chances = np.ones(1)
    for _ in ranks:
        sums = np.concatenate([[0.0], np.cumsum(chances)])
        # Of one more rank: the mean of the n chances before, by differences of running sums.
        high = np.minimum(np.arange(1, len(chances) + n), len(chances))
        low = np.maximum(np.arange(1, len(chances) + n) - n, 0)
        chances = (sums[high] - sums[low]) / n
    return float(
        min(1.0, max(chances[: sum(ranks) - len(ranks) + 1].sum(), float(n) ** -len(ranks)))
    )


def exposure_result(test: str, found: Sequence[Exposed], claim: Claim) -> TestResult:
    """The verdict: what stands in a single record must not be remembered."""
    adjusted = holm([e.p_value for e in found])
    remembered = [e.times for e, p in zip(found, adjusted, strict=True) if p <= ALPHA]
    smallest = smallest_win(len(found[0].ranks), len(found))
    cap = math.log2(REFERENCES + 1)
    return TestResult(
        test=test,
        verdict=_verdict(remembered, smallest),
        headline=_headline(remembered, smallest, found, claim),
        measures=tuple(
            Measure(
                name=f"exposure-{e.times}",
                label=f"Mean exposure of secrets in {_records(e.times)} (1.44 is chance)",
                value=float(np.mean(e.bits)),
                unit="bits",
                limit=allowed_bits(e.times, claim),
            )
            for e in found
        ),
        smallest_effect=None
        if smallest is None
        else SmallestEffect(
            measure="chance of a planted secret to beat one that was not planted (0.5 is none)",
            value=smallest,
            power=POWER,
            alpha=ALPHA,
        ),
        p_value=min(adjusted),
        tables=(_table(found, adjusted, claim),),
        figures=(_figure(found, cap),),
        notes=(
            "The figures are of a copy that was trained further; the released model saw no secret.",
            f"Each secret is ranked among {REFERENCES} others: an exposure of {cap:.0f} bits is "
            "the most that could be seen.",
            "What stands in several records is protected by group privacy only, which fades "
            "quickly: deduplicate before training.",
        ),
    )


def smallest_win(secrets: int, tests: int) -> float | None:
    """The chance to beat a reference that is found with ``POWER`` in the worst place of Holm.

    From the normal form of a sum of uniform ranks; ``None`` where it would pass 1.
    """
    normal = NormalDist()
    needed = normal.inv_cdf(1 - ALPHA / tests) + normal.inv_cdf(POWER)
    win = 0.5 + needed / math.sqrt(12 * secrets)
    return win if win < 1 else None


def _verdict(remembered: Sequence[int], smallest: float | None) -> Verdict:
    if 1 in remembered:
        return Verdict.FAIL
    if remembered or smallest is None or smallest > _LARGEST_USEFUL:
        return Verdict.INCONCLUSIVE
    return Verdict.PASS


def allowed_bits(times: int, claim: Claim) -> float | None:
    """The largest mean exposure that the claim allows a secret in so many records.

    Had the secret been in none, its rank would be uniform; a rank of r or better is then at most
    exp(epsilon) times as likely, plus delta, both of the group.
    """
    if claim.epsilon is None:
        return None
    delta = group_delta(times, claim.epsilon, claim.delta)
    ranks = np.arange(1, REFERENCES + 2)
    factor = math.exp(min(times * claim.epsilon, _LARGEST_EXPONENT))
    chances = np.minimum(factor * ranks / len(ranks) + delta, 1.0)
    return float(np.diff(chances, prepend=0.0) @ np.log2(len(ranks) / ranks))


def _headline(
    remembered: Sequence[int], smallest: float | None, found: Sequence[Exposed], claim: Claim
) -> str:
    if 1 in remembered:
        single = next(e for e in found if e.times == 1)
        allowed = allowed_bits(1, claim)
        bits = f"{float(np.mean(single.bits)):.1f} bits where chance gives 1.4"
        told = "no privacy is claimed" if allowed is None else f"the claim allows {allowed:.1f}"
        return (
            "The training remembers secrets that stand in a single record: an exposure of "
            f"{bits}; {told}."
        )
    if remembered:
        return (
            f"The training remembers secrets that stand in {min(remembered)} records or more; "
            "of those in a single record nothing was seen."
        )
    if smallest is None or smallest > _LARGEST_USEFUL:
        return "No planted secret was seen to be remembered, but too few could be planted to tell."
    return "No planted secret is remembered, however often it stood in the records."


def _records(times: int) -> str:
    return "one record" if times == 1 else f"{times} records"


def _table(found: Sequence[Exposed], adjusted: Sequence[float], claim: Claim) -> Table:
    rows = []
    for e, p in zip(found, adjusted, strict=True):
        epsilon = None if claim.epsilon is None else e.times * claim.epsilon
        delta = None if claim.epsilon is None else group_delta(e.times, claim.epsilon, claim.delta)
        mean, most = float(np.mean(e.bits)), max(e.bits)
        rows.append((e.times, len(e.ranks), mean, most, p, epsilon, delta))
    return Table(
        title="Exposure by number of records that a secret stands in",
        columns=(
            "records",
            "secrets",
            "mean exposure",
            "largest",
            "p (Holm)",
            "epsilon of the group",
            "delta of the group",
        ),
        rows=tuple(rows),
        note="A group's delta of 1 promises nothing; no group epsilon means that none is claimed.",
    )


def _figure(found: Sequence[Exposed], cap: float) -> Figure:
    names = tuple(_records(e.times) for e in found)
    bits = tuple(float(np.mean(e.bits)) for e in found)
    said = "; ".join(f"{name} {value:.1f} bits" for name, value in zip(names, bits, strict=True))
    return Figure(
        kind="bars",
        title="Exposure of planted secrets",
        caption=f"Secrets that are not remembered stay near 1.4 bits; {cap:.0f} is the most.",
        alternative=said,
        x_label="a secret stood in",
        y_label="mean exposure in bits",
        series=(Series(name="exposure", x=names, y=bits),),
        reference=1 / math.log(2),
        reference_label="chance",
    )


TESTS: Final = (Exposure(),)
