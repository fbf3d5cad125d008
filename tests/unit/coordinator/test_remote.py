"""The grid of a deployment, told of plain frames."""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from coordinator.flower import NODE_UNAVAILABLE, REPLY_REJECTED, empty_run
from coordinator.grids.link import Link
from coordinator.grids.remote import RemoteGrid
from coordinator.orders import task_content
from coordinator.payload import to_record
from coordinator.validation import ReplyRules, sort_replies
from core.array_codec import encode_arrays, manifest_of
from core.coordinator_config import LivenessSection
from core.digests import arrays_digest
from core.errors import RunError, SessionError
from core.messages import encode
from core.wire.frames import (
    Begin,
    Chunk,
    End,
    Frame,
    Goodbye,
    Heartbeat,
    Hello,
    NamedDocument,
    Received,
    Settled,
)
from core.wire.transfer import Envelope, frames_of
from tests.support.messages import REPLY, TASK
from tests.support.wire_site import SiteDouble, echo, reply_to

ARRAYS = {
    "head": np.arange(12, dtype=np.float32).reshape(3, 4),
    "scale": np.array(0.5, np.float32),
    "wide": np.arange(1 << 19, dtype=np.float32),  # two chunks
}
MANIFEST = manifest_of(ARRAYS)
NODES = {1: "north", 2: "south"}
ORDER = TASK.model_copy(update={"arrays_digest": arrays_digest(ARRAYS)})


