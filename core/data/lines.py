"""One record a line: JSON objects, or plain text."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from core.data.columns import Place, RecordSchema, kind_of
from core.data.indexed import LineReader
from core.data.records import Record
from core.errors import DataError


@dataclass(frozen=True)
class JsonLines:
    """A JSON object a line, whose keys are the columns."""

    schema: RecordSchema

    def begin(self, lines: LineReader) -> None:
        """Nothing stands before the first record."""

    def records(self, lines: LineReader) -> Iterator[tuple[int, Record]]:
        """Byte offset and content of each record."""
        offset = lines.next_offset
        for line in lines:
            if not line.isspace():
                yield offset, self.schema.record(_parse(line, lines.place), lines.place)
            offset = lines.next_offset


@dataclass(frozen=True)
class PlainText:
    """A text a line: no label, no person, no groups."""

    schema: RecordSchema

    def begin(self, lines: LineReader) -> None:
        """Nothing stands before the first record."""

    def records(self, lines: LineReader) -> Iterator[tuple[int, Record]]:
        """Byte offset and content of each record."""
        offset = lines.next_offset
        for line in lines:
            if not line.isspace():
                row = {self.schema.columns.text: line.rstrip("\r\n")}
                yield offset, self.schema.record(row, lines.place)
            offset = lines.next_offset


class _DoubledKeyError(ValueError):
    """An object names a key twice: which value is meant?"""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise _DoubledKeyError
    return row


def _parse(line: str, place: Place) -> dict[str, Any]:
    # Raised without their causes: a JSONDecodeError carries the line.
    try:
        row = json.loads(line.rstrip("\r\n"), object_pairs_hook=_object)
    except _DoubledKeyError:
        raise DataError(f"{place}: expected each key once, got one twice") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{place}: expected a JSON object, got broken JSON at column {error.colno}",
            hint="each line must be one complete JSON object",
        ) from None
    except (RecursionError, ValueError):
        raise DataError(
            f"{place}: expected a JSON object, got one nested too deep or a number too long"
        ) from None
    if not isinstance(row, dict):
        raise DataError(f"{place}: expected a JSON object, got {kind_of(row)}")
    return row
