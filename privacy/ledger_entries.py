"""The ledger's entries: a chain of hashes, each signed with the site's key. No IO.

``verify_chain`` checks what is written; ``History`` is what a verified chain means.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from core.digests import canonical_json, json_digest
from core.errors import (
    AlreadySpentError,
    LedgerError,
    LedgerTamperedError,
    NotDebitedError,
    PrivacyError,
    SiteKeyError,
)
from core.log_messages import CosignBody
from core.messages import LedgerHead
from privacy.events import Event, event_from_json, event_to_json
from privacy.signing import SiteKey, verify_signature

SCHEMA_VERSION: Final = 1
NO_DIGEST: Final = "0" * 64
Kind: TypeAlias = Literal["open", "reserve", "settle", "release", "cosign"]
Row: TypeAlias = tuple[Any, ...]

_BODY_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "open": frozenset({"schema_version", "site", "public_key"}),
    "reserve": frozenset(
        {"run_id", "server_round", "attempt", "task_digest", "max_epsilon", "delta", "event"}
    ),
    "settle": frozenset({"reserve", "executed_steps", "outcome"}),
    "release": frozenset({"reserve", "context"}),
    "cosign": frozenset(CosignBody.model_fields),
}
_PURPOSE: Final = "ledger-entry"
_RUN_ID: Final = re.compile(r"[0-9a-f]{16}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_OUTCOME: Final = re.compile(r"[a-z][a-z-]{0,63}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    sequence: int
    """From 1, without gaps."""
    time: str
    """UTC, to the microsecond; by the site's clock, which nothing relies on."""
    kind: Kind
    """``open`` starts the ledger, ``reserve`` debits, ``settle`` says what then ran, ``release``
    that it leaves the site in a masked sum, ``cosign`` how far the site saw a run's log."""
    body: Mapping[str, Any]
    """A JSON object; its fields follow from the kind."""
    previous: str
    """``digest`` of the entry before; 64 zeros for the first."""
    digest: str
    """SHA-256 over the canonical JSON of all fields above."""
    signature: str
    """The site's Ed25519 signature over ``digest``."""

    @property
    def head(self) -> LedgerHead:
        """What a witness remembers once this is the last entry."""
        return LedgerHead(sequence=self.sequence, digest=self.digest)

    def row(self) -> Row:
        """As it is stored; the body as canonical JSON."""
        body = canonical_json(self.body).decode("ascii")
        return (
            self.sequence,
            self.time,
            self.kind,
            body,
            self.previous,
            self.digest,
            self.signature,
        )


def reserve_body(
    event: Event,
    *,
    run_id: str,
    server_round: int,
    attempt: int,
    task_digest: str,
    max_epsilon: float,
    delta: float,
) -> dict[str, Any]:
    """The body of a debit.

    Raises:
        LedgerError: A name or a number does not fit.
        PrivacyError: The cap or delta is not a finite number above 0.
    """
    return {
        "run_id": _matching("run_id", run_id, _RUN_ID),
        "server_round": _count("server_round", server_round),
        "attempt": _count("attempt", attempt),
        "task_digest": _matching("task_digest", task_digest, _DIGEST),
        "max_epsilon": _positive("max_epsilon", max_epsilon),
        "delta": _positive("delta", delta),
        "event": event_to_json(event),
    }


def settle_body(reserve: int, executed_steps: int, outcome: str) -> dict[str, Any]:
    """The body of what ran after a debit.

    Raises:
        LedgerError: A value does not fit.
    """
    return {
        "reserve": _count("the reserve's sequence", reserve),
        "executed_steps": _count("executed_steps", executed_steps),
        "outcome": _matching("outcome", outcome, _OUTCOME),
    }


def release_body(reserve: int, context: str) -> dict[str, Any]:
    """The body of what a debit's update is masked for.

    Raises:
        LedgerError: A value does not fit.
    """
    return {
        "reserve": _count("the reserve's sequence", reserve),
        "context": _matching("context", context, _DIGEST),
    }


