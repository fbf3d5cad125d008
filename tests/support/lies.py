"""What a lying site may send instead of its honest reply, and what the coordinator says of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ConfigRecord, MetricRecord, RecordDict

from core.messages import SpentBudget, TrainTask
from tests.support.sites import INITIAL, Lie, refusal_content, reply_content


def _arrays(**replaced: Any) -> Lie:
    """A reply with other arrays; ``None`` removes one."""

    def lie(task: TrainTask, content: RecordDict) -> RecordDict:
        arrays = {name.replace(".", "_"): array for name, array in INITIAL.items()} | replaced
        named = {
            name.replace("_", "."): array for name, array in arrays.items() if array is not None
        }
        return reply_content(task, named, 9)

    return lie


def _says(**fields: Any) -> Lie:
    """An honest update whose reply says something untrue."""
    return lambda task, content: reply_content(task, INITIAL, 9, **fields)


def _float64(task: TrainTask, content: RecordDict) -> RecordDict:
    content["arrays"]["scale"] = Array(np.array(0.5))  # type: ignore[assignment]
    return content


def _extra_record(task: TrainTask, content: RecordDict) -> RecordDict:
    content["metrics"] = MetricRecord({"num-examples": 10**9})
    return content


def _garbage(task: TrainTask, content: RecordDict) -> RecordDict:
    content["reply"] = ConfigRecord({"reply": b"\xff\x00 not JSON"})
    return content


def _two_entries(task: TrainTask, content: RecordDict) -> RecordDict:
    content["reply"]["more"] = "text"  # type: ignore[assignment]
    return content


def _wrong_kinds(task: TrainTask, content: RecordDict) -> RecordDict:
    return RecordDict({"reply": content["reply"], "arrays": MetricRecord({"a": 1})})


def _nan() -> Any:
    array = INITIAL["head.weight"].copy()
    array[1, 2] = np.nan
    return array


LIES: Mapping[str, tuple[Lie, str]] = {
    "nan": (_arrays(head_weight=_nan()), "expected finite weights, got NaN or infinity"),
    "infinity": (_arrays(scale=np.array(np.inf, np.float32)), "got NaN or infinity in scale"),
    "shape": (
        _arrays(head_weight=np.zeros((4, 3), np.float32)),
        "expected head.weight of shape (3, 4), got (4, 3)",
    ),
    "extra key": (_arrays(back=np.zeros(1, np.float32)), "unknown 'back'"),
    "missing key": (_arrays(scale=None), "missing 'scale'"),
    "float64": (_float64, "expected scale as float32"),
    "huge": (
        _arrays(scale=np.array(1e30, np.float32)),
        "expected an update of norm at most 50, got 1e+30",
    ),
    "old round": (_says(server_round=99), "expected a reply with server_round"),
    "other attempt": (_says(attempt=99), "expected a reply with attempt 1, got 99"),
    "other run": (_says(run_id="f" * 16), "expected a reply with run_id"),
    "wrong site": (_says(site="honest-1"), "expected a reply with site liar, got honest-1"),
    "other task": (_says(task_digest="0" * 64), "expected a reply with task_digest"),
    "own weight": (_says(num_examples=10**9), "expected a reply with num_examples 100"),
    "digest": (_says(arrays_digest="0" * 64), "expected arrays of the digest"),
    "no epsilon": (
        _says(spent=SpentBudget(epsilon=None, delta=1e-5, private=True)),
        "expected an epsilon from a ledger that is private",
    ),
    "extra record": (_extra_record, "expected the records 'reply' and 'arrays'"),
    "no records": (lambda task, content: RecordDict(), "got none"),
    "garbage": (_garbage, "TrainReply is not readable JSON"),
    "two entries": (_two_entries, "expected 'reply' as a ConfigRecord with the one entry"),
    "wrong kinds": (_wrong_kinds, "expected 'arrays' as ArrayRecord, got MetricRecord"),
    "refusal of another": (
        lambda task, content: refusal_content(task, site="honest-1"),
        "expected a refusal of round",
    ),
    "refusal of garbage": (
        lambda task, content: RecordDict({"refusal": ConfigRecord({"refusal": b"{}"})}),
        "Refusal does not fit",
    ),
}
