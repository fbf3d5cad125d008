"""The protocol's code with one check taken out, to see whether any test misses it.

A mutant lacks one ``raise``, one statement that is only a call, one operand of a condition, one
part of a comparison of tuples, or one argument of ``max``. It lives in memory, beside the real
code.
"""

import ast
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from tests.support.aggregation import MACHINES

PACKAGE: Final = "privacy.secure_aggregation"
MODULES: Final = ("checks", "site_secrets", "unmasking", "site", "coordinator")
"""Each may import those before it."""


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    module: str
    line: int
    what: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """Stable as long as the line's text is."""
        return f"{self.module}: {self.what}"


def source(module: str) -> str:
    """A module's text."""
    path = import_module(f"{PACKAGE}.{module}").__file__
    assert path is not None
    return Path(path).read_text()


def mutants(module: str) -> Iterator[Mutant]:
    """Every mutant of a module."""
    tree = ast.parse(source(module))
    for index, node in enumerate(ast.walk(tree)):
        for what, change in _changes(node):
            altered = deepcopy(tree)
            target = next(n for i, n in enumerate(ast.walk(altered)) if i == index)
            where = _function_around(tree, node)
            _replace(altered, target, change(target))
            ast.fix_missing_locations(altered)
            line = getattr(node, "lineno", 0)
            yield Mutant(module, line, f"{where}: {what}", altered)


Change = Callable[[Any], ast.AST]


def _changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    if isinstance(node, ast.Raise):
        yield f"no {_short(node)}", lambda _: ast.Pass()
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield f"no {_short(node)}", lambda _: ast.Pass()
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And | ast.Or):
        for index, operand in enumerate(node.values):
            yield f"no {_short(operand)}", partial(_without, index=index)
    if isinstance(node, ast.Compare) and _compares_tuples(node):
        for index, part in enumerate(node.left.elts):  # type: ignore[attr-defined]
            yield f"no {_short(part)} in a comparison", partial(_narrower, index=index)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "max":
        for index, argument in enumerate(node.args):
            yield f"no {_short(argument)} in max", partial(_fewer, index=index)


def _short(node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0][:80]


def _compares_tuples(node: ast.Compare) -> bool:
    right = node.comparators[0]
    return isinstance(node.left, ast.Tuple) and isinstance(right, ast.Tuple)


def _without(node: ast.BoolOp, index: int) -> ast.AST:
    del node.values[index]
    return node.values[0] if len(node.values) == 1 else node


def _narrower(node: Any, index: int) -> ast.AST:
    del node.left.elts[index], node.comparators[0].elts[index]
    return ast.Compare(node.left, node.ops, node.comparators)


def _fewer(node: ast.Call, index: int) -> ast.AST:
    del node.args[index]
    # max of one thing wants an iterable.
    return node.args[0] if len(node.args) == 1 else node


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, field, new)
            elif isinstance(value, list) and any(item is old for item in value):
                setattr(parent, field, [new if item is old else item for item in value])


def _function_around(tree: ast.Module, node: ast.AST) -> str:
    names = [
        parent.name
        for parent in ast.walk(tree)
        if isinstance(parent, ast.FunctionDef) and any(child is node for child in ast.walk(parent))
    ]
    return names[-1] if names else "the module"


@contextmanager
def in_place(mutant: Mutant | None) -> Iterator[dict[str, ModuleType]]:
    """The doubles play with the mutant's code; ``None`` for a copy of the real code."""
    machines = MACHINES.site, MACHINES.coordinator
    modules = _load(mutant)
    try:
        MACHINES.site = modules["site"].SiteAttempt
        MACHINES.coordinator = modules["coordinator"].CoordinatorAttempt
        yield modules
    finally:
        MACHINES.site, MACHINES.coordinator = machines


def _load(mutant: Mutant | None) -> dict[str, ModuleType]:
    package, saved = import_module(PACKAGE), {}
    loaded: dict[str, ModuleType] = {}
    try:
        for name in MODULES:
            full = f"{PACKAGE}.{name}"
            saved[name] = import_module(full)
            altered = mutant is not None and mutant.module == name
            tree = mutant.tree if mutant and altered else ast.parse(source(name))
            module = ModuleType(f"mutant_{name}")
            # So that those after it import this one.
            sys.modules[full] = sys.modules[module.__name__] = module
            setattr(package, name, module)
            exec(compile(tree, f"mutant_{name}.py", "exec"), vars(module))  # noqa: S102
            loaded[name] = module
    finally:
        for name, module in saved.items():
            sys.modules[f"{PACKAGE}.{name}"] = module
            setattr(package, name, module)
            sys.modules.pop(f"mutant_{name}", None)
    return loaded
