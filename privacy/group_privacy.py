"""What the epsilon of one record comes to for several that come or go together: a person's, say."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from dp_accounting.pld import privacy_loss_distribution
from scipy import stats

from core.errors import AccountingError, PrivacyError
from privacy.accountants import PLD_INTERVAL, GaussianSteps, Segments, merge
from privacy.events import Event

# Coarser than for one record, and still pessimistic: a group's losses are larger.
_COARSEST: Final = 8 * PLD_INTERVAL


def group_epsilon(events: Iterable[Event], size: int, delta: float) -> float | None:
    """The epsilon of ``size`` records that are added or removed together, at the same delta.

    **Guarantees**: An upper bound for any ``size`` records, whatever they hold.

    A step draws Binomial(size, q) of them, and moves by at most that many clips: a mixture of
    Gaussians, which dominates whatever directions the records really pull in. Where no batch of
    the others comes within ``size`` of the cap, none is ever cut; the chance of the rest is paid
    from ``delta``, as it is for one record (see ``privacy.accounting``).

    Args:
        events: Everything that was released from the records.
        size: 1 or more.
        delta: In (0, 1).

    Returns:
        ``None`` where no bound is known: something was not private or is only nearly a Gaussian
        mechanism, or batches are cut too often.

    Raises:
        PrivacyError: The size or delta is out of its range.
        AccountingError: Epsilon cannot be computed.

    Source: Choquette-Choo et al. 2024, "Privacy amplification for matrix mechanisms", on mixtures
        of Gaussians.
    """
    if size < 1 or not 0 < delta < 1:
        raise PrivacyError(f"expected 1 record or more and delta in (0, 1), got {size}, {delta!r}")
    events = tuple(events)
    if not all(event.private for event in events):
        return None
    segments = merge(events)
    left = delta - sum(_cut(one, size) * one.steps for one in segments.gaussian)
    if left <= 0 or segments.distance:
        return None
    if not segments.gaussian and not segments.laplace:
        return 0.0
    try:
        epsilon = float(_composed(segments, size).get_epsilon_for_delta(left))
    except Exception as error:
        raise AccountingError(
            f"expected an epsilon for {size} records, got {type(error).__name__}: {error}"
        ) from error
    return epsilon if math.isfinite(epsilon) else None


def _composed(segments: Segments, size: int) -> Any:
    interval = _interval(segments, size)
    total = privacy_loss_distribution.identity(value_discretization_interval=interval)
    for steps in segments.gaussian:
        drawn = stats.binom(size, steps.sample_rate)
        step = privacy_loss_distribution.from_mixture_gaussian_mechanism(
            steps.noise_multiplier,
            [float(number) for number in range(size + 1)],
            [float(drawn.pmf(number)) for number in range(size + 1)],
            value_discretization_interval=interval,
        )
        total = total.compose(step.self_compose(steps.steps))
    for scale, count in segments.laplace:
        release = privacy_loss_distribution.from_discrete_laplace_mechanism(
            1 / scale, sensitivity=size, value_discretization_interval=interval
        )
        total = total.compose(release.self_compose(count))
    return total


def _interval(segments: Segments, size: int) -> float:
    """A power of two times that of one record, finer where a step loses little."""
    parts = [(size * one.deviation, one.steps) for one in segments.gaussian]
    parts += [(size / scale, count) for scale, count in segments.laplace]
    fine = min(max(deviation / 4, 4e-6 / (deviation * count)) for deviation, count in parts)
    return float(_COARSEST * 2.0 ** math.floor(math.log2(min(1.0, fine / _COARSEST))))


def _cut(steps: GaussianSteps, size: int) -> float:
    """The chance that the other records leave less than ``size`` places in a batch."""
    if steps.max_examples <= steps.max_batch_size:
        return 0.0
    places = steps.max_batch_size - size + 1
    return 1.0 if places < 1 else replace(steps, max_batch_size=places).truncation
