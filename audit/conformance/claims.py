"""What a run says of its privacy, and what its ledgers hold."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from audit.subject import Subject
from audit.verdicts import NotRun, TestCard, TestResult, Verdict
from core.errors import SubjectError
from core.run_record import SUMMARY_FILE, Line
from privacy.events import Event, event_from_json
from privacy.ledger_entries import Entry

COMPLETED: Final = "completed"


@dataclass(frozen=True)
class Debit:
    """One debit and what then ran."""

    sequence: int
    run_id: str
    server_round: int
    attempt: int
    event: Event
    executed: int | None
    """``None`` where nothing was settled: charged all the same."""
    outcome: str | None


@dataclass(frozen=True)
class Statement:
    """What a run says that a site has spent."""

    where: str
    """The round's line, or the summary."""
    epsilon: float | None
    delta: float
    private: bool
    sequence: int | None
    """How far the ledger was then; ``None`` where that was not said."""


def debits(entries: Iterable[Entry], *, until: int | None = None) -> tuple[Debit, ...]:
    """The debits up to an entry, in order, with what was settled at any time."""
    entries = tuple(entries)
    settled = {e.body["reserve"]: e.body for e in entries if e.kind == "settle"}
    return tuple(
        Debit(
            sequence=entry.sequence,
            run_id=entry.body["run_id"],
            server_round=entry.body["server_round"],
            attempt=entry.body["attempt"],
            event=event_from_json(entry.body["event"]),
            executed=settled.get(entry.sequence, {}).get("executed_steps"),
            outcome=settled.get(entry.sequence, {}).get("outcome"),
        )
        for entry in entries
        if entry.kind == "reserve" and (until is None or entry.sequence <= until)
    )


def statements(subject: Subject, site: str) -> list[Statement]:
    """What the record says of ``site``, round by round; the summary's at the end.

    Raises:
        SubjectError: The summary is there, and is none.
    """
    found = [
        _statement(f"round {line['server_round']}", line["spent"][site], _sequence(line, site))
        for line in subject.record.rounds
        if site in line["spent"]
    ]
    said = summary(subject).get("sites", {}).get(site)
    if found and isinstance(said, dict) and said.get("delta") is not None:
        found.append(_statement("the summary", said, found[-1].sequence))
    return found


def summary(subject: Subject) -> dict[str, Any]:
    """The run's summary; empty where it lies elsewhere.

    Raises:
        SubjectError: It is there, and cannot be read.
    """
    path = subject.folder / SUMMARY_FILE
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SubjectError(f"expected the run's summary in {path}, got something else") from error
    if not isinstance(document, dict):
        raise SubjectError(f"expected the run's summary in {path}, got something else")
    return document


def used_rounds(subject: Subject, site: str) -> list[Line]:
    """The rounds that count and took an update of ``site``."""
    return [line for line in subject.record.rounds if site in line["used"]]


def steps_of_a_round(subject: Subject) -> int:
    """Noised steps that a site's round costs."""
    distributed = subject.config.privacy.mode == "distributed"
    return 1 if distributed else subject.config.train.steps_per_round


def without_privacy(subject: Subject, card: TestCard) -> NotRun | TestResult | None:
    """What a test says of a run without privacy: nothing to test, unless the run claims some.

    Returns:
        ``None`` for a run with privacy.
    """
    if subject.private:
        return None
    claims = [
        f"{said.where} of {site}"
        for site in subject.sites
        for said in statements(subject, site)
        if said.private or said.epsilon is not None
    ]
    if summary(subject).get("private"):
        claims.append("the summary")
    if not claims:
        return NotRun(test=card.id, reason="The run was trained without differential privacy.")
    return TestResult(
        test=card.id,
        verdict=Verdict.FAIL,
        headline="The record claims privacy for a run that was trained without any.",
        notes=(f"Claimed by {', '.join(claims[:5])}.",),
    )


def only_local(card: TestCard) -> NotRun:
    """For a test of the training that sites do each for themselves."""
    return NotRun(
        test=card.id,
        reason="In this run several sites share one noise (mode distributed); the test looks at "
        "the training of a single site.",
    )


def listed(sites: Sequence[str], most: int = 4) -> str:
    """Names for a sentence."""
    shown = ", ".join(sites[:most])
    return shown if len(sites) <= most else f"{shown} and {len(sites) - most} more"


def _statement(where: str, said: Line, sequence: int | None) -> Statement:
    try:
        return Statement(
            where, said.get("epsilon"), float(said["delta"]), bool(said["private"]), sequence
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SubjectError(f"expected what a site has spent in {where}, got something else") from (
            error
        )


def _sequence(line: Line, site: str) -> int | None:
    head = line.get("ledger_heads", {}).get(site)
    return None if head is None else int(head["sequence"])
