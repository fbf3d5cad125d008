"""A coordinator and its sites as real processes over real TLS, each in a folder of its own."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.support.command import COMMAND, Done, cloister, environment
from tests.support.federation import FEDERATION, SITES, TEST_KEY, write_records
from tests.support.forked import Forked, Prepare
from tests.support.kill_points import arm

Found = TypeVar("Found")

# An address may ask the enrolment once a second, and a site that joins asks some times.
_ADMITTED_SECONDS = 6.0

SITE = """
[site]
name = "{name}"
num_examples = 40
federation = "federation.toml"
{noise}

[data]
format = "jsonl"
path = "records.jsonl"
columns = {{ text = "text", label = "label" }}

[policy]
max_epsilon = 1000.0
max_delta = 1e-5
allow_test_noise = {allow_test_noise}
allow_non_private = true
allowed_tasks = ["{task}"]

[service]
threads = 1
stop_seconds = {stop_seconds}
"""


def wait_for(what: str, look: Callable[[], Found | None], seconds: float = 90) -> Found:
    """What ``look`` finds, as soon as it finds something."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found is not None:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} seconds for {what}")
        time.sleep(0.1)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Program:
    """One process and what it logged."""

    name: str
    process: subprocess.Popen[bytes] | Forked
    log: Path

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def kill(self) -> None:
        """kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, seconds: float = 60) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=seconds)

    def freeze(self) -> None:
        """SIGSTOP: it is there, and does and says nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def wait_logged(self, text: str, seconds: float = 60) -> None:
        """Waits until it logged ``text``."""
        wait_for(
            f"{text!r} in the log of {self.name}",
            lambda: text in self.log.read_text(errors="replace") or None,
            seconds,
        )

    def wait_killed(self, where: str, seconds: float = 120) -> None:
        """Waits until the process died of SIGKILL."""
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not come to {where!r}") from None
        assert code == -signal.SIGKILL, f"{self.name} ended with {code}: {self.tail()}"

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-3000:]


