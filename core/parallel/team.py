"""Who works on a step: one process alone, or the leader of several, and what it tells the others.

The leader alone has the sampler, the noise, the optimizer and the ledger. For each step it hands
out the weights and the records' indices; every process, the leader too, computes the sum over its
own part; the sums are added at the leader. A worker keeps nothing from one step to the next.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from core.errors import ConfigError, MessageError, WorkerLostError
from core.parallel.group import Group
from core.parallel.processes import Workers
from core.parallel.shares import check_shares, split
from core.train import TrainConfig

_JOB: Final = 1
_STEP: Final = 2
_END: Final = 3
_REST: Final = 4
_LEAVE: Final = 5


@dataclass(frozen=True)
class Job:
    """What a worker must know of a training beside the weights; all but one of it is public."""

    kind: str
    """``dp-sgd`` or ``plain``."""
    num_examples: int = field(repr=False)
    """Records of the site: every process must see the same. It stays in the site."""
    global_batch_size: int
    micro_batch_size: int
    autocast: str
    loss_scale: int
    gradient_mode: str = ""
    clip: float = 0.0
    """To this norm each example's gradient is clipped."""
    clipping: str = ""

    @classmethod
    def of(cls, kind: str, num_examples: int, config: TrainConfig, **clipping: Any) -> "Job":
        """The job of training by ``config``."""
        return cls(
            kind=kind,
            num_examples=num_examples,
            global_batch_size=config.global_batch_size,
            micro_batch_size=config.micro_batch_size,
            autocast=config.autocast,
            loss_scale=config.loss_scale,
            **clipping,
        )

    def train_config(self) -> TrainConfig:
        """What of the leader's configuration bears on sums; a worker's optimizer never steps."""
        return TrainConfig(
            steps_per_round=1,
            learning_rate=0.0,
            optimizer="sgd",
            global_batch_size=self.global_batch_size,
            micro_batch_size=self.micro_batch_size,
            autocast=self.autocast,  # type: ignore[arg-type]  # the leader's own
            loss_scale=self.loss_scale,
        )


class Team(Protocol):
    """The processes that compute a step's sum, as their leader sees them."""

    def session(self, job: Job) -> AbstractContextManager[None]:
        """One training. An error within it ends the workers too."""

    def deal(
        self, batches: Iterable[Sequence[int]], weights: Sequence[Tensor]
    ) -> Iterable[Sequence[int]]:
        """Hands each batch out when its turn comes, and gives the leader's own part of it.

        Args:
            batches: Indices of each step's records; a batch may be empty.
            weights: What is trained; read anew at every step.

        Returns:
            The leader's parts, one for each batch; a part may be empty.
        """

    def add_up(self, sums: Sequence[Tensor]) -> None:
        """Adds to the leader's sums of a step, in place, those of all workers."""

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""


class SoloTeam:
    """One process: every batch is its own, and every sum whole."""

    alone = True

    def session(self, job: Job) -> AbstractContextManager[None]:
        """Nobody is to be told."""
        return nullcontext()

    def deal(
        self, batches: Iterable[Sequence[int]], weights: Sequence[Tensor]
    ) -> Iterable[Sequence[int]]:
        """The batches."""
        return batches

    def add_up(self, sums: Sequence[Tensor]) -> None:
        """Nobody else has summed."""


SOLO: Final = SoloTeam()


