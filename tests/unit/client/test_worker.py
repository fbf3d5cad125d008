"""The one thread that trains."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict

from client.worker import Worker
from core.messages import Refusal, decode
from core.wire.transfer import Envelope
from tests.support.site_service import EchoApp, order_envelope, the_reply

Done = queue.SimpleQueue[tuple[str, Envelope]]


@pytest.fixture
def done() -> Done:
    return queue.SimpleQueue()


@pytest.fixture
def make(done: Done) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def make(app: Any, **settings: Any) -> Worker:
        workers.append(Worker(app, "north", lambda *item: done.put(item), **settings))
        return workers[-1]

    yield make
    for worker in workers:
        assert worker.close(10)


def refusal(envelope: Envelope) -> Refusal:
    return decode(Refusal, envelope.documents["refusal"])


def test_orders_are_worked_on_one_after_the_other(make: Callable[..., Worker], done: Done) -> None:
    busy, most = 0, 0
    lock = threading.Lock()
    echo = EchoApp()

    def app(message: Message, context: Context) -> Message:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        reply = echo(message, context)
        with lock:
            busy -= 1
        return reply

    worker = make(app)
    for number in range(3):
        worker.submit(order_envelope(number))
    ids = [done.get(timeout=10)[0] for _ in range(3)]
    assert ids == [order_envelope(number).message_id for number in range(3)]
    assert most == 1


def test_a_reply_names_its_order_and_its_digest(make: Callable[..., Worker], done: Done) -> None:
    make(EchoApp()).submit(order_envelope(5))
    order_id, reply = done.get(timeout=10)
    assert (order_id, reply.reply_to) == (order_envelope(5).message_id,) * 2
    assert reply.arrays_digest == the_reply(reply).arrays_digest
    assert reply.message_type == "train"


def test_an_order_whose_time_has_passed_is_refused_and_never_begun(
    make: Callable[..., Worker], done: Done
) -> None:
    app = EchoApp()
    app.go.clear()
    worker = make(app)
    worker.submit(order_envelope(1))
    worker.submit(order_envelope(2, ttl_seconds=0.0))
    app.go.set()
    done.get(timeout=10)
    late = refusal(done.get(timeout=10)[1])
    assert (late.code, late.server_round) == ("message", 4)
    assert "expected an order in its time" in late.message
    assert len(app.tasks) == 1


def raising(message: Message, context: Context) -> Message:
    raise KeyError("patient 17")


def odd(message: Message, context: Context) -> Message:
    content = RecordDict({"metrics": MetricRecord({"records": 41})})
    return Message(content, reply_to=message)


def unnamed(message: Message, context: Context) -> Message:
    return Message(RecordDict({"reply": ConfigRecord({"reply": "text"})}), reply_to=message)


@pytest.mark.parametrize("app", [raising, odd, unnamed])
def test_whatever_an_app_does_nothing_raw_leaves(
    make: Callable[..., Worker],
    done: Done,
    app: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = make(app)
    worker.submit(order_envelope(1))
    found = done.get(timeout=10)[1]
    assert set(found.documents) == {"refusal"}
    assert found.arrays is None
    assert (refusal(found).code, refusal(found).message) == (
        "round-failed",
        "see the site's own log",
    )
    assert "failed" in caplog.text


def test_memory_is_freed_between_runs_on_the_worker_s_own_thread(
    make: Callable[..., Worker], done: Done
) -> None:
    released: queue.SimpleQueue[str] = queue.SimpleQueue()
    worker = make(
        EchoApp(),
        release=lambda: released.put(threading.current_thread().name),
        idle_seconds=0.05,
    )
    assert released.get(timeout=10) == "worker"
    worker.submit(order_envelope())
    done.get(timeout=10)
    assert released.get(timeout=10) == "worker"


def test_the_threads_of_the_configuration_are_used(make: Callable[..., Worker], done: Done) -> None:
    seen: list[int] = []
    echo = EchoApp()

    def app(message: Message, context: Context) -> Message:
        seen.append(torch.get_num_threads())
        return echo(message, context)

    before = torch.get_num_threads()
    try:
        make(app, threads=1).submit(order_envelope())
        done.get(timeout=10)
        assert seen == [1]
    finally:
        torch.set_num_threads(before)


def test_work_that_goes_on_does_not_keep_the_process(
    make: Callable[..., Worker], done: Done
) -> None:
    app = EchoApp()
    app.go.clear()
    worker = make(app)
    worker.submit(order_envelope())
    assert app.begun.wait(10)
    assert not worker.close(0.01)
    app.go.set()
    done.get(timeout=10)
