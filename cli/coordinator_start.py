"""`cloister coordinator start`: the service, until it is told to stop."""

import argparse
import os
import signal
from types import FrameType

from cli.logs import log_json_lines
from coordinator.service.folder import CoordinatorFolder
from coordinator.service.service import CoordinatorService
from core.process import allow_many_files

_INTERRUPTED = 130


def run_start(options: argparse.Namespace) -> int:
    """Runs until SIGTERM, SIGINT or `stop`; a second signal ends the process at once.

    Raises:
        CloisterError: Whatever keeps the service from starting.
    """
    log_json_lines(options.verbose)
    allow_many_files()
    with CoordinatorService.open(CoordinatorFolder(options.folder), options.overrides) as service:
        _stop_on_signals(service)
        service.wait()
    return 0


def _stop_on_signals(service: CoordinatorService) -> None:
    told = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if told:
            os._exit(_INTERRUPTED)
        told = True
        service.stop(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
