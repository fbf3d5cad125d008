"""Logs of runs, made on real ledgers: lines that name the sites' heads, and who signs them."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from core.digests import canonical_json
from core.log_messages import SignedLog
from core.messages import LedgerHead
from privacy.events import DpSgdEvent
from privacy.ledger import Ledger
from privacy.log_witnesses import LogHolder, co_sign, witness
from privacy.signing import SiteKey

RUN = "0123456789abcdef"
ROUND = DpSgdEvent(1.0, 0.01, 1, 10_000, 100, 1.0)


def round_line(server_round: int, heads: Mapping[str, LedgerHead]) -> bytes:
    """A round's line, as short as one can be."""
    named = {site: head.model_dump() for site, head in heads.items()}
    line = {"kind": "round", "server_round": server_round, "ledger_heads": named}
    return canonical_json(line)


def debit(ledger: Ledger, server_round: int) -> LedgerHead:
    """Debits a round; the ledger's head then."""
    ledger.reserve(
        ROUND,
        run_id=RUN,
        server_round=server_round,
        attempt=1,
        task_digest="ab" * 32,
        max_epsilon=100.0,
        delta=1e-5,
    )
    return ledger.head()


def record_of(ledgers: Mapping[str, Ledger], rounds: int, *, first: int = 1) -> bytes:
    """The record of some rounds, each debited at each site."""
    lines = []
    for number in range(first, first + rounds):
        lines.append(canonical_json({"kind": "attempt", "server_round": number, "attempt": 1}))
        lines.append(round_line(number, {site: debit(le, number) for site, le in ledgers.items()}))
    return b"".join(line + b"\n" for line in lines)


def sign_by_all(key: SiteKey, record: bytes, ledgers: Mapping[str, Ledger]) -> SignedLog:
    """All sites sign the log."""
    ask = {site: partial(witness, ledger) for site, ledger in ledgers.items()}
    return co_sign(LogHolder(RUN, key, record), ask)


def open_ledgers(folder: Path, *sites: str) -> dict[str, Ledger]:
    """A ledger for each site."""
    return {site: Ledger.open(folder / site / "ledger.sqlite", site=site) for site in sites}


def heads_in(record: bytes, site: str) -> list[int]:
    """The sequences of a site's heads that a record names."""
    lines = [json.loads(line) for line in record.splitlines()]
    return [line["ledger_heads"][site]["sequence"] for line in lines if "ledger_heads" in line]
