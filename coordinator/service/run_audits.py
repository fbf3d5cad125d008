"""Asks connected sites for the counts of an audit of a run that has ended.

Done on the thread of runs, between two of them: the grid belongs to one at a time. Nothing of an
audit is kept over a restart but its file; who asked and got none asks again.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from flwr.serverapp import Grid

from coordinator.audit_exchange import Gathered, gather, write_counts
from coordinator.flower import empty_run
from coordinator.run_log import keep_signatures, log_holder
from coordinator.service.export import Released, open_released
from coordinator.service.folder import CoordinatorFolder
from coordinator.service.run_queue import RunQueue
from coordinator.service.service_grid import ServiceGrid
from core.audit_messages import AUDIT_FILE, AuditOrder, audit_order
from core.blueprint import training_terms
from core.digests import arrays_digest
from core.errors import CloisterError, LogTamperedError, MessageError, RunError, ServiceError
from core.wire.documents import CountsStatus
from privacy.log_witnesses import LogHolder

logger = logging.getLogger(__name__)

# A status must fit into one message; the run's folder has all of it.
_MAX_ABSENT: Final = 64
_MAX_CHARACTERS: Final = 300


class RunAudits:
    """At most one audit at a time. Safe to share between threads.

    Guarantees:
        Counts are written wholly or not at all, and counts that are there are replaced only where
        that was asked for: each asking costs the sites anew.

    Args:
        queue: The runs.
        grid: Reaches the sites; Flower's ``Grid`` and a ``ServiceGrid``.
        folder: Where run directories lie.
        spent: Told what a site has spent, as its reply says.
        now: Seconds that only grow, over restarts too.
    """

    def __init__(
        self,
        queue: RunQueue,
        grid: Any,
        *,
        folder: CoordinatorFolder,
        spent: Callable[[str, float], None] = lambda site, epsilon: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._queue = queue
        self._grid: ServiceGrid = grid
        self._flower_grid: Grid = grid
        self._folder = folder
        self._spent = spent
        self._now = now
        self._lock = threading.Lock()
        self._newest: CountsStatus | None = None
        self._closing = ""

    @property
    def newest(self) -> CountsStatus | None:
        """The newest audit that was ordered, since the service started."""
        return self._newest

    def order(self, run_id: str, *, again: bool) -> None:
        """Takes an order for the counts of a run.

        Args:
            run_id: A run that has ended.
            again: Ask although there are counts already.

        Raises:
            ServiceError: There is no such run, it has not ended, there are counts already, or
                another audit is not done.
        """
        state = self._queue.get(run_id).status.state
        if state in ("queued", "running"):
            raise ServiceError(f"expected a run that has ended, got one that is {state}")
        if not again and (self._folder.run(run_id) / AUDIT_FILE).exists():
            raise ServiceError(
                f"expected a run whose sites were not asked yet, got {run_id}, whose counts are "
                "there",
                hint="--again asks them anew, and each pays for it anew",
            )
        with self._lock:
            if self._newest is not None and self._newest.state in ("waiting", "asking"):
                raise ServiceError(
                    f"expected no other audit, got one of {self._newest.run_id} that is "
                    f"{self._newest.state}",
                    hint="wait for its end",
                )
            self._newest = CountsStatus(run_id=run_id, state="waiting")

    def work(self) -> bool:
        """Does the audit that waits, if there is one and the service does not close."""
        with self._lock:
            if self._closing or self._newest is None or self._newest.state != "waiting":
                return False
            run_id = self._newest.run_id
            self._newest = CountsStatus(run_id=run_id, state="asking")
        try:
            status = self._ask(run_id)
        except CloisterError as error:
            status = _failed(run_id, f"{error.code}: {error.message}")
        except Exception as error:
            # A defect of ours ends this audit, and not the service.
            logger.exception("the audit of run %s failed", run_id)
            status = _failed(run_id, f"{type(error).__name__}: see the service's log")
        logger.info("the audit of run %s is %s %s", run_id, status.state, status.reason)
        with self._lock:
            self._newest = status
        return True

    def close(self, reason: str) -> None:
        """Ends the audit in progress, and begins no other."""
        with self._lock:
            self._closing = reason
            asking = self._newest is not None and self._newest.state == "asking"
        if asking:
            self._grid.interrupt(reason)

    def _ask(self, run_id: str) -> CountsStatus:
        released = open_released(self._folder, self._queue, run_id)
        order = _order(released, run_id, attempt=int(1000 * self._now()))
        holder = log_holder(released.run, self._folder.vault())
        names = sorted(member.name for member in released.config.sites)
        nodes = dict(enumerate(names, start=1))
        self._grid.set_run(empty_run(released.number))
        self._grid.begin_run(nodes, {})
        try:
            # An interruption from before ``begin_run`` is forgotten there.
            if self._closing:
                raise RunError(f"the audit was interrupted: {self._closing}")
            gathered = gather(
                self._flower_grid,
                nodes,
                order,
                released.state.arrays,
                timeout=released.config.strategy.round_timeout_seconds,
                witnesses=released.state.witnesses,
                checkpoints={name: holder.order(name) for name in names},
            )
        finally:
            self._grid.end_run()
        for reply in gathered.replies.values():
            if reply.spent.epsilon is not None:
                self._spent(reply.site, reply.spent.epsilon)
        status = self._keep(released, order, gathered)
        keep_signatures(released.run, holder, _signed(holder, gathered))
        return status

    def _keep(self, released: Released, order: AuditOrder, gathered: Gathered) -> CountsStatus:
        absent = tuple(
            f"{away.site}: {away.code}: {away.message}"[:_MAX_CHARACTERS]
            for away in gathered.absent.values()
        )[:_MAX_ABSENT]
        if not gathered.replies:
            raise RunError(f"expected the counts of a site or more, got none: {'; '.join(absent)}")
        write_counts(released.run, order, gathered)
        return CountsStatus(
            run_id=order.run_id, state="finished", replied=tuple(gathered.replies), absent=absent
        )


def _order(released: Released, run_id: str, *, attempt: int) -> AuditOrder:
    """To the first of the sites; ``gather`` makes the others'."""
    return audit_order(
        released.config,
        training_terms(released.config, released.blueprint),
        run_id=run_id,
        attempt=attempt,
        arrays_digest=arrays_digest(released.state.arrays),
        site=released.config.sites[0].name,
    )


def _signed(holder: LogHolder, gathered: Gathered) -> dict[str, str]:
    """What sites signed of this log; one that signed another does not spoil the others'."""
    found = {}
    for name, reply in gathered.replies.items():
        try:
            if reply.cosignature:
                holder.accept(name, reply.cosignature)
                found[name] = reply.cosignature
        except (LogTamperedError, MessageError) as error:
            logger.warning("site %s did not sign the run's log: %s", name, error.message)
    return found


def _failed(run_id: str, reason: str) -> CountsStatus:
    return CountsStatus(run_id=run_id, state="failed", reason=reason[:1000])
