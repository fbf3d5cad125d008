"""What the sites' ledgers say of the updates that left them, beside a run's record."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from core.aggregation_messages import Confirmation
from core.wire.documents import Roster
from privacy.ledger import Ledger
from privacy.ledger_entries import Entry
from privacy.secure_aggregation.checks import Member, check_signature


def entries_of(path: Path, site: str) -> tuple[Entry, ...]:
    """All entries of a ledger, verified."""
    with Ledger.open(path, site=site) as ledger:
        return ledger.entries()


def debits_by_round(entries: Iterable[Entry]) -> Counter[int]:
    """How many debits there are, by round."""
    return Counter(e.body["server_round"] for e in entries if e.kind == "reserve")


def check_releases(
    entries: Iterable[Entry], site: str, transcripts: Iterable[Mapping[str, Any]]
) -> None:
    """Every update left once, for one attempt, after its debit; and each sum has one of ours.

    Args:
        entries: The site's.
        site: Whose.
        transcripts: Of the rounds of all its runs.
    """
    debits: dict[int, int] = {}
    spent: set[int] = set()
    left_in: dict[str, int] = {}
    for entry in entries:
        if entry.kind == "reserve":
            debits[entry.sequence] = entry.body["server_round"]
        if entry.kind == "release":
            reserve, context = entry.body["reserve"], entry.body["context"]
            assert reserve in debits, f"{site}: no debit at {reserve}"
            assert reserve not in spent, f"{site}: released twice: {reserve}"
            assert context not in left_in, f"{site}: two updates in one attempt"
            spent.add(reserve)
            left_in[context] = debits[reserve]
    for transcript in transcripts:
        if site in transcript["survivors"]:
            assert left_in[transcript["context"]] == transcript["server_round"]


def check_signatures(transcript: Mapping[str, Any], roster: Roster) -> None:
    """Enough survivors signed for the very sites that the sum holds."""
    members = {m.name: Member(m.node_key, place) for place, m in enumerate(roster.members, 1)}
    names = {n: transcript[n] for n in ("run_id", "server_round", "attempt", "context")}
    for signed in transcript["signatures"]:
        assert signed["site"] in transcript["survivors"]
        confirmation = Confirmation(
            **names,
            site=signed["site"],
            adverts_digest=transcript["adverts_digest"],
            sharers=tuple(transcript["sharers"]),
            survivors=tuple(transcript["survivors"]),
            signature=signed["signature"],
        )
        check_signature(confirmation, members)
