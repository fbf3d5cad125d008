from collections.abc import Callable

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from coordinator.flower_engine import find_sites
from coordinator.grids.in_process import InProcessGrid
from core.errors import QuorumError, RunError


def grid_of(answers: dict[int, Callable[[], ConfigRecord]]) -> InProcessGrid:
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(RecordDict({"node": answers[context.node_id]()}), reply_to=message)

    return InProcessGrid(app, {node: {} for node in answers}, workers=1)


def find(answers: dict[int, ConfigRecord], *names: str) -> dict[str, int]:
    with grid_of({node: lambda record=record: record for node, record in answers.items()}) as grid:  # type: ignore[misc]
        return find_sites(grid, names, timeout_seconds=30, nodes_seconds=0.3)


def plays(name: str) -> ConfigRecord:
    return ConfigRecord({"site": name})


def test_the_nodes_are_found_by_their_sites_and_others_are_left_out() -> None:
    answers = {11: plays("south"), 12: plays(""), 13: plays("north"), 14: plays("stranger")}
    assert find(answers, "north", "south") == {"north": 13, "south": 11}


def test_too_few_nodes() -> None:
    with pytest.raises(QuorumError, match="expected 2 nodes within 0.3 seconds, got 1") as raised:
        find({1: plays("north")}, "north", "south")
    assert raised.value.hint == "flwr run --federation-config 'num-supernodes=2'"


def test_a_site_that_no_node_plays_is_named() -> None:
    with pytest.raises(QuorumError, match="a node for each of 2 sites .* got none for south"):
        find({1: plays("north"), 2: plays("")}, "north", "south")


def test_two_nodes_that_play_one_site() -> None:
    with pytest.raises(RunError, match="expected one node for each site, got 1 and 2: north"):
        find({1: plays("north"), 2: plays("north")}, "north")


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        (ConfigRecord({"error": "data"}), "'data'"),
        (ConfigRecord({"site": 3}), "None"),
        (ConfigRecord({"error": "\x1b[31m" + "x" * 500}), r"'\\x1b\[31mxxx"),
    ],
)
def test_a_node_that_cannot_open_its_site(record: ConfigRecord, shown: str) -> None:
    with pytest.raises(
        RunError, match=f"expected the name of node 1's site, got {shown}"
    ) as raised:
        find({1: record}, "north")
    assert len(raised.value.message) < 120


def test_a_node_whose_app_fails() -> None:
    def broken() -> ConfigRecord:
        raise ValueError

    with grid_of({1: broken}) as grid, pytest.raises(RunError, match="got 'client-error'"):
        find_sites(grid, ["north"], timeout_seconds=30)