def next_entry(
    previous: Entry | None, kind: Kind, body: Mapping[str, Any], *, time: str, key: SiteKey
) -> Entry:
    """Chains and signs a new entry."""
    sequence = 1 if previous is None else previous.sequence + 1
    before = NO_DIGEST if previous is None else previous.digest
    digest = _digest(sequence, time, kind, body, before)
    signature = key.sign(_PURPOSE, bytes.fromhex(digest))
    return Entry(sequence, time, kind, body, before, digest, signature)


def verify_chain(rows: Iterable[Row], previous: Entry | None, public_key: str) -> list[Entry]:
    """Reads stored rows that follow ``previous``.

    **Guarantees**: Returns only entries that are contiguous, chained to ``previous`` and to each
    other, signed by ``public_key``, and stored in the one canonical form. Any changed byte of any
    field raises.

    Raises:
        LedgerTamperedError: An entry is not that.
    """
    entries: list[Entry] = []
    for row in rows:
        previous = _verify_row(row, previous, public_key)
        entries.append(previous)
    return entries


def verify_head(head: LedgerHead, signature: str, public_key: str, site: str) -> None:
    """Checks that a ledger's key signed an entry with this hash as its last.

    Raises:
        LedgerTamperedError: It did not.
    """
    try:
        verify_signature(public_key, _PURPOSE, bytes.fromhex(head.digest), signature)
    except SiteKeyError as error:
        raise LedgerTamperedError(
            f"expected entry {head.sequence} signed with the ledger key of {site}: {error.message}"
        ) from error


def _verify_row(row: Row, previous: Entry | None, public_key: str) -> Entry:
    expected = 1 if previous is None else previous.sequence + 1
    sequence, *stored = row
    if type(sequence) is not int or sequence != expected:
        raise LedgerTamperedError(f"expected entry {expected} of the ledger, got {sequence!r}")
    try:
        time, kind, text, before, digest, signature = (value.decode("ascii") for value in stored)
        body = json.loads(text)
        canonical = canonical_json(body).decode("ascii") == text
        computed = _digest(sequence, time, kind, body, before)
    except (AttributeError, ValueError, RecursionError) as error:
        raise LedgerTamperedError(f"expected entry {sequence} to be readable, got junk") from error
    if not canonical or digest != computed:
        raise LedgerTamperedError(f"expected entry {sequence} to match its hash, got other content")
    if before != (NO_DIGEST if previous is None else previous.digest):
        raise LedgerTamperedError(f"expected entry {sequence} to follow the entry before it")
    try:
        verify_signature(public_key, _PURPOSE, bytes.fromhex(digest), signature)
    except SiteKeyError as error:
        raise LedgerTamperedError(
            f"expected entry {sequence} signed with the site's key: {error.message}"
        ) from error
    _check_form(sequence, time, kind, body)
    return Entry(sequence, time, kind, body, before, digest, signature)


def _check_form(sequence: int, time: str, kind: str, body: object) -> None:
    """What is signed is ours; this finds a version that this code does not know."""
    fields = _BODY_FIELDS.get(kind)
    if fields is None or not isinstance(body, dict) or body.keys() != fields:
        raise LedgerTamperedError(f"expected entry {sequence} with the fields of kind {kind!r}")
    if (kind == "open") != (sequence == 1) or not _TIME.fullmatch(time):
        raise LedgerTamperedError(f"expected entry {sequence} in the form of this version")


def _digest(sequence: int, time: str, kind: str, body: object, previous: str) -> str:
    return json_digest(
        {"sequence": sequence, "time": time, "kind": kind, "body": body, "previous": previous}
    )


