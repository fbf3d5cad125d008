"""What a run claims, how much canaries can say against it, and the verdict that follows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import bdtrc

from audit.intervals import delong
from audit.one_run import (
    Bound,
    claim_p_value,
    fdp_estimate,
    gdp_estimate,
    guess_counts,
    largest_bound,
    one_run_bound,
    p_value,
    t_estimate,
)
from audit.subject import AuditedSite, Subject
from audit.verdicts import Figure, Measure, Series, SmallestEffect, Table, TestResult, Verdict
from core.errors import ScoreError
from privacy.accounting import life_epsilon
from privacy.events import DpSgdEvent

CONFIDENCE: Final = 0.95
ALPHA: Final = 0.05
POWER: Final = 0.8
# Of what all-right guesses prove, for a claim that a broken mechanism is to be held against: the
# rest is for the guesses that go wrong all the same.
_ROOM: Final = 0.75
_BISECTIONS: Final = 40


@dataclass(frozen=True)
class Claim:
    """What the rounds that were trained may have cost."""

    epsilon: float | None
    """``None`` without privacy."""
    delta: float
    rounds: int
    total: float | None
    """Of the whole run."""


def claim_of(subject: Subject, site: AuditedSite, rounds: int) -> Claim:
    """The epsilon of so many rounds at a site, by its public terms."""
    delta = subject.config.privacy.target_delta
    if site.terms is None:
        return Claim(None, delta, rounds, None)
    whole = subject.config.federation.num_rounds
    total = _epsilon(subject, site, whole)
    epsilon = total if rounds == whole else _epsilon(subject, site, rounds)
    return Claim(epsilon, delta, rounds, total)


def rounds_to_train(subject: Subject, site: AuditedSite, canaries: int, *, most: int) -> int:
    """The most rounds whose claim so many canaries could refute; at least 1.

    A broken mechanism leaks far more than it claims from its first round on; over the whole run
    the claim is soon above anything that so few canaries prove.
    """
    most = min(most, subject.config.federation.num_rounds)
    if site.terms is None:
        return most
    room = _ROOM * largest_bound(canaries, subject.config.privacy.target_delta, CONFIDENCE)
    fitting = [n for n in range(1, most + 1) if _epsilon(subject, site, n) <= room]
    return max(fitting, default=1)


def _epsilon(subject: Subject, site: AuditedSite, rounds: int) -> float:
    terms = site.terms
    if terms is None:
        return math.inf
    event = DpSgdEvent(
        noise_multiplier=terms.noise_multiplier,
        sample_rate=terms.sample_rate,
        max_batch_size=terms.max_batch_size,
        max_examples=terms.max_examples,
        steps=rounds * subject.config.train.steps_per_round,
        max_grad_norm=subject.config.privacy.max_grad_norm,
    )
    return life_epsilon([event], subject.config.privacy.target_delta)


def smallest_violation(canaries: int, claim: float, delta: float) -> float | None:
    """The smallest epsilon at which the claim is refuted with probability ``POWER``.

    For a leak that shows in every canary alike, as randomised response does; ``None`` where no
    result of so many canaries refutes the claim.
    """
    counts = guess_counts(canaries)
    alpha = (1 - CONFIDENCE) / len(counts)
    # Not with a guess on every canary: the coins seldom let exactly half of them in, so that some
    # of these guesses are wrong whatever leaks.
    needed = [(r, _fewest_right(canaries, r, claim, delta, alpha)) for r in counts[:-1]]
    reachable = [(r, v) for r, v in needed if v <= r]
    if not reachable:
        return None

    def power(epsilon: float) -> float:
        chance = 1 / (1 + math.exp(-epsilon))
        return max(float(bdtrc(v - 1, r, chance)) for r, v in reachable)

    low, high = claim, claim + 1
    while power(high) < POWER:
        low, high = high, high + 1
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def _fewest_right(canaries: int, guesses: int, claim: float, delta: float, alpha: float) -> int:
    """The fewest right guesses that refute the claim; one more than there are if none do."""
    low, high = 1, guesses + 1
    while low < high:
        middle = (low + high) // 2
        refuted = p_value(canaries, guesses, middle, claim, delta) <= alpha
        low, high = (low, middle) if refuted else (middle + 1, high)
    return low


def judge(
    test: str,
    claim: Claim,
    scores: npt.NDArray[np.float64],
    included: npt.NDArray[np.bool_],
    *,
    measure: str = "epsilon-proven",
    planted: str = "planted records",
    notes: Sequence[str] = (),
) -> TestResult:
    """The verdict of canaries on a claim: by the one-run bound, and by nothing else.

    FAIL where it proves more than is claimed; PASS where it does not and a violation could have
    been seen; else INCONCLUSIVE, as always where nothing is claimed.

    Raises:
        ScoreError: The scores are all alike or not finite, or all canaries fell on one side.
    """
    if included.all() or not included.any():
        raise ScoreError("expected canaries in and out, got them all on one side")
    bound = one_run_bound(scores, included, claim.delta, CONFIDENCE)
    ceiling = largest_bound(len(scores), claim.delta, CONFIDENCE)
    violation = None
    p = None
    if claim.epsilon is not None:
        violation = smallest_violation(len(scores), claim.epsilon, claim.delta)
        p = claim_p_value(scores, included, claim.epsilon, claim.delta)
    estimates = _estimates(scores, included, claim.delta)
    attack = _attack(scores, included)
    return TestResult(
        test=test,
        verdict=_verdict(claim, bound, violation),
        headline=_headline(claim, bound, violation, planted, hinted=hinted(attack)),
        measures=(
            Measure(
                name=measure,
                label=f"Proven epsilon over {_rounds(claim)}, at the least (95 % confidence)",
                value=bound.epsilon,
                limit=claim.epsilon,
            ),
            Measure(name="epsilon-provable", label="The most it could have proven", value=ceiling),
            attack,
            *(
                Measure(name=name, label=f"Estimate, not proof: {e.method}", value=e.epsilon)
                for name, e in estimates
            ),
        ),
        smallest_effect=None
        if violation is None
        else SmallestEffect(
            measure="epsilon of a leak that shows in every canary alike",
            value=violation,
            power=POWER,
            alpha=ALPHA,
        ),
        p_value=p,
        tables=(_table(planted, included, bound, estimates),),
        figures=(_figure(claim, bound, estimates, ceiling),),
        notes=(*_notes(claim, f"{len(scores)} {planted}", ceiling), *notes),
    )


def _verdict(claim: Claim, bound: Bound, violation: float | None) -> Verdict:
    if claim.epsilon is None:
        return Verdict.INCONCLUSIVE
    if bound.epsilon > claim.epsilon:
        return Verdict.FAIL
    return Verdict.INCONCLUSIVE if violation is None else Verdict.PASS


def hinted(attack: Measure) -> bool:
    """Whether the attack is surely better than chance, be an epsilon proven or not."""
    return attack.interval is not None and attack.interval.low > 0.5


def _headline(
    claim: Claim, bound: Bound, violation: float | None, planted: str, *, hinted: bool
) -> str:
    proven = f"{bound.epsilon:.2f}"
    if claim.epsilon is None and bound.epsilon > 0:
        return (
            f"The run gives no guarantee, and {planted} are found: it loses an epsilon of at least "
            f"{proven} over {_rounds(claim)}."
        )
    if claim.epsilon is None:
        found = (
            f"{planted} are told better than by guessing, though no epsilon is proven"
            if hinted
            else f"no {planted[:-1]} was seen"
        )
        return f"The run gives no guarantee; over {_rounds(claim)} {found}."
    if bound.epsilon > claim.epsilon:
        return (
            f"The claim is broken: over {_rounds(claim)} an epsilon of at least {proven} is "
            f"proven, and at most {claim.epsilon:.2f} was claimed."
        )
    if violation is None:
        return (
            f"Nothing was found against the claim, but so few {planted} could not have "
            f"refuted an epsilon of {claim.epsilon:.2f}."
        )
    return (
        f"{planted.capitalize()} prove no more than is claimed: an epsilon of at least {proven} "
        f"over {_rounds(claim)}, and {claim.epsilon:.2f} was claimed for {_those(claim)}."
    )


def _rounds(claim: Claim) -> str:
    return "one round" if claim.rounds == 1 else f"{claim.rounds} rounds"


def _those(claim: Claim) -> str:
    return "it" if claim.rounds == 1 else "them"


def _estimates(
    scores: npt.NDArray[np.float64], included: npt.NDArray[np.bool_], delta: float
) -> list[tuple[str, Bound]]:
    methods = (
        ("epsilon-estimate-fdp", fdp_estimate),
        ("epsilon-estimate-gaussian", gdp_estimate),
        ("epsilon-estimate-t", t_estimate),
    )
    found = []
    for name, method in methods:
        try:
            found.append((name, method(scores, included, delta, CONFIDENCE)))
        except ScoreError:
            continue  # these scores do not allow it, such as a variance of 0
    return [(name, e) for name, e in found if math.isfinite(e.epsilon)]


def _attack(scores: npt.NDArray[np.float64], included: npt.NDArray[np.bool_]) -> Measure:
    estimate = delong(scores[included], scores[~included], CONFIDENCE)
    return Measure(
        name="canary-auc",
        label="How well the attack tells who was in from who was not (AUC; 0.5 is chance)",
        value=estimate.auc,
        interval=estimate.interval,
    )


def _table(
    planted: str,
    included: npt.NDArray[np.bool_],
    bound: Bound,
    estimates: Sequence[tuple[str, Bound]],
) -> Table:
    rows = [
        (b.method, "proof" if b.rigorous else "estimate", b.epsilon, b.guesses, b.correct)
        for b in (bound, *(e for _, e in estimates))
    ]
    return Table(
        title=f"{len(included)} {planted}, of which a coin let {int(included.sum())} in",
        columns=("method", "what it is", "epsilon", "guesses", "right"),
        rows=tuple(rows),
        note="Estimates assume more than differential privacy and decide nothing.",
    )


def _figure(
    claim: Claim, bound: Bound, estimates: Sequence[tuple[str, Bound]], ceiling: float
) -> Figure:
    bars = [("proven", bound.epsilon), ("provable at most", ceiling)]
    bars += [(f"estimate: {e.method.split(' (')[0]}", e.epsilon) for _, e in estimates]
    return Figure(
        kind="bars",
        title="Claimed and proven epsilon",
        caption="What is proven must not pass what is claimed; how far it stays below says little.",
        alternative="; ".join(f"{name} {value:.2f}" for name, value in bars)
        + ("; no claim" if claim.epsilon is None else f"; claimed {claim.epsilon:.2f}"),
        x_label="",
        y_label="epsilon",
        series=(Series(name="epsilon", x=tuple(b[0] for b in bars), y=tuple(b[1] for b in bars)),),
        reference=claim.epsilon,
        reference_label="" if claim.epsilon is None else "claimed",
    )


def _notes(claim: Claim, canaries: str, ceiling: float) -> list[str]:
    notes = [
        f"{canaries} can prove an epsilon of {ceiling:.2f} at the most. A proven "
        "epsilon far below the claimed one does not show that the true one is as low.",
    ]
    if claim.epsilon is not None and claim.total is not None:
        notes.append(
            f"{_rounds(claim).capitalize()} of one site, trained anew by the run's own functions "
            f"with the site's own constants. All rounds together claim {claim.total:.2f}: to "
            "refute that can take far more planted records."
        )
    return notes
