"""Files of optional packs: found, read, and refused by file and line where they are broken."""

import csv
from collections.abc import Sequence
from pathlib import Path

from core.errors import PackError

Row = dict[str, str]


def locate(path: Path, name: str) -> Path:
    """The pack's file ``name``: ``path`` itself, or the one of that name below it.

    Raises:
        PackError: There is none, or more than one.
    """
    if path.is_file():
        return path
    found = sorted(path.rglob(name)) if path.is_dir() else []
    if len(found) != 1:
        raise PackError(
            f"expected one file {name} at {path}, got {len(found) or 'none'}",
            hint="name the pack's file, or the folder that holds it",
        )
    return found[0]


def read_lines(path: Path) -> list[str]:
    """The lines of a text in UTF-8.

    Raises:
        PackError: It cannot be read, or is no such text.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read().split("\n")
    except OSError as error:
        raise PackError(f"cannot read the pack's file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PackError(f"expected UTF-8 in {path}, got other bytes at {error.start}") from error


def read_table(path: Path, columns: Sequence[str], *, delimiter: str = ",") -> list[Row]:
    """The rows of a table with a header, of which ``columns`` are wanted.

    Raises:
        PackError: A column is missing, a row has too few fields or an empty one, or there is none.
    """
    lines = read_lines(path)
    reader = csv.reader((f"{line}\n" for line in lines), _dialect(delimiter))
    rows: list[Row] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in columns if name not in header]
        if missing:
            raise PackError(f"{path}, line 1: expected columns {', '.join(missing)}, got none such")
        for fields in reader:
            if fields and fields != [""]:
                rows.append(_row(path, reader.line_num, header, fields, columns))
    except csv.Error as error:
        raise PackError(f"{path}, line {reader.line_num}: {error}") from error
    if not rows:
        raise PackError(f"{path}: expected rows below the header, got none")
    return rows


def _dialect(delimiter: str) -> type[csv.Dialect]:
    """Quotes mean something between commas only."""

    class Table(csv.Dialect):
        lineterminator = "\n"
        quotechar = '"'
        doublequote = True  # the base class leaves it out, and then "" ends a field
        quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
        strict = True

    Table.delimiter = delimiter
    return Table


def _row(
    path: Path, line: int, header: Sequence[str], fields: Sequence[str], columns: Sequence[str]
) -> Row:
    if len(fields) != len(header):
        raise PackError(f"{path}, line {line}: expected {len(header)} fields, got {len(fields)}")
    row = {name: value.strip() for name, value in zip(header, fields, strict=True)}
    empty = [name for name in columns if not row[name]]
    if empty:
        raise PackError(f"{path}, line {line}: expected something in {empty[0]}, got nothing")
    return row


def one_of(path: Path, line: int, value: str, allowed: Sequence[str]) -> str:
    """A value that must be among a few.

    Raises:
        PackError: It is not.
    """
    if value not in allowed:
        raise PackError(f"{path}, line {line}: expected one of {', '.join(allowed)}")
    return value
