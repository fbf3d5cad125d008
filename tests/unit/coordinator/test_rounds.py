import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from coordinator.grids.in_process import InProcessGrid
from coordinator.rounds import RunPlan, run_rounds
from coordinator.run_directory import RunDirectory
from coordinator.state import RunState
from core.config_sections import MemberSection
from core.digests import arrays_digest
from core.errors import QuorumError, RunError
from core.messages import TrainTask
from core.run_record import RoundResult, read_record
from tests.support.lies import LIES
from tests.support.sites import (
    INITIAL,
    Sites,
    config_of,
    honest_update,
    plan_of,
    refusal_content,
)

THREE = {"north": 100, "south": 300, "west": 50}


def _run(plan: RunPlan, sites: Sites, folder: Path, *, workers: int = 2) -> RunState:
    with sites.grid(plan, workers=workers) as grid:
        return _on(grid, plan, folder)


def _on(grid: Grid, plan: RunPlan, folder: Path) -> RunState:
    opened = RunDirectory.open(
        folder, plan.config, task_digest=plan.terms.digest(), run_id="0123456789abcdef"
    )
    with opened as run:
        return run_rounds(plan, grid, run)


def _refuses(task: TrainTask, content: RecordDict) -> RecordDict:
    return refusal_content(task)


def _raises(task: TrainTask, content: RecordDict) -> RecordDict:
    raise ValueError("the text of a record")


