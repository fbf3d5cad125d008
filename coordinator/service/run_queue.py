"""The runs that were ordered, in their order, and where each stands."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from coordinator.service.store import Row, Store
from core.config import FederationConfig
from core.config_files import parse_config
from core.errors import ServiceError
from core.wire.documents import RunStatus

RunState = Literal["queued", "running", "finished", "stopped", "failed"]
# A status must fit into one message; the record of a run has all of it.
_MAX_REFUSALS: Final = 64
_MAX_REFUSAL_CHARACTERS: Final = 300
_MAX_REASON_CHARACTERS: Final = 1000


@dataclass(frozen=True)
class QueuedRun:
    """A run and what it was ordered with."""

    number: int
    """Flower's number of the run, from 1."""
    run_id: str
    status: RunStatus
    config_json: str

    def load_config(self) -> FederationConfig:
        """What the run was ordered with.

        Raises:
            ConfigError: Another version of Cloister took it, and this one does not.
        """
        document = json.loads(self.config_json)
        return parse_config(FederationConfig, document, origin=f"run {self.run_id}")


class RunQueue:
    """The table of runs."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, config: FederationConfig) -> str:
        """Puts a run at the end of the queue; returns its id."""
        run_id = secrets.token_hex(8)
        with self._store.transaction():
            self._store.write(
                "INSERT INTO runs (run_id, name, config, state, reason, server_round, num_rounds, "
                "weights_digest, refusals) VALUES (?, ?, ?, 'queued', '', 0, ?, '', '[]')",
                (
                    run_id,
                    config.federation.name,
                    config.model_dump_json(),
                    config.federation.num_rounds,
                ),
            )
        return run_id

    def next(self) -> QueuedRun | None:
        """The run to work on: one that was cut short, or else the oldest that waits."""
        rows = self._store.rows(
            "SELECT * FROM runs WHERE state IN ('running', 'queued') "
            "ORDER BY state = 'queued', number LIMIT 1"
        )
        return _queued_run(rows[0]) if rows else None

    def get(self, run_id: str) -> QueuedRun:
        """One run.

        Raises:
            ServiceError: There is none of this id.
        """
        rows = self._store.rows("SELECT * FROM runs WHERE run_id = ?", (run_id,))
        if not rows:
            raise ServiceError(
                f"expected the id of a run, got {run_id!r}, which no run has",
                hint="`cloister coordinator status` lists the runs",
            )
        return _queued_run(rows[0])

    def resume(self, run_id: str) -> None:
        """Puts a run that stopped or failed into the queue again.

        Raises:
            ServiceError: There is none of this id, or it waits, runs or is finished.
        """
        state = self.get(run_id).status.state
        if state not in ("stopped", "failed"):
            raise ServiceError(
                f"expected a run that was stopped or has failed, got one that is {state}"
            )
        self.move(run_id, "queued")

    def counts(self) -> dict[str, int]:
        """How many runs are in each state."""
        rows = self._store.rows("SELECT state, COUNT(*) AS count FROM runs GROUP BY state")
        found = {row["state"]: row["count"] for row in rows}
        return {state: found.get(state, 0) for state in get_args(RunState)}

    def newest(self, count: int) -> list[RunStatus]:
        """Where the newest runs stand, the newest last; all of them for -1."""
        rows = self._store.rows("SELECT * FROM runs ORDER BY number DESC LIMIT ?", (count,))
        return [_status(row) for row in reversed(rows)]

    def progress(
        self, run_id: str, server_round: int, weights_digest: str, refusals: Sequence[str]
    ) -> None:
        """Notes a round that is applied."""
        kept = [ascii(text)[1:-1][:_MAX_REFUSAL_CHARACTERS] for text in refusals[:_MAX_REFUSALS]]
        self._change(
            run_id,
            "server_round = ?, weights_digest = ?, refusals = ?",
            (server_round, weights_digest, json.dumps(kept)),
        )

    def move(self, run_id: str, state: RunState, reason: str = "") -> None:
        """Changes where a run stands, and why."""
        self._change(run_id, "state = ?, reason = ?", (state, reason[:_MAX_REASON_CHARACTERS]))

    def _change(self, run_id: str, assignments: str, values: Sequence[object]) -> None:
        with self._store.transaction():
            # The assignments are the ones above, no one else's words.
            statement = f"UPDATE runs SET {assignments} WHERE run_id = ?"  # noqa: S608
            if self._store.write(statement, (*values, run_id)) != 1:
                raise ServiceError(f"expected the id of a run, got {run_id!r}, which no run has")


def _queued_run(row: Row) -> QueuedRun:
    return QueuedRun(row["number"], row["run_id"], _status(row), row["config"])


def _status(row: Row) -> RunStatus:
    return RunStatus(
        run_id=row["run_id"],
        name=row["name"],
        state=row["state"],
        server_round=row["server_round"],
        num_rounds=row["num_rounds"],
        reason=row["reason"],
        weights_digest=row["weights_digest"],
        refusals=tuple(json.loads(row["refusals"])),
    )
