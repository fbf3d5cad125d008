"""The command `cloister`, in this process or in one of its own."""

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.main import main

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "cli.main")


def environment(**extra: str) -> dict[str, str]:
    """The present one, with one thread for each tensor operation and no terminal."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
        **extra,
    }


@dataclass(frozen=True)
class Done:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


def cloister(*arguments: str | Path) -> Done:
    """Runs the command inside this process: all of it but the start of the interpreter."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments], own_process=False)
    return Done(code, out.getvalue(), err.getvalue())


def spawn(*arguments: str | Path, timeout: float = 240, **extra: str) -> Done:
    """Runs the command as a user's shell would, to its end."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env=environment(**extra),
    )
    return Done(done.returncode, done.stdout, done.stderr)


def simulate(config: Path, output: Path, *overrides: str) -> dict[str, Any]:
    """Simulates to the end inside this process and returns the summary."""
    sets = [item for override in overrides for item in ("--set", override)]
    done = cloister("simulate", "--config", config, "--output", output, "--json", *sets)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary
