"""Several processes that share each step: the result of one, and what happens when one is lost."""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from core.errors import TrainingError, WorkerLostError
from core.parallel.processes import Workers
from core.parallel.team import SOLO, LeaderTeam, Team
from core.plain_training import train_plainly
from privacy.dp_sgd import train_privately
from tests.support.private_training import flat, known_source, plan_of, tiny_model
from tests.support.team_worker import LEADER_IS_GONE
from tests.support.teams import Recorded, distance, start_team
from tests.support.tiny import TinyData, TinyTask, train_config

TOLERANCE = 1e-6
Start = Callable[..., tuple[LeaderTeam, Workers]]


@pytest.fixture(scope="module")
def pair() -> Iterator[LeaderTeam]:
    team, _ = start_team()
    yield team
    team.close()


@pytest.fixture(scope="module")
def uneven() -> Iterator[LeaderTeam]:
    team, _ = start_team(shares=(0.2, 0.5, 0.3))
    yield team
    team.close()


@pytest.fixture(scope="module")
def tied_pair() -> Iterator[LeaderTeam]:
    team, _ = start_team(tied=True)
    yield team
    team.close()


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[LeaderTeam] = []

    def start(**options: Any) -> tuple[LeaderTeam, Workers]:
        team, workers = start_team(**options)
        started.append(team)
        return team, workers

    yield start
    for team in started:
        team.kill()


def trained(
    team: Team, *, records: int = 60, tied: bool = False, config: Any = None, **plan: Any
) -> tuple[Tensor, Recorded, list[int]]:
    """Final weights, what went through the team, and the steps that were counted."""
    model, recorded, executed = tiny_model(tied=tied), Recorded(team), list[int]()
    plan_ = plan_of(**plan)
    train_privately(
        model,
        TinyTask(),
        TinyData.make(records),
        plan=plan_,
        config=config or train_config(),
        source=known_source(),
        first_step=0,
        total_steps=plan_.steps,
        executed=executed.append,
        team=recorded,
    )
    assert all(p.grad is None and not hasattr(p, "summed_grad") for p in model.parameters())
    return flat(model), recorded, executed


def check_equal(team: Team, **training: Any) -> Recorded:
    """The same training alone and with ``team``: equal sums, weights and counts."""
    alone, one, counted_alone = trained(SOLO, **training)
    together, many, counted = trained(team, **training)
    assert one.batches == many.batches
    assert len(one.sums) == len(many.sums) == len(one.batches)
    for left, right in zip(many.sums, one.sums, strict=True):
        if float(right.norm()) == 0:
            assert torch.equal(left, right)
        else:
            assert distance(left, right) < TOLERANCE
    assert distance(together, alone) < TOLERANCE
    assert counted == counted_alone == [len(one.batches)]
    return many


@pytest.mark.parametrize("mode", ["hooks", "ghost", "one_backward"])
def test_two_processes_give_the_clipped_sums_and_weights_of_one(
    pair: LeaderTeam, mode: str
) -> None:
    seen = check_equal(pair, gradient_mode=mode)
    assert 0 < sum(seen.parts) < sum(seen.batches)


@pytest.mark.parametrize("mode", ["hooks", "one_backward"])
def test_two_processes_give_the_clipped_sums_of_tied_weights(
    tied_pair: LeaderTeam, mode: str
) -> None:
    check_equal(tied_pair, gradient_mode=mode, tied=True)


@pytest.mark.parametrize("mode", ["hooks", "ghost", "one_backward"])
def test_uneven_shares_change_nothing(uneven: LeaderTeam, mode: str) -> None:
    seen = check_equal(uneven, gradient_mode=mode)
    assert sum(seen.parts) < 0.3 * sum(seen.batches)


@pytest.mark.parametrize("clipping", ["per_layer", "automatic"])
def test_every_rule_of_clipping_reaches_the_workers(pair: LeaderTeam, clipping: str) -> None:
    check_equal(pair, gradient_mode="one_backward", clipping=clipping)


def test_mixed_precision_with_a_loss_scale_reaches_the_workers(pair: LeaderTeam) -> None:
    config = train_config(autocast="bf16", micro_batch_size=1)  # products round alike
    check_equal(pair, gradient_mode="one_backward", config=config)


@pytest.mark.parametrize("mode", ["hooks", "ghost", "one_backward"])
def test_a_batch_that_is_empty_for_some_or_for_all_is_noised_once_and_counted(
    uneven: LeaderTeam, mode: str
) -> None:
    seen = check_equal(uneven, gradient_mode=mode, records=20, sample_rate=0.07, steps=16)
    assert 0 in seen.batches  # for all
    assert any(part == 0 < batch for part, batch in zip(seen.parts, seen.batches, strict=True))
    assert 1 in seen.batches  # of three processes two had none


