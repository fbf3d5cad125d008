"""Epsilon of a site's whole life, the gate before a debit, and the noise for a target.

Everything is record-level and for adding or removing one record; that relation is printed beside
each epsilon, for replacing one record the same steps cost more.
"""

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from scipy import stats

from core.errors import AccountingError, BudgetExceededError, PrivacyError
from privacy.accountants import (
    MAX_PRV_POINTS,
    Segments,
    merge,
    pld_epsilon,
    prv_epsilon,
    prv_points,
    rdp_epsilon,
)
from privacy.events import (
    MAX_NOISE_MULTIPLIER,
    MIN_NOISE_MULTIPLIER,
    DistributedDpSgdEvent,
    DpSgdEvent,
    Event,
)

NEIGHBOURING: Final = "add_or_remove_one"
# Two accountants that differ by more are not both right.
ALARM: Final = 0.05
# What PLD's rounding may add over RDP, which is exact in its own terms.
RDP_SLACK: Final = 0.02
# Of delta, for pretending that no batch is ever cut.
TRUNCATION_SHARE: Final = 0.01
# Of delta, set aside for noise that is only nearly that of a Gaussian mechanism: the first that
# suffices. At usual distances the first does up to an epsilon of about 30.
_DISTANCE_SHARES: Final = (2.0**-20, 2.0**-10, 0.5)
_MAX_EXPONENT: Final = 700.0  # of exp() in double precision
# Of delta, for all batches of a run that are cut, where the cap is chosen by what it costs.
_UNCUT_SHARE: Final = 2.0**-10


@dataclass(frozen=True)
class EpsilonReport:
    """What some events cost, by three accountants."""

    epsilon: float
    """The number: by PLD, pessimistic. Infinite where anything was not private."""
    delta: float
    """The delta it holds at."""
    rdp: float | None
    """By RDP, as if no batch were ever cut; ``None`` where not private."""
    prv: float | None
    """By PRV, of the DP-SGD steps alone and as if no batch were ever cut; ``None`` where there
    are none, where not private, and where the alarm says that there is no second opinion."""
    alarm: str | None
    """Which accountants disagree; ``None`` if they agree."""
    private: bool
    """False once any event was not private."""
    neighbouring: str = NEIGHBOURING
    """The relation between neighbouring data sets."""


def epsilon_report(events: Iterable[Event], delta: float) -> EpsilonReport:
    """What ``events`` cost together.

    **Guarantees**: No event costs exactly 0. One event that is not private makes epsilon
    infinite. Where PLD, RDP and PRV contradict each other the report says so in ``alarm``.

    Args:
        events: Everything that was released from the same records.
        delta: In (0, 1), and below one over the largest ``max_examples``.

    Raises:
        PrivacyError: ``delta`` is too large.
        AccountingError: Epsilon cannot be computed.
    """
    events = tuple(events)
    _check_delta(events, delta)
    if not all(event.private for event in events):
        return EpsilonReport(math.inf, delta, None, None, None, private=False)
    segments = merge(events)
    epsilon = _life_epsilon(segments, delta)
    rdp = rdp_epsilon(segments, delta)
    prv, alarm = _second_opinion(segments, delta, rdp)
    return EpsilonReport(epsilon, delta, rdp, prv, alarm, private=True)


def gate(events: Sequence[Event], proposed: Event, max_epsilon: float, delta: float) -> None:
    """Refuses ``proposed`` if after ``events`` it would take the site past its cap.

    **Guarantees**: Returns only if an upper bound of the epsilon of all events together is at
    most ``max_epsilon``. Anything that fails on the way raises.

    RDP, a looser bound, answers in milliseconds; PLD is asked only where RDP says no.

    Args:
        events: Everything that was ever debited.
        proposed: What is asked for now.
        max_epsilon: The cap over the site's whole life.
        delta: The delta at which the cap holds.

    Raises:
        BudgetExceededError: The cap would be passed.
        PrivacyError: The cap is not finite and positive, or ``delta`` is too large.
        AccountingError: Epsilon cannot be computed.
    """
    if not (math.isfinite(max_epsilon) and max_epsilon > 0):
        raise PrivacyError(f"expected a finite cap on epsilon above 0, got {max_epsilon!r}")
    after = (*events, proposed)
    _check_delta(after, delta)
    if not all(event.private for event in after):
        raise _exceeded(life_epsilon(events, delta), math.inf, max_epsilon, delta)
    segments = merge(after)
    left = delta - _distance_delta(segments, max_epsilon)
    reduced = _uncut_delta(segments, left) if left > 0 else None
    if reduced is not None and rdp_epsilon(segments, reduced) <= max_epsilon:
        return
    epsilon = _life_epsilon(segments, delta)
    if epsilon > max_epsilon:
        raise _exceeded(life_epsilon(events, delta), epsilon, max_epsilon, delta)


def calibrate_noise_multiplier(
    target_epsilon: float,
    target_delta: float,
    sample_rate: float,
    steps: int,
    max_batch_size: int,
    max_examples: int,
) -> float:
    """The smallest noise, to four significant digits, with which the steps cost at most the target.

    **Guarantees**: By PLD, the steps at the returned noise cost at most ``target_epsilon``.

    Args:
        target_epsilon: At most this, above 0.
        target_delta: Below one over ``max_examples``.
        sample_rate: As in ``DpSgdEvent``.
        steps: Of the whole run: all rounds that the site may take part in.
        max_batch_size: As in ``DpSgdEvent``.
        max_examples: As in ``DpSgdEvent``.

    Returns:
        Noise over clip, at least ``MIN_NOISE_MULTIPLIER`` whatever the target.

    Raises:
        PrivacyError: An argument is out of its range.
        AccountingError: No noise that is supported reaches the target.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise PrivacyError(f"expected target_epsilon above 0, got {target_epsilon!r}")

    def steps_at(index: int) -> DpSgdEvent:
        return DpSgdEvent(
            noise_multiplier=_four_digits(index),
            sample_rate=sample_rate,
            max_batch_size=max_batch_size,
            max_examples=max_examples,
            steps=steps,
            max_grad_norm=1.0,
        )

    def uncut(index: int) -> bool:
        segments = merge([steps_at(index)])
        return pld_epsilon(segments, target_delta, truncated=False) <= target_epsilon

    def reaches_target(index: int) -> bool:
        return life_epsilon([steps_at(index)], target_delta) <= target_epsilon

    count = _index_of(MAX_NOISE_MULTIPLIER) + 1
    _check_delta([steps_at(0)], target_delta)
    # Batches that are cut cost more time and more noise: first without, then on from there.
    low = bisect.bisect_left(range(count), True, key=uncut)
    reach = 1
    while low + reach < count and not reaches_target(low + reach - 1):
        reach *= 2
    first = bisect.bisect_left(range(min(low + reach, count)), True, lo=low, key=reaches_target)
    if first == count:
        raise AccountingError(
            f"expected a noise multiplier up to {MAX_NOISE_MULTIPLIER:g} that costs epsilon "
            f"{target_epsilon:g} over {steps} steps at sampling rate {sample_rate:g}, got none",
            hint="raise target_epsilon, or take fewer rounds or steps or smaller batches",
        )
    return _four_digits(first)


def delta_for_nearly_gaussian(delta: float) -> float:
    """The delta at which noise is calibrated for steps whose noise is the sum of several sites'."""
    return delta - _DISTANCE_SHARES[0] * delta


def uncut_batch_size(
    *, sample_rate: float, steps: int, max_examples: int, target_delta: float
) -> int:
    """The smallest cap on a batch that costs next to nothing over a whole run.

    **Guarantees**: The chance that any of ``steps`` batches is cut is at most a thousandth of
    ``target_delta``, however many records up to ``max_examples`` there are. The cap is public: a
    function of these arguments.

    Args:
        sample_rate: As in ``DpSgdEvent``.
        steps: Of the whole run.
        max_examples: As in ``DpSgdEvent``.
        target_delta: In (0, 1).
    """
    others = stats.binom(max_examples - 1, sample_rate)
    allowed = _UNCUT_SHARE * target_delta / steps
    size = 1 + max(0, int(others.isf(allowed)))
    while size < max_examples and others.sf(size - 1) > allowed:
        size += 1
    return min(size, max_examples)


def life_epsilon(events: Iterable[Event], delta: float) -> float:
    """What ``events`` cost together, by PLD and without a second opinion; see ``epsilon_report``.

    Raises:
        PrivacyError: ``delta`` is too large.
        AccountingError: Epsilon cannot be computed.
    """
    events = tuple(events)
    _check_delta(events, delta)
    if not all(event.private for event in events):
        return math.inf
    return _life_epsilon(merge(events), delta)