class Clock:
    """Says the time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class At:
    """A site with a session of the grid, without anything in between."""

    def __init__(self, grid: RemoteGrid, site: str, double: SiteDouble | None = None) -> None:
        self.grid, self.site = grid, site
        self.double = double or SiteDouble(MANIFEST, echo)
        self.link = self.connect()

    def connect(self, instance: str = "1", pending: Iterable[str] = ()) -> Link:
        self.double.__post_init__()  # another stream, another receiver
        self.link = self.grid.connect(self.site, instance, list(pending))
        return self.link

    def pump(self, limit: int = 10_000) -> None:
        """Carries frames both ways until there are none."""
        for _ in range(limit):
            frame = self.link.poll(0.0)
            if frame is None:
                return
            for answer in self.double.take(frame):
                self.grid.hear(self.link, answer)

    def say(self, *frames: Frame) -> None:
        for frame in frames:
            self.grid.hear(self.link, frame)


def make_grid(clock: Callable[[], float] = time.monotonic, **liveness: float) -> RemoteGrid:
    grid = RemoteGrid(LivenessSection(**liveness), clock=clock)
    grid.set_run(empty_run(7))
    grid.begin_run(NODES, MANIFEST)
    return grid


def order(grid: RemoteGrid, node: int, ttl: float | None = None) -> Message:
    return grid.create_message(task_content(ORDER, to_record(ARRAYS)), "train", node, "4", ttl)


def push(grid: RemoteGrid, *nodes: int) -> list[str]:
    return list(grid.push_messages(order(grid, node) for node in nodes))


def only(messages: Iterable[Message]) -> Message:
    (message,) = messages
    return message


def test_orders_reach_their_sites_and_replies_come_back_bit_for_bit() -> None:
    grid = make_grid()
    sites = [At(grid, name) for name in NODES.values()]
    ids = push(grid, 2, 1)
    for site in sites:
        site.pump()

    replies = list(grid.pull_messages(ids))
    assert [reply.metadata.src_node_id for reply in replies] == [2, 1]
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids
    for reply in replies:
        assert reply.metadata.message_type == "train"
        record = reply.content["arrays"]
        assert isinstance(record, ArrayRecord)
        got = {name: array.numpy() for name, array in record.items()}
        assert arrays_digest(got) == ORDER.arrays_digest
        assert reply.content["reply"] == ConfigRecord({"reply": b"{}"})
    (envelope,) = sites[0].double.orders
    assert dict(envelope.documents) == {"task": encode(ORDER)}
    assert (envelope.run_number, envelope.group_id) == (7, "4")
    assert list(grid.pull_messages(ids)) == []


def test_the_bytes_of_an_order_are_those_that_were_given_whoever_gets_them() -> None:
    grid = make_grid()
    links = [At(grid, name).link for name in NODES.values()]
    record = to_record(ARRAYS)
    messages = (
        grid.create_message(task_content(ORDER, record), "train", node, "4") for node in NODES
    )
    list(grid.push_messages(messages))

    def first_chunk(link: Link) -> memoryview:
        frame = link.poll(0.0)
        while not isinstance(frame, Chunk):
            frame = link.poll(0.0)
        return memoryview(frame.data)

    for link in links:
        assert first_chunk(link).obj is record["head"].data


def test_send_and_receive_gives_replies_in_the_order_of_the_messages() -> None:
    grid = make_grid()
    north, south = At(grid, "north"), At(grid, "south")
    replies = iter(grid.send_and_receive([order(grid, 1), order(grid, 2)], timeout=10))
    south.pump()
    timer = threading.Timer(0.05, north.pump)
    timer.start()
    assert [reply.metadata.src_node_id for reply in replies] == [1, 2]
    timer.join()


def test_after_the_deadline_what_is_there_is_given_and_the_rest_is_refused_by_name() -> None:
    grid = make_grid()
    north, south = At(grid, "north", SiteDouble(MANIFEST)), At(grid, "south")
    messages = grid.send_and_receive([order(grid, 1), order(grid, 2)], timeout=0.1)
    north.pump()
    south.pump()
    replies = list(messages)
    assert [reply.metadata.src_node_id for reply in replies] == [2]
    assert list(grid.get_node_ids()) == [2]  # north is still at work

    late = echo(north.double.orders[0])
    north.say(*frames_of(late))
    north.pump()
    assert north.double.told(Received) == [Received(late.message_id, "late-reply")]
    assert list(grid.get_node_ids()) == [1, 2]


def test_a_late_reply_is_settled_only_if_its_round_is_over_for_good() -> None:
    grid = make_grid()
    north = At(grid, "north", SiteDouble(MANIFEST))

    def stray(server_round: int) -> None:
        reply = REPLY.model_copy(update={"server_round": server_round})
        begin = Begin(
            message_id="ab" * 16,
            reply_to="cd" * 16,
            message_type="train",
            group_id="",
            run_number=7,
            ttl_seconds=1.0,
            created_at=0.0,
            documents=(NamedDocument("reply", encode(reply)),),
        )
        north.say(begin, End())
        north.pump()

    grid.settle(["north"], REPLY.run_id, 3)
    north.pump()
    assert north.double.told(Settled) == [Settled(REPLY.run_id, 3)]
    stray(4)  # may be asked once more: the site keeps it
    assert north.double.told(Received) == [Received("ab" * 16, "unknown-order")]
    assert len(north.double.told(Settled)) == 1
    stray(3)
    assert north.double.told(Settled) == [Settled(REPLY.run_id, 3)] * 2


def test_a_site_that_comes_back_is_told_what_is_settled() -> None:
    grid = make_grid()
    grid.settle(["north"], "1" * 16, 3)
    grid.settle(["north"], "1" * 16, 2)  # never back
    north = At(grid, "north")
    north.pump()
    assert north.double.told(Settled) == [Settled("1" * 16, 3)]


def test_it_remembers_what_is_settled_of_the_newest_runs_only() -> None:
    grid = make_grid()
    for number in range(20):
        grid.settle([], f"{number:016x}", 1)
    north = At(grid, "north")
    north.pump()
    assert [frame.run_id for frame in north.double.told(Settled)] == [
        f"{number:016x}" for number in range(4, 20)
    ]


def test_a_reply_that_comes_again_after_a_break_is_acknowledged_and_given_once() -> None:
    grid = make_grid()
    north = At(grid, "north", SiteDouble(MANIFEST))
    ids = push(grid, 1)
    north.pump()
    reply = echo(north.double.orders[0])
    north.say(*frames_of(reply))  # its acknowledgement is lost with the session
    grid.broken(north.link)
    north.connect(pending=ids)
    north.say(*frames_of(reply))
    north.pump()
    assert north.double.told(Received) == [Received(reply.message_id)]
    assert only(grid.pull_messages(ids)).has_content()
    assert len(north.double.orders) == 1


def test_an_order_that_broke_off_is_sent_again_from_its_beginning() -> None:
    grid = make_grid()
    north = At(grid, "north")
    ids = push(grid, 1)
    north.pump(limit=3)
    assert north.double.orders == []
    grid.broken(north.link)
    north.connect()
    north.pump()
    assert only(grid.pull_messages(ids)).has_content()


def test_a_restarted_site_that_lost_its_work_fails_at_once() -> None:
    grid = make_grid()
    north = At(grid, "north", SiteDouble(MANIFEST))
    ids = push(grid, 1)
    north.pump()
    grid.broken(north.link)
    north.connect(instance="2")
    reply = only(grid.pull_messages(ids))
    assert reply.error.code == NODE_UNAVAILABLE
    assert reply.error.reason == "the site was restarted and has lost this order"
    assert list(grid.get_node_ids()) == [1]


def test_a_site_that_is_away_too_long_fails_by_name_while_somebody_waits() -> None:
    grid = make_grid(heartbeat_seconds=0.05, silence_seconds=0.15)
    north = At(grid, "north")
    messages = grid.send_and_receive([order(grid, 1)], timeout=60)
    threading.Timer(0.02, grid.broken, [north.link]).start()
    started = time.monotonic()
    reply = only(messages)
    assert time.monotonic() - started < 10
    assert "the site is away: no session for 0.15 seconds" in str(reply.error.reason)


def test_a_silent_site_is_disconnected_and_away_at_once() -> None:
    clock = Clock()
    grid = make_grid(clock)
    north, south = At(grid, "north"), At(grid, "south")
    ids = push(grid, 1)
    clock.now += 10
    south.say(Heartbeat())
    assert grid.sites() == {"north": 10.0, "south": 0.0}
    clock.now += 5.1
    grid.drop_silent()
    assert list(grid.sites()) == ["south"]
    assert list(grid.get_node_ids()) == [2]
    reason = "the site is away: nothing was heard of north for 15 seconds"
    assert only(grid.pull_messages(ids)).error.reason == reason
    with pytest.raises(SessionError, match="nothing was heard of north for 15 seconds"):
        list(north.link.frames())


def test_something_is_sent_at_least_every_heartbeat() -> None:
    clock = Clock()
    grid = make_grid(clock, heartbeat_seconds=5.0)
    link = At(grid, "north").link
    assert link.poll(clock.now) is None
    assert link.poll(clock.now + 4.9) is None
    assert link.poll(clock.now + 5.0) == Heartbeat()
    assert link.poll(clock.now + 9.9) is None
    assert link.poll(clock.now + 10.0) == Heartbeat()


def test_a_small_frame_goes_before_the_next_chunk() -> None:
    grid = make_grid()
    link = At(grid, "north").link
    push(grid, 1)
    kinds = [type(link.poll(0.0)), type(link.poll(0.0))]
    grid.settle(["north"], "1" * 16, 1)
    kinds += [type(link.poll(0.0)), type(link.poll(0.0))]
    assert kinds == [Begin, Chunk, Settled, Chunk]


def test_frames_wait_for_something_to_send_and_end_with_a_farewell() -> None:
    grid = make_grid()
    link = At(grid, "north").link
    frames: list[Frame] = []
    reader = threading.Thread(target=lambda: frames.extend(link.frames()))
    reader.start()
    push(grid, 1)
    deadline = time.monotonic() + 10
    while not any(isinstance(frame, End) for frame in frames) and time.monotonic() < deadline:
        time.sleep(0.005)
    grid.disconnect("north", "revoked", "no longer a member\nsince today")
    reader.join(10)
    assert not reader.is_alive()
    assert frames[-1] == Goodbye("revoked", "no longer a member\\nsince today")


def test_disconnecting_a_site_fails_its_order_at_once_and_ends_what_it_says() -> None:
    grid = make_grid()
    north = At(grid, "north", SiteDouble(MANIFEST))
    ids = push(grid, 1)
    north.pump()
    grid.disconnect("north", "revoked", "no longer a member")
    grid.disconnect("nobody", "revoked", "was never there")
    assert list(grid.get_node_ids()) == []
    north.say(*frames_of(echo(north.double.orders[0])))  # too late: not believed
    reply = only(grid.pull_messages(ids))
    assert reply.error.reason == "the site was disconnected (revoked): no longer a member"


def test_a_site_that_says_goodbye_is_not_waited_for() -> None:
    grid = make_grid()
    north = At(grid, "north", SiteDouble(MANIFEST))
    ids = push(grid, 1)
    north.pump()
    north.say(Goodbye("site-stopping", "until tomorrow"))
    assert list(grid.get_node_ids()) == []
    assert only(grid.pull_messages(ids)).error.reason == "the site said goodbye: site-stopping"
    assert list(north.link.frames()) == []


def test_a_newer_session_replaces_the_older_one() -> None:
    grid = make_grid()
    north = At(grid, "north")
    older = north.link
    north.connect(instance="2")
    assert list(older.frames()) == [Goodbye("replaced", "the site opened another session")]
    grid.broken(older)
    assert list(grid.get_node_ids()) == [1]
    ids = push(grid, 1)
    north.pump()
    assert only(grid.pull_messages(ids)).has_content()


def test_interrupting_ends_the_waiting_and_all_that_comes_until_the_next_run() -> None:
    grid = make_grid()
    At(grid, "north", SiteDouble(MANIFEST))
    messages = grid.send_and_receive([order(grid, 1)], timeout=60)
    threading.Timer(0.05, grid.interrupt, ["the service stops"]).start()
    with pytest.raises(RunError, match="the run was interrupted: the service stops"):
        list(messages)
    with pytest.raises(RunError, match="interrupted"):
        grid.get_node_ids()
    with pytest.raises(RunError, match="interrupted"):
        push(grid, 1)
    grid.begin_run(NODES, MANIFEST)
    assert list(grid.get_node_ids()) in ([], [1])


def test_after_the_run_nobody_can_be_asked_and_its_replies_are_refused() -> None:
    grid = make_grid()
    north = At(grid, "north", SiteDouble(MANIFEST))
    push(grid, 1)
    north.pump()
    grid.end_run()
    assert list(grid.get_node_ids()) == []
    north.say(*frames_of(echo(north.double.orders[0])))
    north.pump()
    assert [frame.code for frame in north.double.told(Received)] == ["late-reply"]


def _fewer(envelope: Envelope) -> Envelope:
    return replace(
        envelope,
        arrays=encode_arrays({"head": ARRAYS["head"]}),
        arrays_digest="",
    )


def _other_digest(envelope: Envelope) -> Envelope:
    return replace(envelope, arrays_digest="0" * 64)


def _other_shape(envelope: Envelope) -> Envelope:
    arrays = encode_arrays({**ARRAYS, "head": np.zeros((3, 5), np.float32)})
    return replace(envelope, arrays=arrays, arrays_digest="")


@pytest.mark.parametrize("lie", [_fewer, _other_digest, _other_shape])
def test_a_reply_whose_arrays_do_not_fit_is_refused_and_named(
    lie: Callable[[Envelope], Envelope],
) -> None:
    grid = make_grid()
    north = At(grid, "north", SiteDouble(MANIFEST, lambda got: lie(echo(got))))
    ids = push(grid, 1)
    north.pump()
    reply = only(grid.pull_messages(ids))
    assert reply.error.code == REPLY_REJECTED
    assert "expected" in str(reply.error.reason)
    assert [frame.code for frame in north.double.told(Received)] == ["invalid-reply"]
    assert list(grid.get_node_ids()) == [1]


def test_an_order_that_does_not_fit_the_site_fails_by_name() -> None:
    grid = make_grid()
    north = At(grid, "north", SiteDouble(manifest_of({"other": ARRAYS["head"]})))
    ids = push(grid, 1)
    north.pump()
    assert only(grid.pull_messages(ids)).error.reason == "the site did not take the order: message"


def test_breaking_the_protocol_ends_the_session_and_the_order_by_name() -> None:
    grid = make_grid()
    north = At(grid, "north", SiteDouble(MANIFEST))
    ids = push(grid, 1)
    north.pump()
    with pytest.raises(SessionError, match="expected no Chunk between messages") as caught:
        north.say(Chunk(b"x"))
    grid.broken(north.link, caught.value)
    reply = only(grid.pull_messages(ids))
    assert reply.error.code == REPLY_REJECTED
    assert reply.error.reason == "expected no Chunk between messages"
    assert list(grid.get_node_ids()) == []
    with pytest.raises(SessionError, match="between messages"):
        list(north.link.frames())


def test_a_frame_that_has_no_place_in_an_open_session_is_refused() -> None:
    north = At(make_grid(), "north")
    with pytest.raises(SessionError, match="expected no Hello in an open session"):
        north.say(Hello(1, "clinic", "north", "0" * 32, bytes(32)))


def test_a_site_that_only_sends_replies_to_nothing_is_cut_off() -> None:
    grid = make_grid()
    north = At(grid, "north")
    stray = reply_to(Envelope("ef" * 16, "", "train", "1", 7, 1.0, 0.0, {}), {})
    for _ in range(64):
        north.say(*frames_of(stray))
        north.pump()
    with pytest.raises(SessionError, match="expected replies to orders from north"):
        north.say(*frames_of(stray))


def test_a_site_that_sends_frames_without_end_is_cut_off() -> None:
    clock = Clock()
    north = At(make_grid(clock), "north")
    for _ in range(3000):  # a minute of the liveliest
        clock.now += 0.02
        north.say(Heartbeat())
    for _ in range(990):
        north.say(Heartbeat())
    with pytest.raises(SessionError, match="at most 1000 small frames a second of north"):
        north.say(*[Heartbeat()] * 20)


def test_a_site_that_does_not_read_its_answers_is_cut_off_and_the_run_goes_on() -> None:
    grid = make_grid()
    north = At(grid, "north")
    for number in range(300):
        grid.settle(["north"], "1" * 16, number)
    assert list(grid.sites()) == []
    with pytest.raises(SessionError, match="expected north to read what it is sent"):
        list(north.link.frames())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"m": MetricRecord({"x": 1.0})}, "expected 'm' as an ArrayRecord or as a ConfigRecord"),
        ({"c": ConfigRecord({"d": b""})}, "expected 'c' as an ArrayRecord or as a ConfigRecord"),
        ({"c": ConfigRecord({"c": 1})}, "expected 'c' as an ArrayRecord or as a ConfigRecord"),
        ({"c": ConfigRecord({"c": b"", "d": 1})}, "expected 'c' with one entry, got 2"),
        ({"a": ArrayRecord(), "b": ArrayRecord()}, "expected at most one ArrayRecord"),
    ],
)
def test_what_does_not_travel_is_not_sent(content: dict[str, Any], message: str) -> None:
    grid = make_grid()
    At(grid, "north")
    with pytest.raises(RunError, match=message):
        list(grid.push_messages([grid.create_message(RecordDict(content), "train", 1, "1")]))


def test_an_order_to_an_unknown_node_has_an_error_for_a_reply() -> None:
    grid = make_grid()
    reply = only(grid.send_and_receive([order(grid, 9)], timeout=5))
    assert (reply.error.code, reply.metadata.src_node_id) == (NODE_UNAVAILABLE, 9)


def test_it_says_that_its_arrays_cross_a_wire() -> None:
    assert RemoteGrid.passes_arrays_by_reference is False
    assert make_grid().run.run_id == 7


def test_a_site_whose_reply_did_not_fit_counts_as_invalid_and_not_as_failed() -> None:
    """One that failed would be asked again at once; this one would send the like again."""
    grid = make_grid()
    north = At(grid, "north", SiteDouble(MANIFEST, lambda got: _fewer(echo(got))))
    ids = push(grid, 1)
    north.pump()
    rules = ReplyRules.of(ARRAYS, encoding="fp32", max_update_norm=None, verify_digest=True)
    outcome = sort_replies(grid.pull_messages(ids), {1: ORDER}, rules)
    (rejected,) = outcome.rejected
    assert (rejected.site, rejected.code) == ("north", "invalid-reply")
    assert "expected tensors" in rejected.message or "more bytes" in rejected.message
