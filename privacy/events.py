"""What the ledger stores: mechanisms that ran, not epsilons.

Epsilon is derived from these events, so a better accountant later says more about the same past.
Every field is a public constant; none is a function of the records.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Final, Literal, TypeAlias

from core.errors import LedgerError, PrivacyError

# Below this the loss of one step is so large that there is no privacy left to account for, and
# the accountants' tables would fill the memory.
MIN_NOISE_MULTIPLIER: Final = 0.1
MAX_NOISE_MULTIPLIER: Final = 1e5
MAX_STEPS: Final = 10_000_000
MAX_EXAMPLES: Final = 2 * 10**12
MAX_SITES: Final = 10_000


@dataclass(frozen=True)
class DpSgdEvent:
    """Steps of DP-SGD: a sum of clipped per-example gradients with Gaussian noise, released.

    Args:
        noise_multiplier: Standard deviation of the noise over ``max_grad_norm``.
        sample_rate: Chance of each record to be sampled for a step, in (0, 1].
        max_batch_size: A larger sample is cut to a uniformly random subset of this size.
        max_examples: The site holds at most this many records.
        steps: Steps, empty batches included.
        max_grad_norm: The L2 norm to which each example's gradient is clipped.
        unit: Unit of privacy.
        neighbouring: Relation between neighbouring data sets.
        sampler: How records are sampled.

    Raises:
        PrivacyError: A value is not finite or out of its range.
    """

    kind: ClassVar[str] = "dp-sgd"
    private: ClassVar[bool] = True

    noise_multiplier: float
    sample_rate: float
    max_batch_size: int
    max_examples: int
    steps: int
    max_grad_norm: float
    unit: Literal["record"] = "record"
    neighbouring: Literal["add_or_remove_one"] = "add_or_remove_one"
    sampler: Literal["truncated-poisson"] = "truncated-poisson"

    def __post_init__(self) -> None:
        _check_mechanism(self)
        _whole(self, "steps", 1, MAX_STEPS)


@dataclass(frozen=True)
class DistributedDpSgdEvent:
    """One step of DP-SGD over the union of several sites, whose noise is the sum of their shares.

    The sum of clipped per-example gradients of all sites is released; of the noise, what the
    honest survivors added is counted, and nothing else.

    Args:
        noise_multiplier: Standard deviation of that noise over the sensitivity of the sum.
        sample_rate: Chance of each record to be sampled, in (0, 1].
        max_batch_size: A site's larger sample is cut to a uniformly random subset of this size.
        max_examples: The site holds at most this many records.
        max_grad_norm: The L2 norm to which each example's gradient is clipped.
        colluding_sites: Of so many survivors no noise is counted.
        distance: Total variation, at the most, of the release from a function of a Gaussian
            mechanism with ``noise_multiplier``; from 0 to 1.
        unit: Unit of privacy.
        neighbouring: Relation between neighbouring data sets.
        sampler: How records are sampled.

    Raises:
        PrivacyError: A value is not finite or out of its range.
    """

    kind: ClassVar[str] = "distributed-dp-sgd"
    private: ClassVar[bool] = True
    steps: ClassVar[int] = 1

    noise_multiplier: float
    sample_rate: float
    max_batch_size: int
    max_examples: int
    max_grad_norm: float
    colluding_sites: int
    distance: float
    unit: Literal["record"] = "record"
    neighbouring: Literal["add_or_remove_one"] = "add_or_remove_one"
    sampler: Literal["truncated-poisson"] = "truncated-poisson"

    def __post_init__(self) -> None:
        _check_mechanism(self)
        _whole(self, "colluding_sites", 0, MAX_SITES)
        _real(self, "distance", 0.0, 1.0)


@dataclass(frozen=True)
class LaplaceCountsEvent:
    """One release of a vector of counts with independent Laplace noise on each.

    Adding or removing one record changes one of the counts by one (L1 sensitivity 1). The noise
    may be the continuous or the discrete distribution; the accounting bounds both.

    Args:
        scale: Mean absolute value of the continuous noise; the discrete noise falls by
            exp(-1 / scale) from one integer to the next. The release is (1 / scale)-DP.

    Raises:
        PrivacyError: The scale is not finite or out of its range.
    """

    kind: ClassVar[str] = "laplace-counts"
    private: ClassVar[bool] = True
    steps: ClassVar[int] = 1

    scale: float

    def __post_init__(self) -> None:
        _real(self, "scale", 0.01, 1e9)


@dataclass(frozen=True)
class NonPrivateEvent:
    """Training that nothing protects: its epsilon is infinite.

    Args:
        reason: ``no-privacy`` for a run without privacy, ``test-noise`` for one whose noise is
            predictable.
        would_be: With real noise it would have been this.

    Raises:
        PrivacyError: The reason is not one of the two, or ``would_be`` is not a private event.
    """

    kind: ClassVar[str] = "non-private"
    private: ClassVar[bool] = False

    reason: Literal["no-privacy", "test-noise"]
    would_be: DpSgdEvent | DistributedDpSgdEvent | LaplaceCountsEvent | None = None

    def __post_init__(self) -> None:
        _one_of(self, "reason", ("no-privacy", "test-noise"))
        private = (DpSgdEvent, DistributedDpSgdEvent, LaplaceCountsEvent)
        if self.would_be is not None and not isinstance(self.would_be, private):
            raise PrivacyError(
                f"expected would_be as a private event or None, got {self.would_be!r}"
            )

    @property
    def steps(self) -> int | None:
        """Steps that were announced; ``None`` where nothing was."""
        return None if self.would_be is None else self.would_be.steps


GaussianEvent: TypeAlias = DpSgdEvent | DistributedDpSgdEvent
Event: TypeAlias = GaussianEvent | LaplaceCountsEvent | NonPrivateEvent

_KINDS: Final[Mapping[str, type[Event]]] = {
    kind.kind: kind
    for kind in (DpSgdEvent, DistributedDpSgdEvent, LaplaceCountsEvent, NonPrivateEvent)
}


def constants_of(event: Event) -> Event:
    """What of an event is the same in every round of a run.

    The distance of noise in shares follows from how many sites an attempt asks.
    """
    match event:
        case DistributedDpSgdEvent():
            return replace(event, distance=0.0)
        case NonPrivateEvent(would_be=DistributedDpSgdEvent() as would_be):
            return replace(event, would_be=replace(would_be, distance=0.0))
        case _:
            return event


def event_to_json(event: Event) -> dict[str, Any]:
    """The event as a JSON object: its ``kind`` and every field."""
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    if isinstance(event, NonPrivateEvent) and event.would_be is not None:
        values["would_be"] = event_to_json(event.would_be)
    return {"kind": event.kind, **values}


def event_from_json(value: object) -> Event:
    """Reads what ``event_to_json`` wrote.

    Guarantees:
        An unknown kind, an unknown or missing field and a value out of range are refused, so an
        event written by a newer version is never read as a weaker one.

    Raises:
        LedgerError: The value is not an event of this version.
    """
    if not isinstance(value, dict):
        raise LedgerError(f"expected an event as an object, got {type(value).__name__}")
    name = value.get("kind")
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise LedgerError(
            f"expected an event of kind {', '.join(_KINDS)}, got {name!r}",
            hint="a newer version of cloister may have written this ledger",
        )
    expected, given = {field.name for field in fields(kind)}, set(value) - {"kind"}
    if expected != given:
        raise LedgerError(
            f"expected an event {name} with the fields {sorted(expected)}, "
            f"got {sorted(map(str, given))}",
            hint="a newer version of cloister may have written this ledger",
        )
    arguments = {field: value[field] for field in expected}
    if arguments.get("would_be") is not None:
        arguments["would_be"] = event_from_json(arguments["would_be"])
    try:
        return kind(**arguments)
    except PrivacyError as error:
        raise LedgerError(f"the event {name} does not fit: {error.message}") from error


def _check_mechanism(event: GaussianEvent) -> None:
    """What every sampled Gaussian mechanism states."""
    _real(event, "noise_multiplier", MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER)
    _real(event, "sample_rate", 1e-12, 1.0)
    _real(event, "max_grad_norm", 1e-12, 1e12)
    _whole(event, "max_batch_size", 1, MAX_EXAMPLES)
    _whole(event, "max_examples", 1, MAX_EXAMPLES)
    _one_of(event, "unit", ("record",))
    _one_of(event, "neighbouring", ("add_or_remove_one",))
    _one_of(event, "sampler", ("truncated-poisson",))


def _real(event: Event, name: str, low: float, high: float) -> None:
    value = getattr(event, name)
    # Compared before it is converted: float() of a huge integer overflows.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise PrivacyError(f"expected {name} between {low:g} and {high:g}, got {value!r}")
    # One form for 1 and 1.0 (and numpy's floats): the ledger hashes what is written.
    object.__setattr__(event, name, float(value))


def _whole(event: Event, name: str, low: int, high: int) -> None:
    value = getattr(event, name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise PrivacyError(f"expected {name} as an integer from {low} to {high}, got {value!r}")


def _one_of(event: Event, name: str, allowed: tuple[str, ...]) -> None:
    value = getattr(event, name)
    if not isinstance(value, str) or value not in allowed:
        raise PrivacyError(f"expected {name} as one of {', '.join(allowed)}, got {value!r}")
