"""The queue of runs and the thread that works through it."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import coordinator.service.runs as module
from coordinator.run_directory import RunDirectory
from coordinator.service.export import export_run
from coordinator.service.monitoring import Metrics
from coordinator.service.run_queue import RunQueue
from coordinator.service.runs import RunWorker, check_sizes
from core.blueprint import make_blueprint
from core.config import FederationConfig
from core.errors import CheckpointError, RunError, ServiceError
from core.model_folder import load_model
from core.parameters import to_arrays
from core.run_record import read_record
from core.wire.documents import RosterMember, RunStatus, SignedRoster
from tests.support.office import Office, make_folder
from tests.support.service_grid import ServiceGrid
from tests.support.sites import Sites, config_of

SITES = {"north": 40, "south": 40}


def tiny_config(**sections: Any) -> FederationConfig:
    """Two sites, two rounds, no privacy to calibrate; ``sections`` replace whole sections."""
    shape = {"vocab_size": 300, "max_seq_len": 4, "n_layer": 1, "n_head": 1, "n_embd": 4}
    return config_of(SITES, 2, **({"model": shape} | sections))


class Bench:
    """A worker on a fresh folder, with honest sites."""

    def __init__(self, office: Office) -> None:
        self.office = office
        self.queue = RunQueue(office.store)
        self.sites = Sites(initial=to_arrays(make_blueprint(tiny_config()).build()))
        self.grid = ServiceGrid(self.sites, sorted(SITES))
        self.metrics = Metrics()
        self.roster: Callable[[], SignedRoster | None] = lambda: None
        self.reconnect_seconds = 0.0
        self.worker = self.new_worker()

    def new_worker(self) -> RunWorker:
        """As after a start of the service."""
        return RunWorker(
            self.queue,
            self.grid,
            folder=self.office.folder,
            seal=self.office.vault,
            roster=lambda: self.roster(),
            metrics=self.metrics,
            reconnect_seconds=self.reconnect_seconds,
        )

    def wait(self, run_id: str, *states: str) -> RunStatus:
        """Where a run stands, as soon as it is in one of ``states``."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            status = self.queue.get(run_id).status
            if status.state in states and self.worker.current != run_id:
                return status
            time.sleep(0.01)
        raise AssertionError(f"run {run_id} is {status.state}: {status.reason}")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    office = Office(make_folder(tmp_path / "coordinator"))
    bench = Bench(office)
    yield bench
    bench.worker.close("the test is over")
    bench.grid.close()
    office.store.close()


def test_runs_are_worked_on_one_after_another(bench: Bench) -> None:
    first, second = bench.queue.add(tiny_config()), bench.queue.add(tiny_config())
    bench.worker.start()
    done = [bench.wait(run_id, "finished", "failed") for run_id in (first, second)]
    assert [status.state for status in done] == ["finished", "finished"]
    assert [status.server_round for status in done] == [2, 2]
    assert bench.grid.begun == [{1: "north", 2: "south"}] * 2
    assert bench.grid.numbers == [1, 2]
    assert bench.grid.ended == 2
    record = read_record(bench.office.folder.run(second))
    assert record.header["run_id"] == second
    assert record.rounds[-1]["weights_digest"] == done[1].weights_digest


def test_sites_hear_of_each_round_that_is_on_the_disk(bench: Bench) -> None:
    run_id = bench.queue.add(tiny_config())
    bench.worker.start()
    bench.wait(run_id, "finished")
    assert bench.grid.settled == [(("north", "south"), run_id, n) for n in (1, 2)]


def test_a_run_that_was_cut_short_goes_on_at_the_next_start(bench: Bench) -> None:
    bench.grid.away = {1, 2}
    run_id = bench.queue.add(tiny_config())
    bench.worker.start()
    assert bench.grid.waiting.wait(60)
    bench.worker.close("the service stops")
    assert bench.queue.get(run_id).status.state == "running"
    later = bench.queue.add(tiny_config())

    bench.grid.away = set()
    bench.worker = bench.new_worker()
    bench.worker.start()
    assert bench.wait(run_id, "finished").server_round == 2
    bench.wait(later, "finished")
    kinds = [line["kind"] for line in read_record(bench.office.folder.run(run_id)).lines]
    assert kinds.count("resumed") == 1


def test_a_finished_run_whose_end_was_not_noted_ends_again(bench: Bench) -> None:
    run_id = bench.queue.add(tiny_config())
    bench.worker.start()
    digest = bench.wait(run_id, "finished").weights_digest
    bench.worker.close("a crash")
    bench.queue.move(run_id, "running")
    asked = len(bench.sites.asked)
    bench.grid.settled.clear()
    bench.worker = bench.new_worker()
    bench.worker.start()
    assert bench.wait(run_id, "finished").weights_digest == digest
    assert len(bench.sites.asked) == asked
    assert bench.grid.settled == [(("north", "south"), run_id, 2)]


def test_after_a_start_a_run_waits_for_all_sites_of_the_roster(bench: Bench) -> None:
    for site in SITES:
        bench.office.enrol(site)
    bench.roster = bench.office.reception.roster
    bench.reconnect_seconds = 60.0
    bench.grid.away = {2}
    run_id = bench.queue.add(tiny_config())
    bench.worker = bench.new_worker()
    bench.worker.start()
    deadline = time.monotonic() + 60
    while bench.grid.looked < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert bench.sites.asked == []
    bench.grid.away = set()
    bench.wait(run_id, "finished")
    assert {site for site, server_round, _ in bench.sites.asked if server_round == 1} == set(SITES)


def test_a_site_that_stays_away_is_waited_for_once(bench: Bench) -> None:
    for site in SITES:
        bench.office.enrol(site)
    bench.roster = bench.office.reception.roster
    bench.grid.away = {2}
    run_id = bench.queue.add(tiny_config())
    bench.worker.start()
    bench.wait(run_id, "finished")
    assert {site for site, _, _ in bench.sites.asked} == {"north"}


def test_a_run_without_a_quorum_is_stopped_and_the_next_one_runs(bench: Bench) -> None:
    strategy = {"min_train_nodes": 2, "round_timeout_seconds": 0.2}
    bench.grid.away = {2}
    alone = bench.queue.add(tiny_config(strategy=strategy))
    after = bench.queue.add(tiny_config())
    bench.worker.start()
    stopped = bench.wait(alone, "stopped", "failed")
    assert stopped.state == "stopped"
    assert "expected 2 sites within 0.2 seconds, got 1; away: south" in stopped.reason
    assert bench.wait(after, "finished").state == "finished"

    bench.grid.away = set()
    bench.queue.resume(alone)
    bench.worker.wake()
    assert bench.wait(alone, "finished").server_round == 2


def test_the_run_in_progress_is_stopped_for_good(bench: Bench) -> None:
    bench.grid.away = {1, 2}
    run_id = bench.queue.add(tiny_config())
    bench.worker.start()
    assert bench.grid.waiting.wait(60)
    assert bench.worker.stop_run("", "stopped by ann") == run_id
    assert bench.wait(run_id, "stopped").reason == "stopped by ann"


def test_a_queued_run_is_stopped_before_it_begins(bench: Bench) -> None:
    run_id = bench.queue.add(tiny_config())
    bench.worker.stop_run(run_id, "stopped by ann")
    assert bench.queue.next() is None
    with pytest.raises(ServiceError, match="expected a run that has not ended, got one that is st"):
        bench.worker.stop_run(run_id, "again")
    with pytest.raises(ServiceError, match="expected a run in progress, got none"):
        bench.worker.stop_run("", "none")
    with pytest.raises(ServiceError, match="expected the id of a run, got '00"):
        bench.worker.stop_run("0" * 16, "unknown")


def test_a_run_that_is_stopped_between_its_steps_ends(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption before ``begin_run``, which forgets it, is not lost."""
    building, go_on = threading.Event(), threading.Event()
    real = module.make_blueprint

    def slow(config: FederationConfig) -> Any:
        building.set()
        assert go_on.wait(60)
        return real(config)

    monkeypatch.setattr(module, "make_blueprint", slow)
    run_id = bench.queue.add(tiny_config())
    bench.worker.start()
    assert building.wait(60)
    bench.worker.stop_run(run_id, "stopped by ann")
    go_on.set()
    assert bench.wait(run_id, "stopped").reason == "stopped by ann"
    assert bench.sites.asked == []


def test_a_run_that_fails_says_why_and_the_next_one_runs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[Exception] = [CheckpointError("cannot write: disk full"), KeyError("defect")]

    def fail(*_: Any) -> None:
        if failures:
            raise failures.pop(0)

    monkeypatch.setattr(module, "start", fail)
    ids = [bench.queue.add(tiny_config()) for _ in range(3)]
    bench.worker.start()
    done = [bench.wait(run_id, "failed", "finished") for run_id in ids]
    assert done[0].reason == "checkpoint: cannot write: disk full"
    assert done[1].reason == "run: KeyError: see the service's log"
    assert [status.state for status in done] == ["failed", "failed", "finished"]


def test_a_state_that_cannot_be_written_is_a_trouble_and_not_an_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = threading.Event()
    real = RunQueue.next

    def next_run(queue: RunQueue) -> Any:
        if not broken.is_set():
            broken.set()
            raise ServiceError("cannot read or write the state")
        return real(queue)

    monkeypatch.setattr(RunQueue, "next", next_run)
    run_id = bench.queue.add(tiny_config())
    bench.worker.start()
    assert broken.wait(60)
    bench.wait(run_id, "finished")


def test_refusals_and_epsilon_are_shown(bench: Bench) -> None:
    from tests.support.sites import refusal_content

    bench.sites.lies["south"] = lambda task, _: refusal_content(task)
    run_id = bench.queue.add(tiny_config())
    bench.worker.start()
    (refusal,) = bench.wait(run_id, "finished").refusals
    assert refusal.startswith("south: budget-exceeded: expected epsilon of at most 8")
    text = bench.metrics.text().decode()
    assert 'cloister_refusals_total{reason="budget-exceeded",site="south"} 2.0' in text
    assert 'cloister_replies_total{outcome="used"} 2.0' in text
    assert "cloister_rounds_total 2.0" in text
    assert bench.metrics.epsilons == {"north": pytest.approx(0.2)}


def test_only_an_ended_run_is_put_in_the_queue_again(bench: Bench) -> None:
    run_id = bench.queue.add(tiny_config())
    with pytest.raises(ServiceError, match="was stopped or has failed, got one that is queued"):
        bench.queue.resume(run_id)


def test_public_sizes_must_be_the_roster_s(bench: Bench) -> None:
    bench.office.enrol("north")
    signed = bench.office.reception.roster()
    assert signed is not None
    check_sizes(config_of({"north": 40, "south": 77}), signed)
    with pytest.raises(RunError, match="expected num_examples = 40 for north, as the roster"):
        check_sizes(config_of({"north": 41}), signed)
    entry = RosterMember(**(signed.roster.members[0].model_dump() | {"status": "revoked"}))
    revoked = signed.roster.model_copy(update={"members": (entry,)})
    check_sizes(config_of({"north": 41}), signed.model_copy(update={"roster": revoked}))


def test_an_exported_run_holds_the_model(bench: Bench, tmp_path: Path) -> None:
    # Word embeddings of a byte tokenizer: what the run's configuration says, in the clear.
    run_id = bench.queue.add(tiny_config())
    with pytest.raises(ServiceError, match="expected a run that has ended, got one that is queued"):
        export_run(bench.office.folder, run_id, tmp_path / "out")
    bench.worker.start()
    digest = bench.wait(run_id, "finished").weights_digest
    assert export_run(bench.office.folder, run_id, tmp_path / "out") == 2
    loaded = load_model(tmp_path / "out" / "model")
    assert loaded.metadata["run_id"] == run_id
    assert read_record(tmp_path / "out").rounds[-1]["weights_digest"] == digest
    assert (tmp_path / "out" / "curves.html").exists()
    with pytest.raises(ServiceError, match="expected no folder at .*, got one"):
        export_run(bench.office.folder, run_id, tmp_path / "out")


def test_a_run_without_a_checkpoint_cannot_be_exported(bench: Bench, tmp_path: Path) -> None:
    run_id = bench.queue.add(tiny_config())
    bench.queue.move(run_id, "failed", "at once")
    with pytest.raises(RunError, match="expected a run at"):
        export_run(bench.office.folder, run_id, tmp_path / "out")
    folder = bench.office.folder.run(run_id)
    with RunDirectory.open(folder, tiny_config(), task_digest="d" * 64, run_id=run_id):
        pass
    with pytest.raises(CheckpointError, match=f"expected a checkpoint of run {run_id}, got none"):
        export_run(bench.office.folder, run_id, tmp_path / "out")
    assert not (tmp_path / "out").exists()
