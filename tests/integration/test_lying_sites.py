"""One site that lies, over real TLS: it is dropped and named, the run goes on, and ends with the
weights that the honest sites give.

The coordinator's grid, servers and round loop are the real ones; the sites speak the real wire,
and the liar may put any bytes on it.
"""

import itertools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context

from client.flower import context_of, to_message, to_reply
from coordinator.flower import empty_run
from coordinator.grids.remote import RemoteGrid
from coordinator.rounds import RunPlan, run_rounds
from coordinator.run_directory import RunDirectory
from core.array_codec import encode_arrays, manifest_of
from core.coordinator_config import LivenessSection
from core.digests import arrays_digest
from core.errors import QuorumError
from core.messages import TrainReply, decode, encode
from core.run_record import RoundResult, RunRecord
from core.update_codec import reply_manifest
from core.wire.frames import Chunk, Received, encode_frame
from core.wire.transfer import Envelope, frames_of
from tests.support.enrolled import FEDERATION, Enrolled
from tests.support.sites import INITIAL, Sites, config_of, plan_of, refusal_content
from tests.support.wire_site import Credentials, SiteDouble, WireSite

SITES = {"north": 100, "south": 300, "liar": 60}
MANIFEST = manifest_of(INITIAL)
ROUNDS = 2

# What the liar puts on the wire in place of its honest reply.
Lie = Callable[[Envelope, Envelope], Iterator[bytes]]


def _frames(envelope: Envelope) -> Iterator[bytes]:
    return (encode_frame(frame) for frame in frames_of(envelope))


def _says(**fields: Any) -> Lie:
    """An honest update whose document says something untrue."""

    def lie(order: Envelope, reply: Envelope) -> Iterator[bytes]:
        said = decode(TrainReply, reply.documents["reply"]).model_copy(update=fields)
        return _frames(replace(reply, documents={"reply": encode(said)}))

    return lie


def _with(**changes: Any) -> Lie:
    """An honest reply in another envelope."""
    return lambda order, reply: _frames(replace(reply, **changes))


