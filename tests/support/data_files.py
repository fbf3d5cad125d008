"""Small data files for the tests of the readers."""

from pathlib import Path
from typing import Any

from core.config_sections import ColumnsSection, DataSection
from core.data.records import RecordSource
from core.data.sources import open_source

FULL = {"text": "note", "label": "ward", "person": "who", "groups": ("sex",)}


def section(path: Path, kind: Any, **columns: Any) -> DataSection:
    """The configuration of a file."""
    return DataSection(format=kind, path=path, columns=ColumnsSection(**columns))


def opened(
    folder: Path, kind: Any, content: bytes, labels: tuple[str, ...] = (), **columns: Any
) -> RecordSource:
    """Writes a file and opens it as a source."""
    path = folder / f"data.{kind}"
    path.write_bytes(content)
    return open_source(section(path, kind, **columns), labels=labels)
