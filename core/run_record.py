"""What a run directory says: the events of a run and the rounds that count.

Kinds of lines: ``begun`` (the first: what the run is held to), ``attempt`` (before sites are
asked), ``short`` (an attempt brought too few usable replies), ``round`` (after the round's
checkpoint), ``resumed`` (rounds after its ``server_round`` no longer count) and ``stopped``.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from core.aggregation_messages import Transcript
from core.digests import json_digest
from core.errors import RunError
from core.messages import DpSgdTerms, LedgerHead, SpentBudget

SCHEMA_VERSION: Final = 1
RUN_FILE: Final = "run.json"
RECORD_FILE: Final = "record.jsonl"
TERMS_FILE: Final = "terms.json"
SUMMARY_FILE: Final = "summary.json"
BEGUN: Final = "begun"

Line = Mapping[str, Any]
Metrics = Mapping[str, float | Sequence[Sequence[int]]]
# ``None`` for a run without privacy.
SiteTerms = Mapping[str, DpSgdTerms | None]


@dataclass(frozen=True)
class SiteRefusal:
    """A site's no, with its reason."""

    site: str
    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class RejectedReply:
    """A reply that was dropped, or never came, and why."""

    site: str
    code: str
    message: str


@dataclass(frozen=True)
class RoundResult:
    """What a finished round leaves in the record."""

    server_round: int
    attempts: int
    used: Sequence[str]
    spent: Mapping[str, SpentBudget]
    refusals: Sequence[SiteRefusal]
    rejected: Sequence[RejectedReply]
    weights_digest: str
    seconds: float
    metrics: Metrics | None = None
    transcript: Transcript | None = None
    """Under secure aggregation: what was opened, and who signed for it."""
    ledger_heads: Mapping[str, LedgerHead] = field(default_factory=dict)
    """How far each site's ledger was when it replied: what the sites' logs and this one share."""

    def line(self) -> dict[str, Any]:
        """The line of the record. JSON has no NaN and no infinity: they become null."""
        line = {
            "kind": "round",
            "server_round": self.server_round,
            "attempts": self.attempts,
            "used": list(self.used),
            "spent": {site: spent.model_dump(mode="json") for site, spent in self.spent.items()},
            "refusals": [asdict(refusal) for refusal in self.refusals],
            "rejected": [asdict(reply) for reply in self.rejected],
            "weights_digest": self.weights_digest,
            "seconds": round(self.seconds, 6),
            "metrics": None if self.metrics is None else _plain(self.metrics),
        }
        if self.ledger_heads:
            line["ledger_heads"] = {
                site: head.model_dump(mode="json") for site, head in self.ledger_heads.items()
            }
        if self.transcript is not None:
            line["transcript"] = self.transcript.model_dump(mode="json")
        return line

    @classmethod
    def from_line(cls, line: Line) -> "RoundResult":
        """The result that ``line`` was made from."""
        return cls(
            server_round=line["server_round"],
            attempts=line["attempts"],
            used=line["used"],
            spent={site: SpentBudget(**spent) for site, spent in line["spent"].items()},
            refusals=[SiteRefusal(**refusal) for refusal in line["refusals"]],
            rejected=[RejectedReply(**reply) for reply in line["rejected"]],
            weights_digest=line["weights_digest"],
            seconds=line["seconds"],
            metrics=line["metrics"],
            transcript=_transcript(line.get("transcript")),
            ledger_heads={
                site: LedgerHead(**head) for site, head in line.get("ledger_heads", {}).items()
            },
        )