def _life_epsilon(segments: Segments, delta: float) -> float:
    """Where what ran is only near the mechanisms, that is paid from a share of delta.

    If every run is within ``distance`` (total variation) of one that is (epsilon, delta')-DP, it
    is (epsilon, delta' + (1 + exp(epsilon)) distance)-DP itself.
    """
    if segments.distance == 0:
        return _ideal_epsilon(segments, delta)
    for share in _DISTANCE_SHARES:
        lost = share * delta
        epsilon = _ideal_epsilon(segments.ideal, delta - lost)
        if _distance_delta(segments, epsilon) <= lost:
            return epsilon
    raise AccountingError(
        f"expected noise near enough to a Gaussian mechanism's for delta {delta:g}, got a total "
        f"variation of {segments.distance:g} at epsilon {epsilon:.4g}",
        hint="take more noise, fewer steps or a larger delta",
    )


def _distance_delta(segments: Segments, epsilon: float) -> float:
    return (1.0 + math.exp(min(epsilon, _MAX_EXPONENT))) * segments.distance


def _ideal_epsilon(segments: Segments, delta: float) -> float:
    reduced = _uncut_delta(segments, delta)
    if reduced is None:
        return pld_epsilon(segments, delta, truncated=True)
    return pld_epsilon(segments, reduced, truncated=False)


def _uncut_delta(segments: Segments, delta: float) -> float | None:
    """The delta at which plain Poisson sampling stands for truncated sampling; else ``None``.

    Fix the coins of all records but the one that is added or removed. Where in no step these
    others fill the batch, nothing is ever cut, and the release is that of plain Poisson sampling
    with the one record's coins still random: it is (epsilon, delta')-DP for each such outcome,
    and so for their mixture. The coins of the others do not depend on the one record, so the
    remaining outcomes have one probability on both sides, at most the sum over the steps of
    P[Binomial(max_examples - 1, q) >= max_batch_size], and add just that to delta'.
    """
    lost = segments.truncation
    return delta - lost if lost <= TRUNCATION_SHARE * delta else None


def _second_opinion(
    segments: Segments, delta: float, rdp: float
) -> tuple[float | None, str | None]:
    """PRV's epsilon, and what contradicts what. All look at plain Poisson sampling, ideal noise."""
    segments = segments.ideal
    plain = pld_epsilon(segments, delta, truncated=False)
    if plain > rdp + RDP_SLACK:
        return None, f"PLD gives epsilon {plain:.3f}, above RDP's upper bound {rdp:.3f}"
    if not segments.gaussian:
        return None, None
    steps = pld_epsilon(segments.gaussian_only, delta, truncated=False)
    if prv_points(segments.gaussian, steps) > MAX_PRV_POINTS:
        return None, f"no second opinion: PRV does not fit in memory at epsilon {steps:.3g}"
    try:
        prv = prv_epsilon(segments.gaussian, delta)
    except AccountingError as error:
        return None, f"no second opinion: {error.message}"
    if not abs(prv - steps) <= ALARM:
        return prv, f"PLD gives epsilon {steps:.3f} for the DP-SGD steps, PRV {prv:.3f}"
    return prv, None


def _check_delta(events: Iterable[Event], delta: float) -> None:
    """With delta = 1/N, publishing one whole record picked at random would pass."""
    if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0 < delta < 1:
        raise PrivacyError(f"expected delta between 0 and 1, got {delta!r}")
    gaussian = (DpSgdEvent, DistributedDpSgdEvent)
    largest = max((e.max_examples for e in events if isinstance(e, gaussian)), default=1)
    if delta * largest >= 1:
        raise PrivacyError(
            f"expected delta < 1/N = {1 / largest:.3g} for up to {largest} records, got {delta:g}",
            hint="lower the delta of the task and of the policy",
        )


def _exceeded(before: float, after: float, cap: float, delta: float) -> BudgetExceededError:
    return BudgetExceededError(
        f"expected an epsilon of at most {cap:g} (delta {delta:g}) over the site's whole life, "
        f"got {after:.4g} with this task, {before:.4g} before it",
        hint="ask for more noise or fewer steps; raising policy.max_epsilon gives up privacy",
    )


def _four_digits(index: int) -> float:
    """The numbers of four significant digits from ``MIN_NOISE_MULTIPLIER`` on, in order."""
    decade, mantissa = divmod(index, 9000)
    exponent = decade + round(math.log10(MIN_NOISE_MULTIPLIER)) - 3
    return float(f"{1000 + mantissa}e{exponent}")


def _index_of(power_of_ten: float) -> int:
    return 9000 * round(math.log10(power_of_ten / MIN_NOISE_MULTIPLIER))
