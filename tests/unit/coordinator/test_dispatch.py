"""Each order ends with exactly one answer, whatever happens to the sessions."""

import itertools
from dataclasses import dataclass, field

import pytest

from coordinator.grids.dispatch import Dispatch, Failure, Order, Progress
from core.errors import MessageError
from core.wire.transfer import Envelope

SILENCE = 15.0
NODES = {1: "north", 2: "south"}


@dataclass
class Line:
    """Notes what it is to send."""

    sent: list[Order] = field(default_factory=list)
    withdrawn: list[Order] = field(default_factory=list)

    def send(self, order: Order) -> None:
        self.sent.append(order)

    def withdraw(self, order: Order) -> None:
        self.withdrawn.append(order)


def envelope(message_id: str, reply_to: str = "") -> Envelope:
    return Envelope(message_id, reply_to, "train", "1", 7, 60.0, 0.0, {})


def dispatch_with(*sites: str) -> tuple[Dispatch, dict[str, Line]]:
    dispatch = Dispatch(SILENCE)
    dispatch.begin_run(NODES)
    lines = {site: Line() for site in sites}
    for site, line in lines.items():
        dispatch.connected(site, line, "first", ())
    return dispatch, lines


def push(dispatch: Dispatch, message_id: str = "a", node: int = 1, now: float = 0.0) -> Order:
    return dispatch.push(message_id, node, envelope(message_id), now)


def failure(dispatch: Dispatch, message_id: str = "a") -> Failure:
    answer = dispatch.pop(message_id)
    assert isinstance(answer, Failure)
    return answer


def take(dispatch: Dispatch, order: Order, progress: Progress) -> None:
    """Brings an order as far as ``progress``."""
    if progress is not Progress.WAITING:
        assert dispatch.sending(order)
    if progress in (Progress.SENT, Progress.TAKEN):
        dispatch.sent(order)
    if progress is Progress.TAKEN:
        dispatch.delivered(order.site, order.message_id, "")
    assert order.progress is progress


def test_an_order_goes_to_its_site_and_its_reply_is_given_once() -> None:
    dispatch, lines = dispatch_with("north", "south")
    order = push(dispatch)
    assert lines["north"].sent == [order]
    assert lines["south"].sent == []

    take(dispatch, order, Progress.TAKEN)
    assert order.envelope is None  # the site has the arrays, so nobody keeps them
    assert dispatch.pop("a") is None
    reply = envelope("r", reply_to="a")
    assert dispatch.answered("north", "a", reply) == ""

    assert dispatch.pop("a") is reply
    assert dispatch.pop("a") is None


def test_a_reply_that_is_sent_again_is_acknowledged_and_not_given_again() -> None:
    dispatch, _ = dispatch_with("north")
    push(dispatch)
    assert dispatch.answered("north", "a", envelope("r", "a")) == ""
    dispatch.pop("a")
    assert dispatch.answered("north", "a", envelope("r", "a")) == ""
    assert dispatch.pop("a") is None


def test_a_site_cannot_answer_for_another() -> None:
    dispatch, _ = dispatch_with("north", "south")
    push(dispatch)
    assert dispatch.answered("south", "a", envelope("r", "a")) == "unknown-order"
    with pytest.raises(MessageError, match="expected a reply to an order of south's, got one to"):
        dispatch.check_wanted("south", "a")
    assert dispatch.pop("a") is None


def test_a_reply_to_nothing_is_refused_before_its_arrays_are_kept() -> None:
    dispatch, _ = dispatch_with("north")
    with pytest.raises(MessageError, match="got one to none"):
        dispatch.check_wanted("north", "zz")
    push(dispatch)
    dispatch.check_wanted("north", "a")
    dispatch.answered("north", "a", envelope("r", "a"))
    with pytest.raises(MessageError, match="got a late or second one"):
        dispatch.check_wanted("north", "a")


def test_a_reply_that_does_not_fit_ends_the_order_as_invalid() -> None:
    dispatch, _ = dispatch_with("north")
    push(dispatch)
    bad = Failure("expected 3 tensors, got 2", invalid=True)
    assert dispatch.answered("north", "a", bad) == "invalid-reply"
    assert failure(dispatch) is bad


@pytest.mark.parametrize("node", [1, 9])
def test_an_order_to_a_node_that_is_not_there_fails_at_once(node: int) -> None:
    dispatch, _ = dispatch_with("south")
    push(dispatch, node=node)
    assert "unknown or away" in failure(dispatch).reason
    assert dispatch.free_nodes(0.0) == [2]


def test_a_site_without_a_session_is_there_for_a_while_and_then_away() -> None:
    dispatch, lines = dispatch_with("north", "south")
    assert dispatch.disconnected("north", lines["north"], 100.0)
    assert dispatch.free_nodes(100.0 + SILENCE - 0.1) == [1, 2]
    assert dispatch.free_nodes(100.0 + SILENCE) == [2]

    push(dispatch, now=101.0)
    assert dispatch.next_expiry() == 100.0 + SILENCE
    assert not dispatch.expire(100.0 + SILENCE - 0.1)
    assert dispatch.expire(100.0 + SILENCE)
    assert "no session for 15 seconds" in failure(dispatch).reason


