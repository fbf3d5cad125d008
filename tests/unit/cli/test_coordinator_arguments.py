"""The coordinator's commands: their arguments, and what they cost before they begin."""

import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import build_parser
from tests.support.command import ROOT, environment

TOOLS = (
    "init", "start", "invite", "approve", "revoke", "grant", "renew", "run", "status", "stop",
    "export",
)  # fmt: skip


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_explains_itself(tool: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        build_parser().parse_args(["coordinator", tool, "--help"])
    assert info.value.code == 0
    assert "--folder DIR" in capsys.readouterr().out


def test_the_folder_has_a_default() -> None:
    options = build_parser().parse_args(["coordinator", "status"])
    assert (options.folder, options.identity, options.json) == (Path("coordinator"), None, False)


@pytest.mark.parametrize(
    ("arguments", "run_id"), [([], None), (["--run"], ""), (["--run", "ab"], "ab")]
)
def test_stop_tells_the_service_from_a_run(arguments: list[str], run_id: str | None) -> None:
    options = build_parser().parse_args(["coordinator", "stop", *arguments])
    assert options.run_id == run_id


@pytest.mark.parametrize(
    "arguments",
    [
        ["grant", "ann"],
        ["grant", "ann", "--role", "admin"],
        ["grant", "ann", "--role", "auditor", "--csr", "a", "--certificate", "b"],
        ["approve", "north"],
        ["export", "ab"],
        [],
    ],
)
def test_what_is_missing_or_too_much_is_a_usage_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as info:
        build_parser().parse_args(["coordinator", *arguments])
    assert info.value.code == 2
    assert "usage: cloister coordinator" in capsys.readouterr().err


def test_the_arguments_import_nothing_heavy() -> None:
    code = (
        "import sys; import cli.main; "
        "heavy = {'torch', 'flwr', 'grpc', 'cryptography', 'opacus', 'pydantic', 'rich'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=environment(),
    )
    assert done.stdout.strip() == "[]"
