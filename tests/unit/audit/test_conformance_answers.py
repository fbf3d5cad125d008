from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audit.conformance.answers import Answers
from audit.federated_counts import FederatedCounts, SiteCounts
from audit.subject import Subject
from audit.verdicts import Budget, NotRun, TestResult, Verdict
from tests.support.audited import simulated_subject


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder: Path = tmp_path_factory.mktemp("answers")
    return simulated_subject(folder)


def counts(*names: str) -> FederatedCounts:
    sites = tuple(
        SiteCounts(name, np.zeros((2, 2, 2, 2), np.int64), np.zeros((2, 4), np.int64), 4.0)
        for name in names
    )
    return FederatedCounts((("sex", ("f", "m")),), ("a", "b"), (0.0, 1.0, 2.0, 3.0, 4.0), sites)


@pytest.mark.parametrize("missing", [(), ("west",), ("north", "south")])
def test_a_site_that_gave_no_counts_leaves_the_gate_undecided(
    subject: Subject, missing: tuple[str, ...]
) -> None:
    there = [name for name in subject.sites if name not in missing]
    result = Answers().run(replace(subject, federated=counts(*there)), Budget(10))

    assert isinstance(result, TestResult)
    assert result.verdict is (Verdict.INCONCLUSIVE if missing else Verdict.PASS)
    assert all(name in result.headline for name in missing)
    assert result.measures[0].value == len(missing)


def test_nobody_is_missing_where_nobody_was_asked(subject: Subject) -> None:
    assert isinstance(Answers().run(subject, Budget(10)), NotRun)
