"""Three independent accountants over the same steps, each behind one function.

PLD (Google's dp_accounting) gives the number, RDP (Opacus' formula) the fast upper bound, PRV
(Opacus, after Microsoft) the second opinion. Accountants that rest on a central-limit argument
underestimate sampled Gaussians and are not used anywhere.
"""

import functools
import math
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis.rdp import compute_rdp
from scipy import stats

from core.errors import AccountingError, PrivacyError
from privacy.events import DistributedDpSgdEvent, DpSgdEvent, Event, LaplaceCountsEvent

# Of the privacy loss; halved where one step loses less than this, doubled where a table would
# grow beyond about two million entries.
PLD_INTERVAL: Final = 1e-3
MIN_PLD_INTERVAL: Final = 1e-5
# Integers only: at fractional orders the published series may not converge.
RDP_ORDERS: Final = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)
# About four seconds of PRV on one core.
MAX_PRV_POINTS: Final = 4_000_000

_FILTERS: Final = threading.Lock()

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, order=True)
class GaussianSteps:
    """Steps of one sampled Gaussian mechanism."""

    noise_multiplier: float
    sample_rate: float
    max_batch_size: int
    max_examples: int
    steps: int

    @property
    def truncation(self) -> float:
        """The chance that a step's other records alone fill the batch, at the most.

        It grows with the number of records, so it is largest at ``max_examples``.
        """
        others = self.max_examples - 1
        return float(stats.binom.sf(self.max_batch_size - 1, others, self.sample_rate))

    @property
    def deviation(self) -> float:
        """About the standard deviation of one step's privacy loss."""
        inverse = 1 / self.noise_multiplier
        sampled = self.sample_rate * math.sqrt(math.expm1(min(inverse**2, 700.0)))
        return min(inverse, sampled)


@dataclass(frozen=True)
class Segments:
    """Private events with equal mechanisms merged; hashable, so results can be cached."""

    gaussian: tuple[GaussianSteps, ...]
    laplace: tuple[tuple[float, int], ...]
    """Scale and number of releases."""
    distance: float = 0.0
    """Total variation, summed over all steps, of what ran from these mechanisms. No accountant
    here looks at it: ``privacy.accounting`` takes its cost from delta."""

    @property
    def truncation(self) -> float:
        """The chance that any of all steps is cut, at the most."""
        return sum(segment.steps * segment.truncation for segment in self.gaussian)

    @property
    def gaussian_only(self) -> "Segments":
        """Without the releases of counts."""
        return Segments(self.gaussian, ())

    @property
    def ideal(self) -> "Segments":
        """The mechanisms themselves, without what parts what ran from them."""
        return Segments(self.gaussian, self.laplace)


def merge(events: Iterable[Event]) -> Segments:
    """Adds up the steps of equal mechanisms; the clip and the order do not matter to epsilon.

    Raises:
        PrivacyError: An event is not private, so there is nothing to add up.
    """
    gaussian: dict[tuple[float, float, int, int], int] = {}
    laplace: dict[float, int] = {}
    distance = 0.0
    for event in events:
        if isinstance(event, DpSgdEvent | DistributedDpSgdEvent):
            mechanism = (
                event.noise_multiplier,
                event.sample_rate,
                event.max_batch_size,
                event.max_examples,
            )
            gaussian[mechanism] = gaussian.get(mechanism, 0) + event.steps
            if isinstance(event, DistributedDpSgdEvent):
                distance += event.distance
        elif isinstance(event, LaplaceCountsEvent):
            laplace[event.scale] = laplace.get(event.scale, 0) + 1
        else:
            raise PrivacyError(f"expected private events, got {event!r}")
    return Segments(
        tuple(sorted(GaussianSteps(*key, steps) for key, steps in gaussian.items())),
        tuple(sorted(laplace.items())),
        distance,
    )


@functools.lru_cache(maxsize=256)
def pld_epsilon(segments: Segments, delta: float, *, truncated: bool) -> float:
    """Epsilon by composing privacy loss distributions, rounded pessimistically.

    **Guarantees**: With ``truncated``, an upper bound for truncated Poisson sampling at every
    site that holds at most ``max_examples`` records, however many it really holds.

    The published analysis of truncation takes the exact number of records; fewer records than
    that may lose *more*, because each then has a larger chance to stay in a full batch. So the
    chance that a batch is full is taken at ``max_examples``, and given a full batch each record
    is in it with the whole sampling rate, which no number of records exceeds. Both only raise
    the divergence, by its joint convexity.

    Laplace noise on counts is bounded by its discrete form, whose loss is always +-1/scale: that
    is randomised response, which dominates every (1/scale)-DP mechanism. The continuous form
    loses less, not more.

    Args:
        segments: What ran.
        delta: In (0, 1).
        truncated: Account for batches being cut; else as for plain Poisson sampling.

    Raises:
        AccountingError: It cannot be computed.

    Source: Doroshenko et al. 2022, "Connect the dots"; truncation: arXiv:2508.15089; randomised
        response: Kairouz, Oh, Viswanath 2015, "The composition theorem for differential privacy".
    """
    if not segments.gaussian and not segments.laplace:
        return 0.0
    interval = _pld_interval(segments)
    with _fails_closed("PLD"):
        total = privacy_loss_distribution.identity(value_discretization_interval=interval)
        for part in _pld_parts(segments, interval, truncated=truncated):
            total = total.compose(part)
        return _checked("PLD", total.get_epsilon_for_delta(delta))


