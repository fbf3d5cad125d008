"""A worker on the tiny model and tiny data, in a process of its own; it may fail where it is told.

python tests/support/team_worker.py '{"fault": "die", "at": 3}'
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from core.errors import WorkerLostError
from core.parallel.group import Group
from core.parallel.processes import place_of, ready_file
from core.parallel.team import WorkerSeat, agree
from core.plain_training import work_plainly
from core.tasks.interface import Batch
from privacy.dp_sgd_worker import work_privately
from tests.support.private_training import tiny_model
from tests.support.tiny import TinyData, TinyTask

TERMS: Final = "ab" * 32
CPU: Final = torch.device("cpu")
LEADER_IS_GONE: Final = 7


@dataclass
class FaultyData:
    """Tiny data; something happens when a batch is fetched for the ``at``-th time."""

    data: TinyData
    fault: str
    at: int
    fetched: int = 0

    def __len__(self) -> int:
        return len(self.data)

    def fetch(self, indices: Sequence[int]) -> Batch:
        """The examples, or the fault."""
        self.fetched += 1
        if self.fetched == self.at and self.fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fetched == self.at and self.fault == "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.fetched == self.at and self.fault == "fail":
            raise OSError("the disk is gone")
        return self.data.fetch(indices)


def main(options: dict[str, object]) -> None:
    """Works until it is let go."""
    place = place_of(os.environ, Path())
    assert place is not None
    if options.get("fault") == "never":
        raise SystemExit(3)
    torch.set_num_threads(1)
    ready_file(place.meeting, place.rank).touch()
    group = Group(place.meeting, place.rank, place.size, device=CPU, deadline_seconds=20)
    agree(group, str(options.get("terms", TERMS)))
    seat = WorkerSeat(group)
    try:
        while (job := seat.next_job(lambda: None)) is not None:
            count = job.num_examples + int(str(options.get("more_records", 0)))
            fault, at = str(options.get("fault")), int(str(options["at"]))
            data = FaultyData(TinyData.make(count), fault, at)
            model = tiny_model(seed=99, tied=bool(options.get("tied")))  # not the leader's weights
            work = {"dp-sgd": work_privately, "plain": work_plainly}[job.kind]
            work(model, TinyTask(), data, job=job, seat=seat)
    finally:
        seat.close()


if __name__ == "__main__":
    try:
        main({"at": 0} | json.loads(sys.argv[1]))
    except WorkerLostError:
        sys.exit(LEADER_IS_GONE)
