"""What an operator's request leads to: status, run, stop-run, stop, audit."""

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Literal

from coordinator.run_directory import versions
from coordinator.service.admissions import Admissions
from coordinator.service.run_audits import RunAudits
from coordinator.service.run_queue import RunQueue
from coordinator.service.runs import RunWorker, check_sizes
from core.config import FederationConfig
from core.errors import ConfigError
from core.wire.documents import (
    ControlReply,
    ControlRequest,
    RosterOperator,
    SignedRoster,
    SiteStatus,
    StatusReport,
)
from privacy.identities.clock import utc_now

logger = logging.getLogger(__name__)

Place = Literal["active", "revoked", "invited", "pending", "not-invited"]

# A status lists no more runs; the folder has all of them.
_MAX_RUNS = 20


class Operations:
    """Answers operators. Safe to share between threads.

    Args:
        federation: The federation's file as it was at the start.
        admissions: Who was invited and who waits.
        queue: The runs.
        worker: Works through them.
        audits: Asks for the counts of audits, between two of them.
        roster: The present roster.
        connected: The sites with an open session, and for how many seconds each was silent.
        epsilons: What each site spent over its whole life, as its last reply said.
        stop: Ends the service.
        now: UTC.
    """

    def __init__(
        self,
        federation: FederationConfig,
        *,
        admissions: Admissions,
        queue: RunQueue,
        worker: RunWorker,
        audits: RunAudits,
        roster: Callable[[], SignedRoster | None],
        connected: Callable[[], Mapping[str, float]],
        epsilons: Callable[[], Mapping[str, float]],
        stop: Callable[[str], None],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._federation = federation
        self._admissions = admissions
        self._queue = queue
        self._worker = worker
        self._audits = audits
        self._roster = roster
        self._connected = connected
        self._epsilons = epsilons
        self._stop = stop
        self._now = now

    def answer(self, operator: RosterOperator, request: ControlRequest) -> ControlReply:
        """Does what is asked.

        Raises:
            CloisterError: It cannot be done.
        """
        if request.command == "status":
            return ControlReply(report=self.status())
        logger.info("%s asks for %s %s", operator.name, request.command, request.run)
        if request.command == "run":
            return ControlReply(run_id=self._run(request))
        if request.command == "audit":
            self._audits.order(request.run, again=request.again)
            self._worker.wake()
            return ControlReply(run_id=request.run)
        reason = f"stopped by {operator.name}"
        if request.command == "stop-run":
            return ControlReply(run_id=self._worker.stop_run(request.run, reason))
        self._stop(reason)
        return ControlReply()

    def status(self) -> StatusReport:
        """The service at a glance."""
        signed = self._roster()
        runs = self._queue.newest(_MAX_RUNS)
        # Refusals are long: of the newest run only, so that the report fits into one message.
        runs[:-1] = [run.model_copy(update={"refusals": ()}) for run in runs[:-1]]
        return StatusReport(
            federation=self._federation.federation.name,
            version=versions()["cloister"],
            roster_epoch=signed.roster.epoch if signed else 0,
            sites=self._sites(signed),
            runs=tuple(runs),
            counts=self._audits.newest,
        )

    def _run(self, request: ControlRequest) -> str:
        if request.config is None:
            self._queue.resume(request.run)
            run_id = request.run
        else:
            name, expected = request.config.federation.name, self._federation.federation.name
            if name != expected:
                raise ConfigError(
                    f"expected a run of the federation {expected!r}, got one of {name!r}",
                    hint="the sites joined this federation, and approve its tasks only",
                )
            check_sizes(request.config, self._roster())
            run_id = self._queue.add(request.config)
        self._worker.wake()
        return run_id

    def _sites(self, signed: SignedRoster | None) -> tuple[SiteStatus, ...]:
        listed: dict[str, Place] = {
            m.name: m.status for m in (signed.roster.members if signed else ())
        }
        pending = {found.site: found.fingerprint for found in self._admissions.pending()}
        invited = self._admissions.invited(self._now())
        connected, epsilons = self._connected(), self._epsilons()
        # On the way in, where the roster does not list it.
        waiting: dict[str, Place] = dict.fromkeys(invited, "invited")
        waiting |= dict.fromkeys(pending, "pending")
        names = {site.name for site in self._federation.sites} | set(listed)
        return tuple(
            SiteStatus(
                name=name,
                status=listed.get(name) or waiting.get(name, "not-invited"),
                connected=name in connected,
                silent_seconds=connected.get(name),
                fingerprint=pending.get(name, ""),
                epsilon=epsilons.get(name),
            )
            for name in sorted(names)
        )
