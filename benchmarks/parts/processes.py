"""The processes of a benchmark that has several: each says what it found in lines of JSON."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PARTS = Path(__file__).parent


def start(script: str, *arguments: str) -> "subprocess.Popen[str]":
    """One of the scripts beside this file."""
    command = [sys.executable, str(PARTS / script), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)


def end(*processes: "subprocess.Popen[str] | None") -> None:
    """Lets each process end, one after the other; kills those that do not."""
    for process in processes:
        if process is not None:
            try:
                process.communicate(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()


def answer(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """The next line that the process prints."""
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise SystemExit(f"{process.args!r} ended without an answer")
    found: dict[str, Any] = json.loads(line)
    return found
