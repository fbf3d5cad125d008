"""The commands of docs/guides/deploy.md, one after the other, in one shell, in an empty folder."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.model_folder import load_model
from tests.support.command import ROOT, environment
from tests.support.deployment import free_port

GUIDE = ROOT / "docs/guides/deploy.md"
# Two short rounds: what is tested is the guide, and training takes as long as it takes.
SHORT = "sed -i 's/num_rounds = 12/num_rounds = 2/; s/steps_per_round = 20/steps_per_round = 2/'"


def blocks() -> list[str]:
    """The guide's commands."""
    return re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def script() -> str:
    """All of them, on free ports and with little training."""
    init, *others = blocks()
    ports = (
        f"--set listen.address=127.0.0.1:{free_port()} "
        f"--set listen.enrolment_address=127.0.0.1:{free_port()} "
        f"--set listen.metrics_port=0"
    )
    assert init.count("cloister coordinator init ") == 1
    init = init.replace("cloister coordinator init ", f"cloister coordinator init {ports} ")
    return "\n".join(["set -euo pipefail", init, f"{SHORT} coordinator/federation.toml", *others])


def put_command_on_path(folder: Path) -> str:
    """A folder with the command `cloister` of this very tree, before the rest of the path."""
    folder.mkdir()
    command = folder / "cloister"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cli.main "$@"\n')
    command.chmod(0o755)
    return f"{folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def run(folder: Path, text: str, path: str) -> str:
    """Runs a script to its end and ends whatever it left running; what it printed."""
    process = subprocess.Popen(
        ["bash", "-c", text],  # noqa: S607
        cwd=folder,
        env=environment(PATH=path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=500)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    logs = "".join(f"\n--- {log}\n{log.read_text()[-2000:]}" for log in folder.rglob("*.log"))
    assert process.returncode == 0, output + logs
    assert "Traceback" not in output + logs
    return output


@pytest.mark.timeout(600)
def test_three_organisations_train_by_the_guide_s_commands(tmp_path: Path) -> None:
    folder = tmp_path / "guide"
    folder.mkdir()
    output = run(folder, script(), put_command_on_path(tmp_path / "bin"))
    assert len(re.findall(r"^fingerprint [0-9a-f]{64}$", output, re.MULTILINE)) >= 3
    assert re.search(r"run [0-9a-f]{16} finished after 2 of 2 rounds", output)
    assert "epsilon 7." in output  # the ledger: the target of 8 is calibrated
    # In the last status: revoked, and without an open session.
    rows = re.findall(r"lakeside\W+(active|revoked|\w+)\W+(open)?", output)
    assert rows[-1] == ("revoked", "")
    model = folder / "model-of-the-federation"
    assert load_model(model / "model").task is not None
    summary = json.loads((model / "summary.json").read_text())
    assert summary["private"]
    assert {row["rounds"] for row in summary["sites"].values()} == {2}


def test_the_guide_has_a_block_for_every_step() -> None:
    text = "\n".join(blocks())
    for command in (
        "coordinator init", "coordinator start", "coordinator invite", "client join",
        "coordinator approve", "client task", "client check", "client start", "coordinator run",
        "coordinator status", "coordinator export", "client ledger", "coordinator revoke",
        "coordinator stop",
    ):  # fmt: skip
        assert f"cloister {command}" in text
