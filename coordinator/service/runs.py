"""The one thread that works through the queue of runs, one run at a time.

A run that was cut short, by ``stop``, a crash or a power failure, is in the state ``running`` and
goes on by itself when the service starts again.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy.typing as npt
from flwr.serverapp import Grid

from coordinator.app import build_server_app, start
from coordinator.flower import empty_run
from coordinator.planning import make_plan, replies_of, training_device
from coordinator.service.folder import CoordinatorFolder
from coordinator.service.monitoring import Metrics
from coordinator.service.run_audits import RunAudits
from coordinator.service.run_queue import QueuedRun, RunQueue
from coordinator.service.service_grid import ServiceGrid
from core.blueprint import make_blueprint, training_terms
from core.config import FederationConfig
from core.config_sections import MemberSection
from core.errors import CloisterError, QuorumError, RunError, ServiceError
from core.run_record import RoundResult
from core.sealed_arrays import Seal
from core.wire.documents import SignedRoster

logger = logging.getLogger(__name__)

_IDLE_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.1
# A site's longest pause between two attempts to connect, and some time to do it.
RECONNECT_SECONDS: Final = 40.0


@dataclass
class _Stop:
    """Why the present run should end, and whether it goes on at the next start."""

    reason: str
    goes_on: bool


class RunWorker:
    """Works through the queue.

    Args:
        queue: The runs.
        grid: Reaches the sites; Flower's ``Grid`` and a ``ServiceGrid``.
        folder: Where run directories lie.
        seal: Encrypts their checkpoints.
        roster: The present roster.
        metrics: What is counted.
        audits: Done between two runs.
        reconnect_seconds: So long after a start, a run waits for all sites of the roster.
    """

    def __init__(
        self,
        queue: RunQueue,
        grid: Any,
        *,
        folder: CoordinatorFolder,
        seal: Seal,
        roster: Callable[[], SignedRoster | None],
        metrics: Metrics,
        audits: RunAudits | None = None,
        reconnect_seconds: float = RECONNECT_SECONDS,
    ) -> None:
        self._audits = audits
        self._reconnect_until = time.monotonic() + reconnect_seconds
        self._queue = queue
        self._grid: ServiceGrid = grid
        self._flower_grid: Grid = grid
        self._folder = folder
        self._seal = seal
        self._roster = roster
        self._metrics = metrics
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._current: str | None = None
        self._stop: _Stop | None = None
        self._closing = False
        self._trouble = ""
        self._thread = threading.Thread(target=self._work, name="runs")

    def start(self) -> None:
        """Begins with whatever was cut short."""
        self._thread.start()

    @property
    def current(self) -> str | None:
        """The run in progress."""
        return self._current

    @property
    def trouble(self) -> str:
        """Why no run can be worked on; empty where nothing is wrong."""
        if not self._thread.is_alive() and not self._closing:
            return "the thread of runs has ended"
        return self._trouble

    def wake(self) -> None:
        """A run, or an audit, was ordered."""
        self._wake.set()

    def stop_run(self, run_id: str, reason: str) -> str:
        """Ends a run for good; the one in progress where ``run_id`` is empty.

        Returns:
            The run's id.

        Raises:
            ServiceError: There is no such run, or it has ended.
        """
        with self._lock:
            run_id = run_id or self._current or ""
            if not run_id:
                raise ServiceError("expected a run in progress, got none")
            state = self._queue.get(run_id).status.state
            if run_id == self._current:
                self._stop = _Stop(reason, goes_on=False)
                self._grid.interrupt(reason)
            elif state in ("queued", "running"):
                self._queue.move(run_id, "stopped", reason)
            else:
                raise ServiceError(f"expected a run that has not ended, got one that is {state}")
        return run_id

    def close(self, reason: str) -> None:
        """Cuts the present run short, so that it goes on at the next start; ends the thread."""
        with self._lock:
            self._closing = True
            if self._stop is None:
                self._stop = _Stop(reason, goes_on=True)
            if self._current is not None:
                self._grid.interrupt(reason)
        if self._audits is not None:
            self._audits.close(reason)
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        while not self._closing:
            self._wake.clear()
            if self._audits is not None and self._audits.work():
                continue
            try:
                run = self._queue.next()
                if run is not None:
                    self._run(run)
                    self._trouble = ""
                    continue
            except CloisterError as error:
                # The state cannot be written: nothing is lost, and a monitor sees it.
                self._trouble = error.message
                logger.error("runs wait: %s", error)
            self._wake.wait(_IDLE_SECONDS)

    def _run(self, run: QueuedRun) -> None:
        with self._lock:
            if self._closing or self._queue.get(run.run_id).status.state not in (
                "queued",
                "running",
            ):
                return
            self._queue.move(run.run_id, "running")
            self._current, self._stop = run.run_id, None
        logger.info("run %s begins or goes on", run.run_id)
        try:
            failure = self._train(run)
        finally:
            with self._lock:
                self._current = None
                stop = self._stop
        if failure is None:
            self._queue.move(run.run_id, "finished")
        elif stop is not None and stop.goes_on:
            logger.info("run %s is cut short: %s", run.run_id, stop.reason)
            return
        elif stop is not None:
            self._queue.move(run.run_id, "stopped", stop.reason)
        elif isinstance(failure, QuorumError):
            self._queue.move(run.run_id, "stopped", failure.message)
        else:
            self._queue.move(run.run_id, "failed", f"{failure.code}: {failure.message}")
        logger.info("run %s has ended: %s", run.run_id, failure or "finished")

    def _train(self, run: QueuedRun) -> CloisterError | None:
        """Why the run did not finish; ``None`` where it did."""
        try:
            self._rounds(run, run.load_config())
        except CloisterError as error:
            return error
        except Exception as error:
            # A defect of ours ends this run, and not the service.
            logger.exception("run %s failed", run.run_id)
            return RunError(f"{type(error).__name__}: see the service's log")
        return None

    def _rounds(self, run: QueuedRun, config: FederationConfig) -> None:
        signed = self._roster()
        check_sizes(config, signed)
        members = sorted(config.sites, key=lambda member: member.name)
        blueprint = make_blueprint(config)
        terms = training_terms(config, blueprint)
        events = _Events(self, run, members)
        plan = make_plan(
            config,
            blueprint,
            terms,
            members,
            device=training_device(),
            events=events,
            signed_roster=self._signed_roster,
        )
        app = build_server_app(
            plan, self._folder.run(run.run_id), run_id=run.run_id, seal=self._seal
        )
        self._wait_for_sites({member.name for member in members}, signed)
        self._grid.set_run(empty_run(run.number))
        nodes = {number: member.name for number, member in plan.roster.items()}
        self._grid.begin_run(nodes, replies_of(plan))
        try:
            # An interruption from before ``begin_run`` is forgotten there.
            self.check_wanted()
            start(app, self._flower_grid)
        finally:
            self._grid.end_run()

    def _signed_roster(self) -> SignedRoster:
        signed = self._roster()
        if signed is None:
            raise RunError("expected a signed roster, got none: no site was approved yet")
        return signed

    def _wait_for_sites(self, asked: set[str], signed: SignedRoster | None) -> None:
        """After a start, all sites come back, one after another.

        The first one to come back is no cohort: the others may hold replies of the round that
        was cut short, and have paid for them.
        """
        members = signed.roster.members if signed else ()
        expected = asked & {member.name for member in members if member.status == "active"}
        while not expected <= self._grid.sites().keys():
            if time.monotonic() >= self._reconnect_until:
                return
            self.check_wanted()
            time.sleep(_POLL_SECONDS)

    def check_wanted(self) -> None:
        """Ends the run in its own thread, where somebody asked for that.

        Raises:
            RunError: Somebody did.
        """
        with self._lock:
            if self._stop is not None:
                raise RunError(f"the run was interrupted: {self._stop.reason}")

    def finished(self, run: QueuedRun, sites: Sequence[str], result: RoundResult) -> None:
        """A round's checkpoint and record are on the disk."""
        self._metrics.round_finished(result)
        if result.server_round:
            self._grid.settle(sites, run.run_id, result.server_round)
        refusals = [f"{no.site}: {no.code}: {no.message}" for no in result.refusals]
        refusals += [f"{bad.site}: {bad.code}: {bad.message}" for bad in result.rejected]
        self._queue.progress(run.run_id, result.server_round, result.weights_digest, refusals)
        logger.info(
            "run %s: round %d",
            run.run_id,
            result.server_round,
            extra={"used": list(result.used), "seconds": round(result.seconds, 3)},
        )

    def resumed(self, run: QueuedRun, sites: Sequence[str], server_round: int) -> None:
        """The run has this many rounds; a site may not have heard so of the last one."""
        if server_round:
            self._grid.settle(sites, run.run_id, server_round)


