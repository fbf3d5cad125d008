"""Suites: what had no time or failed by name is named as that."""

from dataclasses import dataclass
from typing import Any

import pytest

from audit.suite import run_suite
from audit.verdicts import CONFORMANCE, Budget, NotRun, TestCard, TestResult, Verdict
from core.errors import AuditError


@dataclass(frozen=True)
class Played:
    """A test that says what it is told to."""

    name: str
    outcome: TestResult | NotRun | AuditError

    @property
    def card(self) -> TestCard:
        """In every suite."""
        return TestCard(
            id=self.name,
            title="a test",
            question="?",
            tier="dp",
            threat_model="anyone",
            assumes=(),
            suites=CONFORMANCE,
            cost_seconds=1.0,
        )

    def run(self, subject: Any, budget: Budget) -> TestResult | NotRun:
        """Without looking."""
        if isinstance(self.outcome, AuditError):
            raise self.outcome
        return self.outcome


PASSES = Played("D1", TestResult(test="D1", verdict=Verdict.PASS, headline="Well."))
UNDECIDED = Played("D2", TestResult(test="D2", verdict=Verdict.INCONCLUSIVE, headline="Who knows."))
FAILS = Played("D3", AuditError("expected a thing, got none"))
ABSENT = Played("D4", NotRun(test="D4", reason="nothing to work on"))
ALL = (PASSES, UNDECIDED, FAILS, ABSENT)


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_without_time_every_test_is_cut(limit: float) -> None:
    found = run_suite(None, "quick", time_limit_seconds=limit, tests=ALL)  # type: ignore[arg-type]
    assert found.cut == ("D1", "D2", "D3", "D4")
    assert {result.verdict for result in found.results} == {Verdict.INCONCLUSIVE}
    assert found.not_run == ()


def test_only_what_looked_at_nothing_is_cut() -> None:
    found = run_suite(None, "quick", tests=ALL)  # type: ignore[arg-type]
    assert found.cut == ("D3",)
    assert [result.test for result in found.results] == ["D1", "D2", "D3"]
    assert found.results[2].notes == ("expected a thing, got none",)
    assert [item.test for item in found.not_run] == ["D4"]
