"""The one entry to the data of a site: from its configuration to checked records."""

from pathlib import Path

from core.config_sections import ColumnsSection, DataSection
from core.data.clinic import CLINIC_LABELS, clinic_source
from core.data.columns import RecordSchema
from core.data.delimited import Delimited
from core.data.indexed import IndexedSource
from core.data.lines import JsonLines, PlainText
from core.data.parquet import ParquetSource
from core.data.records import RecordSource
from core.errors import DataError


def open_source(config: DataSection, *, labels: tuple[str, ...] = ()) -> RecordSource:
    """Opens and checks the whole of a data source, before anything is trained on it.

    Args:
        config: Where the records are and what the columns mean.
        labels: The labels of the task; empty for a task without labels.

    Raises:
        DataError: Something cannot be used: names the file and the line, quotes no record.
    """
    if config.path is None:
        return _open_clinic(config, labels)
    return _open_file(config, config.path, labels)


def _open_file(config: DataSection, path: Path, labels: tuple[str, ...]) -> RecordSource:
    schema = RecordSchema(config.columns, labels)
    if config.format == "text" and len(schema.names) > 1:
        raise DataError(
            f"{path}: expected no label, person or groups for plain text: it has no columns",
            hint="use JSONL, CSV or Parquet for records with columns",
        )
    if labels and config.columns.label is None:
        raise DataError(
            f"{path}: expected a label column, for the task has labels; got none",
            hint="set `label` under [data.columns]",
        )
    match config.format:
        case "jsonl":
            return IndexedSource(path, JsonLines(schema))
        case "csv":
            return IndexedSource(path, Delimited(schema))
        case "parquet":
            return ParquetSource(path, schema)
        case "text":
            return IndexedSource(path, PlainText(schema))
        case "clinic":
            raise DataError(f"expected no path for the embedded example, got {path}")


def _open_clinic(config: DataSection, labels: tuple[str, ...]) -> RecordSource:
    if config.columns != ColumnsSection():
        raise DataError(
            "expected no [data.columns] for the embedded example: it brings its own",
            hint="remove [data.columns]",
        )
    unknown = [label for label in CLINIC_LABELS if labels and label not in labels]
    if unknown:
        raise DataError(
            f"the embedded example has the label {unknown[0]!r}, the task does not",
            hint=f"set the task's labels to {', '.join(CLINIC_LABELS)}",
        )
    return clinic_source(config.hospital or "", config.seed)