class _Events:
    """Listens to the round loop for the service."""

    def __init__(self, worker: RunWorker, run: QueuedRun, members: Sequence[MemberSection]) -> None:
        self._worker = worker
        self._run = run
        self._sites = [member.name for member in members]

    def run_started(self, server_round: int, num_rounds: int) -> None:
        self._worker.resumed(self._run, self._sites, server_round)
        self._worker.check_wanted()

    def attempt_started(self, server_round: int, attempt: int, sites: Sequence[str]) -> None:
        logger.info("round %d, attempt %d: asking %s", server_round, attempt, ", ".join(sites))
        self._worker.check_wanted()

    def round_finished(self, result: RoundResult) -> None:
        self._worker.finished(self._run, self._sites, result)

    def run_finished(
        self, summary: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> None:
        """The checkpoint has the weights; ``export`` opens it."""


def check_sizes(config: FederationConfig, signed: SignedRoster | None) -> None:
    """A site's public size is the same in the federation's file and in the roster.

    Raises:
        RunError: It is not.
    """
    members = signed.roster.members if signed else ()
    admitted = {member.name: member for member in members if member.status == "active"}
    for site in config.sites:
        member = admitted.get(site.name)
        if member is not None and member.num_examples != site.num_examples:
            raise RunError(
                f"expected num_examples = {member.num_examples} for {site.name}, as the roster "
                f"has it, got {site.num_examples}",
                hint="sites approved the roster's figure: change the federation's file back, or "
                "invite the site anew",
            )
