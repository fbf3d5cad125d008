"""A run looks up no host: spied on from inside the process, before anything is imported."""

from pathlib import Path

from tests.support.command import ROOT, spawn
from tests.support.federation import write_federation

SPY = """
import pathlib, socket, sys
LOG = pathlib.Path({log!r})
def spy(name, original):
    def call(*args, **kwargs):
        with LOG.open("a") as file:
            file.write(f"{{name}} {{args[:2]}}\\n")
        return original(*args, **kwargs)
    return call
for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "create_connection"):
    setattr(socket, name, spy(name, getattr(socket, name)))
class Socket(socket.socket):
    def connect(self, address):
        with LOG.open("a") as file:
            file.write(f"connect {{address}}\\n")
        return super().connect(address)
socket.socket = Socket
LOG.write_text("spying\\n")
"""


def test_no_host_is_looked_up(tmp_path: Path) -> None:
    log = tmp_path / "spy.log"
    (tmp_path / "spy").mkdir()
    (tmp_path / "spy/sitecustomize.py").write_text(SPY.format(log=str(log)))
    path = f"{tmp_path / 'spy'}:{ROOT}"
    config = write_federation(tmp_path / "in")
    arguments = ("simulate", "--config", config, "--output", tmp_path / "out")
    done = spawn(*arguments, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert log.read_text() == "spying\n"


def test_the_spy_would_see_a_look_up(tmp_path: Path) -> None:
    """The test above can fail."""
    import subprocess
    import sys

    log = tmp_path / "spy.log"
    (tmp_path / "sitecustomize.py").write_text(SPY.format(log=str(log)))
    code = "import socket; socket.getaddrinfo('localhost', 1)"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(tmp_path)}, check=True)
    assert "getaddrinfo ('localhost', 1)" in log.read_text()
