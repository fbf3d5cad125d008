"""One site's clipped sum under secure aggregation, computed by several processes."""

from collections.abc import Iterator

import numpy as np
import pytest

from core.parallel.team import SOLO, LeaderTeam, Team
from privacy.distributed import grid_of_order
from privacy.distributed_sum import clipped_sum
from tests.support.distributed import distributed_order
from tests.support.private_training import known_source, tiny_model
from tests.support.teams import start_team
from tests.support.tiny import TinyData, TinyTask


@pytest.fixture(scope="module")
def team() -> Iterator[LeaderTeam]:
    team, _ = start_team(shares=(0.3, 0.7))
    yield team
    team.close()


@pytest.mark.parametrize("count", [40, 1])
def test_several_processes_give_the_sum_of_one(team: LeaderTeam, count: int) -> None:
    order = distributed_order()
    grid = grid_of_order(order)

    def steps(team: Team) -> np.ndarray:
        result = clipped_sum(
            tiny_model(),
            TinyTask(),
            TinyData.make(count),
            order=order,
            randomness=known_source(),
            team=team,
        )
        values = result.noised(4)
        noise = np.zeros_like(values)
        grid.add_noise(noise, known_source().stream("noise"), cohort=4)
        return (values - noise).view(np.int32).astype(np.float64)

    alone, together = steps(SOLO), steps(team)
    assert np.linalg.norm(alone - together) <= 1e-6 * np.linalg.norm(alone)
    assert count == 1 or np.abs(alone).max() > 100
