"""Runs the command in this process and kills it with SIGKILL at a named place.

    python -m tests.support.kill_points coordinator.rounds:save_state@after#2 coordinator start ...

kills the process after the second call of ``coordinator.rounds.save_state`` returned. The product
knows nothing of this: the named function is wrapped before the command begins.
"""

import functools
import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

_POINT = re.compile(r"(?P<module>[\w.]+):(?P<name>[\w.]+)@(?P<when>before|after)#(?P<number>\d+)")


def main(arguments: list[str]) -> int:
    """Arms the point that the first argument names and runs the rest as ``cloister`` would."""
    point, *command = arguments
    from cli.main import OFFLINE

    os.environ.update(OFFLINE)
    arm(point)
    from cli.main import main as cloister

    return cloister(command)


def arm(point: str, number: int = signal.SIGKILL) -> None:
    """Wraps the function that ``point`` names; a name that is not there is an error.

    Args:
        point: See above.
        number: The signal that the process sends itself there.
    """
    match = _POINT.fullmatch(point)
    if match is None:
        raise ValueError(f"expected MODULE:NAME@before|after#N, got {point!r}")
    owner: Any = importlib.import_module(match["module"])
    *parents, name = match["name"].split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    wrapped = _killing(owner.__dict__[name], match["when"], int(match["number"]), number)
    setattr(owner, name, wrapped)


def _killing(function: Callable[..., Any], when: str, call: int, number: int) -> Callable[..., Any]:
    lock, calls = threading.Lock(), 0

    def is_the_one() -> bool:
        nonlocal calls
        with lock:
            calls += 1
            return calls == call

    @functools.wraps(function)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        die = is_the_one()
        if die and when == "before":
            os.kill(os.getpid(), number)
        result = function(*arguments, **named)
        if die and when == "after":
            os.kill(os.getpid(), number)
        return result

    return wrapper


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
