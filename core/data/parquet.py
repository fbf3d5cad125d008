"""Parquet files, read a row group at a time."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.data.columns import Place, RecordSchema
from core.data.indexed import DataFile
from core.data.records import Record
from core.errors import DataError

_BATCH_ROWS = 1024


class ParquetSource:
    """Records of a Parquet file; its row groups are the unit that is read and kept.

    Memory: the row groups that were used last, up to ``cache_bytes`` decoded, but at least one.
    Records that are asked for in ascending order therefore cost one decoding of each row group.
    Safe to share between threads.

    Raises:
        DataError: The file or one of its records cannot be used; names the row, from 1.
    """

    def __init__(
        self, path: Path, schema: RecordSchema, *, cache_bytes: int = 256 * 1024 * 1024
    ) -> None:
        self._file = DataFile(path)
        self._schema = schema
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._starts = self._index()  # first row of each row group, and the number of all rows

    def _index(self) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        with self._opened() as parquet:
            names = parquet.schema_arrow.names
            self._schema.check_columns(names, self._file.path)
            doubled = [name for name in self._schema.names if names.count(name) > 1]
            if doubled:
                raise DataError(f"{self._file.path}: expected column {doubled[0]!r} once")
            starts = [0]
            for group in range(parquet.num_row_groups):
                starts.append(self._check_group(parquet, group, starts[-1]))
        self._file.open().close()  # not even while it was read
        if starts[-1] == 0:
            raise DataError(f"expected records in {self._file.path}, got none")
        return np.array(starts, dtype=np.int64)

    def _check_group(self, parquet: Any, group: int, start: int) -> int:
        """Checks every record of a row group; gives the number of the row after it."""
        row = start
        batches = parquet.iter_batches(
            batch_size=_BATCH_ROWS,
            row_groups=[group],
            columns=list(self._schema.names),
            use_threads=False,
        )
        for batch in batches:
            for position in range(batch.num_rows):
                self._record(batch, position, Place(self._file.path, "row", row + 1))
                row += 1
        return row

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"expected a record from 0 to {len(self) - 1}, got {index}")
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        table = self._group(group)
        position = index - int(self._starts[group])
        return self._record(table, position, Place(self._file.path, "row", index + 1))

    def _group(self, group: int) -> Any:
        with self._lock:
            if group not in self._cache:
                with self._opened() as parquet:
                    self._cache[group] = parquet.read_row_group(
                        group, columns=list(self._schema.names), use_threads=False
                    )
            self._cache.move_to_end(group)
            table = self._cache[group]
            while len(self._cache) > 1 and self._decoded_bytes() > self._cache_bytes:
                self._cache.popitem(last=False)
            return table

    def _decoded_bytes(self) -> int:
        return sum(table.nbytes for table in self._cache.values())

    def _record(self, table: Any, position: int, place: Place) -> Record:
        try:
            row = {name: table.column(name)[position].as_py() for name in self._schema.names}
        except UnicodeDecodeError:
            raise DataError(f"{place}: expected UTF-8, got other bytes") from None
        return self._schema.record(row, place)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        with self._file.open() as file:
            try:
                with pq.ParquetFile(file) as parquet:
                    yield parquet
            except (pa.ArrowException, OSError) as error:
                raise DataError(
                    f"{self._file.path}: expected a Parquet file, got a truncated or damaged one "
                    f"({type(error).__name__})",
                    hint="copy the file again; check the format under [data]",
                ) from None
