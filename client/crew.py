"""The processes of one site that share its rounds: brought together, and anew after a loss."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from client.site import OnDevice, Workshop
from core.data.dataset import TokenizedDataset
from core.digests import json_digest
from core.errors import ConfigError, MessageError, WorkerLostError
from core.parallel.group import Group
from core.parallel.processes import (
    Place,
    Workers,
    cores_each,
    leave_meeting,
    open_meeting,
    ready_file,
)
from core.parallel.speed import examples_per_second
from core.parallel.team import LeaderTeam, WorkerSeat, agree
from core.plain_training import work_plainly
from core.site_config import ServiceSection
from privacy.dp_sgd_worker import work_privately

logger = logging.getLogger(__name__)

_START_SECONDS: Final = 180.0
_JOBS: Final = {"dp-sgd": work_privately, "plain": work_plainly}


@dataclass(frozen=True)
class CrewPlan:
    """What every process of a site must hold to; each has it from the site's own files."""

    size: int
    service: ServiceSection
    task_digest: str
    """Of the terms that are installed."""
    micro_batch_size: int
    """Of the timing, where shares are measured."""

    @property
    def threads(self) -> int:
        """Threads inside tensor operations of each process; 0 leaves it to torch."""
        if self.size == 1:
            return self.service.threads
        return self.service.threads or cores_each(self.size)

    def digest(self) -> str:
        """Differs where processes would not fit together."""
        return json_digest([self.size, self.task_digest, str(self.service.shares)])


class Crew:
    """A site's team, as its leader has it.

    Guarantees:
        ``team`` gives one whose processes were all there when they were last looked at, or
        raises: after a loss it starts new ones, where they are this process's to start.

    Args:
        plan: What the processes hold to.
        workshop: Where the leader's model is.
        begin: Starts the workers and says where to meet; gives no workers where others started
            them, who then can only come once.
    """

    def __init__(
        self, plan: CrewPlan, workshop: Workshop, begin: Callable[[], tuple[Path, Workers | None]]
    ) -> None:
        self._plan, self._workshop, self._begin = plan, workshop, begin
        self.threads = plan.threads
        self._team: LeaderTeam | None = None
        self._workers: Workers | None = None
        self._can_start = True
        self._lock = threading.Lock()

    def team(self) -> LeaderTeam:
        """The team, whole.

        Raises:
            WorkerLostError: A process is lost and cannot be started, or does not start.
        """
        with self._lock:
            if self._team is not None and self._team.whole:
                return self._team
            if self._team is not None:
                fate = self._team.kill()
                logger.warning("a process of the team was lost%s", fate)
                self._team = None
            if not self._can_start:
                raise WorkerLostError(
                    "expected all processes that torchrun started, got a team that lost one",
                    hint="restart torchrun; --max-restarts lets it do so itself",
                )
            self._team = self._start()
            return self._team

    def rest(self) -> None:
        """Lets the workers free their models."""
        if self._team is not None:
            self._team.rest()

    def close(self) -> None:
        """Ends the workers, who are between two rounds."""
        with self._lock:
            if self._team is not None:
                self._team.close()

    def kill(self) -> None:
        """Ends the workers' processes in the middle of whatever is going on."""
        if self._workers is not None:
            self._workers.end()

    def _start(self) -> LeaderTeam:
        if self.threads:
            torch.set_num_threads(self.threads)  # of this thread, for the timing
        meeting, workers = self._begin()
        self._workers, self._can_start = workers, workers is not None
        group: Group | None = None
        try:
            open_meeting(meeting)
            if workers is not None:
                workers.wait_until_ready(_START_SECONDS)
            group = _meet(self._plan, meeting, 0, self._workshop)
            shares = _shares(self._plan, group, self._workshop)
            leave_meeting(meeting)
            team = LeaderTeam(group, shares, workers)
        except BaseException:
            if workers is not None:
                workers.end()
            if group is not None:
                group.close()
            raise
        logger.info(
            "%d processes share each round, in proportion to %s",
            self._plan.size,
            ", ".join(f"{share:.3g}" for share in shares),
        )
        return team


def serve(plan: CrewPlan, place: Place, workshop: Workshop, data: TokenizedDataset) -> None:
    """A worker's life: meets the others and computes its part, until the leader lets it go.

    Guarantees:
        It opens no ledger, and what it computed goes to the leader and nowhere else.

    Args:
        plan: What the processes hold to.
        place: This one's.
        workshop: Holds its model.
        data: The site's records.

    Raises:
        CloisterError: Whatever ends it before it was let go; the leader loses it.
    """
    torch.manual_seed(place.rank)  # dropout: another stream in each process
    open_meeting(place.meeting)
    ready_file(place.meeting, place.rank).touch()
    group = _meet(plan, place.meeting, place.rank, workshop)
    _shares(plan, group, workshop)
    seat = WorkerSeat(group)
    try:
        while (job := seat.next_job(workshop.release)) is not None:
            if job.kind not in _JOBS:
                raise MessageError(f"expected a job of {', '.join(_JOBS)}, got {job.kind!r}")
            work = _JOBS[job.kind]
            on_device = OnDevice(data, workshop.device)
            work(workshop.own_model(), workshop.blueprint.task, on_device, job=job, seat=seat)
    finally:
        seat.close()


def _meet(plan: CrewPlan, meeting: Path, rank: int, workshop: Workshop) -> Group:
    group = Group(
        meeting,
        rank,
        plan.size,
        device=workshop.device,
        deadline_seconds=plan.service.worker_timeout_seconds,
    )
    agree(group, plan.digest())
    return group


def _shares(plan: CrewPlan, group: Group, workshop: Workshop) -> Sequence[float]:
    """Each process's part; where it is measured, a worker learns only its own."""
    given = plan.service.shares
    if given == "equal":
        return [1.0] * plan.size
    if given != "measured":
        return given
    speeds = torch.zeros(plan.size)
    speeds[group.rank] = examples_per_second(
        workshop.own_model(),
        workshop.blueprint.task,
        length=workshop.blueprint.config.max_seq_len,
        micro_batch_size=plan.micro_batch_size,
    )
    group.sum_to_leader([speeds])
    shares: list[float] = (speeds / speeds.sum()).tolist()
    return shares


def team_size(service: ServiceSection, place: Place | None) -> int:
    """How many processes a site has: as its file says, or as torchrun started.

    Raises:
        ConfigError: Both say something, and not the same; or there are other shares than processes.
    """
    size = service.processes if place is None else place.size
    if service.processes not in (1, size):
        raise ConfigError(
            f"expected {service.processes} processes, as service.processes says, got {size}",
            hint="let torchrun start as many, or leave service.processes away",
        )
    if service.shares not in ("equal", "measured") and len(service.shares) != size:
        raise ConfigError(
            f"expected a share for each of {size} processes, got {len(service.shares)}",
            hint="set service.processes, or change service.shares",
        )
    return size
