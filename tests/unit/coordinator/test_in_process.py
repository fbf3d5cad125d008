import threading
import time
from collections.abc import Callable

import pytest
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from coordinator.flower import CLIENT_RAISED, NODE_UNAVAILABLE, empty_run
from coordinator.grids.in_process import InProcessGrid

Train = Callable[[Message, Context], Message]


def _app(train: Train) -> ClientApp:
    app = ClientApp()
    app.train()(train)
    return app


def _grid(train: Train, *, nodes: int = 4, workers: int = 2, threads: int = 1) -> InProcessGrid:
    configs = {node: {"site": f"site-{node}"} for node in range(1, nodes + 1)}
    return InProcessGrid(_app(train), configs, workers=workers, threads_per_worker=threads)


def _messages(grid: InProcessGrid, *nodes: int) -> list[Message]:
    return [grid.create_message(RecordDict(), "train", node, "1") for node in nodes]


def _number(value: float, message: Message) -> Message:
    return Message(RecordDict({"n": MetricRecord({"value": value})}), reply_to=message)


def _value(reply: Message) -> float:
    return float(reply.content["n"]["value"])  # type: ignore[arg-type, index]


def test_replies_come_in_the_order_of_the_messages_from_the_nodes_asked() -> None:
    def train(message: Message, context: Context) -> Message:
        time.sleep(0.02 * (4 - context.node_id))
        return _number(context.node_id, message)

    with _grid(train, workers=4) as grid:
        replies = list(grid.send_and_receive(_messages(grid, 3, 1, 2)))

    assert [_value(reply) for reply in replies] == [3, 1, 2]
    assert [reply.metadata.src_node_id for reply in replies] == [3, 1, 2]


def test_a_node_keeps_its_context_between_messages_and_has_it_alone() -> None:
    def train(message: Message, context: Context) -> Message:
        before = context.state["n"]["value"] if "n" in context.state else 0  # type: ignore[index]
        context.state["n"] = MetricRecord({"value": before + context.node_id})  # type: ignore[operator]
        assert context.node_config == {"site": f"site-{context.node_id}"}
        return Message(RecordDict({"n": context.state["n"]}), reply_to=message)

    with _grid(train) as grid:
        for _ in range(3):
            replies = list(grid.send_and_receive(_messages(grid, 1, 2)))

    assert [_value(reply) for reply in replies] == [3, 6]


def test_an_exception_becomes_an_error_reply_that_tells_its_type_only() -> None:
    def train(message: Message, context: Context) -> Message:
        if context.node_id == 1:
            raise ValueError("patient 17 has ...")
        return _number(1, message)

    with _grid(train) as grid:
        bad, good = grid.send_and_receive(_messages(grid, 1, 2))

    assert (bad.error.code, bad.error.reason) == (CLIENT_RAISED, "ValueError")
    assert bad.metadata.src_node_id == 1
    assert good.has_content()


def test_a_client_that_returns_no_message_is_an_error() -> None:
    with _grid(lambda message, context: None) as grid:  # type: ignore[arg-type, return-value]
        (reply,) = grid.send_and_receive(_messages(grid, 1))

    assert reply.error.reason == "TypeError"


def test_a_client_cannot_reply_in_anothers_name() -> None:
    def train(message: Message, context: Context) -> Message:
        reply = _number(1, message)
        reply.metadata.__dict__["_src_node_id"] = 2
        return reply

    with _grid(train) as grid:
        (reply,) = grid.send_and_receive(_messages(grid, 1))

    assert reply.metadata.src_node_id == 1


def test_an_error_that_a_client_returns_is_passed_on() -> None:
    from coordinator.flower import error_reply

    with _grid(lambda message, context: error_reply(message, 0, "no")) as grid:
        (reply,) = grid.send_and_receive(_messages(grid, 1))

    assert reply.error.reason == "no"


def test_a_late_reply_is_left_out_and_never_comes_again() -> None:
    gate = threading.Event()

    def train(message: Message, context: Context) -> Message:
        if context.node_id == 1 and message.metadata.group_id == "1":
            gate.wait(10)
        return _number(context.node_id, message)

    with _grid(train, workers=2) as grid:
        started = time.monotonic()
        replies = list(grid.send_and_receive(_messages(grid, 1, 2), timeout=0.2))
        assert time.monotonic() - started < 5
        assert [_value(reply) for reply in replies] == [2]
        assert list(grid.get_node_ids()) == [2, 3, 4]

        (busy,) = grid.send_and_receive(_messages(grid, 1), timeout=5)
        assert busy.error.code == NODE_UNAVAILABLE

        gate.set()
        while 1 not in grid.get_node_ids():
            time.sleep(0.01)
        again = [grid.create_message(RecordDict(), "train", 1, "2")]
        assert [_value(reply) for reply in grid.send_and_receive(again)] == [1]


