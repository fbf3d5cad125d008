"""The suites: every test of every room, run one after the other within one budget of time."""

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from audit.subject import Subject
from audit.verdicts import AuditTest, Budget, NotRun, Suite, TestResult, Verdict
from core.errors import CloisterError

# Rooms of tests, in the order of the report. A module of a room that has ``TESTS`` is part of it.
ROOMS: Final = (
    "audit.conformance",
    "audit.canaries",
    "audit.membership",
    "audit.extraction",
    "audit.federation",
    "audit.bias",
)
TIME_LIMIT_SECONDS: Final[dict[Suite, float]] = {"conformance": 300, "quick": 900, "full": 3600}


class Listener(Protocol):
    """Told what goes on, for a progress bar."""

    def begins(self, test: AuditTest, number: int, count: int) -> None:
        """A test begins; numbers from 1."""

    def ended(self, test: AuditTest, outcome: TestResult | NotRun, seconds: float) -> None:
        """It ended."""


class Silent:
    """Nobody listens."""

    def begins(self, test: AuditTest, number: int, count: int) -> None:
        """Says nothing."""

    def ended(self, test: AuditTest, outcome: TestResult | NotRun, seconds: float) -> None:
        """Says nothing."""


@dataclass(frozen=True)
class SuiteOutcome:
    """What all tests of a suite said."""

    suite: Suite
    results: tuple[TestResult, ...]
    not_run: tuple[NotRun, ...]
    cut: tuple[str, ...] = ()
    """Tests among ``results`` that had no time or failed by name: they looked at nothing."""


def all_tests() -> tuple[AuditTest, ...]:
    """Every test there is, by room."""
    found: list[AuditTest] = []
    for room in ROOMS:
        package = importlib.import_module(room)
        names = [f"{room}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
        tests = [t for name in names for t in getattr(importlib.import_module(name), "TESTS", ())]
        found += sorted(tests, key=lambda test: test.card.id)
    return tuple(found)


def run_suite(
    subject: Subject,
    suite: Suite,
    *,
    time_limit_seconds: float | None = None,
    tests: Sequence[AuditTest] | None = None,
    listener: Listener = Silent(),  # noqa: B008
) -> SuiteOutcome:
    """Runs the tests of a suite.

    **Guarantees**: Every test of the suite is in the outcome, once: a test that there was no time
    for is INCONCLUSIVE and says so; one that fails by name is too. None passes by not running.

    Args:
        subject: What is audited.
        suite: Which tests.
        time_limit_seconds: For all together; ``None`` for the suite's own.
        tests: These instead of all there are.
        listener: Told what goes on.
    """
    limit = TIME_LIMIT_SECONDS[suite] if time_limit_seconds is None else time_limit_seconds
    budget = Budget(limit)
    chosen = [t for t in (all_tests() if tests is None else tests) if suite in t.card.suites]
    results: list[TestResult] = []
    not_run: list[NotRun] = []
    cut: list[str] = []
    for number, test in enumerate(chosen, start=1):
        listener.begins(test, number, len(chosen))
        left = budget.left_seconds
        outcome = _run(test, subject, budget)
        if outcome is None or isinstance(outcome, str):
            cut.append(test.card.id)
            outcome = _nothing(test, outcome)
        listener.ended(test, outcome, left - budget.left_seconds)
        if isinstance(outcome, NotRun):
            not_run.append(outcome)
        else:
            results.append(outcome)
    return SuiteOutcome(suite, tuple(results), tuple(not_run), tuple(cut))


def _run(test: AuditTest, subject: Subject, budget: Budget) -> TestResult | NotRun | str | None:
    """What the test said; the text of the error that ended it; or nothing, where no time was."""
    if budget.spent:
        return None
    try:
        return test.run(subject, budget)
    except CloisterError as error:
        return str(error)


def _nothing(test: AuditTest, error: str | None) -> TestResult:
    if error is None:
        headline = "There was no time left for this test."
        error = "The time limit of the suite cut it; run it with a larger one."
    else:
        headline = "This test could not be carried out."
    return TestResult(
        test=test.card.id, verdict=Verdict.INCONCLUSIVE, headline=headline, notes=(error,)
    )
