"""The ledger under kill -9 and under several processes, with real processes and a real disk."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.errors import LedgerError
from privacy.accounting import epsilon_report
from privacy.events import DpSgdEvent
from privacy.ledger import Ledger

ROOT = Path(__file__).parents[2]
ROUND = DpSgdEvent(1.0, 0.01, 400, 10_000, 100, 1.0)
DELTA = 1e-5

PREAMBLE = """
import os, signal, sys
from pathlib import Path
from core.errors import BudgetExceededError
from privacy.events import DpSgdEvent
from privacy.ledger import Ledger
from privacy.ledger_store import LedgerStore

path, cap = Path(sys.argv[1]), float(sys.argv[2])
event = DpSgdEvent(1.0, 0.01, 400, 10_000, 100, 1.0)

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def reserve(ledger, server_round):
    return ledger.reserve(event, run_id="0" * 16, server_round=server_round, attempt=1,
                          task_digest="0" * 64, max_epsilon=cap, delta=1e-5)
"""

# Where the process dies in its second reserve, and how many debits must be there after.
DEATHS = {
    "before the commit": (
        "ledger._store._connection.set_trace_callback(lambda text: text == 'COMMIT' and die())",
        1,
    ),
    "between commit and witness": ("os.replace = die", 2),
    "while the witness is written": ("os.fchmod = die", 2),
    "after the witness is named": ("os.fsync = lambda _: None if not replaced else die()", 2),
    "after it returned": ("", 2),
}


def start(script: str, path: Path, cap: float) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + script, str(path), repr(cap)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_debit_outlives_a_kill(tmp_path: Path) -> None:
    running = {}
    for number, (name, (death, _)) in enumerate(DEATHS.items()):
        script = f"""
ledger = Ledger.open(path, site="north")
reserve(ledger, 1)
replaced = []
rename = os.replace
os.replace = lambda old, new: (rename(old, new), replaced.append(new))
{death}
reserve(ledger, 2)
die()
"""
        running[name] = start(script, tmp_path / str(number) / "ledger.sqlite", 8.0)
    for number, (name, process) in enumerate(running.items()):
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, name
        path = tmp_path / str(number) / "ledger.sqlite"
        with Ledger.open(path, site="north") as ledger:
            debits = DEATHS[name][1]
            assert len(ledger.entries()) == 1 + debits, name
            assert ledger.spent(DELTA) == epsilon_report([ROUND] * debits, DELTA)
            witness = json.loads(path.with_name("ledger.sqlite.witness").read_bytes())
            assert witness["head"] == ledger.head().model_dump(), name


def test_a_kill_while_a_ledger_is_made_leaves_none_or_a_whole_one(tmp_path: Path) -> None:
    deaths = ["os.fchmod = die", *(f"os.replace = dying({after})" for after in range(4))]
    script = """
rename = os.replace
def dying(after):
    done = []
    def replace(old, new):
        if len(done) == after:
            die()
        rename(old, new)
        done.append(new)
    return replace
"""
    running = [
        start(
            script + death + "\nLedger.open(path, site='north')\ndie()",
            tmp_path / str(number) / "ledger.sqlite",
            8.0,
        )
        for number, death in enumerate(deaths)
    ]
    for number, process in enumerate(running):
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL
        path = tmp_path / str(number) / "ledger.sqlite"
        with Ledger.open(path, site="north") as ledger:
            assert len(ledger.entries()) == 1
        assert not list(path.parent.glob("*.new"))


def test_processes_never_pass_the_cap_together(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    cap = epsilon_report([ROUND] * 7, DELTA).epsilon
    script = """
kept = 0
ledger = Ledger.open(path, site="north")
for server_round in range(6):
    try:
        reserve(ledger, server_round)
        kept += 1
    except BudgetExceededError:
        pass
print(kept)
"""
    running = [start(script, path, cap) for _ in range(3)]
    kept = [int(process.communicate(timeout=120)[0]) for process in running]
    assert sum(kept) == 7
    with Ledger.open(path, site="north") as ledger:
        assert len(ledger.entries()) == 8
        assert ledger.spent(DELTA).epsilon == cap


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """What a full quota looks like; Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_refuses(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path, site="north") as ledger:
        head = ledger.head()
        with file_size_limit(100), pytest.raises(LedgerError, match="expected to read and write"):
            ledger.reserve(
                ROUND,
                run_id="0" * 16,
                server_round=1,
                attempt=1,
                task_digest="0" * 64,
                max_epsilon=8.0,
                delta=DELTA,
            )
        assert ledger.head() == head
        assert ledger.spent(DELTA).epsilon == 0.0