def test_the_workers_parts_are_needed(uneven: LeaderTeam) -> None:
    _, alone, _ = trained(SOLO, steps=1)
    _, many, _ = trained(uneven, steps=1)
    assert distance(many.sums[0], 0.9 * alone.sums[0]) > 1000 * TOLERANCE


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_two_processes_without_privacy_train_as_one(pair: LeaderTeam, optimizer: str) -> None:
    plain_check(pair, optimizer=optimizer, weight_decay=0.1, max_update_norm=0.3)


def test_a_process_without_an_example_takes_part_in_training_without_privacy(
    uneven: LeaderTeam,
) -> None:
    seen = plain_check(uneven, global_batch_size=2)
    assert set(seen.parts) == {0}


def plain_check(team: Team, **changes: Any) -> Recorded:
    config = train_config(**changes)
    results, seen = [], Recorded(team)
    for one in (SOLO, seen):
        model = tiny_model()
        steps = train_plainly(
            model,
            TinyTask(),
            TinyData.make(20),
            config=config,
            seed=[1],
            first_step=0,
            total_steps=4,
            proximal_mu=0.1,
            team=one,
        )
        assert steps == 4
        results.append(flat(model))
    assert distance(results[1], results[0]) < TOLERANCE
    assert distance(results[1], flat(tiny_model())) > 1000 * TOLERANCE
    return seen


def test_a_killed_worker_ends_the_training_by_name_and_the_next_team_works(start: Start) -> None:
    team, workers = start(fault="die", at=3, deadline_seconds=120)
    pids = [process.pid for process in workers._processes]
    began, executed, model = time.monotonic(), list[int](), tiny_model()
    plan = plan_of(steps=8)
    with pytest.raises(WorkerLostError, match="worker 1 was ended by signal 9") as lost:
        train_privately(
            model,
            TinyTask(),
            TinyData.make(60),
            plan=plan,
            config=train_config(),
            source=known_source(),
            first_step=0,
            total_steps=8,
            executed=executed.append,
            team=team,
        )
    assert lost.value.code == "worker-lost"
    assert time.monotonic() - began < 60  # at once, on a busy machine too
    assert 0 <= executed[0] < 8
    assert all(p.grad is None and not hasattr(p, "summed_grad") for p in model.parameters())
    assert not any(exists(pid) for pid in pids)
    assert not workers.meeting.parent.exists()
    assert not team.whole
    with pytest.raises(WorkerLostError, match="that was ended"):
        trained(team)
    check_equal(start()[0])


def test_a_worker_that_hangs_hits_the_deadline(start: Start) -> None:
    team, workers = start(fault="hang", at=1, deadline_seconds=1)
    pids = [process.pid for process in workers._processes]
    began = time.monotonic()
    with pytest.raises(WorkerLostError, match="silent for 1 s.*worker 1 was still running"):
        trained(team)
    assert time.monotonic() - began < 20
    assert not any(exists(pid) for pid in pids)


def test_a_worker_that_fails_tells_the_leader_by_leaving(start: Start) -> None:
    team, _ = start(fault="fail", at=1)
    with pytest.raises(WorkerLostError, match="had ended with code 1"):
        trained(team)


def test_a_worker_that_sees_other_records_is_lost(start: Start) -> None:
    team, _ = start(more_records=1)
    with pytest.raises(WorkerLostError, match="had ended with code 1"):
        trained(team)


def test_a_worker_checks_the_clipping_itself(start: Start) -> None:
    team, _ = start(tied=True)  # and the leader's model is not
    with pytest.raises(WorkerLostError, match="had ended with code 1"):
        trained(team, gradient_mode="ghost")


def test_a_worker_that_was_killed_between_two_rounds_is_noticed(start: Start) -> None:
    team, workers = start()
    assert team.whole
    workers._processes[0].kill()
    workers._processes[0].wait()
    assert not team.whole


def test_a_leader_s_own_error_ends_its_workers(start: Start) -> None:
    team, workers = start()

    class NoSum(Recorded):
        def add_up(self, sums: Any) -> None:
            raise TrainingError("something else")

    with pytest.raises(TrainingError, match="something else"):
        trained(NoSum(team))
    assert not any(exists(process.pid) for process in workers._processes)


def test_workers_end_when_their_leader_is_gone(start: Start) -> None:
    team, workers = start()
    team._group.close()  # as the kernel does for a leader that was killed
    assert [process.wait(10) for process in workers._processes] == [LEADER_IS_GONE]


def test_workers_that_are_let_go_end_by_themselves(start: Start) -> None:
    team, _ = start(shares=(1, 1, 1))
    assert team.close() == "; worker 1 had ended with code 0; worker 2 had ended with code 0"
    assert team.close() == ""


def test_a_worker_that_does_not_start_is_named() -> None:
    with pytest.raises(WorkerLostError, match="worker 1 had ended with code 3"):
        start_team(fault="never")


def test_a_process_with_other_terms_leaves(start: Start) -> None:
    team, _ = start(terms="cd" * 32)
    with pytest.raises(WorkerLostError, match="had ended with code 1"):
        trained(team)


def exists(pid: int) -> bool:
    """Whether a process has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
