"""A team's processes: where each one's place is, and those that a leader starts itself."""

import os
import shutil
import stat
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from core.errors import ConfigError, WorkerLostError

_MEETING: Final = "CLOISTER_TEAM"
_LEAVE_SECONDS: Final = 20.0  # Python unloads torch
_POLL_SECONDS: Final = 0.05


@dataclass(frozen=True)
class Place:
    """One process's place in a team."""

    rank: int
    size: int
    meeting: Path
    """The file in which the processes meet."""


def place_of(environment: Mapping[str, str], folder: Path) -> Place | None:
    """The place that a leader or ``torchrun`` gave this process; ``None`` for a lone one.

    torchrun's own store listens on every interface and asks nobody for a name, so it is not used:
    processes that one torchrun started on one machine meet in a file, as those of a leader do.

    Args:
        environment: The process's environment variables.
        folder: Where the file's own folder is to be for torchrun.

    Raises:
        ConfigError: The processes are not all on this machine, or the variables make no sense.
    """
    meeting = environment.get(_MEETING)
    by_torchrun = "TORCHELASTIC_RUN_ID" in environment
    if meeting is None and not by_torchrun:
        return None
    try:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        here = int(environment.get("LOCAL_WORLD_SIZE", size))
    except (KeyError, ValueError) as error:
        raise ConfigError("expected RANK and WORLD_SIZE from torchrun, got neither") from error
    if here != size or not 0 <= rank < size:
        raise ConfigError(
            f"expected all processes of a site on one machine, got {here} of {size} here",
            hint="sums of private gradients are not encrypted between the processes",
        )
    if meeting is not None:
        return Place(rank, size, Path(meeting))
    restart = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    started = f"{environment['TORCHELASTIC_RUN_ID']}/{_parent()}/{restart}"
    name = sha256(started.encode()).hexdigest()[:16]
    return Place(rank, size, folder / f".team-{name}" / "meeting")


def open_meeting(meeting: Path) -> None:
    """Makes the file's folder, where no process of the team did; nobody else may enter it.

    Whoever could read the file could take the place of a process that has not come yet.

    Raises:
        ConfigError: The folder is somebody else's, or open to others.
    """
    folder = meeting.parent
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ConfigError(f"expected to make the folder {folder}, got {error.strerror}") from error
    private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) & 0o077 == 0
    if not private or found.st_uid != os.getuid():
        raise ConfigError(
            f"expected {folder} as a folder of this account alone, got another",
            hint="remove it, and look who made it",
        )


def leave_meeting(meeting: Path) -> None:
    """Removes file and folder, once every process has come."""
    shutil.rmtree(meeting.parent, ignore_errors=True)


def _parent() -> str:
    """Names the process that started this one, also where its number is used again."""
    number = os.getppid()
    after_name = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    return f"{number}-{after_name[19]}"  # field 22, the start time; see proc_pid_stat(5)


class Workers:
    """Processes that this one started, and ends.

    Args:
        command: Starts one; it finds its place by ``place_of``.
        size: Processes of the team, the leader included.
        threads: Threads inside tensor operations of a process.
    """

    def __init__(self, command: Sequence[str], size: int, *, threads: int) -> None:
        self._folder = TemporaryDirectory(prefix="cloister-team-", ignore_cleanup_errors=True)
        self.meeting = Path(self._folder.name) / "meeting"
        self._fate = ""
        place = {
            _MEETING: str(self.meeting),
            "WORLD_SIZE": str(size),
            "OMP_NUM_THREADS": str(threads),
        }
        self._processes = [
            subprocess.Popen(
                list(command),
                env={**os.environ, **place, "RANK": str(rank)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            for rank in range(1, size)
        ]

    def wait_until_ready(self, deadline_seconds: float) -> None:
        """Returns when every worker is about to connect.

        Raises:
            WorkerLostError: One ended, or does not come in time; all were ended.
        """
        give_up = time.monotonic() + deadline_seconds
        while not all(ready_file(self.meeting, rank).exists() for rank in self._ranks()):
            if self.any_ended() or time.monotonic() > give_up:
                fate = self.end()
                raise WorkerLostError(
                    f"expected {len(self._processes)} workers to start, got fewer{fate}",
                    hint="the lines above in this log say why",
                )
            time.sleep(_POLL_SECONDS)

    def any_ended(self) -> bool:
        """Whether a worker is no more."""
        return self._ended() > 0

    def _ended(self) -> int:
        return sum(process.poll() is not None for process in self._processes)

    def end(self, *, leaving: int = 0) -> str:
        """Ends the workers; says how each had ended before that.

        Args:
            leaving: So many are about to end by themselves, and get some seconds for it.
        """
        if self._fate:
            return self._fate
        give_up = time.monotonic() + _LEAVE_SECONDS
        while self._ended() < leaving and time.monotonic() < give_up:
            time.sleep(_POLL_SECONDS)
        codes = [process.poll() for process in self._processes]
        for process in self._processes:
            process.kill()  # nothing that it has is needed
            process.wait()
        self._folder.cleanup()
        self._fate = "".join(
            f"; worker {rank} {_ending(code)}"
            for rank, code in zip(self._ranks(), codes, strict=True)
        )
        return self._fate

    def _ranks(self) -> range:
        return range(1, len(self._processes) + 1)


def _ending(code: int | None) -> str:
    if code is None:
        return "was still running"
    return f"was ended by signal {-code}" if code < 0 else f"had ended with code {code}"


def ready_file(meeting: Path, rank: int) -> Path:
    """By it a worker says that it is about to connect."""
    return meeting.with_name(f"{meeting.name}-{rank}")


def cores_each(size: int) -> int:
    """This process's cores, divided among ``size`` processes."""
    return max(1, len(os.sched_getaffinity(0)) // size)
