"""The result of a run, drawn from its record alone."""

from collections.abc import Mapping
from typing import Any

from core.run_record import SCHEMA_VERSION, Line, RunRecord


def summarise(record: RunRecord, *, stopped: str | None = None) -> dict[str, Any]:
    """What ``summary.json`` holds.

    Args:
        record: The run's record, with at least round 0.
        stopped: Why the run ended early; ``None`` where it is complete.
    """
    rounds = record.rounds
    evaluated = [line for line in rounds if line["metrics"] is not None]
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": record.header["run_id"],
        "status": "completed" if stopped is None else "stopped",
        "reason": stopped,
        "server_round": rounds[-1]["server_round"],
        "num_rounds": record.header["config"]["federation"]["num_rounds"],
        "private": is_private(record),
        "initial_metrics": evaluated[0]["metrics"] if evaluated else None,
        "metrics": evaluated[-1]["metrics"] if evaluated else None,
        "weights_digest": rounds[-1]["weights_digest"],
        "seconds": round(sum(line["seconds"] for line in rounds), 6),
        "sites": site_rows(record),
    }


def is_private(record: RunRecord) -> bool:
    """False where the run has no privacy, or any site says that its ledger guarantees none."""
    return record.header["config"]["privacy"]["mode"] != "none" and all(
        spent["private"] for line in record.rounds for spent in line["spent"].values()
    )


def site_rows(record: RunRecord) -> dict[str, dict[str, Any]]:
    """For each member: its last ledger, the rounds it served in, and how often it was dropped."""
    rows = {}
    for member in record.header["config"]["sites"]:
        name = member["name"]
        spent: Mapping[str, Any] = {}
        for line in record.rounds:
            spent = line["spent"].get(name, spent)
        rows[name] = {
            "num_examples": member["num_examples"],
            "rounds": sum(name in line["used"] for line in record.rounds),
            "epsilon": spent.get("epsilon"),
            "delta": spent.get("delta"),
            "private": spent.get("private"),
            "refusals": _count(record, "refusals", name),
            "rejected": _count(record, "rejected", name),
        }
    return rows


def _count(record: RunRecord, kind: str, site: str) -> int:
    lines: list[Line] = record.rounds + record.unfinished
    return sum(item["site"] == site for line in lines for item in line[kind])