def _arrays(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Lie:
    """Other arrays, and a document with their digest."""

    def lie(order: Envelope, reply: Envelope) -> Iterator[bytes]:
        arrays = change(dict(INITIAL))
        digest = arrays_digest(arrays)
        said = decode(TrainReply, reply.documents["reply"])
        said = said.model_copy(update={"arrays_digest": digest})
        changed = replace(reply, documents={"reply": encode(said)})
        return _frames(replace(changed, arrays=encode_arrays(arrays), arrays_digest=digest))

    return lie


def _put(name: str, array: Any) -> Lie:
    return _arrays(lambda arrays: arrays | {name: array})


def _without(name: str) -> Lie:
    return _arrays(lambda arrays: {n: a for n, a in arrays.items() if n != name})


def _many(arrays: dict[str, Any]) -> dict[str, Any]:
    return arrays | {f"extra.{n}": np.zeros(64, np.float32) for n in range(2000)}


def _longer(order: Envelope, reply: Envelope) -> Iterator[bytes]:
    """More bytes than the weights have, before the end."""
    *most, end = frames_of(reply)
    for frame in [*most, *[Chunk(bytes(1 << 20))] * 3, end]:
        yield encode_frame(frame)


def _cut(order: Envelope, reply: Envelope) -> Iterator[bytes]:
    begin, *_, end = frames_of(reply)
    return iter([encode_frame(begin), encode_frame(end)])


def _garbage(order: Envelope, reply: Envelope) -> Iterator[bytes]:
    return iter([b"\xff\x00" + secrets.token_bytes(500)])


def _garbage_document(order: Envelope, reply: Envelope) -> Iterator[bytes]:
    return _frames(replace(reply, documents={"reply": b"\xff\x00 no JSON"}))


def _two_begins(order: Envelope, reply: Envelope) -> Iterator[bytes]:
    begin = next(frames_of(reply))
    return iter([encode_frame(begin)] * 2)


def _chunk_of_nothing(order: Envelope, reply: Envelope) -> Iterator[bytes]:
    return iter([encode_frame(Chunk(b"1234"))])


def _to_another_order(order: Envelope, reply: Envelope) -> Iterator[bytes]:
    """It answers what nobody asked, and never what it was asked."""
    return _frames(replace(reply, reply_to=secrets.token_hex(16)))


def _refusal_of_another(order: Envelope, reply: Envelope) -> Iterator[bytes]:
    said = decode(TrainReply, reply.documents["reply"])
    content = refusal_content(said, site="north")  # type: ignore[arg-type]
    return _frames(to_reply(order, content))


NAN = np.full((3, 4), np.nan, np.float32)

# The lie, and what the record says of it.
LIES: dict[str, tuple[Lie, str]] = {
    "garbage bytes": (_garbage, "expected a frame, got 502 bytes that are none"),
    "garbage document": (_garbage_document, "TrainReply is not readable JSON"),
    "nan": (_put("head.weight", NAN), "expected finite weights, got NaN or infinity"),
    "infinity": (_put("scale", np.array(np.inf, np.float32)), "got NaN or infinity in scale"),
    "other shape": (
        _put("head.weight", np.zeros((4, 4), np.float32)),
        "expected the next 48 bytes of head.weight, got 64",
    ),
    "transposed": (
        _put("head.weight", np.zeros((4, 3), np.float32)),
        "expected tensors with the digest that the sender counted",
    ),
    "huge": (_put("scale", np.array(1e30, np.float32)), "expected an update of norm at most 50"),
    "missing tensor": (_without("scale"), "expected 4 more bytes of scale, got the end"),
    "too many tensors": (_arrays(_many), "expected the next 12 bytes of head.bias, got 256"),
    "too many bytes": (_longer, "expected the end after 3 tensors, got more bytes"),
    "cut": (_cut, "expected 12 more bytes of head.bias, got the end"),
    "a million examples": (
        _says(num_examples=1_000_000),
        "expected a reply with num_examples 60, got 1000000",
    ),
    "another round": (_says(server_round=99), "expected a reply with server_round"),
    "a later attempt": (_says(attempt=7), "expected a reply with attempt 1, got 7"),
    "another run": (_says(run_id="f" * 16), "expected a reply with run_id"),
    "another site": (_says(site="north"), "expected a reply with site liar, got north"),
    "another digest": (
        _says(arrays_digest="0" * 64),
        "expected arrays of the digest that the reply names, got others",
    ),
    "a refusal of another": (_refusal_of_another, "expected a refusal of round"),
    "no arrays": (
        _with(arrays=None, arrays_name="", arrays_digest=""),
        "expected the records 'reply' and 'arrays', got 'reply'",
    ),
    "two begins": (_two_begins, "expected no Begin from the site within a message, got one"),
    "a chunk of nothing": (
        _chunk_of_nothing,
        "expected no Chunk from the site between messages, got one",
    ),
    "an answer to nothing": (_to_another_order, "no reply before the deadline"),
}


class Site:
    """A site of ``Sites`` behind a session; it comes back when that is cut."""

    def __init__(self, credentials: Credentials, port: int, sites: Sites) -> None:
        self.credentials, self._port = credentials, port
        self._app, self.lie = sites.app(), _honest
        self.hold = threading.Event()
        self.hold.set()
        self.closed = threading.Event()
        self.wire = self._connect()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def close(self) -> None:
        self.closed.set()
        self.hold.set()
        self._keeper.join(10)
        self.wire.crash()

    def received(self) -> list[Received]:
        """The coordinator's receipts of its replies."""
        return self.wire.double.told(Received)

    def _connect(self) -> WireSite:
        double = SiteDouble(MANIFEST)
        wire = WireSite(self.credentials, self._port, double, federation=FEDERATION)
        double.answer = lambda order: self._answer(wire, order)
        return wire.wait_open()

    def _answer(self, wire: WireSite, order: Envelope) -> None:
        threading.Thread(target=self._work, args=(wire, order), daemon=True).start()

    def _work(self, wire: WireSite, order: Envelope) -> None:
        context: Context = context_of(order)
        reply = to_reply(order, self._app(to_message(order), context).content)
        self.hold.wait(20)
        wire.say_raw(self.lie(order, reply))

    def _keep(self) -> None:
        while not self.closed.is_set():
            if self.wire.ended.wait(0.02) and not self.closed.is_set():
                self.wire.crash()
                self.wire = self._connect()


def _honest(order: Envelope, reply: Envelope) -> Iterator[bytes]:
    return _frames(reply)


@dataclass
class Federation:
    """A coordinator with its servers, and three sites with sessions."""

    sites: Sites = field(default_factory=Sites)

    def __post_init__(self) -> None:
        enrolled = Enrolled()
        credentials = {name: enrolled.add(name) for name in SITES}
        self.grid, self.servers = enrolled.serve(RemoteGrid(LivenessSection()))
        self.wired = {
            name: Site(credentials[name], self.servers.port, self.sites) for name in SITES
        }
        self._numbers = itertools.count(1)

    @property
    def liar(self) -> Site:
        return self.wired["liar"]

    def close(self) -> None:
        for site in self.wired.values():
            site.close()
        self.servers.stop()

    def run(self, folder: Path, plan: RunPlan) -> tuple[str, RunRecord]:
        """A whole run: the digest of its weights, and its record."""
        until(lambda: set(self.grid.sites()) == set(SITES))
        self.grid.set_run(empty_run(next(self._numbers)))
        self.grid.begin_run(
            {node: member.name for node, member in plan.roster.items()},
            reply_manifest(plan.initial_arrays, "fp32"),
        )
        until(lambda: len(list(self.grid.get_node_ids())) == len(SITES))
        opened = RunDirectory.open(folder, plan.config, task_digest=plan.terms.digest())
        try:
            with opened as run:
                state = run_rounds(plan, self.grid, run)
                return state.result.weights_digest, run.record
        finally:
            self.grid.end_run()


@dataclass
class Between:
    """Told of each round's end."""

    act: Callable[[RoundResult], None]

    def run_started(self, server_round: int, num_rounds: int) -> None:
        """Nothing."""

    def attempt_started(self, server_round: int, attempt: int, sites: Sequence[str]) -> None:
        """Nothing."""

    def round_finished(self, result: RoundResult) -> None:
        """Acts."""
        self.act(result)

    def run_finished(self, summary: Any, arrays: Any) -> None:
        """Nothing."""


def until(what: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def make_plan(timeout: float = 20.0, minimum: int = 2, **events: Any) -> RunPlan:
    strategy = {
        "min_train_nodes": minimum,
        "round_timeout_seconds": timeout,
        "max_update_norm": 50.0,
    }
    return plan_of(config_of(SITES, num_rounds=ROUNDS, strategy=strategy), **events)


def simulated(folder: Path, *, without: str = "") -> str:
    """The weights of the same run in one process; a site may refuse every round."""
    plan, sites = make_plan(), Sites()
    if without:
        sites.lies[without] = lambda task, content: refusal_content(task)
    opened = RunDirectory.open(folder, plan.config, task_digest=plan.terms.digest())
    with sites.grid(plan) as grid, opened as run:
        return run_rounds(plan, grid, run).result.weights_digest


@pytest.fixture(scope="module")
def honest_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return simulated(tmp_path_factory.mktemp("honest"), without="liar")


@pytest.fixture
def federation() -> Iterator[Federation]:
    made = Federation()
    yield made
    made.close()


@pytest.mark.parametrize("name", LIES)
def test_a_liar_is_dropped_by_name_and_the_others_weights_stand(
    federation: Federation, tmp_path: Path, honest_weights: str, name: str
) -> None:
    federation.liar.lie, said = LIES[name]
    timeout = 1.0 if name == "an answer to nothing" else 20.0
    digest, record = federation.run(tmp_path, make_plan(timeout))
    assert digest == honest_weights
    for line in record.rounds[1:]:
        assert line["used"] == ["north", "south"]
    named = [bad for line in record.rounds for bad in line["rejected"]]
    assert {bad["site"] for bad in named} == {"liar"}
    assert said in named[0]["message"], named


def test_without_a_lie_all_three_count(
    federation: Federation, tmp_path: Path, honest_weights: str
) -> None:
    """The test above can fail."""
    digest, record = federation.run(tmp_path / "run", make_plan())
    assert digest == simulated(tmp_path / "simulated") != honest_weights
    assert [line["used"] for line in record.rounds[1:]] == [["liar", "north", "south"]] * ROUNDS


def test_a_reply_that_is_sent_twice_counts_once(federation: Federation, tmp_path: Path) -> None:
    federation.liar.lie = lambda order, reply: itertools.chain(_frames(reply), _frames(reply))
    digest, record = federation.run(tmp_path / "run", make_plan())
    assert digest == simulated(tmp_path / "simulated")
    assert not [bad for line in record.rounds for bad in line["rejected"]]


def test_a_second_other_reply_changes_nothing(federation: Federation, tmp_path: Path) -> None:
    """Another update under a new message id: the first one counts."""
    other = _put("scale", np.array(3.0, np.float32))

    def lie(order: Envelope, reply: Envelope) -> Iterator[bytes]:
        second = replace(reply, message_id=secrets.token_hex(16))
        return itertools.chain(_frames(reply), other(order, second))

    federation.liar.lie = lie
    digest, _ = federation.run(tmp_path / "run", make_plan())
    assert digest == simulated(tmp_path / "simulated")


def test_a_reply_of_the_round_before_is_not_used_again(
    federation: Federation, tmp_path: Path, honest_weights: str
) -> None:
    """In every round but the first it answers with what it said first, to the order of then."""
    first: list[Envelope] = []

    def lie(order: Envelope, reply: Envelope) -> Iterator[bytes]:
        first.append(reply)
        if len(first) == 1:
            return _says(num_examples=1)(order, reply)
        return _frames(replace(first[0], reply_to=order.message_id))

    federation.liar.lie = lie
    digest, record = federation.run(tmp_path, make_plan())
    assert digest == honest_weights
    messages = [bad["message"] for line in record.rounds for bad in line["rejected"]]
    assert "expected a reply with server_round 2, got 1" in messages[-1]


def test_a_straggler_is_dropped_by_name_and_its_late_reply_is_refused_by_name(
    federation: Federation,
    tmp_path: Path,
    honest_weights: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    federation.liar.hold.clear()
    replies: list[Received] = []
    before = len(federation.liar.received())

    def after(result: RoundResult) -> None:
        if result.server_round == ROUNDS:  # the run still goes on
            federation.liar.hold.set()
            until(lambda: len(federation.liar.received()) > before)
            replies.extend(federation.liar.received()[before:])

    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        digest, record = federation.run(tmp_path, make_plan(timeout=1.0, events=Between(after)))
    assert time.monotonic() - began < 10
    assert digest == honest_weights
    assert [bad["site"] for bad in record.rounds[1]["rejected"]] == ["liar"]
    assert record.rounds[1]["rejected"][0]["code"] == "no-reply"
    # At work on the old order, it was not asked in the second round.
    assert record.rounds[2]["rejected"] == []
    assert [reply.code for reply in replies] == ["late-reply"]
    assert "liar sent a reply that is not used: late-reply" in caplog.text


def test_a_liar_that_is_needed_stops_the_run_by_name(
    federation: Federation, tmp_path: Path
) -> None:
    federation.liar.lie, _ = LIES["nan"]
    with pytest.raises(QuorumError, match=r"expected 3 usable replies in round 1, got 2: liar was"):
        federation.run(tmp_path, make_plan(minimum=3))
