"""The ClientApp: each message gets a reply, or a refusal that says nothing private."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from client.app import build_client_app
from client.content import refusal_content
from coordinator.flower import instruction
from coordinator.payload import to_record
from core.errors import BudgetExceededError, CloisterError, DataError, LedgerError
from core.messages import Refusal, TrainReply, decode, encode
from tests.support.site import SiteAtWork, make_site


@pytest.fixture(scope="module")
def at_work(tmp_path_factory: pytest.TempPathFactory) -> SiteAtWork:
    return make_site(tmp_path_factory.mktemp("site"))


def ask(at_work: SiteAtWork, content: RecordDict) -> RecordDict:
    app = build_client_app(lambda _: at_work.site, at_work.workshop)
    message = instruction(content, run_id=1, message_id="1", dst_node_id=7, message_type="train")
    reply: Message = app(message, Context(1, 7, {}, RecordDict(), {}))
    return reply.content


def content_of(at_work: SiteAtWork, **records: Any) -> RecordDict:
    given_records = {
        "task": ConfigRecord({"task": encode(at_work.order)}),
        "arrays": to_record(at_work.arrays),
        **records,
    }
    return RecordDict(
        {name: record for name, record in given_records.items() if record is not None}
    )


def refusal(content: RecordDict) -> Refusal:
    assert set(content) == {"refusal"}
    return decode(Refusal, content["refusal"]["refusal"])  # type: ignore[index]


def test_an_order_is_answered_with_weights(tmp_path: Path) -> None:
    at_work = make_site(tmp_path)
    content = ask(at_work, content_of(at_work))
    assert set(content) == {"reply", "arrays"}
    reply = decode(TrainReply, content["reply"]["reply"])  # type: ignore[index]
    assert reply.site == "north"
    assert set(content["arrays"]) == set(at_work.arrays)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"task": None}, "expected the ConfigRecord 'task', got NoneType"),
        ({"task": MetricRecord({"a": 1})}, "expected the ConfigRecord 'task', got MetricRecord"),
        ({"task": ConfigRecord({"task": "text"})}, "expected TrainTask as bytes, got str"),
        ({"task": ConfigRecord({"task": b"{"})}, "TrainTask is not readable JSON"),
        ({"arrays": None}, "expected the ArrayRecord 'arrays', got NoneType"),
        ({"arrays": ArrayRecord()}, "expected exactly the 13 trained arrays, got 0"),
    ],
)
def test_an_unreadable_message_is_refused(
    at_work: SiteAtWork, records: dict[str, Any], message: str
) -> None:
    found = refusal(ask(at_work, content_of(at_work, **records)))
    assert found.code == "message"
    assert message in found.message


@given(junk=st.binary(max_size=300))
def test_junk_never_raises(at_work: SiteAtWork, junk: bytes) -> None:
    content = content_of(at_work, task=ConfigRecord({"task": junk}))
    assert refusal(ask(at_work, content)).code == "message"


def test_the_budget_s_reason_travels(tmp_path: Path) -> None:
    at_work = make_site(tmp_path, policy={"max_epsilon": 0.1})
    found = refusal(ask(at_work, content_of(at_work)))
    assert found.code == "budget-exceeded"
    assert (found.run_id, found.server_round) == (at_work.order.run_id, 1)
    assert found.hint


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DataError("/data/notes.jsonl:7: broken", hint="mend line 7"), "see the site's own log"),
        (LedgerError("cannot write /srv/ledger.sqlite"), "see the site's own log"),
        (BudgetExceededError("expected at most 8, got 9"), "expected at most 8, got 9"),
    ],
)
def test_only_what_speaks_of_the_task_leaves_the_site(
    at_work: SiteAtWork, error: CloisterError, text: str
) -> None:
    found = refusal(refusal_content(error, at_work.site.name, at_work.order))
    assert (found.code, found.message) == (error.code, text)
    assert "line 7" not in found.hint


def test_a_long_reason_is_cut(at_work: SiteAtWork) -> None:
    found = refusal(refusal_content(BudgetExceededError("x" * 9000), "north", None))
    assert len(found.message) == 4096
    assert found.server_round == 0
