"""Writes what the documentation says about the code from the code itself.

    python docs/generate.py            write
    python docs/generate.py --check    say what is out of date; exit code 1 if anything is

Written are `docs/reference/configuration.md` and, between their markers, the README's file tree
and help texts.
"""

import argparse
import ast
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["COLUMNS"] = "100"

from pydantic import TypeAdapter  # noqa: E402
from pydantic_core import PydanticUndefined  # noqa: E402

from cli.main import build_parser  # noqa: E402
from core.config import FederationConfig, Section  # noqa: E402
from core.coordinator_config import CoordinatorConfig  # noqa: E402
from core.site_config import SiteConfig  # noqa: E402

PACKAGES = ("cli", "coordinator", "client", "audit", "privacy", "core")
OTHERS = {
    "tests/": "unit, integration and end-to-end tests; `support/` holds their doubles",
    "examples/": "real text: SMS spam and Shakespeare, with measured figures",
    "benchmarks/": "speed beside rivals, side by side in one run",
    "deploy/": "systemd units, Dockerfile and compose file for a coordinator and three sites",
    "docs/": "guides, concepts, reference, decisions",
    "constraints.txt": "the tested versions that `make setup` installs",
    "Makefile": "setup, demo, test, check, bench",
}


def main() -> int:
    """Writes or checks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = []
    for path, text in pages().items():
        if path.exists() and path.read_text() == text:
            continue
        stale.append(str(path.relative_to(ROOT)))
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    for name in stale:
        sys.stderr.write(f"{name}: {'out of date' if check else 'written'}\n")
    return 1 if check and stale else 0


def pages() -> dict[Path, str]:
    """Every generated file with what it should hold."""
    readme = ROOT / "README.md"
    text = _between(readme.read_text(), "tree", f"```\n{_tree()}```")
    text = _between(text, "help", f"```\n{_help()}```")
    return {readme: text, ROOT / "docs/reference/configuration.md": _configuration()}


def _between(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}: written by docs/generate.py -->", f"<!-- end of {name} -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def _help() -> str:
    """The help texts of the commands."""
    parser = build_parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return "\n".join(str(command.format_help()) for command in commands.choices.values())


def _tree() -> str:
    """A line for each module: the first line of its docstring."""
    lines = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if path.name == "__init__.py":
                name = f"{path.parent.relative_to(ROOT)}/"
            docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
            lines.append((name, docstring.splitlines()[0].rstrip(".")))
    width = max(len(name) for name, _ in lines) + 2
    rows = [*_in_order(lines), *OTHERS.items()]
    return "".join(f"{name:{width}}{what}\n" for name, what in rows)


def _in_order(lines: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Packages in the order of imports, a package's own line first."""
    order = {package: number for number, package in enumerate(PACKAGES)}
    return sorted(lines, key=lambda line: (order[line[0].split("/")[0]], line[0]))


def _configuration() -> str:
    parts = [
        "# Configuration\n",
        "TOML files. The federation's is shared and public; a site's never leaves the site; the "
        "coordinator's is its own. "
        "Every key can be overridden with `--set section.key=value`. Unknown keys are refused.\n",
        "This page is written by `python docs/generate.py` from the code.\n",
    ]
    files = {
        "The federation's file": FederationConfig,
        "A site's file": SiteConfig,
        "The coordinator's file": CoordinatorConfig,
    }
    for title, config in files.items():
        parts.append(f"# {title}\n")
        for name, kind in _tables(config):
            parts.append(f"## `[{name}]`\n\n{_doc(kind)}\n")
            parts.append("| key | type | default | |\n|---|---|---|---|")
            parts.extend(_row(*field) for field in _fields(kind))
            parts.append("")
    return "\n".join(parts)


def _tables(kind: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Each section with its dotted name, in the order of the file."""
    for name, annotation, _, _ in _fields(kind):
        for section in _sections(annotation):
            yield f"{prefix}{name}", section
            yield from _tables(section, f"{prefix}{name}.")


def _sections(annotation: Any) -> list[type]:
    if isinstance(annotation, type) and (
        issubclass(annotation, Section) or dataclasses.is_dataclass(annotation)
    ):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _fields(kind: type) -> list[tuple[str, Any, str, str]]:
    """Name, annotation, default and description of each key."""
    if issubclass(kind, Section):
        return [
            (name, field.annotation, _default(field.get_default(call_default_factory=True)), text)
            for name, field in kind.model_fields.items()
            for text in [" ".join((field.description or "").split())]
        ]
    hints = get_type_hints(kind)
    described = TypeAdapter(kind).json_schema()["properties"]
    return [
        (
            field.name,
            hints[field.name],
            _default(PydanticUndefined if field.default is dataclasses.MISSING else field.default),
            " ".join(described[field.name].get("description", "").split()),
        )
        for field in dataclasses.fields(kind)
    ]


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, Section):
        return "as below"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _row(name: str, annotation: Any, default: str, description: str) -> str:
    kind = "section" if _sections(annotation) else _type(annotation)
    cells = (f"`{name}`", kind, default, description)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(annotation: Any) -> str:
    if isinstance(annotation, type) and not get_args(annotation):
        return {"Path": "path", "str": "text", "NoneType": "none"}.get(
            annotation.__name__, annotation.__name__
        )
    if "Literal" in str(annotation)[:20]:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    parts = [_type(part) for part in get_args(annotation) if part is not Ellipsis]
    return " or ".join(dict.fromkeys(part for part in parts if part != "none"))


def _doc(kind: type) -> str:
    return " ".join((kind.__doc__ or "").split())


if __name__ == "__main__":
    sys.exit(main())
