"""Taking any single check out of the protocol's code makes a test fail."""

import ast
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from types import FrameType
from typing import Any

import pytest

from tests.support.mutants import MODULES, Mutant, in_place, mutants, source
from tests.unit.privacy.secure_aggregation import (
    test_coordinator_attempt,
    test_schedules,
    test_site_attempt,
    test_site_attempt_order,
)

EQUIVALENT: dict[str, str] = {}
"""Mutants that no test can tell from the real code, by name, and why."""

Test = Callable[[], None]
Line = tuple[str, int]


def fast_tests() -> dict[str, Test]:
    """The tests that look for a mutant, each with its parameters."""
    modules = (test_site_attempt, test_site_attempt_order, test_coordinator_attempt)
    found = {}
    for module in modules:
        for name, function in vars(module).items():
            if name.startswith("test_"):
                for values in _parameters(function):
                    label = f"{module.__name__}::{name}{sorted(map(str, values.items()))}"
                    found[label] = partial(function, **values)
    found["dropping out"] = test_schedules.test_any_sites_of_three_drop_out_at_any_stages
    return found


def _parameters(function: Any) -> Iterator[dict[str, Any]]:
    axes = []
    for mark in getattr(function, "pytestmark", ()):
        names = mark.args[0]
        names = [names] if isinstance(names, str) else list(names)
        axes.append(
            [
                dict(zip(names, [values] if len(names) == 1 else values, strict=True))
                for values in mark.args[1]
            ]
        )
    for choice in product(*axes):
        yield {name: value for part in choice for name, value in part.items()}


def fails(test: Test) -> bool:
    try:
        test()
    except BaseException:  # noqa: BLE001  (a mutant may let through whatever the test threw in)
        return True
    return False


def lines_of(test: Test) -> set[Line]:
    """The lines of the protocol's code that a test runs through."""
    seen: set[Line] = set()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith("mutant_"):
            return None
        seen.add((file.removeprefix("mutant_").removesuffix(".py"), frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        test()
    finally:
        sys.settrace(before)
    return seen


def telling_lines(mutant: Mutant) -> set[Line]:
    """Where a test comes by that is likely to notice: the mutant's own ``raise``, or those of the
    check that it does not call."""
    found = {(mutant.module, mutant.line)} if ": no raise" in mutant.name else set()
    for module in MODULES:
        for node in ast.walk(ast.parse(source(module))):
            if isinstance(node, ast.FunctionDef) and f"{node.name}(" in mutant.what:
                found |= {
                    (module, part.lineno) for part in ast.walk(node) if isinstance(part, ast.Raise)
                }
    return found


def survivors(module: str) -> list[str]:
    """The mutants of a module that pass all tests."""
    tests = fast_tests()
    with in_place(None):
        lines = {name: lines_of(test) for name, test in tests.items()}
    found, killers = [], dict.fromkeys(tests, 0)
    for mutant in mutants(module):
        telling = telling_lines(mutant)
        order = sorted(tests, key=lambda n: (not lines[n] & telling, -killers[n]))
        with in_place(mutant):
            killer = next((name for name in order if fails(tests[name])), None)
        if killer is None:
            found.append(mutant.name)
        else:
            killers[killer] += 1
    return found


def test_the_fast_tests_pass_on_a_copy_of_the_real_code() -> None:
    tests = fast_tests()
    assert len(tests) > 200
    with in_place(None):
        sample = list(tests.values())[::25]
        assert not any(fails(test) for test in sample)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("module", MODULES)
def test_no_mutant_survives(module: str) -> None:
    expected = sorted(name for name in EQUIVALENT if name.startswith(f"{module}: "))
    assert sorted(survivors(module)) == expected
