"""`flwr run` on Flower's own engine, for real: SuperLink, simulation runtime, Ray."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import ROOT, environment, simulate
from tests.support.deployment import free_port
from tests.support.federation import FEDERATION, TEST_KEY, write_federation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="Ray is not installed: pip install -c constraints.txt -e '.[ray]'",
    ),
]
PROGRAMS = Path(sys.executable).parent
OVERRIDES = ("--federation-config", "num-supernodes=3 client-resources-num-cpus=1")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A SuperLink in simulation mode; the environment in which `flwr` finds it."""
    port = free_port()
    temporary = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # its sockets need a short path
    names = environment(
        PATH=f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
        FLWR_HOME=str(tmp_path / "flower"),
        FLWR_TELEMETRY_ENABLED="0",
        FLWR_DISABLE_UPDATE_CHECK="1",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_TMPDIR=temporary,
    )
    (tmp_path / "flower").mkdir()
    (tmp_path / "flower/config.toml").write_text(
        f'[superlink]\ndefault = "here"\n'
        f'[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    command = [
        PROGRAMS / "flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess",
        "--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    with (tmp_path / "superlink.log").open("wb") as log:
        link = subprocess.Popen(
            command, env=names, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 60
        while not _healthy(port):
            assert link.poll() is None, (tmp_path / "superlink.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield names
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(link.pid, signal.SIGTERM)
        link.wait(timeout=60)
        shutil.rmtree(temporary, ignore_errors=True)


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.timeout(600)
def test_flower_s_engine_runs_the_same_apps_to_the_same_weights(
    tmp_path: Path, engine: dict[str, str]
) -> None:
    config = write_federation(
        tmp_path / "in", federation=FEDERATION + f'test_noise_key = "{TEST_KEY}"\n'
    )
    output = tmp_path / "out"
    paths = f'federation="{config}" output="{output}"'
    done = subprocess.run(
        [PROGRAMS / "flwr", "run", ROOT, "--stream", "--run-config", paths, *OVERRIDES],
        env=engine,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((output / "summary.json").read_text())
    assert summary["status"] == "completed"
    expected = simulate(config, tmp_path / "simulated")
    assert summary["weights_digest"] == expected["weights_digest"]
    assert {row["rounds"] for row in summary["sites"].values()} == {3}
    # No code of ours travelled: the bundle that was installed holds none.
    installed = [path for path in (tmp_path / "flower/apps").rglob("*") if path.is_file()]
    assert installed
    assert [path.name for path in installed if path.suffix == ".py"] == []