@dataclass
class Heard:
    """Writes down what it hears."""

    events: list[str] = field(default_factory=list)

    def run_started(self, server_round: int, num_rounds: int) -> None:
        self.events.append(f"started {server_round}/{num_rounds}")

    def attempt_started(self, server_round: int, attempt: int, sites: Sequence[str]) -> None:
        self.events.append(f"attempt {server_round}.{attempt} of {len(sites)}")

    def round_finished(self, result: RoundResult) -> None:
        self.events.append(f"finished {result.server_round} {result.metrics}")

    def run_finished(self, summary: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        self.events.append(f"{summary['status']} {sorted(arrays)}")


def test_three_rounds_are_three_weighted_means(tmp_path: Path) -> None:
    state = _run(plan_of(config_of(THREE)), Sites(), tmp_path)

    expected: dict[str, Any] = dict(INITIAL)
    for server_round in (1, 2, 3):
        updates = {site: honest_update(expected, site, server_round) for site in THREE}
        expected = {
            name: sum(updates[site][name] * (size / 450) for site, size in THREE.items())
            for name in INITIAL
        }
    assert state.server_round == 3
    for name, array in expected.items():
        np.testing.assert_allclose(state.arrays[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_changes_no_bit(tmp_path: Path, workers: int) -> None:
    plan = plan_of(config_of({f"site-{n}": 50 + n for n in range(12)}))

    one = _run(plan, Sites(), tmp_path / "one", workers=1)
    more = _run(plan, Sites(), tmp_path / "more", workers=workers)

    assert arrays_digest(one.arrays) == arrays_digest(more.arrays)


def test_the_record_tells_budgets_digests_and_versions(tmp_path: Path) -> None:
    state = _run(plan_of(config_of(THREE)), Sites(), tmp_path)

    record = read_record(tmp_path)
    assert record.header["run_id"] == "0123456789abcdef"
    assert record.header["versions"]["flwr"]
    assert [line["server_round"] for line in record.rounds] == [0, 1, 2, 3]
    last = record.rounds[-1]
    assert last["used"] == ["north", "south", "west"]
    assert last["spent"]["north"]["epsilon"] == pytest.approx(0.3)
    assert last["weights_digest"] == arrays_digest(state.arrays)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["private"] is True
    assert summary["sites"]["south"]["rounds"] == 3


@pytest.mark.parametrize("lie", LIES)
def test_a_liar_is_dropped_by_name_and_the_run_goes_on(tmp_path: Path, lie: str) -> None:
    # A grid that says nothing of its arrays is taken for one with a wire: digests are verified.
    config = config_of(
        {"honest-1": 100, "honest-2": 200, "liar": 100},
        num_rounds=2,
        strategy={"max_update_norm": 50.0},
    )
    plan = plan_of(config)
    alone = plan_of(config_of({"honest-1": 100, "honest-2": 200}, num_rounds=2))
    with Sites(lies={"liar": LIES[lie][0]}).grid(plan) as grid:
        state = _on(WireGrid(grid), plan, tmp_path / "with")

    without = _run(alone, Sites(), tmp_path / "without")
    assert arrays_digest(state.arrays) == arrays_digest(without.arrays)
    for line in read_record(tmp_path / "with").rounds[1:]:
        (rejected,) = line["rejected"]
        assert (rejected["site"], rejected["code"]) == ("liar", "invalid-reply")
        assert line["used"] == ["honest-1", "honest-2"]
    summary = json.loads((tmp_path / "with" / "summary.json").read_text())
    assert summary["sites"]["liar"]["rejected"] == 2


class WireGrid(Grid):
    """An in-process grid that does not promise to pass arrays by reference, and may fail."""

    def __init__(self, grid: InProcessGrid, *, copies: int = 1) -> None:
        self._grid = grid
        self._copies = copies

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        return self._grid.run

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        return self._grid.create_message(*arguments, **named)

    def get_node_ids(self) -> Any:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Any) -> Any:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Any) -> Any:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        replies = list(self._grid.send_and_receive(messages, timeout=timeout))
        return [*replies, *replies[:1] * (self._copies - 1)]


def test_a_doubled_reply_drops_its_site_and_the_run_goes_on(tmp_path: Path) -> None:
    plan = plan_of(config_of(THREE, num_rounds=1))
    with Sites().grid(plan) as grid:
        _on(WireGrid(grid, copies=2), plan, tmp_path)

    (rejected,) = read_record(tmp_path).rounds[1]["rejected"]
    assert rejected["code"] == "duplicate-reply"
    assert len(read_record(tmp_path).rounds[1]["used"]) == 2


def test_a_refusal_is_recorded_with_its_reason_and_the_run_goes_on(tmp_path: Path) -> None:
    _run(plan_of(config_of(THREE)), Sites(lies={"west": _refuses}), tmp_path)

    for line in read_record(tmp_path).rounds[1:]:
        (refusal,) = line["refusals"]
        assert (refusal["site"], refusal["code"]) == ("west", "budget-exceeded")
        assert refusal["message"].startswith("expected epsilon of at most 8")
        assert line["used"] == ["north", "south"]


def test_a_client_that_raises_is_dropped_and_nothing_of_its_data_is_told(tmp_path: Path) -> None:
    _run(plan_of(config_of(THREE)), Sites(lies={"west": _raises}), tmp_path)

    text = (tmp_path / "record.jsonl").read_text()
    assert "the client failed: ValueError" in text
    assert "the text of a record" not in text


def test_a_late_site_is_dropped_by_name(tmp_path: Path) -> None:
    gate = threading.Event()

    def waits(task: TrainTask, content: RecordDict) -> RecordDict:
        gate.wait(20)
        return content

    plan = plan_of(config_of(THREE, num_rounds=1, strategy={"round_timeout_seconds": 0.3}))
    with Sites(lies={"south": waits}).grid(plan) as grid:
        _on(grid, plan, tmp_path)
        gate.set()

    (rejected,) = read_record(tmp_path).rounds[1]["rejected"]
    assert (rejected["site"], rejected["code"]) == ("south", "no-reply")


def test_a_round_below_quorum_asks_the_sites_that_were_left_out(tmp_path: Path) -> None:
    config = config_of(
        {f"site-{n}": 100 for n in range(6)},
        num_rounds=1,
        strategy={"fraction_train": 0.5, "min_train_nodes": 3},
    )
    first = Sites()
    _run(plan_of(config), first, tmp_path / "first")
    refused = first.asked[0][0]

    sites = Sites(lies={refused: _refuses})
    _run(plan_of(config), sites, tmp_path / "second")

    attempts = [attempt for _, _, attempt in sites.asked]
    assert sorted(attempts) == [1, 1, 1, 2]
    line = read_record(tmp_path / "second").rounds[1]
    assert line["attempts"] == 2
    assert len(line["used"]) == 3
    assert [refusal["site"] for refusal in line["refusals"]] == [refused]


def test_a_site_that_failed_is_asked_again_when_no_other_is_left(tmp_path: Path) -> None:
    failed = []

    def fails_once(task: TrainTask, content: RecordDict) -> RecordDict:
        if not failed:
            failed.append(task.attempt)
            raise ValueError
        return content

    sites = Sites(lies={"west": fails_once})
    plan = plan_of(config_of(THREE, num_rounds=1, strategy={"min_train_nodes": 3}))
    _run(plan, sites, tmp_path)

    # The two that answered are not asked, and do not pay, again.
    assert sorted(sites.asked) == [
        ("north", 1, 1),
        ("south", 1, 1),
        ("west", 1, 1),
        ("west", 1, 2),
    ]
    assert len(read_record(tmp_path).rounds[1]["used"]) == 3


def test_below_quorum_the_run_stops_with_names_and_can_go_on_later(tmp_path: Path) -> None:
    config = config_of(THREE, strategy={"min_train_nodes": 3})
    sites = Sites(lies={"west": _refuses})

    with pytest.raises(QuorumError) as caught:
        _run(plan_of(config), sites, tmp_path)

    assert caught.value.message == (
        "expected 3 usable replies in round 1, got 2: west refused (budget-exceeded)"
    )
    assert "the model of round 0 is kept" in caught.value.hint
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["server_round"]) == ("stopped", 0)
    assert summary["sites"]["west"]["refusals"] == 1
    assert "west refused" in summary["reason"]

    sites.lies.clear()
    state = _run(plan_of(config), sites, tmp_path)

    assert state.server_round == 3
    assert ("west", 1, 2) in sites.asked
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "completed"