def rdp_epsilon(segments: Segments, delta: float) -> float:
    """Epsilon by adding up Renyi divergences: milliseconds, and never below the truth.

    **Guarantees**: An upper bound for plain Poisson sampling. Empty segments cost exactly 0.

    Raises:
        AccountingError: It cannot be computed.

    Source: Mironov, Talwar, Zhang 2019, section 3.3 (integer orders); conversion: Canonne,
        Kamath, Steinke 2020, proposition 12.
    """
    if not segments.gaussian and not segments.laplace:
        return 0.0
    with _fails_closed("RDP"):
        orders = np.array(RDP_ORDERS, dtype=np.float64)
        total = np.zeros_like(orders)
        for segment in segments.gaussian:
            total += segment.steps * _gaussian_rdp(segment.noise_multiplier, segment.sample_rate)
        for scale, count in segments.laplace:
            total += count * _laplace_rdp(scale)
        bound = total + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
        return _checked("RDP", max(0.0, float(bound.min())))


@functools.lru_cache(maxsize=256)
def prv_epsilon(gaussian: tuple[GaussianSteps, ...], delta: float) -> float:
    """Epsilon of plain Poisson sampling by Opacus' PRV accountant, its upper end.

    Raises:
        AccountingError: It cannot be computed, or no step is given.

    Source: Gopi, Lee, Wutschitz 2021, "Numerical composition of differential privacy".
    """
    if not gaussian:
        raise AccountingError("expected a step for the PRV accountant, got none")
    with _fails_closed("PRV"), _quiet_opacus():
        accountant = PRVAccountant()
        accountant.history = [(s.noise_multiplier, s.sample_rate, s.steps) for s in gaussian]
        return _checked("PRV", accountant.get_epsilon(delta))


def prv_points(gaussian: tuple[GaussianSteps, ...], epsilon: float) -> float:
    """About the size of the table that PRV would fill: its width over Opacus' mesh of .01."""
    steps = sum(segment.steps for segment in gaussian)
    return len(gaussian) * 640 * (epsilon + 4) * math.sqrt(steps)


def _pld_interval(segments: Segments) -> float:
    """A power of two times 1e-3, so that segments share tables.

    Rounding adds about interval x deviation to a step's variance. That is nothing at usual noise,
    but at 1e-3 it triples the epsilon of a million steps at sigma 10. So it is kept below a
    quarter of the variance, or below .002 squared in all.
    """
    parts = [(segment.deviation, segment.steps) for segment in segments.gaussian]
    parts += [(1 / scale, count) for scale, count in segments.laplace]
    fine = min(max(deviation / 4, 4e-6 / (deviation * count)) for deviation, count in parts)
    spread = math.sqrt(sum(count * deviation**2 for deviation, count in parts))
    wanted = max(min(PLD_INTERVAL, fine), MIN_PLD_INTERVAL, spread * 1e-5)
    return PLD_INTERVAL * 2.0 ** math.floor(math.log2(wanted / PLD_INTERVAL))


def _pld_parts(segments: Segments, interval: float, *, truncated: bool) -> Iterator[Any]:
    for segment in segments.gaussian:
        truncation = segment.truncation if truncated else 0.0
        step = _step_pld(segment.noise_multiplier, segment.sample_rate, truncation, interval)
        yield step.self_compose(segment.steps)
    for scale, count in segments.laplace:
        release = privacy_loss_distribution.from_discrete_laplace_mechanism(
            1 / scale, sensitivity=1, value_discretization_interval=interval
        )
        yield release.self_compose(count)


@functools.lru_cache(maxsize=32)
def _step_pld(
    noise_multiplier: float, sample_rate: float, truncation: float, interval: float
) -> Any:
    plain = privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, value_discretization_interval=interval, sampling_prob=sample_rate
    )
    if truncation == 0:
        return plain
    # In a full batch a record displaces another: twice the sensitivity.
    full = privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier / 2,
        value_discretization_interval=interval,
        sampling_prob=sample_rate,
        neighboring_relation=NeighboringRelation.REPLACE_ONE,
    )
    return full.compute_mixture(plain, truncation)


@functools.lru_cache(maxsize=1024)
def _gaussian_rdp(noise_multiplier: float, sample_rate: float) -> Floats:
    divergence = compute_rdp(
        q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=list(RDP_ORDERS)
    )
    # Of a divergence near 0 cancellation may leave a tiny negative number.
    vector: Floats = np.maximum(np.asarray(divergence, dtype=np.float64), 0.0)
    vector.setflags(write=False)
    return vector


def _laplace_rdp(scale: float) -> Floats:
    """Of randomised response: Mironov 2017, section VI.A, with epsilon = 1 / scale."""
    epsilon, orders = 1 / scale, np.array(RDP_ORDERS, dtype=np.float64)
    # Logarithms of p and 1 - p with p / (1 - p) = exp(epsilon).
    high, low = -np.log1p(np.exp(-epsilon)), -epsilon - np.log1p(np.exp(-epsilon))
    total = np.logaddexp(orders * high + (1 - orders) * low, orders * low + (1 - orders) * high)
    vector: Floats = np.maximum(total / (orders - 1), 0.0)
    return vector


@contextmanager
def _quiet_opacus() -> Iterator[None]:
    """Opacus takes logarithms at the ends of its axis and masks them after; and it warns that its
    inner RDP, which only sizes the table, could be tighter."""
    # Warning filters belong to the process: two threads must not put back each other's.
    with _FILTERS, np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimal order is the (largest|smallest) alpha")
        yield


@contextmanager
def _fails_closed(name: str) -> Iterator[None]:
    try:
        yield
    except AccountingError:
        raise
    except Exception as error:
        raise AccountingError(
            f"expected an epsilon from the {name} accountant, got {type(error).__name__}: {error}"
        ) from error


def _checked(name: str, epsilon: Any) -> float:
    value = float(epsilon)
    if math.isnan(value) or value < 0:
        raise AccountingError(f"expected an epsilon from the {name} accountant, got {value}")
    return value
