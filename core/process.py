"""What a command asks of the operating system for its own process."""

import resource
from typing import Final

# More than all sessions and as many connections of strangers as there are for a minute.
_FILES: Final = 65_536


def no_core_dumps() -> None:
    """Keys and records of this process get into no core file, whatever ends it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def allow_many_files() -> None:
    """Raises the number of open files as far as the system lets it: strangers' connections are
    files too, and a checkpoint must find one that is free."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
