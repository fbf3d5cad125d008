"""CSV as RFC 4180 has it: a header line, commas, double quotes, line breaks within quotes."""

import csv
from collections.abc import Iterator

from core.data.columns import Place, RecordSchema
from core.data.indexed import LineReader, check_length
from core.data.records import Record
from core.errors import DataError


class Delimited:
    """Comma-separated values below a header line."""

    def __init__(self, schema: RecordSchema) -> None:
        self._schema = schema
        self._names: tuple[str, ...] = ()

    def begin(self, lines: LineReader) -> None:
        """Reads the header."""
        place = lines.next_place
        rows = (row for _, _, row in _rows(lines))
        self._names = tuple(next(rows, ()))
        if len(set(self._names)) != len(self._names):
            raise DataError(
                f"{place}: expected a header with distinct names, got one twice",
                hint="the first line must name the columns",
            )
        self._schema.check_columns(self._names, place)

    def records(self, lines: LineReader) -> Iterator[tuple[int, Record]]:
        """Byte offset and content of each record."""
        names = self._names
        for offset, place, row in _rows(lines):
            if len(row) != len(names):
                raise DataError(
                    f"{place}: expected {len(names)} fields as in the header, got {len(row)}",
                    hint="a text with commas or line breaks must stand in double quotes",
                )
            yield offset, self._schema.record(dict(zip(names, row, strict=True)), place)


def _rows(lines: LineReader) -> Iterator[tuple[int, Place, list[str]]]:
    """Byte offset, first line and fields of each row.

    ``csv.reader`` takes one line at a time, and no more than the row needs: so the place of the
    next line is the place of the next row. Its limit of 131,072 characters a field stands: to
    raise it would change it for the whole process.
    """
    reader = csv.reader(lines, strict=True)
    while True:
        offset, place = lines.next_offset, lines.next_place
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # its messages are fixed, they quote nothing
            raise DataError(
                f"{place}: expected a row of CSV, got: {error}",
                hint="close each double quote, and write one within a text twice",
            ) from None
        check_length(lines.next_offset - offset, place)
        if row:
            yield offset, place, row
