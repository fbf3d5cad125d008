"""What every test of the audit says of itself and what it returns: one card, one result type.

Three verdicts. FAIL needs evidence, PASS needs power: a test that could not have seen the effect
that matters says INCONCLUSIVE, and every result names the smallest effect that it could have seen.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal, Protocol

from pydantic import Field

from core.config_sections import Section

if TYPE_CHECKING:
    from audit.subject import Subject

Suite = Literal["conformance", "quick", "full"]
Tier = Literal["conformance", "dp", "records", "federation", "bias"]
Cell = str | int | float | None

CONFORMANCE: Final[frozenset[Suite]] = frozenset({"conformance", "quick", "full"})
QUICK: Final[frozenset[Suite]] = frozenset({"quick", "full"})
FULL: Final[frozenset[Suite]] = frozenset({"full"})


class Verdict(StrEnum):
    """What a test decided."""

    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    PASS = "PASS"  # noqa: S105


class Interval(Section):
    """Where a measured value lies."""

    low: float
    """Lower end."""
    high: float
    """Upper end."""
    confidence: float = Field(gt=0, lt=1)
    """Coverage of the method."""
    method: str
    """Such as ``Clopper-Pearson``."""


class Measure(Section):
    """One measured value."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    """Stable name, such as ``membership-auc``; gates and comparisons go by it."""
    label: str
    """For people."""
    value: float | None
    """The value; ``None`` where it is suppressed or could not be measured."""
    unit: str = ""
    """Such as ``points``; empty for a plain number."""
    interval: Interval | None = None
    """Where it lies."""
    limit: float | None = None
    """What it is measured against, such as the claimed epsilon."""


class SmallestEffect(Section):
    """What the test could have seen at the least."""

    measure: str
    """Of what, in words."""
    value: float
    """An effect of this size is found ..."""
    power: float = Field(gt=0, lt=1)
    """... with this probability ..."""
    alpha: float = Field(gt=0, lt=1)
    """... at this chance of a false alarm."""


class Table(Section):
    """Figures that a person may want to read one by one."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    """``None`` is a suppressed cell."""
    note: str = ""


class Series(Section):
    """One line, one set of bars or of points."""

    name: str
    x: tuple[float | str, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    """Lower ends, where ``y`` has intervals."""
    high: tuple[float, ...] = ()
    """Upper ends."""


class Figure(Section):
    """A picture as its data; the report draws it."""

    kind: Literal["intervals", "curve", "bars"]
    """Points with intervals by category; lines over x; bars by category."""
    title: str
    caption: str
    """What to read off it, in a sentence."""
    alternative: str
    """What it shows, in words, for who does not see it."""
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    reference: float | None = None
    """A line to compare with: the claim, chance, the tolerance."""
    reference_label: str = ""


class TestResult(Section):
    """What a test found. Nothing in it depends on how long the test took."""

    __test__ = False  # pytest: not a test case

    test: str
    """The card's id."""
    verdict: Verdict
    headline: str
    """One sentence that a data-protection officer understands."""
    measures: tuple[Measure, ...] = ()
    smallest_effect: SmallestEffect | None = None
    p_value: float | None = Field(default=None, ge=0, le=1)
    """After correction for several tests, where there were several."""
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    """What one must know to read it right, and what it does not show."""


class NotRun(Section):
    """A test that this run gives nothing to work on, and why."""

    test: str
    reason: str


@dataclass(frozen=True)
class TestCard:
    """What a test declares before it runs."""

    __test__ = False  # pytest: not a test case

    id: str
    """Such as ``C2``."""
    title: str
    question: str
    """In plain words."""
    tier: Tier
    threat_model: str
    """Who attacks, and what he sees."""
    assumes: tuple[str, ...]
    """What must hold for the verdict to mean what it says."""
    suites: frozenset[Suite]
    cost_seconds: float
    """On two cores, for the embedded example's model."""


class Budget:
    """How long a test may take. Who runs out says INCONCLUSIVE, and what was cut."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left_seconds(self) -> float:
        """What is left; never negative."""
        return max(self._end - self._clock(), 0.0)

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        return self.left_seconds == 0.0


class AuditTest(Protocol):
    """What a test brings. A new one is a module in one of the rooms, with ``TESTS``."""

    @property
    def card(self) -> TestCard:
        """What it declares."""

    def run(self, subject: "Subject", budget: Budget) -> TestResult | NotRun:
        """Runs it. All randomness comes from ``subject.seed``, so that it can be repeated.

        Raises:
            AuditError: What it is given cannot be used.
        """
