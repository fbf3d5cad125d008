import logging
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from client.flower_engine import OpenNode, build_engine_client_app
from coordinator.flower import instruction
from core.errors import DataError
from core.messages import encode
from tests.support.site import make_site


def call(open_node: OpenNode, kind: str, content: RecordDict | None = None) -> Message:
    message = instruction(
        content or RecordDict(), run_id=1, message_id="1", dst_node_id=7, message_type=kind
    )
    context = Context(
        run_id=1, node_id=7, node_config={"n": 1}, state=RecordDict(), run_config={"r": 2}
    )
    return build_engine_client_app(open_node)(message, context)


def answer(reply: Message) -> dict[str, object]:
    record = reply.content["node"]
    assert isinstance(record, ConfigRecord)
    return dict(record)


def test_a_node_says_which_site_it_plays(tmp_path: Path) -> None:
    there = make_site(tmp_path)
    asked = []

    def open_node(run_config: object, node_config: object) -> object:
        asked.append((run_config, node_config))
        return there.site, there.workshop

    assert answer(call(open_node, "query")) == {"site": "north"}  # type: ignore[arg-type]
    assert asked == [({"r": 2}, {"n": 1})]
    assert answer(call(lambda *_: None, "query")) == {"site": ""}


def test_a_node_trains_as_its_site(tmp_path: Path) -> None:
    there = make_site(tmp_path)
    content = RecordDict({"task": ConfigRecord({"task": encode(there.order)})})
    reply = call(lambda *_: (there.site, there.workshop), "train", content)
    # The order came without weights: it is the app of every other grid that says so.
    assert b"expected the ArrayRecord 'arrays'" in reply.content["refusal"]["refusal"]  # type: ignore[index, operator]


@pytest.mark.parametrize("kind", ["query", "train"])
def test_of_an_error_the_name_alone_leaves(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> None:
        raise DataError("line 4 of secret.jsonl is broken")

    with caplog.at_level(logging.ERROR):
        if kind == "query":
            assert answer(call(broken, kind)) == {"error": "data"}
        else:
            with pytest.raises(Exception, match="^data$"):
                call(broken, kind)
    assert "line 4 of secret.jsonl is broken" in caplog.text


def test_a_node_without_a_site_does_not_train() -> None:
    with pytest.raises(Exception, match="a node without a site is never asked to train"):
        call(lambda *_: None, "train")
