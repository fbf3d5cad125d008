"""A module of ours with one piece of its text replaced, beside the real one."""

from pathlib import Path
from types import ModuleType


def altered(module: ModuleType, old: str, new: str) -> ModuleType:
    """Runs the altered text; what is to be replaced must stand in it exactly once."""
    assert module.__file__ is not None
    text = Path(module.__file__).read_text()
    assert text.count(old) == 1, f"expected once in {module.__name__}: {old!r}"
    result = ModuleType(module.__name__)
    result.__file__ = module.__file__
    exec(compile(text.replace(old, new), module.__file__, "exec"), vars(result))  # noqa: S102
    return result
