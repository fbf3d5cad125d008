"""What the leader of a team sends and what arrives: two ranks, on two threads."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.errors import ConfigError, MessageError, TrainingError, WorkerLostError
from core.parallel.group import Group
from core.parallel.team import Job, LeaderTeam, WorkerSeat, agree
from tests.support.team_worker import CPU, TERMS
from tests.support.tiny import train_config

JOB = Job.of("plain", 3, train_config())


@pytest.fixture
def groups(tmp_path: Path) -> Iterator[list[Group]]:
    yield from join(tmp_path, 2)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[Group]]:
    yield from join(tmp_path, 3)


def join(folder: Path, size: int) -> Iterator[list[Group]]:
    """So many ranks; closed at the end."""

    def one(rank: int) -> Group:
        return Group(folder / "meeting", rank, size, device=CPU, deadline_seconds=2)

    groups = both([partial(one, rank) for rank in range(size)])
    yield groups
    for group in groups:
        group.close()


def both(actions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Runs them side by side; their results, or what the first raised."""
    with ThreadPoolExecutor(len(actions)) as threads:
        return [done.result(20) for done in [threads.submit(action) for action in actions]]


def listening() -> list[str]:
    """Where this process listens, as the kernel writes addresses."""
    own = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if is_open(fd)}
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]
    ]
    return [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own]


def is_open(fd: str) -> bool:
    """Whether a file of the listing is still there; the listing's own is not."""
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_a_group_listens_on_the_loopback_interface_alone(tmp_path: Path) -> None:
    before = set(listening())
    for _ in join(tmp_path, 2):
        new = set(listening()) - before
        assert new
        assert all(address.startswith("0100007F:") for address in new)  # 127.0.0.1


def test_sums_of_three_are_the_same_bits_every_time(three: list[Group]) -> None:
    def summed(group: Group, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        tensors = [torch.randn(10_007, generator=generator), torch.randn(3, generator=generator)]
        group.sum_to_leader(tensors)
        return torch.cat(tensors)

    results = [both([partial(summed, group, group.rank) for group in three])[0] for _ in range(5)]
    assert all(torch.equal(one, results[0]) for one in results)
    exact = sum(
        torch.cat([torch.randn(10_007, generator=g), torch.randn(3, generator=g)]).double()
        for g in [torch.Generator().manual_seed(seed) for seed in range(3)]
    )
    assert torch.allclose(results[0].double(), exact, atol=1e-6)  # type: ignore[arg-type]


def test_weights_arrive_bit_for_bit_and_sums_add_up(groups: list[Group]) -> None:
    generator = torch.Generator().manual_seed(1)
    large = torch.randn(2**23 + 5, generator=generator)  # a bucket of its own
    weights = [torch.randn(3, 4, generator=generator).T, torch.randn(7, generator=generator), large]
    weights[1][0], weights[1][1] = float("nan"), -0.0
    theirs = [torch.zeros(4, 3), torch.zeros(7), torch.zeros(2**23 + 5)]
    batches = [[5, 6, 7], [], [9]]
    seen: list[list[int]] = []
    sums: list[Tensor] = []

    def lead() -> None:
        team = LeaderTeam(groups[0], (1, 2))
        with team.session(JOB):
            for part in team.deal(batches, weights):
                seen.append(list(part))
                mine = [torch.full((2, 2), 1.0), torch.full((3,), 2.0)]
                team.add_up(mine)
                sums.extend(mine)
        team.rest()
        team.close()

    rested: list[bool] = []

    def work() -> None:
        seat = WorkerSeat(groups[1])
        assert seat.next_job(lambda: None) == JOB
        for part in seat.deal(theirs):
            seen.append(list(part))
            for left, right in zip(theirs, weights, strict=True):
                assert torch.equal(left.view(torch.int32), right.contiguous().view(torch.int32))
            seat.add_up([torch.full((2, 2), 10.0), torch.full((3,), 20.0)])
        assert seat.next_job(lambda: rested.append(True)) is None

    both([lead, work])
    assert sorted(seen) == [[], [], [], [5], [6, 7], [9]]
    assert [one.unique().tolist() for one in sums] == [[11], [22]] * 3
    assert rested == [True]


def test_a_silent_worker_is_noticed_in_time(groups: list[Group]) -> None:
    with pytest.raises(WorkerLostError, match="silent for 2 s"):
        groups[0].sum_to_leader([torch.ones(3)])


def test_a_leader_that_goes_in_the_middle_of_a_step_is_noticed(groups: list[Group]) -> None:
    def lead() -> None:
        team = LeaderTeam(groups[0], (1, 1))
        with team.session(JOB):
            next(team.deal([[1, 2]], [torch.zeros(2)]))
            raise MessageError("stop")

    def work() -> None:
        seat = WorkerSeat(groups[1])
        seat.next_job(lambda: None)
        next(seat.deal([torch.zeros(2)]))
        with pytest.raises(WorkerLostError):
            seat.add_up([torch.zeros(2)])
        gone.append(True)

    gone: list[bool] = []
    with pytest.raises(MessageError, match="stop"):
        both([lead, work])
    assert gone == [True]


def test_processes_with_other_terms_do_not_work_together(groups: list[Group]) -> None:
    with pytest.raises(ConfigError, match="expected the leader's task"):
        both([lambda: agree(groups[0], TERMS), lambda: agree(groups[1], "00" * 32)])


def test_sums_in_another_precision_are_refused(groups: list[Group]) -> None:
    with pytest.raises(TrainingError, match="fp32"):
        groups[0].sum_to_leader([torch.ones(3, dtype=torch.bfloat16)])


def test_a_closed_group_says_so(groups: list[Group]) -> None:
    groups[0].close()
    with pytest.raises(WorkerLostError, match="closed"):
        groups[0].broadcast([torch.ones(3)])
