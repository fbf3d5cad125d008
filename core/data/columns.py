"""From a row of a file to a record: which columns are read, and what may stand in them.

Records are private and messages land in logs. So a message names the file, the line, the column
and the *kind* of what was found, and never a value out of a record: no text, no label, no person.
Label values are quoted only from the federation's public configuration.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from core.config_sections import ColumnsSection
from core.data.records import Record
from core.errors import DataError

# Where a header is missing, the first record stands in its place: only what looks like the name
# of a column is shown.
_COLUMN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,39}")
_MAX_SHOWN = 20

_KINDS = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number with a fraction",
    str: "a string",
    list: "a list",
    dict: "an object",
    bytes: "bytes",
}


class Place(NamedTuple):
    """Where something stands in a file."""

    path: Path
    unit: str
    number: int

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.number}"


def kind_of(value: object) -> str:
    """What a value is, without saying which."""
    return _KINDS.get(type(value), f"a value of type {type(value).__name__}")


@dataclass(frozen=True)
class RecordSchema:
    """Turns rows into records; the same checks for every format."""

    columns: ColumnsSection
    labels: tuple[str, ...] = ()
    """Empty for tasks without labels; else nothing but these may stand in the label column."""

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are read, each once; the others are ignored."""
        named = (self.columns.text, self.columns.label, self.columns.person, *self.columns.groups)
        return tuple(dict.fromkeys(name for name in named if name is not None))

    def check_columns(self, existing: Collection[str], place: Place | Path) -> None:
        """Raises unless every column that is read exists."""
        missing = [name for name in self.names if name not in existing]
        if missing:
            raise DataError(
                f"{place}: expected {_named(missing)}, got {_shown(existing)}",
                hint="name the columns of this file under [data.columns]",
            )

    def record(self, row: Mapping[str, object], place: Place) -> Record:
        """The record in ``row``.

        Label, person and groups may be integers and become their decimal digits. Numbers with a
        fraction are refused: two large identifiers may round to one, and then two people would
        count as one person.
        """
        columns = self.columns
        self.check_columns(row.keys(), place)
        return Record(
            text=_string(row[columns.text], columns.text, place),
            label=None if columns.label is None else self._label(row[columns.label], place),
            person=None if columns.person is None else _identifier(row, columns.person, place),
            groups={name: _identifier(row, name, place) for name in columns.groups},
        )

    def _label(self, value: object, place: Place) -> str:
        column = self.columns.label or ""
        label = _identifier({column: value}, column, place)
        if self.labels and label not in self.labels:
            known = ", ".join(repr(name) for name in self.labels[:_MAX_SHOWN])
            more = ", ..." if len(self.labels) > _MAX_SHOWN else ""
            raise DataError(
                f"{place}: expected one of the task's {len(self.labels)} labels in column "
                f"{column!r}, got another value",
                hint=f"the federation's file lists the labels: {known}{more}",
            )
        return label


def _identifier(row: Mapping[str, object], column: str, place: Place) -> str:
    value = row[column]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _string(value, column, place, hint="write labels, persons and groups as strings")


def _string(value: object, column: str, place: Place, hint: str = "") -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{place}: expected a string in column {column!r}, got {kind_of(value)}", hint=hint
        )
    if not value or value.isspace():
        raise DataError(
            f"{place}: expected something in column {column!r}, got nothing",
            hint="remove the record or fill it in",
        )
    if "\0" in value:
        raise DataError(f"{place}: expected text in column {column!r}, got a NUL character")
    if not value.isascii():
        _check_unicode(value, column, place)
    return value


def _check_unicode(value: str, column: str, place: Place) -> None:
    """JSON may escape half a character; such a string has no UTF-8 and no tokens."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{place}: expected Unicode text in column {column!r}, got half a surrogate pair"
        ) from None


def _named(names: Collection[str]) -> str:
    return f"column{'s' if len(names) > 1 else ''} " + ", ".join(repr(name) for name in names)


def _shown(names: Collection[str]) -> str:
    shown = [name for name in names if _COLUMN_NAME.fullmatch(name)][:_MAX_SHOWN]
    hidden = len(names) - len(shown)
    others = f"{hidden} more that cannot be shown here" if hidden else ""
    if not shown:
        return others or "no columns"
    return _named(shown) + (f" and {others}" if others else "")
