"""A site's ledger: every release is debited here before anything is computed from records.

It refuses past the cap, when the accountant fails, when the disk is full, and when it is shorter
than its witnesses remember. It stores mechanisms and derives epsilon over the site's whole life.

Limits: whoever holds the site's key and all its files can write another past; only the heads that
peers remember (``check_witness``) show that. The files belong on a local disk.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from core.errors import (
    BudgetExceededError,
    LedgerError,
    LedgerRollbackError,
    LedgerTamperedError,
    LogTamperedError,
    MessageError,
)
from core.log_messages import CosignBody, WitnessOrder, WitnessReply
from core.messages import LedgerHead
from privacy.accounting import EpsilonReport, epsilon_report, gate
from privacy.events import Event, constants_of
from privacy.ledger_entries import (
    NO_DIGEST,
    SCHEMA_VERSION,
    Entry,
    History,
    Kind,
    next_entry,
    release_body,
    reserve_body,
    settle_body,
    verify_chain,
)
from privacy.ledger_store import LedgerFiles, LedgerStore
from privacy.signing import SiteKey
from privacy.transparency_log import check_order, cosignature_of

_SITE: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class Ledger:
    """An open ledger. Several threads may use one object, several processes one file.

    **Guarantees**:
        - A ``reserve`` that returns lies on the disk, and is never given back.
        - After any reserves, by whatever threads and processes, the epsilon of all private events
          together is at most the cap that the last of them named.
        - A refused or failed ``reserve`` returns no sequence; a refused one writes nothing.
        - Private and non-private events never stand in one ledger.
    """

    def __init__(self, path: Path, site: str, store: LedgerStore, key: SiteKey) -> None:
        self._path = path
        self._site = site
        self._store: LedgerStore | None = store
        self._key = key
        self._history = History()
        self._spent: tuple[tuple[LedgerHead, float], EpsilonReport] | None = None
        self._threads = threading.Lock()
        self._process = os.getpid()

    @classmethod
    def open(cls, path: Path, *, site: str) -> "Ledger":
        """Opens a site's ledger, or starts it where there is none.

        **Guarantees**: Returns only after the whole chain, every signature, the site's name and
        the witness file were checked. A ledger that was lost is never started again silently.

        Args:
            path: The database; ``<path>.key`` and ``<path>.witness`` lie beside it.
            site: The site's name.

        Raises:
            LedgerTamperedError: An entry, the witness or the site's name is not what was signed.
            LedgerRollbackError: The ledger is shorter than its witness remembers, or is missing.
            SiteKeyError: The key file is missing, readable by others or no key.
            LedgerError: The files cannot be read or written.
        """
        if not _SITE.fullmatch(site):
            raise LedgerError(f"expected a site's name, got {site!r}")
        path = Path(os.path.abspath(path))
        files = LedgerFiles(path)

        def first_entry(key: SiteKey) -> Entry:
            body = {"schema_version": SCHEMA_VERSION, "site": site, "public_key": key.public_hex}
            return next_entry(None, "open", body, time=_now(), key=key)

        files.prepare(first_entry, site)
        key = SiteKey.load(files.key)
        ledger = cls(path, site, LedgerStore(files, site, key), key)
        try:
            with ledger._writing() as store:
                ledger._refresh(store)
                ledger._check_opening()
                head = _head(ledger._history)
                # After a crash between commit and witness.
                if store.witness() != head:
                    store.write_witness(head)
        except BaseException:
            ledger.close()
            raise
        return ledger

    def reserve(
        self,
        event: Event,
        *,
        run_id: str,
        server_round: int,
        attempt: int,
        task_digest: str,
        max_epsilon: float,
        delta: float,
        once: bool = False,
    ) -> int:
        """Debits ``event`` before it happens.

        A non-private event costs no finite epsilon, so no cap applies to it: that it may happen
        at all is the policy's to decide (``allow_non_private``, ``allow_test_noise``).

        Args:
            event: What is about to be released.
            run_id: The run.
            server_round: The round.
            attempt: The attempt at this round; each attempt is a debit of its own.
            task_digest: The task hash.
            max_epsilon: The site's cap over its whole life.
            delta: The delta at which the cap holds.
            once: Refuse an order that is not newer than the run's last, in the same transaction:
                of two that come at once, one is debited.

        Returns:
            The entry's sequence, for ``settle``.

        Raises:
            MessageError: With ``once``, an old or repeated order, or one of another mechanism than
                the run's before it.
            BudgetExceededError: It would pass the cap, or mix private and non-private events.
            PrivacyError: ``delta`` is too large or the cap is not one.
            AccountingError: Epsilon cannot be computed.
            LedgerError: The ledger cannot be trusted or written. Where the disk failed after the
                commit the debit stays.
        """
        body = reserve_body(
            event,
            run_id=run_id,
            server_round=server_round,
            attempt=attempt,
            task_digest=task_digest,
            max_epsilon=max_epsilon,
            delta=delta,
        )

        def check(history: History) -> None:
            if once:
                _refuse_repeated(history.last_order(run_id), (server_round, attempt))
                _refuse_changed(history.last_event(run_id), event)
            _refuse_mixing(history.events, event)
            if event.private:
                gate(history.events, event, max_epsilon, delta)

        return self._append("reserve", body, check).sequence

    def settle(self, sequence: int, executed_steps: int, outcome: str = "completed") -> None:
        """Records what ran after a reserve. Whatever that is, the debit stays as it is.

        Raises:
            LedgerError: More ran than was reserved, the reserve is unknown or settled already, or
                the ledger cannot be trusted or written.
        """
        body = settle_body(sequence, executed_steps, outcome)
        self._append("settle", body, lambda history: history.check_settle(sequence, executed_steps))

    def release(self, sequence: int, context: str, *, repeatable: bool) -> None:
        """Marks a debit's update as spent, before it leaves the site in a masked sum.

        **Guarantees**: When this returns, the mark lies on the disk, and no second call for the
        same debit or for the same attempt ever returns; where the update is not ``repeatable``,
        none for its terms and round.

        Args:
            sequence: The debit's.
            context: Digest of the attempt that the sum belongs to.
            repeatable: See ``History.check_release``.

        Raises:
            NotDebitedError: There is no such debit.
            AlreadySpentError: It was released before.
            LedgerError: The ledger cannot be trusted or written.
        """
        self._append(
            "release",
            release_body(sequence, context),
            lambda history: history.check_release(sequence, context, repeatable=repeatable),
        )

    def cosign(self, order: WitnessOrder) -> WitnessReply:
        """Signs a run's log as far as ``order`` shows it.

        **Guarantees**: What was signed lies on the disk before it is returned. Of one run, this
        ledger never signs two logs that do not continue each other, nor one that names a head
        which this ledger did not have.

        Returns:
            The new cosignature; or the newest that there is, without signing anything, where the
            order does not continue it or shows nothing new.

        Raises:
            LogTamperedError: The log was cut, forked, or says of this site what is not so.
            LedgerError: The ledger cannot be trusted or written.
        """
        run_id = order.checkpoint.run_id
        with self._reading() as history:
            known = history.cosigned(run_id)
            heads = [entry.head for entry in history.entries]
        seen = None if known is None else CosignBody.model_validate(known.body)
        if order.site != self._site:
            raise LogTamperedError(f"expected an order for {self._site}, got one for {order.site}")
        if order.since == (0 if seen is None else seen.size):
            body = check_order(order, seen, heads)
            if body != seen:

                def check(history: History) -> None:
                    if history.cosigned(run_id) is not known:
                        raise LedgerError("expected to sign a log once at a time, got two orders")

                known = self._append("cosign", body.model_dump(mode="json"), check)
        return WitnessReply(
            cosignature=None if known is None else cosignature_of(known, self._key.public_hex)
        )

    def spent(self, delta: float) -> EpsilonReport:
        """What all events of the site's life cost together.

        Raises:
            PrivacyError: ``delta`` is too large.
            AccountingError: Epsilon cannot be computed.
            LedgerError: The ledger cannot be trusted or read.
        """
        with self._reading() as history:
            asked = (_head(history), delta)
            if self._spent is None or self._spent[0] != asked:
                self._spent = (asked, epsilon_report(history.events, delta))
            return self._spent[1]

    def head(self) -> LedgerHead:
        """Length and last hash, for witnesses to remember.

        Raises:
            LedgerError: The ledger cannot be trusted or read.
        """
        with self._reading() as history:
            return _head(history)

    def check_witness(self, head: LedgerHead) -> None:
        """Compares with what a peer remembers of this ledger.

        **Guarantees**: Returns only if this ledger continues the one that the peer saw.

        Raises:
            LedgerRollbackError: It is shorter, or it continues another past.
            LedgerError: The ledger cannot be trusted or read.
        """
        with self._reading() as history:
            _check_continues(history.entries, head, "a peer")

    def entries(self) -> tuple[Entry, ...]:
        """All entries, verified.

        Raises:
            LedgerError: The ledger cannot be trusted or read.
        """
        with self._reading() as history:
            return tuple(history.entries)

    def last_order(self, run_id: str) -> tuple[int, int] | None:
        """The newest round and attempt that a run was debited for, or ``None``.

        Raises:
            LedgerError: The ledger cannot be trusted or read.
        """
        with self._reading() as history:
            return history.last_order(run_id)

    def close(self) -> None:
        """Closes the files; closing twice does nothing."""
        with self._threads:
            if self._store is not None:
                self._store.close()
                self._store = None

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Ledger({str(self._path)!r}, site={self._site!r}, key={self._key!r})"

    def _append(
        self, kind: Kind, body: Mapping[str, Any], check: Callable[[History], None]
    ) -> Entry:
        """Checks and appends under the one writer's lock, durably."""
        with self._writing() as store:
            with store.transaction():
                self._refresh(store)
                check(self._history)
                entry = next_entry(self._history.last, kind, body, time=_now(), key=self._key)
                store.insert(entry)
            self._history.add([entry])
            store.write_witness(entry.head)
            return entry

    @contextmanager
    def _writing(self) -> Iterator[LedgerStore]:
        with self._threads:
            store = self._usable()
            with store.writing():
                yield store

    @contextmanager
    def _reading(self) -> Iterator[History]:
        with self._threads:
            self._refresh(self._usable())
            yield self._history

    def _usable(self) -> LedgerStore:
        if self._store is None:
            raise LedgerError(f"expected the ledger {self._path} to be open, got a closed one")
        if os.getpid() != self._process:
            raise LedgerError(
                f"expected the ledger {self._path} in the process that opened it, got a fork",
                hint="open the ledger anew in each process",
            )
        return self._store

    def _refresh(self, store: LedgerStore) -> None:
        """Reads and verifies what was appended since, by any process; then takes it over."""
        # The witness first: another process may append between the two.
        witness = store.witness()
        known = self._history.entries
        rows = store.rows(known[-1].sequence if known else None)
        # The last known entry is read again: it shows whether this is still the same past.
        before = known[-2] if len(known) > 1 else None
        fresh = verify_chain(rows, before, self._key.public_hex)
        if known and fresh[:1] != known[-1:]:
            raise LedgerRollbackError(
                f"expected the ledger {self._path} to keep its entry {known[-1].sequence}, "
                "got a shorter or another past"
            )
        added = fresh[1:] if known else fresh
        _check_continues([*known, *added], witness, "its witness file")
        self._history.add(added)

    def _check_opening(self) -> None:
        """The first entry binds the chain to the site and to its key."""
        if not self._history.entries:
            raise LedgerRollbackError(f"expected an entry in the ledger {self._path}, got none")
        body = self._history.entries[0].body
        if body["schema_version"] != SCHEMA_VERSION:
            raise LedgerError(
                f"expected a ledger of version {SCHEMA_VERSION}, got {body['schema_version']!r}"
            )
        if body["site"] != self._site or body["public_key"] != self._key.public_hex:
            raise LedgerTamperedError(
                f"expected the ledger of site {self._site!r} and its key, "
                f"got that of {body['site']!r}",
                hint="each site has a ledger of its own",
            )


