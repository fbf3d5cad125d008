"""One example of each document of an audit's counts, every field set."""

from core.audit_messages import (
    AbsentSite,
    AuditedAttribute,
    AuditOrder,
    AuditReply,
    CountsDocument,
    CountsQuestion,
)
from core.messages import SpentBudget, WireMessage
from tests.support.messages import HEAD, TERMS

ATTRIBUTE = AuditedAttribute(name="age_group", values=("old", "young"))
QUESTION = CountsQuestion(
    run_id="0123456789abcdef",
    attempt=2,
    arrays_digest="a" * 64,
    attributes=(ATTRIBUTE,),
    labels=("no", "yes"),
    edges=(0.0, 0.5, 1.0),
    epsilon=0.5,
)
ORDER = AuditOrder(
    run_id="0123456789abcdef",
    attempt=2,
    arrays_digest="a" * 64,
    attributes=(ATTRIBUTE,),
    labels=("no", "yes"),
    edges=(0.0, 0.5, 1.0),
    epsilon=0.5,
    site="north",
    terms=TERMS,
    task_digest="b" * 64,
    ledger_witness=HEAD,
    checkpoint='{"size": 3}',
)
REPLY = AuditReply(
    run_id="0123456789abcdef",
    attempt=2,
    site="north",
    task_digest="b" * 64,
    arrays_digest="a" * 64,
    cells=(3, -1, 0, 7, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12),
    histogram=(3, -1, 0, 7),
    scale=4.0,
    spent=SpentBudget(epsilon=1.5, delta=1e-5, private=True),
    ledger_head=HEAD,
    cosignature='{"signature": ""}',
)
ABSENT = AbsentSite(site="south", code="policy-refused", message="expected nothing to be counted")
COUNTS = CountsDocument(question=QUESTION, task_digest="b" * 64, replies=(REPLY,), absent=(ABSENT,))

AUDIT_DOCUMENTS: tuple[WireMessage, ...] = (ATTRIBUTE, QUESTION, ORDER, REPLY, ABSENT, COUNTS)
