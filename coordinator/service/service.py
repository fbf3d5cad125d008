"""The coordinator as one long-running process: servers, the queue of runs, monitoring.

servers (gRPC) --> Reception --> database        (who belongs, who may join)
              `--> RemoteGrid <-- RunWorker      (one run at a time, a thread of its own)
monitoring (loopback HTTP)
"""

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any, Final

from coordinator.grids.remote import RemoteGrid
from coordinator.service.admissions import Admissions
from coordinator.service.credentials import load_credentials
from coordinator.service.folder import CoordinatorFolder, Ports
from coordinator.service.monitoring import Metrics, MonitoringServer
from coordinator.service.operations import Operations
from coordinator.service.reception import Reception
from coordinator.service.renewal import ServerCertificate, renew_operator
from coordinator.service.run_audits import RunAudits
from coordinator.service.run_queue import RunQueue
from coordinator.service.runs import RunWorker
from coordinator.service.servers import serve
from core.errors import CloisterError
from core.run_record import RECORD_FILE, read_record
from privacy.identities.clock import read_timestamp, utc_now

logger = logging.getLogger(__name__)

_CHECK_SECONDS: Final = 60.0
_ROSTER_WARNING: Final = timedelta(days=14)


class CoordinatorService:
    """A running service; ``open`` starts and ends it."""

    def __init__(self, folder: CoordinatorFolder, overrides: Sequence[str]) -> None:
        self._folder = folder
        self._config = folder.config(overrides)
        self._federation = folder.federation(self._config)
        self._name = self._federation.federation.name
        vault = folder.vault()
        self._credentials = load_credentials(folder, self._config.authority, self._name, vault)
        self._certificate = ServerCertificate(self._credentials)
        self._metrics = Metrics()
        self._grid = RemoteGrid(self._config.liveness, traffic=self._metrics)
        self._store = folder.store()
        self._admissions = Admissions(self._store, vault)
        self._queue = RunQueue(self._store)
        self._reception = Reception(
            self._admissions,
            self._credentials,
            federation=self._name,
            admin_key=folder.admin_public(),
            control=lambda operator, request: operations.answer(operator, request),
        )
        audits = RunAudits(self._queue, self._grid, folder=folder, spent=self._metrics.set_epsilon)
        self._worker = RunWorker(
            self._queue,
            self._grid,
            folder=folder,
            seal=vault,
            roster=self._reception.roster,
            metrics=self._metrics,
            audits=audits,
        )
        self._told_to_stop = threading.Event()
        operations = Operations(
            self._federation,
            admissions=self._admissions,
            queue=self._queue,
            worker=self._worker,
            audits=audits,
            roster=self._reception.roster,
            connected=self._grid.sites,
            epsilons=lambda: self._metrics.epsilons,
            stop=self.stop,
        )

    @classmethod
    @contextmanager
    def open(
        cls, folder: CoordinatorFolder, overrides: Sequence[str] = ()
    ) -> Iterator["CoordinatorService"]:
        """Starts a service; at the end of the block it drops the round in progress and ends.

        Guarantees:
            One service at a time in a folder. A run that was cut short goes on at the next start.

        Raises:
            ServiceError: The folder cannot be used, or another service runs in it.
            ConfigError: A configuration file does not fit.
            VaultError: The vault's key is missing or another one.
            IdentityError: The server's certificate is not one that a site would take.
            RunError: An address cannot be listened on.
            SessionError: TLS 1.2 is not refused.
        """
        folder.config(overrides)  # before the lock's file is made: is this a folder of ours?
        with ExitStack() as stack:
            stack.enter_context(folder.lock())
            service = cls(folder, overrides)
            stack.callback(service._store.close)
            service._start(stack)
            yield service

    def stop(self, reason: str) -> None:
        """Tells the service to end; returns at once."""
        logger.info("the service stops: %s", reason)
        self._told_to_stop.set()

    def wait(self) -> None:
        """Returns when the service was told to stop; looks after its certificates meanwhile."""
        while not self._told_to_stop.wait(_CHECK_SECONDS):
            self._look_after()

    def health(self) -> Mapping[str, Any]:
        """What ``/healthz`` says."""
        trouble = self._worker.trouble
        return {
            "healthy": not trouble and not self._told_to_stop.is_set(),
            "federation": self._name,
            "run": self._worker.current or "",
            "connected_sites": len(self._grid.sites()),
            "trouble": trouble,
        }

    def _start(self, stack: ExitStack) -> None:
        self._remember_epsilons()
        self._look_after()
        listen = self._config.listen
        monitoring = MonitoringServer(listen.metrics_port, self.health, self._metrics_text)
        stack.callback(monitoring.close)
        servers = serve(
            self._grid,
            self._reception,
            self._certificate,
            federation=self._name,
            address=listen.address,
            enrolment_address=listen.enrolment_address,
        )
        stack.callback(servers.stop)
        self._worker.start()
        stack.callback(self._worker.close, "the service stops")
        ports = Ports(os.getpid(), servers.port, servers.enrolment_port, monitoring.port)
        stack.enter_context(self._folder.listening(ports))
        logger.info(
            "federation %s: the service runs",
            self._name,
            extra={
                "sessions_port": ports.sessions,
                "enrolment_port": ports.enrolment,
                "metrics_port": ports.metrics,
            },
        )

    def _metrics_text(self) -> bytes:
        self._metrics.observe(
            connected=len(self._grid.sites()),
            runs=self._queue.counts(),
            roster_seconds_left=self._roster_left().total_seconds(),
        )
        return self._metrics.text()

    def _roster_left(self) -> timedelta:
        signed = self._admissions.roster()
        return read_timestamp(signed.roster.expires) - utc_now() if signed else timedelta()

    def _look_after(self) -> None:
        """Nothing here may end the service: it only prevents that things run out."""
        try:
            if renew_operator(self._folder.operator, self._credentials, utc_now()):
                logger.info("the operator's certificate was renewed")
            left = self._roster_left()
        except CloisterError as error:
            logger.warning("cannot look after certificates and roster: %s", error)
            return
        if left < _ROSTER_WARNING:
            logger.warning(
                "the roster ends in %d days: sign the next one with "
                "`cloister coordinator renew --admin-key FILE`",
                max(left.days, 0),
            )

    def _remember_epsilons(self) -> None:
        """What the sites had spent when the service was last here, from the runs' records."""
        for run in self._queue.newest(count=-1):
            folder = self._folder.run(run.run_id)
            if not (folder / RECORD_FILE).exists():
                continue
            try:
                rounds = read_record(folder).rounds
            except CloisterError as error:
                logger.warning("cannot read the record of run %s: %s", run.run_id, error)
                continue
            for line in rounds:
                for site, spent in line["spent"].items():
                    if spent["epsilon"] is not None:
                        self._metrics.set_epsilon(site, spent["epsilon"])