def test_a_site_that_always_fails_is_asked_three_times_at_most(tmp_path: Path) -> None:
    sites = Sites(lies={"west": _raises})

    with pytest.raises(QuorumError, match=r"west was dropped \(client-error\)"):
        _run(plan_of(config_of(THREE, strategy={"min_train_nodes": 3})), sites, tmp_path)

    assert [attempt for site, _, attempt in sites.asked if site == "west"] == [1, 2, 3]


def test_too_few_sites_is_an_error_after_the_deadline_and_not_a_hang(tmp_path: Path) -> None:
    config = config_of(THREE, strategy={"min_available_nodes": 3, "round_timeout_seconds": 0.2})
    plan = plan_of(config)
    with (
        InProcessGrid(Sites().app(), {101: {}, 999: {}}, workers=1) as grid,
        pytest.raises(QuorumError) as caught,
    ):
        _on(grid, plan, tmp_path)

    assert caught.value.message == ("expected 3 sites within 0.2 seconds, got 1; away: south, west")
    assert "min_available_nodes" in caught.value.hint


def test_a_node_outside_the_roster_is_never_asked(tmp_path: Path) -> None:
    plan = plan_of(config_of(THREE, num_rounds=1))
    sites = Sites()
    nodes = {node: {} for node in [*plan.roster, 999]}
    with InProcessGrid(sites.app(), nodes, workers=2) as grid:
        _on(grid, plan, tmp_path)

    assert len(sites.asked) == 3


def test_listeners_hear_each_step(tmp_path: Path) -> None:
    heard = Heard()
    config = config_of(THREE, num_rounds=2, evaluation={"every": 2})
    plan = plan_of(config, events=heard, evaluator=lambda arrays: {"loss": float(len(arrays))})

    _run(plan, Sites(), tmp_path)

    assert heard.events == [
        "finished 0 {'loss': 3.0}",
        "started 0/2",
        "attempt 1.1 of 3",
        "finished 1 None",
        "attempt 2.1 of 3",
        "finished 2 {'loss': 3.0}",
        "completed ['head.bias', 'head.weight', 'scale']",
    ]


def test_the_last_round_is_evaluated_whatever_the_interval(tmp_path: Path) -> None:
    config = config_of(THREE, num_rounds=3, evaluation={"every": 2})

    _run(plan_of(config, evaluator=lambda arrays: {"loss": 1.0}), Sites(), tmp_path)

    evaluated = [line["metrics"] is not None for line in read_record(tmp_path).rounds]
    assert evaluated == [True, False, True, True]


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        ({}, "expected initial weights, got none"),
        ({"a": np.zeros(2)}, "expected finite fp32 initial weights, got others in a"),
        ({"a": np.float32([np.nan])}, "expected finite fp32 initial weights"),
    ],
)
def test_initial_weights_that_cannot_be_trained_are_refused(
    tmp_path: Path, initial: Any, message: str
) -> None:
    with pytest.raises(RunError, match=message):
        _run(plan_of(config_of(THREE), initial=initial), Sites(), tmp_path)


def test_a_roster_that_the_configuration_does_not_know_is_refused(tmp_path: Path) -> None:
    plan = plan_of(config_of(THREE))
    larger = MemberSection(name="north", num_examples=10**9)
    for roster, message in (
        ({101: larger}, "expected the roster's north as the configuration has it"),
        ({}, "expected a roster of one or more sites"),
        ({1: larger, 2: larger}, "with distinct names"),
    ):
        other = RunPlan(plan.config, plan.terms, plan.initial_arrays, roster)
        with pytest.raises(RunError, match=message):
            _run(other, Sites(), tmp_path)


@pytest.mark.parametrize("key", ["min_available_nodes", "min_train_nodes"])
def test_a_quorum_larger_than_the_roster_is_refused_at_once(tmp_path: Path, key: str) -> None:
    with pytest.raises(
        RunError, match="expected 4 sites or more for every round, got a roster of 3"
    ):
        _run(plan_of(config_of(THREE, strategy={key: 4})), Sites(), tmp_path)