class History:
    """What a verified chain of entries says. Grows only."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.events: list[Event] = []
        self._reserved: dict[int, Event] = {}
        self._settled: set[int] = set()
        self._released: set[int] = set()
        self._contexts: set[str] = set()
        self._rounds: dict[int, tuple[str, int]] = {}
        self._orders: dict[str, tuple[int, int]] = {}
        self._run_events: dict[str, Event] = {}
        self._cosigned: dict[str, Entry] = {}

    @property
    def last(self) -> Entry | None:
        """The last entry."""
        return self.entries[-1] if self.entries else None

    def add(self, entries: Sequence[Entry]) -> None:
        """Appends verified entries.

        Raises:
            LedgerError: An event is of a kind that this version does not know.
        """
        events = {e.sequence: event_from_json(e.body["event"]) for e in entries if _debits(e)}
        for entry in entries:
            self.entries.append(entry)
            if entry.kind == "reserve":
                self._add_reserve(entry, events[entry.sequence])
            elif entry.kind == "settle":
                self._settled.add(entry.body["reserve"])
            elif entry.kind == "release":
                self._released.add(entry.body["reserve"])
                self._contexts.add(entry.body["context"])
            elif entry.kind == "cosign":
                self._cosigned[entry.body["run_id"]] = entry

    def last_order(self, run_id: str) -> tuple[int, int] | None:
        """The newest round and attempt that a run was debited for."""
        return self._orders.get(run_id)

    def last_event(self, run_id: str) -> Event | None:
        """The newest event that a run was debited for."""
        return self._run_events.get(run_id)

    def cosigned(self, run_id: str) -> Entry | None:
        """The newest ``cosign`` of a run."""
        return self._cosigned.get(run_id)

    def check_settle(self, sequence: int, executed_steps: int) -> None:
        """Refuses to settle what was not reserved, twice, or beyond what was reserved.

        Raises:
            LedgerError: One of these.
        """
        event = self._reserved.get(sequence)
        if event is None:
            raise LedgerError(f"expected entry {sequence} to be a reserve, got none there")
        if sequence in self._settled:
            raise LedgerError(f"expected entry {sequence} to be open, got one that is settled")
        limit = event.steps
        if limit is not None and executed_steps > limit:
            raise LedgerError(
                f"expected at most the {limit} steps of entry {sequence}, got {executed_steps}",
                hint="more ran than was debited: what was trained must not leave the site",
            )

    def check_release(self, sequence: int, context: str, *, repeatable: bool) -> None:
        """Refuses to release what was not debited, what was released before, or into one attempt
        another time.

        Args:
            sequence: The debit's.
            context: Digest of the attempt.
            repeatable: The update is computed anew with noise of its own after each debit. Where
                it is not, another debit for the same terms and round has the same update, in
                whatever run.

        Raises:
            NotDebitedError: There is no such debit.
            AlreadySpentError: Its update, or one like it, was released, or one into this attempt.
        """
        if sequence not in self._reserved:
            raise NotDebitedError(f"expected a debit at entry {sequence}, got none there")
        of_round = {self._rounds[released] for released in self._released}
        if sequence in self._released or (not repeatable and self._rounds[sequence] in of_round):
            raise AlreadySpentError(
                f"expected an update that has not left the site, got that of entry {sequence}",
                hint="one update in two sums shows what is in one of them and not in the other",
            )
        if context in self._contexts:
            raise AlreadySpentError(
                "expected an attempt that no update of this site went into, got one again",
                hint="who confirms one attempt twice can be made to open less than a sum",
            )

    def _add_reserve(self, entry: Entry, event: Event) -> None:
        self._rounds[entry.sequence] = (entry.body["task_digest"], entry.body["server_round"])
        self.events.append(event)
        self._reserved[entry.sequence] = event
        run_id, order = entry.body["run_id"], (entry.body["server_round"], entry.body["attempt"])
        self._orders[run_id] = max(order, self._orders.get(run_id, order))
        self._run_events[run_id] = event


def _matching(name: str, value: str, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise LedgerError(f"expected {name} to match {pattern.pattern}, got {value!r}")
    return value


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise LedgerError(f"expected {name} as an integer from 0, got {value!r}")
    return value


def _positive(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise PrivacyError(f"expected {name} as a finite number above 0, got {value!r}")
    return float(value)


def _debits(entry: Entry) -> bool:
    return entry.kind == "reserve"
