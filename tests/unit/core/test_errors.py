"""The tree of errors is the one that is drawn, with its codes and exit codes."""

import copy
import re

import pytest

from core import errors
from core.errors import BudgetExceededError, CloisterError, LedgerRollbackError, RunError

DRAWN = re.compile(r"^    (?P<indent>[ |`-]*)(?P<name>[A-Z]\w+)\s+(?:exit code )?(?P<code>\d)")


def drawn_tree() -> dict[str, tuple[str | None, int]]:
    """Name of each class in the drawing, with the name of its parent and its exit code."""
    assert errors.__doc__ is not None
    tree: dict[str, tuple[str | None, int]] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        if match := DRAWN.match(line):
            depth = len(match["indent"]) // 4
            del path[depth:]
            tree[match["name"]] = (path[-1] if path else None, int(match["code"]))
            path.append(match["name"])
    return tree


def defined_classes() -> list[type[CloisterError]]:
    values = vars(errors).values()
    return [
        value for value in values if isinstance(value, type) and issubclass(value, CloisterError)
    ]


def test_the_drawing_is_the_tree() -> None:
    defined = {
        cls.__name__: (
            None if cls is CloisterError else cls.__bases__[0].__name__,
            cls.exit_code,
        )
        for cls in defined_classes()
    }
    assert drawn_tree() == defined


def test_every_class_has_one_parent_and_says_what_it_means() -> None:
    for cls in defined_classes():
        assert len(cls.__bases__) == 1
        assert cls.__doc__


def test_the_exit_codes_are_the_ones_promised() -> None:
    assert {cls.exit_code for cls in defined_classes()} == {1, 2, 3}


def test_every_code_is_a_distinct_kebab_case_name() -> None:
    codes = [cls("message").code for cls in defined_classes()]
    assert len(set(codes)) == len(codes)
    for code in codes:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", code)


@pytest.mark.parametrize(
    ("cls", "code"),
    [
        (RunError, "run"),
        (BudgetExceededError, "budget-exceeded"),
        (LedgerRollbackError, "ledger-rollback"),
    ],
)
def test_a_code_is_the_name_without_its_ending(cls: type[CloisterError], code: str) -> None:
    assert cls("message").code == code


def test_the_text_is_the_message_and_then_the_hint() -> None:
    assert str(RunError("expected a, got b")) == "expected a, got b"
    assert str(RunError("expected a, got b", hint="do c")) == "expected a, got b\nhint: do c"


def test_a_copy_keeps_message_and_hint() -> None:
    # Errors travel between processes by the same means as copies do.
    error = copy.copy(BudgetExceededError("expected a, got b", hint="do c"))
    assert isinstance(error, BudgetExceededError)
    assert (error.message, error.hint) == ("expected a, got b", "do c")
