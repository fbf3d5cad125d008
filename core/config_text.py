"""A configuration as the text of its file: every key with its value, and above it what it means."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.config_sections import Section


def config_text(config: Section) -> str:
    """TOML that reads back as ``config``; keys without a value stand as comments."""
    return "\n".join(_lines(config, ())).lstrip("\n") + "\n"


def _lines(section: Section, path: tuple[str, ...]) -> Iterator[str]:
    fields = type(section).model_fields
    values = {name: getattr(section, name) for name in fields}
    if path:
        yield f"\n# {_first_line(type(section).__doc__)}\n[{'.'.join(path)}]"
    for name, value in values.items():
        if not isinstance(value, Section):
            yield from (f"# {line}" for line in (fields[name].description or "").splitlines())
            yield f"# {name} =" if value is None else f"{name} = {_value(value)}"
    for name, value in values.items():
        if isinstance(value, Section):
            yield from _lines(value, (*path, name))


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, Path):
        value = str(value)
    # Texts, numbers and truth values are written alike in JSON and TOML.
    return json.dumps(value, ensure_ascii=False)


def _first_line(doc: str | None) -> str:
    return (doc or "").split("\n", 1)[0]
