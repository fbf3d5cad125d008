"""Arguments in, exit code out."""

import argparse
import os

import pytest

from cli import main as module
from cli.main import OFFLINE, build_parser, main
from core.errors import BudgetExceededError, CloisterError, ConfigError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CloisterError("broke"), 1),
        (ConfigError("wrong"), 2),
        (BudgetExceededError("no", hint="ask for less"), 3),
    ],
)
def test_an_error_s_exit_code_and_message_reach_the_shell(
    error: CloisterError,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: argparse.Namespace) -> int:
        raise error

    parser = argparse.ArgumentParser()
    parser.set_defaults(run=fail, verbose=0)
    monkeypatch.setattr(module, "build_parser", lambda: parser)
    assert main([], own_process=False) == code
    assert capsys.readouterr().err == f"cloister: {error.code}: {error}\n"


def test_an_interrupted_run_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    parser = argparse.ArgumentParser()
    parser.set_defaults(run=interrupt, verbose=0)
    monkeypatch.setattr(module, "build_parser", lambda: parser)
    assert main([], own_process=False) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_a_command_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        build_parser().parse_args([])
    assert info.value.code == 2
    assert "usage: cloister" in capsys.readouterr().err


def test_no_dependency_may_call_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OFFLINE:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit):
        main(["--help"], own_process=False)
    assert {name: os.environ[name] for name in OFFLINE} == OFFLINE