def _head(history: History) -> LedgerHead:
    last = history.last
    return LedgerHead(sequence=0, digest=NO_DIGEST) if last is None else last.head


def _check_continues(entries: list[Entry], head: LedgerHead, who: str) -> None:
    if head.sequence > len(entries):
        raise LedgerRollbackError(
            f"expected at least the {head.sequence} entries that {who} remembers, "
            f"got a ledger of {len(entries)}",
            hint="an older copy was restored: restore the newest, or what was spent is forgotten",
        )
    digest = entries[head.sequence - 1].digest if head.sequence else NO_DIGEST
    if digest != head.digest:
        raise LedgerRollbackError(
            f"expected entry {head.sequence} as {who} remembers it, got another past",
            hint="two copies of one ledger were used: restore the one that was used first",
        )


def _refuse_repeated(last: tuple[int, int] | None, order: tuple[int, int]) -> None:
    if last is not None and order <= last:
        raise MessageError(
            f"expected an order after round {last[0]}, attempt {last[1]}, "
            f"got round {order[0]}, attempt {order[1]}"
        )


def _refuse_changed(last: Event | None, event: Event) -> None:
    """The noise of a run was calibrated for rounds that are all alike."""
    if last is not None and constants_of(last) != constants_of(event):
        raise MessageError(
            f"expected the mechanism that the run was debited for before, {last}, got {event}",
            hint="constants of a run never change: order another run",
        )


def _refuse_mixing(events: list[Event], event: Event) -> None:
    if all(past.private == event.private for past in events):
        return
    kinds = ["a non-private", "a private"]
    raise BudgetExceededError(
        f"expected a ledger of private or of non-private events only, got {kinds[event.private]} "
        f"event after {kinds[not event.private]} one: over the site's life the epsilon of these "
        "records would be unbounded",
        hint="give the other kind of run a ledger path of its own, and know that the records of "
        "both are protected by neither",
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
