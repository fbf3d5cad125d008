"""The shape of the code base: who imports whom, and what stands nowhere."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cli", "coordinator", "client", "audit", "privacy", "core")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in MODULES]

# Flower's public modules; all others may change without notice.
PUBLIC_FLOWER = ("flwr.app", "flwr.serverapp", "flwr.clientapp")


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_imports_run_one_way() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "3 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_flower_s_internals_are_used_in_one_file(path: Path) -> None:
    private = [n for n in imports(path) if n.split(".")[0] == "flwr" and n not in PUBLIC_FLOWER]
    public_parts = [n for n in private if n.startswith(("flwr.serverapp.strategy",))]
    if path != ROOT / "coordinator/flower.py":
        assert private == public_parts


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_a_module_has_a_docstring_and_ascii_only(path: Path) -> None:
    text = path.read_text()
    assert text.isascii()
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", [p for p in MODULES if p.name == "__init__.py"])
def test_a_package_s_init_holds_a_docstring_and_nothing_else(path: Path) -> None:
    assert len(ast.parse(path.read_text()).body) == 1


@pytest.mark.parametrize("path", [p for p in MODULES if "privacy" in p.parts])
def test_privacy_does_not_rely_on_assert(path: Path) -> None:
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text())))


def test_the_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs/generate.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"run `python docs/generate.py`: {done.stderr}"


def test_links_in_the_documentation_lead_somewhere() -> None:
    import re

    broken = []
    for page in [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []
