"""Audits between runs: one at a time, whole or not at all, never again by accident."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import coordinator.service.run_audits as module
from audit.attestation.run_log import parse_signed_log
from audit.federated_counts import read_document
from coordinator.audit_exchange import Gathered
from coordinator.service.export import export_run
from coordinator.service.monitoring import Metrics
from coordinator.service.run_audits import RunAudits
from coordinator.service.run_queue import RunQueue
from coordinator.service.runs import RunWorker
from core.audit_messages import AUDIT_FILE, AbsentSite, AuditOrder, AuditReply
from core.audit_seed import SEED_FILE
from core.blueprint import make_blueprint
from core.errors import ServiceError
from core.messages import LedgerHead, SpentBudget
from core.parameters import to_arrays
from core.wire.documents import CountsStatus
from privacy.ledger import Ledger
from privacy.log_witnesses import LogHolder, witness
from privacy.signing import SiteKey
from tests.support.office import Office, make_folder
from tests.support.run_logs import round_line
from tests.support.service_grid import ServiceGrid
from tests.support.sites import Sites, config_of

SITES = {"north": 40, "south": 40}
SHAPE = {"vocab_size": 300, "max_seq_len": 4, "n_layer": 1, "n_head": 1, "n_embd": 4}


def reply_to(order: AuditOrder, site: str) -> AuditReply:
    return AuditReply(
        run_id=order.run_id,
        attempt=order.attempt,
        site=site,
        task_digest=order.task_digest,
        arrays_digest=order.arrays_digest,
        cells=(),
        histogram=(3,) * (order.shape.histogram[0] * order.shape.histogram[1]),
        scale=2.0,
        spent=SpentBudget(epsilon=1.5, delta=1e-5, private=True),
        ledger_head=LedgerHead(sequence=9, digest="5" * 64),
    )


class Bench:
    """A service's worker with audits, on a fresh folder, and what its sites say."""

    def __init__(self, office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = office.folder
        self.queue = RunQueue(office.store)
        config = config_of(SITES, 1, model=SHAPE)
        self.sites = Sites(initial=to_arrays(make_blueprint(config).build()))
        self.grid = ServiceGrid(self.sites, sorted(SITES))
        self.spent: dict[str, float] = {}
        self.asked: list[tuple[AuditOrder, dict[str, Any]]] = []
        self.answering = list(SITES)
        self.time = 1000.0
        self.audits = RunAudits(
            self.queue,
            self.grid,
            folder=office.folder,
            spent=self.spent.__setitem__,
            now=lambda: self.time,
        )
        self.worker = RunWorker(
            self.queue,
            self.grid,
            folder=office.folder,
            seal=office.vault,
            roster=lambda: None,
            metrics=Metrics(),
            audits=self.audits,
            reconnect_seconds=0.0,
        )
        monkeypatch.setattr(module, "gather", self._gather)
        self.run_id = self.queue.add(config)

    def _gather(
        self, grid: Any, nodes: Any, order: AuditOrder, arrays: Any, **settings: Any
    ) -> Gathered:
        list(grid.get_node_ids())  # raises where it was interrupted
        self.asked.append((order, settings))
        replies = {name: reply_to(order, name) for name in self.answering}
        absent = {
            name: AbsentSite(site=name, code="not-connected", message="away")
            for name in SITES
            if name not in replies
        }
        return Gathered(replies, absent)

    def finish_run(self) -> None:
        """Trains, and waits for the end."""
        self.worker.start()
        deadline = time.monotonic() + 60
        while self.queue.get(self.run_id).status.state != "finished":
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def audit(self, *, again: bool = False) -> CountsStatus:
        """Orders an audit and waits for its end."""
        self.audits.order(self.run_id, again=again)
        self.worker.wake()
        deadline = time.monotonic() + 60
        while (found := self.audits.newest) is None or found.state in ("waiting", "asking"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return found


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    office = Office(make_folder(tmp_path / "coordinator"))
    bench = Bench(office, monkeypatch)
    yield bench
    bench.worker.close("the test is over")
    bench.grid.close()
    office.store.close()


def test_counts_are_written_beside_the_run_and_exported(bench: Bench, tmp_path: Path) -> None:
    bench.finish_run()
    bench.answering = ["south"]
    status = bench.audit()
    assert (status.state, status.replied) == ("finished", ("south",))
    assert status.absent == ("north: not-connected: away",)
    path = bench.folder.run(bench.run_id) / AUDIT_FILE
    document = read_document(path)
    assert document.question.run_id == bench.run_id
    digest = bench.queue.get(bench.run_id).status.weights_digest
    assert document.question.arrays_digest == digest
    assert bench.spent == {"south": 1.5}
    order, settings = bench.asked[0]
    assert order.attempt == 1_000_000
    assert set(settings["witnesses"]) == set(SITES)
    assert bench.grid.begun[-1] == {1: "north", 2: "south"}
    assert bench.grid.ended == 2
    export_run(bench.folder, bench.run_id, tmp_path / "out")
    assert (tmp_path / "out" / AUDIT_FILE).read_bytes() == path.read_bytes()
    assert (tmp_path / "out" / SEED_FILE).stat().st_mode & 0o077 == 0


def test_a_site_that_signs_another_log_spoils_no_other_s_signature(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench.finish_run()

    def lie(grid: Any, nodes: Any, order: AuditOrder, arrays: Any, **settings: Any) -> Gathered:
        found = bench._gather(grid, nodes, order, arrays, **settings)
        with Ledger.open(tmp_path / "south.sqlite", site="south") as ledger:
            line = round_line(1, {"south": ledger.head()})
            other = LogHolder(order.run_id, SiteKey.generate(), line + b"\n")
            signed = {"north": "no json", "south": witness(ledger, other.order("south"))}
        replies = {
            name: reply.model_copy(update={"cosignature": signed[name]})
            for name, reply in found.replies.items()
        }
        return Gathered(replies, {})

    monkeypatch.setattr(module, "gather", lie)
    status = bench.audit()
    assert (status.state, status.replied) == ("finished", ("north", "south"))
    log = parse_signed_log((bench.folder.run(bench.run_id) / "log.signed").read_bytes())
    assert log.cosignatures == ()
    assert "site north did not sign" in caplog.text
    assert "site south did not sign" in caplog.text


def test_sites_are_asked_again_only_on_purpose(bench: Bench) -> None:
    bench.finish_run()
    bench.audit()
    with pytest.raises(ServiceError, match="were not asked yet"):
        bench.audits.order(bench.run_id, again=False)
    bench.time = 1001.5
    assert bench.audit(again=True).state == "finished"
    assert [order.attempt for order, _ in bench.asked] == [1_000_000, 1_001_500]


def test_a_run_that_goes_on_is_not_audited(bench: Bench) -> None:
    with pytest.raises(ServiceError, match="expected a run that has ended, got one that is queued"):
        bench.audits.order(bench.run_id, again=False)
    with pytest.raises(ServiceError, match="which no run has"):
        bench.audits.order("f" * 16, again=False)


def test_one_audit_at_a_time(bench: Bench) -> None:
    bench.queue.move(bench.run_id, "stopped")
    bench.audits.order(bench.run_id, again=False)
    with pytest.raises(ServiceError, match="expected no other audit"):
        bench.audits.order(bench.run_id, again=False)


def test_where_nobody_answers_older_counts_stay(bench: Bench) -> None:
    bench.finish_run()
    bench.audit()
    path = bench.folder.run(bench.run_id) / AUDIT_FILE
    before, bench.answering = path.read_bytes(), []
    status = bench.audit(again=True)
    assert status.state == "failed"
    assert "north: not-connected" in status.reason
    assert path.read_bytes() == before


def test_what_cannot_be_audited_says_why(bench: Bench) -> None:
    bench.queue.move(bench.run_id, "stopped")  # before its first round
    bench.audits.order(bench.run_id, again=False)
    assert bench.audits.work()
    newest = bench.audits.newest
    assert newest is not None
    assert newest.state == "failed"
    assert "run" in newest.reason


def test_a_defect_ends_the_audit_and_not_the_service(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.finish_run()

    def fail(*arguments: object, **settings: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(module, "gather", fail)
    status = bench.audit()
    assert (status.state, status.reason) == ("failed", "ZeroDivisionError: see the service's log")
    assert bench.worker.trouble == ""
    assert bench.grid.ended == 2


def test_a_service_that_closes_begins_no_audit(bench: Bench) -> None:
    bench.queue.move(bench.run_id, "stopped")
    bench.audits.order(bench.run_id, again=False)
    bench.audits.close("the service stops")
    assert not bench.audits.work()


def test_a_service_that_closes_interrupts_the_audit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.finish_run()

    def interrupted(grid: ServiceGrid, *arguments: object, **settings: object) -> None:
        bench.audits.close("the service stops")
        list(grid.get_node_ids())

    monkeypatch.setattr(module, "gather", interrupted)
    status = bench.audit()
    assert status.state == "failed"
    assert "the service stops" in status.reason
