"""Asking sites for counts: only replies that answer this very order are kept."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from audit.federated_counts import from_replies, read_counts, read_document
from coordinator.audit_exchange import Gathered, gather, write_counts
from coordinator.grids.in_process import InProcessGrid
from core.audit_messages import (
    AUDIT,
    AUDIT_FILE,
    AuditedAttribute,
    AuditOrder,
    AuditReply,
    audit_order,
)
from core.blueprint import make_blueprint, training_terms
from core.config import FederationConfig
from core.config_files import parse_config
from core.digests import arrays_digest
from core.errors import RunError, SubjectError
from core.messages import LedgerHead, Refusal, SpentBudget, decode, encode
from core.parameters import Arrays, to_arrays

NODES = {1: "north", 2: "south", 3: "west"}
Lie = Callable[[AuditOrder, AuditReply], RecordDict]


def config() -> FederationConfig:
    document: dict[str, Any] = {
        "federation": {"name": "trial", "num_rounds": 1},
        "model": {"vocab_size": 300, "max_seq_len": 4, "n_layer": 1, "n_head": 1, "n_embd": 4},
        "task": {"kind": "classification", "labels": ["calm", "storm"]},
        "train": {"steps_per_round": 2, "global_batch_size": 10, "learning_rate": 0.1},
        "privacy": {"mode": "local", "noise_multiplier": 1.0},
        "audit": {"attributes": {"sex": ["f", "m"], "age_group": ["old", "young"]}},
        "sites": [{"name": name, "num_examples": 40} for name in NODES.values()],
    }
    return parse_config(FederationConfig, document, origin="a test")


@pytest.fixture(scope="module")
def asked() -> tuple[AuditOrder, Arrays]:
    federation = config()
    blueprint = make_blueprint(federation)
    arrays = to_arrays(blueprint.build())
    order = audit_order(
        federation,
        training_terms(federation, blueprint),
        run_id="0" * 16,
        attempt=3,
        arrays_digest=arrays_digest(arrays),
        site="north",
    )
    return order, arrays


def honest(order: AuditOrder) -> AuditReply:
    """A reply whose numbers say where they stand."""
    size = order.shape.num_cells
    return AuditReply(
        run_id=order.run_id,
        attempt=order.attempt,
        site=order.site,
        task_digest=order.task_digest,
        arrays_digest=order.arrays_digest,
        cells=tuple(range(size)),
        histogram=tuple(range(order.shape.histogram[0] * order.shape.histogram[1])),
        scale=4.0,
        spent=SpentBudget(epsilon=1.0, delta=1e-5, private=True),
        ledger_head=LedgerHead(sequence=5, digest="5" * 64),
    )


def content(reply: AuditReply) -> RecordDict:
    return RecordDict({"counts": ConfigRecord({"counts": encode(reply)})})


def grid_of(lies: dict[str, Lie] | None = None, away: tuple[int, ...] = ()) -> InProcessGrid:
    """Sites that answer honestly, but for liars."""
    app = ClientApp()

    @app.query(AUDIT.removeprefix("query."))
    def answer(message: Message, context: Context) -> Message:
        record = message.content["audit"]
        assert isinstance(record, ConfigRecord)
        order = decode(AuditOrder, record["audit"])
        assert isinstance(message.content["arrays"], ArrayRecord)
        assert order.site == context.node_config["site"]
        lie = (lies or {}).get(order.site)
        reply = honest(order)
        return Message(lie(order, reply) if lie else content(reply), reply_to=message)

    nodes = {node: {"site": name} for node, name in NODES.items() if node not in away}
    return InProcessGrid(app, nodes, workers=1)


def ask(
    asked: tuple[AuditOrder, Arrays],
    lies: dict[str, Lie] | None = None,
    away: tuple[int, ...] = (),
    **settings: Any,
) -> Gathered:
    order, arrays = asked
    with grid_of(lies, away) as grid:
        return gather(grid, NODES, order, arrays, timeout=60, **settings)


def test_every_site_that_answers_is_kept_in_order(asked: tuple[AuditOrder, Arrays]) -> None:
    found = ask(asked)
    assert list(found.replies) == ["north", "south", "west"]
    assert found.absent == {}
    counts = from_replies(asked[0], found.replies)
    assert counts.attributes == (("age_group", ("old", "young")), ("sex", ("f", "m")))
    assert counts.sites[0].cells.shape == (2, 2, 2, 2, 2)
    assert counts.sites[0].cells[1, 0, 1, 0, 1] == 16 + 4 + 1
    assert counts.cells[0, 0, 0, 0, 1] == 3
    assert counts.histogram.shape == asked[0].shape.histogram


def test_a_site_that_is_not_there_is_named(asked: tuple[AuditOrder, Arrays]) -> None:
    found = ask(asked, away=(2,))
    assert list(found.replies) == ["north", "west"]
    assert found.absent["south"].code == "not-connected"


def changed(**changes: Any) -> Lie:
    return lambda order, reply: content(reply.model_copy(update=changes))


def extra(order: AuditOrder, reply: AuditReply) -> RecordDict:
    return RecordDict({**content(reply), "more": ConfigRecord({"more": b"secret"})})


def raw(payload: Any) -> Lie:
    return lambda order, reply: RecordDict({"counts": ConfigRecord({"counts": payload})})


def in_json(**changes: Any) -> Lie:
    """What no message of ours can be."""

    def lie(order: AuditOrder, reply: AuditReply) -> RecordDict:
        document = json.loads(encode(reply)) | changes
        return RecordDict({"counts": ConfigRecord({"counts": json.dumps(document).encode()})})

    return lie


BINS = 2 * 26


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (changed(run_id="1" * 16), "run_id 0000000000000000"),
        (changed(attempt=2), "attempt 3"),
        (changed(site="west"), "site south"),
        (changed(arrays_digest="1" * 64), "arrays_digest"),
        (changed(task_digest="1" * 64), "task_digest"),
        (changed(cells=(1,) * 31), "expected 32 cells, got 31"),
        (changed(cells=(1,) * 33), "expected 32 cells, got 33"),
        (changed(histogram=(1,) * (BINS - 1)), f"expected {BINS} bins"),
        (changed(cells=(-10_000,) * 32), "got a smaller one"),
        (changed(scale=3.9), "noise of scale 4.0, got 3.9"),
        (changed(scale=None), "noise of scale 4.0, got None"),
        (
            changed(spent=SpentBudget(epsilon=None, delta=1e-5, private=True)),
            "expected an epsilon",
        ),
        (changed(ledger_head=LedgerHead(sequence=3, digest="5" * 64)), "at least 4 entries"),
        (in_json(cells=[0.5] * 32), "does not fit: cells.0"),
        (in_json(cells=[True] * 32), "does not fit: cells.0"),
        (in_json(cells=["1"] * 32), "does not fit: cells.0"),
        (in_json(cells=[2**60] * 32), "does not fit: cells.0"),
        (in_json(scale=-1.0), "does not fit: scale"),
        (in_json(names=["Miller"]), "does not fit: names"),
        (raw(b"{"), "not readable JSON"),
        (raw("text"), "as bytes"),
        (extra, "expected the record 'counts', got 'counts', 'more'"),
        (lambda order, reply: RecordDict(), "got none"),
    ],
)
def test_a_reply_that_does_not_fit_is_dropped_by_name(
    asked: tuple[AuditOrder, Arrays], lie: Lie, message: str
) -> None:
    found = ask(asked, {"south": lie})
    assert list(found.replies) == ["north", "west"]
    assert found.absent["south"].code == "invalid-reply"
    assert message in found.absent["south"].message


def test_a_refusal_is_kept_with_its_reason(asked: tuple[AuditOrder, Arrays]) -> None:
    def refuse(order: AuditOrder, reply: AuditReply) -> RecordDict:
        no = Refusal(
            run_id=order.run_id,
            server_round=0,
            site=order.site,
            code="policy-refused",
            message="no",
        )
        return RecordDict({"refusal": ConfigRecord({"refusal": encode(no)})})

    found = ask(asked, {"south": refuse})
    assert found.absent["south"].code == "policy-refused"


def test_a_client_that_fails_is_named(asked: tuple[AuditOrder, Arrays]) -> None:
    def fail(order: AuditOrder, reply: AuditReply) -> RecordDict:
        raise RuntimeError("Mrs Miller")

    found = ask(asked, {"south": fail})
    assert found.absent["south"].code == "client-error"
    assert "Miller" not in found.absent["south"].message


class Repeating(InProcessGrid):
    """Gives each reply twice."""

    def send_and_receive(self, *arguments: Any, **settings: Any) -> Iterator[Message]:
        for message in super().send_and_receive(*arguments, **settings):
            yield message
            yield message


def test_two_replies_of_a_site_are_both_dropped(asked: tuple[AuditOrder, Arrays]) -> None:
    with grid_of() as grid:
        grid.__class__ = Repeating
        found = gather(grid, NODES, *asked, timeout=60)
    assert found.replies == {}
    assert {away.code for away in found.absent.values()} == {"duplicate-reply"}


def test_each_site_is_shown_the_head_of_its_own_ledger(asked: tuple[AuditOrder, Arrays]) -> None:
    seen: dict[str, AuditOrder] = {}

    def look(order: AuditOrder, reply: AuditReply) -> RecordDict:
        seen[order.site] = order
        return content(reply)

    heads = {"north": LedgerHead(sequence=1, digest="6" * 64)}
    heads["west"] = LedgerHead(sequence=2, digest="7" * 64)
    lies: dict[str, Lie] = dict.fromkeys(NODES.values(), look)
    found = ask(asked, lies, witnesses=heads, checkpoints={"south": "{}"})
    assert {name: order.ledger_witness for name, order in seen.items()} == {**heads, "south": None}
    assert seen["south"].checkpoint == "{}"
    # Its ledger must have grown by this audit's entries.
    assert found.absent["west"].code == "invalid-reply"


def test_other_weights_are_not_sent(asked: tuple[AuditOrder, Arrays]) -> None:
    order, arrays = asked
    wrong = {name: array + np.float32(1) for name, array in arrays.items()}
    with grid_of() as grid, pytest.raises(RunError, match="expected the weights"):
        gather(grid, NODES, order, wrong)


# The file


def test_what_was_gathered_is_read_as_it_was(
    tmp_path: Path, asked: tuple[AuditOrder, Arrays]
) -> None:
    found = ask(asked, away=(2,))
    path = write_counts(tmp_path, asked[0], found)
    assert path == tmp_path / AUDIT_FILE
    assert [file.name for file in tmp_path.iterdir()] == [AUDIT_FILE]
    counts, direct = read_counts(path), from_replies(asked[0], found.replies)
    assert [site.site for site in counts.sites] == ["north", "west"]
    assert counts.attributes == direct.attributes
    for one, other in zip(counts.sites, direct.sites, strict=True):
        assert (one.cells == other.cells).all()
        assert (one.histogram == other.histogram).all()
    assert read_document(path).absent == tuple(found.absent.values())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-20], "got something else"),
        (lambda text: text.replace('"cells"', '"cels"'), "got something else"),
        (lambda text: text.replace('"site": "south"', '"site": "north"'), "one reply of each"),
        (lambda text: text.replace('"run_id": "0000', '"run_id": "1000', 1), "of what was asked"),
        (lambda text: "[]", "got something else"),
        (lambda text: "", "got something else"),
    ],
)
def test_a_damaged_file_is_refused(
    tmp_path: Path,
    asked: tuple[AuditOrder, Arrays],
    damage: Callable[[str], str],
    message: str,
) -> None:
    path = write_counts(tmp_path, asked[0], ask(asked))
    path.write_text(damage(path.read_text()))
    with pytest.raises(SubjectError, match=message):
        read_counts(path)


def test_a_reply_too_short_for_the_question_is_refused(
    tmp_path: Path, asked: tuple[AuditOrder, Arrays]
) -> None:
    reply = honest(asked[0])
    short = reply.model_copy(update={"cells": reply.cells[1:]})
    path = write_counts(tmp_path, asked[0], Gathered({"north": short}, {}))
    with pytest.raises(SubjectError, match="counts of what was asked"):
        read_counts(path)


def test_nobody_is_no_counts(tmp_path: Path, asked: tuple[AuditOrder, Arrays]) -> None:
    path = write_counts(tmp_path, asked[0], Gathered({}, {}))
    with pytest.raises(SubjectError, match="got none"):
        read_counts(path)
    with pytest.raises(SubjectError, match="cannot read"):
        read_counts(tmp_path / "elsewhere.json")


def test_an_attribute_is_named_as_the_file_has_it(asked: tuple[AuditOrder, Arrays]) -> None:
    """Keys of objects are converted on the wire; names of attributes must not be."""
    order = decode(AuditOrder, encode(asked[0]))
    assert order.attributes[0] == AuditedAttribute(name="age_group", values=("old", "young"))
