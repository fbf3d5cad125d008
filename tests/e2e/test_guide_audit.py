"""The commands of docs/guides/audit.md, one after the other, in an empty folder.

On a tiny federation, by the shortest suite, cut short: what is tested is the guide.
"""

import re
import shlex
from pathlib import Path

import pytest

from audit.attestation.bundle import FILES, MANIFEST_FILE
from tests.support.audited import write_audited
from tests.support.command import ROOT, cloister
from tests.support.federation import FEDERATION

GUIDE = ROOT / "docs/guides/audit.md"
GATE_FAILED = 4
QUICK, SHORT = "--suite quick", "--suite conformance --time-limit 1"


def commands() -> list[list[str]]:
    """The guide's commands, each as a shell splits it."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line.replace(QUICK, SHORT)) for line in lines]


def test_a_run_is_audited_and_verified_by_the_guide_s_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = FEDERATION.replace("num_rounds = 3", "num_rounds = 1")
    config = write_audited(tmp_path / "federation", federation=federation)
    folder = tmp_path / "guide"
    folder.mkdir()
    monkeypatch.chdir(folder)
    said = []
    for program, *arguments in commands():
        assert program == "cloister"
        if arguments[0] == "simulate":
            arguments += ["--config", str(config)]
        given = [item.replace("audit-quick", "audit-conformance") for item in arguments]
        done = cloister(*given)
        # What only quick can prove, the short suite leaves open, as the guide says.
        expected = GATE_FAILED if given[:2] == ["audit", "run"] else 0
        assert done.returncode == expected, (given, done.stderr)
        said.append(done.stdout)
    output = "".join(said)
    assert "verified: every file is what Ann Example (data-protection officer)" in output
    assert "what changed" in output
    assert (folder / "runs/clinic/audit-conformance/report.html").is_file()
    assert "Routing of referrals" in (folder / "runs/audit/report.html").read_text()


def test_the_guide_names_every_tool_and_every_file_of_an_audit() -> None:
    tools = {command[2] for command in commands() if command[1] == "audit"}
    assert tools == {"run", "verify", "compare", "key"}
    text = GUIDE.read_text()
    for name in FILES | {MANIFEST_FILE}:
        assert f"`{name}`" in text