@dataclass
class Deployment:
    """Three organisations on one machine. Use as a context: it ends every process it started."""

    folder: Path
    federation: str = FEDERATION
    sites: tuple[str, ...] = SITES
    settings: Mapping[str, str] = field(default_factory=dict)
    stop_seconds: float = 20.0
    identities: Mapping[str, str] = field(default_factory=dict)
    """Lines of a site's [identity], by site."""
    test_noise: bool = True
    """Whether the sites' noise comes from the test key, so that runs can be compared."""
    forked: bool = False
    """Whether processes fork from one that has imported everything: seconds sooner there."""
    prepare: Sequence[Prepare] = ()
    """What forked processes do before their command."""
    verbose: bool = False
    """Whether coordinator and clients log all that they can."""
    runs: Path | None = None
    """Where this process sees the runs, if not in the coordinator's folder."""
    programs: list[Program] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for program in self.programs:
            if program.running:
                program.kill()
        if error is not None:
            for program in self.programs:
                sys.stderr.write(f"\n--- {program.name}\n{program.tail()}\n")

    @property
    def coordinator(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "coordinator"

    @property
    def federation_file(self) -> Path:
        """The federation's file as the consortium wrote it."""
        return self.folder / "consortium" / "federation.toml"

    def site_file(self, site: str) -> Path:
        """The site's own file."""
        return self.folder / site / "site.toml"

    def ok(self, *arguments: str | Path) -> Done:
        """A command that must succeed, in this process."""
        done = cloister(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done

    def _ok_in_turn(self, *arguments: str | Path) -> None:
        """``ok``; once more where this address, which all sites have here, asked too often."""
        done = cloister(*arguments)
        if "too-many" in done.stderr:
            time.sleep(_ADMITTED_SECONDS)
            done = cloister(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"

    def set_up(self) -> None:
        """Writes all files and initialises the coordinator."""
        self.federation_file.parent.mkdir(parents=True)
        self.federation_file.write_text(self.federation)
        write_records(self.federation_file.with_name("holdout.jsonl"), seed=len(SITES))
        for number, site in enumerate(self.sites):
            (self.folder / site).mkdir()
            write_records(self.folder / site / "records.jsonl", seed=number)
            write_records(self.folder / site / "holdout.jsonl", seed=len(SITES))
            (self.folder / site / "federation.toml").write_text(self.federation)
            self.write_site(site, task="0" * 64)
        listen = {
            "listen.address": f'"127.0.0.1:{free_port()}"',
            "listen.enrolment_address": f'"127.0.0.1:{free_port()}"',
            "listen.public_host": '"127.0.0.1"',
            "listen.metrics_port": str(free_port()),
        }
        sets = [a for k, v in (listen | dict(self.settings)).items() for a in ("--set", f"{k}={v}")]
        self.ok(
            "coordinator", "init", "--folder", self.coordinator,
            "--config", self.federation_file, *sets,
        )  # fmt: skip
        for site in self.sites:
            self.write_site(site, task=self.task(site))

    def write_site(self, site: str, *, task: str) -> None:
        """The site's file, which approves ``task``."""
        text = SITE.format(
            name=site,
            noise=f'test_noise_key = "{TEST_KEY}"' if self.test_noise else "",
            allow_test_noise=str(self.test_noise).lower(),
            task=task,
            stop_seconds=self.stop_seconds,
        )
        identity = self.identities.get(site, "")
        self.site_file(site).write_text(f"{text}\n[identity]\n{identity}\n")

    def task(self, site: str) -> str:
        """The hash of the task that the site's installed configuration stands for."""
        done = self.ok("client", "task", "--config", self.site_file(site), "--json")
        task: str = json.loads(done.stdout)["task"]
        return task

    def start(
        self,
        name: str,
        *command: str | Path,
        kill_at: str | None = None,
        prepare: Sequence[Prepare] = (),
    ) -> Program:
        """Starts a command as a process of its own.

        Args:
            name: For its log.
            command: The command's arguments.
            kill_at: Where it dies, see ``tests.support.kill_points``.
            prepare: What it does first; for forked processes.
        """
        if self.forked:
            log = self.folder / f"{name}-{len(self.programs)}.log"
            first = [*self.prepare, *prepare, *([partial(arm, kill_at)] if kill_at else [])]
            program = Program(name, Forked(tuple(map(str, command)), log, first), log)
            self.programs.append(program)
            return program
        start = [*COMMAND] if kill_at is None else [
            sys.executable, "-m", "tests.support.kill_points", kill_at,
        ]  # fmt: skip
        if prepare:
            raise ValueError("expected forked processes to be prepared")
        log = self.folder / f"{name}-{len(self.programs)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*start, *map(str, command)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment(),
                cwd=Path(__file__).parents[2],
            )
        program = Program(name, process, log)
        self.programs.append(program)
        return program

    @property
    def _verbosity(self) -> tuple[str, ...]:
        return ("-vv",) if self.verbose else ()

    def start_coordinator(
        self, *, kill_at: str | None = None, prepare: Sequence[Prepare] = ()
    ) -> Program:
        """Starts the service."""
        command = ("coordinator", "start", "--folder", self.coordinator, *self._verbosity)
        return self.start("coordinator", *command, kill_at=kill_at, prepare=prepare)

    def start_client(
        self, site: str, *, kill_at: str | None = None, prepare: Sequence[Prepare] = ()
    ) -> Program:
        """Starts a site's client."""
        command = ("client", "start", "--config", self.site_file(site), *self._verbosity)
        return self.start(site, *command, kill_at=kill_at, prepare=prepare)

    def program(self, name: str) -> Program:
        """The newest process of a name."""
        return next(program for program in reversed(self.programs) if program.name == name)

    def record(self, run_id: str) -> list[dict[str, Any]]:
        """The lines of a run's record, as far as it got."""
        path = (self.runs or self.coordinator / "runs") / run_id / "record.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def wait_round(
        self,
        run_id: str,
        wanted: Callable[[dict[str, Any]], bool] = lambda line: True,
        *,
        after: int = 0,
        seconds: float = 90,
    ) -> dict[str, Any]:
        """Waits for a line of a round later than ``after`` that is as ``wanted``."""

        def there() -> dict[str, Any] | None:
            rounds = [line for line in self.record(run_id) if line["kind"] == "round"]
            found = (r for r in rounds if r["server_round"] > after and wanted(r))
            return next(found, None)

        return wait_for(f"a round of {run_id} after {after}", there, seconds)

    def try_status(self) -> dict[str, Any] | None:
        """What the service says of itself; ``None`` where it does not answer."""
        done = cloister("coordinator", "status", "--folder", self.coordinator, "--json")
        if done.returncode != 0:
            return None
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def status(self) -> dict[str, Any]:
        """What the service says of itself, as soon as it answers."""
        return wait_for("the coordinator's status", self.try_status)

    def enrol(self, site: str) -> None:
        """Invites a site, lets it join and approves it; the service must run."""
        invitation = self.folder / f"{site}.invitation.json"
        self.ok("coordinator", "invite", site, "--folder", self.coordinator, "--output", invitation)
        join = ("client", "join", invitation, "--config", self.site_file(site))
        self._ok_in_turn(*join, "--wait", "0")
        fingerprint = self.site(site)["fingerprint"]
        self.ok("coordinator", "approve", site, fingerprint, "--folder", self.coordinator)
        self._ok_in_turn(*join)

    def site(self, name: str) -> dict[str, Any]:
        """A site's line of the status."""
        found: dict[str, Any] = next(s for s in self.status()["sites"] if s["name"] == name)
        return found

    def deploy(self) -> None:
        """Everything up to open sessions of all sites."""
        self.set_up()
        self.start_coordinator()
        self.status()
        for site in self.sites:
            self.enrol(site)
        for site in self.sites:
            self.start_client(site)
        self.wait_connected(*self.sites)

    def wait_connected(self, *sites: str) -> None:
        """Waits for open sessions."""

        def connected() -> bool | None:
            report = self.try_status()
            there = {s["name"] for s in (report or {"sites": []})["sites"] if s["connected"]}
            return set(sites) <= there or None

        wait_for(f"sessions of {', '.join(sites)}", connected)

    def run(self, *arguments: str) -> str:
        """Orders a run; returns its id."""
        done = self.ok("coordinator", "run", "--folder", self.coordinator, "--json", *arguments)
        run_id: str = json.loads(done.stdout)["run_id"]
        return run_id

    def wait_run(
        self, run_id: str, state: str = "finished", seconds: float = 180
    ) -> dict[str, Any]:
        """Waits until a run is in ``state``; its line of the status."""
        ends = {"finished", "stopped", "failed"}

        def there() -> dict[str, Any] | None:
            report = self.try_status()
            for run in (report or {"runs": []})["runs"]:
                if run["run_id"] == run_id and run["state"] in ends:
                    return dict(run)
            return None

        run = wait_for(f"run {run_id} to be {state}", there, seconds)
        assert run["state"] == state, run
        return run