def test_a_site_that_is_gone_for_good_is_not_waited_for() -> None:
    dispatch, lines = dispatch_with("north")
    push(dispatch)
    gone = Failure("the site was disconnected (revoked)")
    assert dispatch.disconnected("north", lines["north"], 0.0, failure=gone)
    assert failure(dispatch) is gone
    assert dispatch.free_nodes(0.0) == []


@pytest.mark.parametrize("progress", list(Progress))
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("pending", [True, False])
def test_what_becomes_of_an_order_when_its_site_comes_back(
    progress: Progress, same: bool, pending: bool
) -> None:
    dispatch, lines = dispatch_with("north")
    order = push(dispatch)
    take(dispatch, order, progress)
    dispatch.disconnected("north", lines["north"], 0.0)
    line = Line()
    dispatch.connected("north", line, "first" if same else "second", ("a",) if pending else ())

    if pending:  # it has it
        assert (line.sent, order.progress) == ([], Progress.TAKEN)
    elif progress in (Progress.WAITING, Progress.SENDING) or (same and progress is Progress.SENT):
        assert (line.sent, order.progress) == ([order], Progress.WAITING)
        assert order.envelope is not None
    else:  # it may have worked on it, and has lost that
        assert line.sent == []
        assert "restarted and has lost this order" in failure(dispatch).reason


def test_the_older_of_two_sessions_is_given_back_and_no_longer_counts() -> None:
    dispatch, lines = dispatch_with("north")
    newer = Line()
    assert dispatch.connected("north", newer, "first", ()) is lines["north"]
    assert not dispatch.disconnected("north", lines["north"], 0.0)
    assert dispatch.free_nodes(1e9) == [1]


def test_what_was_not_sent_when_it_is_abandoned_never_is() -> None:
    dispatch, lines = dispatch_with("north")
    order = push(dispatch)
    dispatch.abandon(["a"])
    assert lines["north"].withdrawn == [order]
    assert not dispatch.sending(order)
    assert dispatch.free_nodes(0.0) == [1]
    assert dispatch.order("a") is None


@pytest.mark.parametrize("progress", [Progress.SENDING, Progress.SENT, Progress.TAKEN])
def test_a_straggler_is_not_asked_again_before_it_is_through(progress: Progress) -> None:
    dispatch, _ = dispatch_with("north")
    take(dispatch, push(dispatch), progress)
    dispatch.abandon(["a"])
    assert dispatch.free_nodes(0.0) == []
    push(dispatch, "b")
    assert "still at work" in failure(dispatch, "b").reason

    with pytest.raises(MessageError, match="late or second"):
        dispatch.check_wanted("north", "a")
    assert dispatch.answered("north", "a", envelope("r", "a")) == "late-reply"
    assert dispatch.free_nodes(0.0) == [1]
    assert dispatch.pop("a") is None


@pytest.mark.parametrize("pending", [True, False])
def test_a_straggler_that_comes_back_without_its_work_is_free(pending: bool) -> None:
    dispatch, lines = dispatch_with("north")
    take(dispatch, push(dispatch), Progress.TAKEN)
    dispatch.abandon(["a"])
    dispatch.disconnected("north", lines["north"], 0.0)
    line = Line()
    dispatch.connected("north", line, "second", ("a",) if pending else ())
    assert line.sent == []
    assert dispatch.free_nodes(0.0) == ([] if pending else [1])


def test_an_order_that_the_site_does_not_take_fails() -> None:
    dispatch, _ = dispatch_with("north")
    take(dispatch, push(dispatch), Progress.SENT)
    dispatch.delivered("north", "a", "message")
    assert failure(dispatch).reason == "the site did not take the order: message"
    dispatch.delivered("north", "a", "")  # of an order that is over: nothing
    assert dispatch.free_nodes(0.0) == [1]


def test_a_new_run_knows_nothing_of_the_one_before() -> None:
    dispatch, _ = dispatch_with("north")
    push(dispatch)
    dispatch.answered("north", "a", envelope("r", "a"))
    push(dispatch, "b")
    dispatch.begin_run({5: "north"})
    assert dispatch.free_nodes(0.0) == [5]
    assert dispatch.pop("a") is None
    assert dispatch.answered("north", "a", envelope("r", "a")) == "unknown-order"


def test_the_memory_of_answers_is_bounded() -> None:
    dispatch, _ = dispatch_with("north")
    for number in itertools.count():
        push(dispatch, str(number))
        assert dispatch.answered("north", str(number), envelope("r", str(number))) == ""
        dispatch.pop(str(number))
        if number > 4096:
            break
    assert dispatch.answered("north", "0", envelope("r", "0")) == "unknown-order"
    assert dispatch.answered("north", "4000", envelope("r", "4000")) == ""
