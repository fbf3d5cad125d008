"""Random access to the records of a file of lines, at eight bytes of memory a record.

One pass before training reads the whole file, checks every record and remembers the byte offset
of each. After that a record is read at its offset, whenever it is asked for.
"""

import codecs
import io
import os
import stat
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from core.data.columns import Place
from core.data.records import Record
from core.errors import DataError

# Far above any note or message; a longer line is a file of another format.
MAX_RECORD_BYTES = 16 * 1024 * 1024


class DataFile:
    """A regular file that must stay as it was when it was first seen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(
                f"expected a data file at {path}, got: {error.strerror}",
                hint="check `path` under [data]; it is relative to the configuration file",
            ) from error
        if not stat.S_ISREG(status.st_mode):
            found = "a folder" if stat.S_ISDIR(status.st_mode) else "something else"
            raise DataError(f"expected a data file at {path}, got {found}")
        if status.st_size == 0:
            raise DataError(f"expected records in {path}, got an empty file")
        self.size = status.st_size
        self._version = _version(status)

    def open(self) -> BinaryIO:
        """The file, opened anew: worker threads share no position, and no descriptor stays open.

        Raises:
            DataError: The file is gone, or is not the one that was indexed.
        """
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise DataError(
                f"{self.path}: expected the file that was checked before, got: {error.strerror}"
            ) from error
        if _version(os.fstat(file.fileno())) != self._version:
            file.close()
            raise DataError(
                f"{self.path}: expected the file as it was when it was checked, got a changed one",
                hint="data must not change during a run: copy it elsewhere and start again",
            )
        return file


class LineReader:
    """The physical lines of an open file: checked, decoded, with byte offset and number."""

    def __init__(self, file: BinaryIO, start: Place, offset: int = 0) -> None:
        self.place = start
        """Of the line that was read last."""
        self.next_offset = offset
        """Where the next line begins."""
        self._file = file

    @property
    def next_place(self) -> Place:
        """Of the line that comes next."""
        return self.place._replace(number=self.place.number + 1)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_RECORD_BYTES + 1)
        if not line:
            raise StopIteration
        self.place = self.next_place
        self.next_offset += len(line)
        check_length(len(line), self.place)
        if b"\0" in line:
            raise DataError(f"{self.place}: expected text, got a NUL byte", hint=_ENCODING_HINT)
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            # Without its cause: that one carries the line.
            raise DataError(
                f"{self.place}: expected UTF-8, got another byte at position {error.start + 1}",
                hint=_ENCODING_HINT,
            ) from None


_ENCODING_HINT = "save the file as UTF-8"


def check_length(num_bytes: int, place: Place) -> None:
    """Raises where a record is too long to be one."""
    if num_bytes > MAX_RECORD_BYTES:
        raise DataError(
            f"{place}: expected a record of at most {MAX_RECORD_BYTES} bytes, got a longer one",
            hint="check that the format under [data] is the file's",
        )


class Layout(Protocol):
    """How records stand in lines."""

    def begin(self, lines: LineReader) -> None:
        """Reads what stands before the first record."""

    def records(self, lines: LineReader) -> Iterator[tuple[int, Record]]:
        """Byte offset and content of each record, checked."""


class IndexedSource:
    """Records of a file of lines. A blank line holds no record.

    Safe to share between threads: nothing changes after the first pass.

    Raises:
        DataError: The file or one of its records cannot be used; names the line.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self._file = DataFile(path)
        self._layout = layout
        self._offsets = self._index()  # one more than records: the last is the file's size

    def _index(self) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        offsets = array("q")
        with self._file.open() as file:
            lines = LineReader(file, Place(self._file.path, "line", 0), _skip_bom(file))
            self._layout.begin(lines)
            offsets.extend(offset for offset, _ in self._layout.records(lines))
        self._file.open().close()  # not even while it was read
        if not offsets:
            raise DataError(f"expected records in {self._file.path}, got none")
        offsets.append(self._file.size)
        return np.array(offsets, dtype=np.int64)  # a copy: the other has room to grow

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"expected a record from 0 to {len(self) - 1}, got {index}")
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        with self._file.open() as file:
            # Beyond the limit there can only be blank lines.
            chunk = os.pread(file.fileno(), min(end - start, MAX_RECORD_BYTES), start)
        lines = LineReader(io.BytesIO(chunk), Place(self._file.path, "record", index))
        _, record = next(self._layout.records(lines))
        return record


def _version(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _skip_bom(file: BinaryIO) -> int:
    if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
        return len(codecs.BOM_UTF8)
    file.seek(0)
    return 0
