"""Commands as processes of their own that need not import torch again.

A server process imports everything once and forks for each command. What it forks is a process
like any other: with its own pid, sockets and threads, to be stopped, killed and waited for.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

Prepare = Callable[[], object]

_PRELOAD = ("cli.client_start", "cli.coordinator_start", "tests.support.forked")


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOAD))
    return context


class Forked:
    """The part of ``subprocess.Popen`` that the deployment needs.

    Args:
        command: The arguments of ``cloister``.
        log: Where its output goes.
        prepare: What it does before the command begins; must be picklable.
    """

    def __init__(self, command: Sequence[str], log: Path, prepare: Sequence[Prepare]) -> None:
        log.touch()
        self._process = _context().Process(target=_run, args=(list(command), log, list(prepare)))
        self._process.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, once it has ended."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Sends a signal, where it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end; the exit code."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("cloister", timeout or 0)
        return code


def run_apart(prepare: Prepare, log: Path) -> int:
    """Runs a function in a process of its own; 0 where it returned."""
    return Forked((), log, (prepare,)).wait(60)


def _run(command: list[str], log: Path, prepare: list[Prepare]) -> None:
    signal.set_wakeup_fd(-1)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    from cli.main import OFFLINE, main

    os.environ.update(OFFLINE)
    for step in prepare:
        step()
    if command:
        sys.exit(main(command))
