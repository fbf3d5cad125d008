"""The mark that an update leaves the site in a masked sum: once, durably, and never undone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.errors import AlreadySpentError, LedgerError, MessageError, NotDebitedError
from privacy.events import DpSgdEvent, Event
from privacy.ledger import Ledger

ROUND = DpSgdEvent(1.0, 0.01, 400, 10_000, 100, 1.0)
CONTEXT, OTHER = "cd" * 32, "ef" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger.open(path, site="north") as opened:
        yield opened


def reserve(ledger: Ledger, event: Event = ROUND, **changes: Any) -> int:
    arguments: dict[str, Any] = {
        "run_id": "0123456789abcdef",
        "server_round": 1,
        "attempt": 1,
        "task_digest": "ab" * 32,
        "max_epsilon": 8.0,
        "delta": 1e-5,
    }
    return ledger.reserve(event, **(arguments | changes))


def test_a_release_is_a_signed_entry_with_its_attempt(ledger: Ledger) -> None:
    debit = reserve(ledger)
    ledger.release(debit, CONTEXT, repeatable=True)
    entry = ledger.entries()[-1]
    assert (entry.kind, dict(entry.body)) == ("release", {"reserve": debit, "context": CONTEXT})


@pytest.mark.parametrize("repeatable", [True, False])
def test_an_update_leaves_once(ledger: Ledger, path: Path, *, repeatable: bool) -> None:
    debit = reserve(ledger)
    ledger.release(debit, CONTEXT, repeatable=repeatable)
    for other in (CONTEXT, "ef" * 32):
        with pytest.raises(AlreadySpentError, match="got that of entry 2"):
            ledger.release(debit, other, repeatable=repeatable)
    with (
        Ledger.open(path, site="north") as again,
        pytest.raises(AlreadySpentError),
    ):
        again.release(debit, CONTEXT, repeatable=repeatable)


def test_an_update_with_fresh_noise_may_follow_in_the_same_round(ledger: Ledger) -> None:
    ledger.release(reserve(ledger), CONTEXT, repeatable=True)
    ledger.release(reserve(ledger, attempt=2), OTHER, repeatable=True)


def test_into_one_attempt_goes_one_update(ledger: Ledger, path: Path) -> None:
    ledger.release(reserve(ledger), CONTEXT, repeatable=True)
    second = reserve(ledger, attempt=2)
    with pytest.raises(AlreadySpentError, match="an attempt that no update of this site went into"):
        ledger.release(second, CONTEXT, repeatable=True)
    with Ledger.open(path, site="north") as again, pytest.raises(AlreadySpentError):
        again.release(second, CONTEXT, repeatable=True)
    ledger.release(second, OTHER, repeatable=True)


@pytest.mark.parametrize("again", [{"attempt": 2}, {"run_id": "f" * 16}])
def test_one_that_would_be_the_same_again_may_not(ledger: Ledger, again: dict[str, Any]) -> None:
    ledger.release(reserve(ledger), CONTEXT, repeatable=False)
    second = reserve(ledger, **again)
    with pytest.raises(AlreadySpentError):
        ledger.release(second, OTHER, repeatable=False)
    for number, other in enumerate(({"server_round": 2}, {"task_digest": "0" * 64})):
        ledger.release(reserve(ledger, **other), f"{number:064x}", repeatable=False)


def test_the_constants_of_a_run_never_change(ledger: Ledger) -> None:
    once = {"once": True, "max_epsilon": 100.0}
    reserve(ledger, **once)
    weaker = replace(ROUND, noise_multiplier=0.9)
    with pytest.raises(MessageError, match="expected the mechanism that the run was debited for"):
        reserve(ledger, weaker, server_round=2, **once)
    reserve(ledger, server_round=2, **once)
    reserve(ledger, weaker, run_id="f" * 16, **once)


@pytest.mark.parametrize("sequence", [0, 1, 3, 9])
def test_what_was_not_debited_does_not_leave(ledger: Ledger, sequence: int) -> None:
    ledger.settle(reserve(ledger), 100)
    before = ledger.entries()
    with pytest.raises(NotDebitedError):
        ledger.release(sequence, CONTEXT, repeatable=True)
    assert ledger.entries() == before


@pytest.mark.parametrize("context", ["", "cd", "CD" * 32, 7])
def test_the_attempt_is_named_by_its_digest(ledger: Ledger, context: Any) -> None:
    debit = reserve(ledger)
    with pytest.raises(LedgerError, match="expected context to match"):
        ledger.release(debit, context, repeatable=True)
