"""Sites with several processes in a deployed run: started by the client, and by torchrun."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.command import COMMAND, ROOT, environment
from tests.support.deployment import Deployment, Program, wait_for
from tests.support.federation import FEDERATION

FEDERATION_OF_TWO = FEDERATION.replace("min_train_nodes = 1", "min_train_nodes = 2").replace(
    '[[sites]]\nname = "west"\nnum_examples = 40\n', ""
)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


class TorchRun(Program):
    """torchrun; killed, it would leave its ranks behind."""

    def kill(self) -> None:
        """kill -9, of its ranks too."""
        ranks = children(self)
        super().kill()
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def start_by_torchrun(deployment: Deployment, site: str) -> Program:
    log = deployment.folder / f"{site}-torchrun.log"
    command = [*TORCHRUN, *COMMAND[1:], "client", "start", "--config", deployment.site_file(site)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment(), cwd=ROOT
        )
    deployment.programs.append(TorchRun(site, process, log))
    return deployment.programs[-1]


def children(program: Program) -> list[int]:
    """The processes that a process started."""
    path = Path(f"/proc/{program.process.pid}/task/{program.process.pid}/children")
    return [int(number) for number in path.read_text().split()]


def gone(pid: int) -> bool | None:
    """True when there is no such process."""
    return None if os.path.exists(f"/proc/{pid}") else True


def test_sites_with_two_processes_each_take_part_and_leave_none_behind(tmp_path: Path) -> None:
    with Deployment(tmp_path, federation=FEDERATION_OF_TWO, sites=("north", "south")) as deployment:
        deployment.set_up()
        file = deployment.site_file("north")
        file.write_text(file.read_text().replace("[service]", "[service]\nprocesses = 2"))
        deployment.start_coordinator()
        deployment.status()
        for site in deployment.sites:
            deployment.enrol(site)
        own = deployment.start_client("north")
        by_torchrun = start_by_torchrun(deployment, "south")
        for program in (own, by_torchrun):
            program.wait_logged("2 processes share each round", 200)
        deployment.wait_connected("north", "south")
        run_id = deployment.run()
        deployment.wait_run(run_id)
        rounds = [line for line in deployment.record(run_id) if line["kind"] == "round"]
        assert [line["server_round"] for line in rounds][-1] == 3
        workers = children(own)
        assert len(workers) == 1
        assert own.stop() == 0, own.tail()
        assert all(wait_for("the worker's end", lambda pid=pid: gone(pid)) for pid in workers)
        ranks = children(by_torchrun)
        by_torchrun.stop()
        assert all(wait_for("the worker's end", lambda pid=pid: gone(pid)) for pid in ranks)
        assert not list(file.parent.glob(".team-*"))
