"""Limits of the process, tried in one of its own: they cannot be taken back."""

import subprocess
import sys

import pytest

from tests.support.command import ROOT


def limits(set_before: str, call: str, limit: str) -> tuple[int, int]:
    code = (
        f"import resource; from core.process import {call}; {set_before}; {call}(); "
        f"print(*resource.getrlimit(resource.{limit}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    soft, hard = done.stdout.split()
    return int(soft), int(hard)


def test_there_are_no_core_dumps() -> None:
    assert limits("pass", "no_core_dumps", "RLIMIT_CORE") == (0, 0)


def test_no_command_leaves_a_core_dump() -> None:
    """Whichever it is: keys are in the memory of most of them."""
    code = (
        "import argparse, resource; from cli import main as module; "
        "show = lambda _: print(*resource.getrlimit(resource.RLIMIT_CORE)) or 0; "
        "parser = argparse.ArgumentParser(); parser.set_defaults(run=show, verbose=0); "
        "module.build_parser = lambda: parser; module.main([])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0", "0"]


@pytest.mark.parametrize(("soft", "hard", "after"), [(64, 128, (128, 128)), (128, 128, (128, 128))])
def test_files_are_as_many_as_the_system_allows(
    soft: int, hard: int, after: tuple[int, int]
) -> None:
    before = f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))"
    assert limits(before, "allow_many_files", "RLIMIT_NOFILE") == after