def test_what_has_not_begun_at_the_deadline_never_does() -> None:
    gate, called = threading.Event(), []

    def train(message: Message, context: Context) -> Message:
        called.append(context.node_id)
        gate.wait(10)
        return _number(1, message)

    with _grid(train, workers=1) as grid:
        assert list(grid.send_and_receive(_messages(grid, 1, 2, 3), timeout=0.2)) == []
        assert list(grid.get_node_ids()) == [2, 3, 4]
        gate.set()

    assert called == [1]


def test_an_unknown_node_is_unavailable() -> None:
    with _grid(lambda message, context: _number(1, message)) as grid:
        (reply,) = grid.send_and_receive(_messages(grid, 99))

    assert (reply.error.code, reply.metadata.src_node_id) == (NODE_UNAVAILABLE, 99)


def test_push_and_pull_give_each_reply_once() -> None:
    with _grid(lambda message, context: _number(context.node_id, message)) as grid:
        ids = list(grid.push_messages(_messages(grid, 1, 2)))
        replies: list[Message] = []
        while len(replies) < 2:
            replies += grid.pull_messages(ids)
        assert sorted(_value(reply) for reply in replies) == [1, 2]
        assert list(grid.pull_messages(ids)) == []


@pytest.mark.parametrize("threads", [1, 2])
def test_each_worker_has_its_number_of_threads(threads: int) -> None:
    here = torch.get_num_threads()

    with _grid(
        lambda message, context: _number(torch.get_num_threads(), message), threads=threads
    ) as grid:
        replies = list(grid.send_and_receive(_messages(grid, 1, 2, 3, 4)))

    assert [_value(reply) for reply in replies] == [threads] * 4
    assert torch.get_num_threads() == here


def test_a_thousand_nodes_cost_nothing_before_they_are_called() -> None:
    with _grid(lambda message, context: _number(1, message), nodes=1000) as grid:
        list(grid.send_and_receive(_messages(grid, 7)))
        assert len(list(grid.get_node_ids())) == 1000
        assert len(grid._contexts) == 1


def test_the_run_can_be_set() -> None:
    with _grid(lambda message, context: _number(context.run_id, message)) as grid:
        grid.set_run(empty_run(5))
        assert grid.run.run_id == 5
        (reply,) = grid.send_and_receive(_messages(grid, 1))

    assert _value(reply) == 5
    assert reply.metadata.run_id == 5


def test_a_reply_is_given_while_other_nodes_still_work() -> None:
    gate = threading.Event()

    def train(message: Message, context: Context) -> Message:
        if context.node_id == 2:
            assert gate.wait(10)
        return _number(context.node_id, message)

    with _grid(train) as grid:
        replies = iter(grid.send_and_receive(_messages(grid, 1, 2), timeout=10))
        assert _value(next(replies)) == 1
        gate.set()
        assert [_value(reply) for reply in replies] == [2]


def test_nothing_begins_after_the_deadline_however_slowly_replies_are_read() -> None:
    gate, called = threading.Event(), []

    def train(message: Message, context: Context) -> Message:
        called.append(context.node_id)
        if context.node_id == 2:
            gate.wait(10)
        return _number(context.node_id, message)

    with _grid(train, workers=1) as grid:
        replies = iter(grid.send_and_receive(_messages(grid, 1, 2, 3), timeout=0.3))
        assert _value(next(replies)) == 1
        assert list(replies) == []
        gate.set()
        while 2 not in grid.get_node_ids():
            time.sleep(0.01)
        assert list(grid.get_node_ids()) == [1, 2, 3, 4]

    assert called == [1, 2]


def test_who_stops_reading_takes_back_what_has_not_begun() -> None:
    gate, called = threading.Event(), []

    def train(message: Message, context: Context) -> Message:
        called.append(context.node_id)
        if context.node_id == 2:
            gate.wait(10)
        return _number(context.node_id, message)

    with _grid(train, workers=1) as grid:
        replies = iter(grid.send_and_receive(_messages(grid, 1, 2, 3)))
        next(replies)
        while 2 not in called:
            time.sleep(0.01)
        replies.close()  # type: ignore[attr-defined]
        gate.set()

    assert called == [1, 2]