class LeaderTeam:
    """Several processes, led by this one.

    Guarantees:
        Every worker takes part in every step, also where the step's batch or the worker's part of
        it is empty, and computes with the leader's weights, bit for bit. What a process that died
        or is silent for the group's deadline leaves to its leader is a WorkerLostError; after any
        error within a session the team is ended, the workers' processes with it.

    Args:
        group: Connects the processes; this one is its rank 0.
        shares: Each process's part of a batch, the leader's first; only ratios matter.
        workers: The processes that are this one's to end; ``None`` where torchrun started them.
    """

    alone = False

    def __init__(
        self, group: Group, shares: Sequence[float], workers: Workers | None = None
    ) -> None:
        check_shares(shares, group.size)
        self._group, self._shares, self._workers = group, shares, workers
        self._ended = False

    @property
    def whole(self) -> bool:
        """Whether it may work: it was not ended, and no worker is known to have died."""
        return not self._ended and (self._workers is None or not self._workers.any_ended())

    @contextmanager
    def session(self, job: Job) -> Iterator[None]:
        """One training: the workers begin with it, and wait for the next when it is over.

        Raises:
            WorkerLostError: A worker died or is silent.
        """
        try:
            document = json.dumps(asdict(job)).encode()
            self._tell(_JOB, [len(document)])
            self._group.broadcast([torch.frombuffer(bytearray(document), dtype=torch.uint8)])
            yield
            self._tell(_END)
        except WorkerLostError as lost:
            # One that hangs will not end, and one that closed its connection is about to.
            fate = self._end(leaving=0 if self._group.timed_out else 1)
            raise WorkerLostError(f"{lost.message}{fate}", hint=lost.hint) from lost
        except BaseException:
            self.kill()  # in the middle of a step, there is no other way to stop them
            raise

    def deal(
        self, batches: Iterable[Sequence[int]], weights: Sequence[Tensor]
    ) -> Iterator[Sequence[int]]:
        """Sends weights and indices to all; the indices in order, each process's in one piece."""
        for indices in batches:
            parts = split(len(indices), self._shares)
            self._tell(_STEP, parts)
            self._group.broadcast([torch.tensor(list(indices), dtype=torch.int64)])
            self._group.broadcast([weight.detach() for weight in weights])
            yield indices[: parts[0]]

    def add_up(self, sums: Sequence[Tensor]) -> None:
        """Adds the workers' sums, in fp32 and in an order that depends on their sizes alone."""
        self._group.sum_to_leader(sums)

    def rest(self) -> None:
        """Lets the workers free their models until the next session."""
        if self._ended:
            return
        try:
            self._tell(_REST)
        except WorkerLostError:
            self.kill()

    def close(self) -> str:
        """Lets the workers go, between two sessions; says how each ended."""
        if self._ended:
            return ""
        try:
            self._tell(_LEAVE)
        except WorkerLostError:
            return self.kill()
        return self._end(leaving=self._group.size - 1)

    def kill(self) -> str:
        """Ends the workers at once; says what had become of them."""
        return self._end(leaving=0)

    def _end(self, *, leaving: int) -> str:
        if self._ended:
            return ""
        self._ended = True
        # First, while it can still be seen who was lost.
        fate = "" if self._workers is None else self._workers.end(leaving=leaving)
        self._group.close()
        return fate

    def _tell(self, command: int, numbers: Sequence[int] = ()) -> None:
        if self._ended:
            raise WorkerLostError("expected a team at work, got one that was ended")
        padding = [0] * (self._group.size - len(numbers))
        self._group.broadcast([torch.tensor([command, *numbers, *padding], dtype=torch.int64)])


class WorkerSeat:
    """A worker's end: what the leader asks for."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def next_job(self, rest: Callable[[], None]) -> Job | None:
        """Waits, however long, for the next training.

        Args:
            rest: Called when the model may be freed.

        Returns:
            The job; ``None`` when the worker is to leave.

        Raises:
            WorkerLostError: The leader is gone.
        """
        while True:
            command, numbers = self._hear(patient=True)
            if command == _JOB:
                document = torch.empty(numbers[0], dtype=torch.uint8)
                self._group.broadcast([document])
                return _job(document.numpy().tobytes())
            if command == _LEAVE:
                return None
            if command != _REST:
                raise MessageError(f"expected a job or the end, got command {command}")
            rest()

    def deal(self, weights: Sequence[Tensor]) -> Iterator[Sequence[int]]:
        """This worker's part of each batch, until the training is over.

        Args:
            weights: What is trained; set to the leader's before each part is given.
        """
        while True:
            command, parts = self._hear(patient=False)
            if command == _END:
                return
            if command != _STEP:
                raise MessageError(f"expected a step or the end, got command {command}")
            indices = torch.empty(sum(parts), dtype=torch.int64)
            self._group.broadcast([indices])
            self._group.broadcast([weight.detach() for weight in weights])
            start = sum(parts[: self._group.rank])
            yield indices[start : start + parts[self._group.rank]].tolist()

    def add_up(self, sums: Sequence[Tensor]) -> None:
        """Gives this worker's sums of a step; what stands in them afterwards means nothing."""
        self._group.sum_to_leader(sums)

    def close(self) -> None:
        """Leaves the group."""
        self._group.close()

    def _hear(self, *, patient: bool) -> tuple[int, list[int]]:
        header = torch.empty(1 + self._group.size, dtype=torch.int64)
        self._group.broadcast([header], patient=patient)
        command, *numbers = header.tolist()
        return command, numbers


def _job(document: bytes) -> Job:
    try:
        return Job(**json.loads(document))
    except (ValueError, TypeError) as error:
        raise MessageError("expected a job of this version, got another document") from error


def agree(group: Group, terms: str) -> None:
    """Compares what a process is about with the leader's; both call it first of all.

    Raises:
        ConfigError: It is something else: another configuration, model or version.
    """
    mine = torch.frombuffer(bytearray(bytes.fromhex(terms)), dtype=torch.uint8)
    leader_s = mine.clone()
    group.broadcast([leader_s])
    if not torch.equal(mine, leader_s):
        raise ConfigError(
            "expected the leader's task, got another from the files that are installed here",
            hint="restart the client after a change of its files",
        )
