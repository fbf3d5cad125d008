"""Teams of real processes on tiny models, and what went through them."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from core.parallel.group import Group
from core.parallel.processes import Workers
from core.parallel.team import Job, LeaderTeam, Team, agree
from tests.support.command import ROOT
from tests.support.team_worker import CPU, TERMS

SCRIPT = ROOT / "tests/support/team_worker.py"


def start_team(
    *, shares: Sequence[float] = (1, 1), deadline_seconds: float = 20, **options: Any
) -> tuple[LeaderTeam, Workers]:
    """As many processes as there are shares, this one the first; ``options`` go to the script."""
    command = ["env", f"PYTHONPATH={ROOT}", sys.executable, str(SCRIPT), json.dumps(options)]
    workers = Workers(command, len(shares), threads=1)
    workers.wait_until_ready(60)
    group = Group(workers.meeting, 0, len(shares), device=CPU, deadline_seconds=deadline_seconds)
    agree(group, TERMS)
    return LeaderTeam(group, shares, workers), workers


@dataclass
class Recorded:
    """A team that notes each step: the batch, the leader's part of it, and the whole sum."""

    team: Team
    batches: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)

    @property
    def alone(self) -> bool:
        """As the team."""
        return self.team.alone

    def session(self, job: Job) -> AbstractContextManager[None]:
        """The team's."""
        return self.team.session(job)

    def deal(
        self, batches: Iterable[Sequence[int]], weights: Sequence[Tensor]
    ) -> Iterator[Sequence[int]]:
        """The team's, noted."""
        for part in self.team.deal(self._noted(batches), weights):
            self.parts.append(len(part))
            yield part

    def _noted(self, batches: Iterable[Sequence[int]]) -> Iterator[Sequence[int]]:
        for batch in batches:
            self.batches.append(len(batch))
            yield batch

    def add_up(self, sums: Sequence[Tensor]) -> None:
        """The team's, noted."""
        self.team.add_up(sums)
        self.sums.append(torch.cat([one.double().reshape(-1) for one in sums]))


def distance(left: Tensor, right: Tensor) -> float:
    """Relative, in L2."""
    return float((left.double() - right.double()).norm() / right.double().norm())