@dataclass(frozen=True)
class RunRecord:
    """What a run directory says."""

    header: Line
    lines: Sequence[Line]

    @property
    def rounds(self) -> list[Line]:
        """The ``round`` lines that count, by round."""
        counted: dict[int, Line] = {}
        for line in self.lines:
            if line["kind"] == "round":
                counted[line["server_round"]] = line
            elif line["kind"] == "resumed":
                counted = {n: item for n, item in counted.items() if n <= line["server_round"]}
        return [counted[server_round] for server_round in sorted(counted)]

    @property
    def beginning(self) -> Line:
        """What the ``begun`` line says; empty where the record does not start with one."""
        first = self.lines[0] if self.lines else {"kind": ""}
        if first["kind"] != BEGUN:
            return {}
        return {name: item for name, item in first.items() if name != "kind"}

    @property
    def unfinished(self) -> list[Line]:
        """The ``short`` lines of the round after the last one that counts."""
        last = max((line["server_round"] for line in self.rounds), default=0)
        return [
            line
            for line in self.lines
            if line["kind"] == "short" and line["server_round"] == last + 1
        ]

    def attempts(self, server_round: int) -> int:
        """The highest attempt at a round that sites may have seen; 0 for none."""
        return max(
            (
                line["attempt"]
                for line in self.lines
                if line["kind"] == "attempt" and line["server_round"] == server_round
            ),
            default=0,
        )


def read_record(folder: Path) -> RunRecord:
    """Reads ``run.json`` and ``record.jsonl``; a torn last line does not count.

    Raises:
        RunError: A file is missing, or damaged elsewhere than at its end.
    """
    return RunRecord(read_header(folder / RUN_FILE), read_lines(folder / RECORD_FILE)[0])


def read_header(path: Path) -> dict[str, Any]:
    """The run's ``run.json``."""
    try:
        header = json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"expected a run at {path.parent}, got: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"expected JSON in {path}, got something else") from error
    names = {
        "schema_version",
        "run_id",
        "config",
        "config_digest",
        "task_digest",
        "audit_commitment",
        "versions",
    }
    if not isinstance(header, dict) or not names <= set(header):
        raise RunError(f"expected the header of a run in {path}, got something else")
    if header["schema_version"] != SCHEMA_VERSION:
        raise RunError(
            f"expected schema version {SCHEMA_VERSION} in {path}, got {header['schema_version']!r}",
            hint="a newer Cloister wrote this run",
        )
    return header


def read_terms(folder: Path) -> SiteTerms:
    """Each site's privacy constants, as they were when the run began.

    Raises:
        RunError: The file is missing or damaged.
    """
    path = folder / TERMS_FILE
    try:
        document = json.loads(path.read_bytes())
        return {site: item and DpSgdTerms(**item) for site, item in document.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"expected the privacy constants in {path}, got others") from error


def beginning_of(folder: Path) -> dict[str, Any]:
    """What the record's first line says, so that whoever signs the record signs it too.

    **Guarantees**: Neither ``run.json`` nor ``terms.json`` can change without changing it.

    Raises:
        RunError: One of the two is missing or damaged.
    """
    header, path = read_header(folder / RUN_FILE), folder / TERMS_FILE
    try:
        terms = json.loads(path.read_bytes())
        gates = header["config"]["audit"]["gates"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"expected a run's configuration and terms in {folder}") from error
    return {
        "header_digest": json_digest(header),
        "terms_digest": json_digest(terms),
        "config_digest": header["config_digest"],
        "task_digest": header["task_digest"],
        "audit_commitment": header["audit_commitment"],
        "gates": gates,
    }


def read_lines(path: Path) -> tuple[list[Line], int]:
    """The whole lines of a record, and how many bytes they take."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"expected a record at {path}, got: {error.strerror}") from error
    length = data.rfind(b"\n") + 1
    lines = []
    for number, text in enumerate(data[:length].splitlines(), start=1):
        try:
            line = json.loads(text)
            known = isinstance(line, dict) and isinstance(line["kind"], str)
        except (ValueError, KeyError, RecursionError):
            known = False
        if not known:
            raise RunError(f"expected a record's line at {path}:{number}, got something else")
        lines.append(line)
    return lines, length


def _transcript(document: Any) -> Transcript | None:
    """By way of JSON: strict mode then takes arrays for tuples."""
    return None if document is None else Transcript.model_validate_json(json.dumps(document))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
