"""Parquet files: what is read, what is refused, and what is kept in memory."""

import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.config_sections import ColumnsSection
from core.data.columns import RecordSchema
from core.data.parquet import ParquetSource
from core.data.records import Record, iterate
from core.data.sources import open_source
from core.errors import DataError
from tests.support.data_files import FULL, section


def write(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


def many(path, count=100):
    return write(path, {"text": [f"note {n}" for n in range(count)]}, row_group_size=10)


def test_parquet_gives_text_label_person_and_groups(tmp_path):
    columns = {
        "note": pa.array(["a", "b"], pa.large_string()),
        "ward": pa.array(["er", "gp"]).dictionary_encode(),
        "who": pa.array([7, 2**63 - 1], pa.int64()),
        "sex": ["f", "m"],
        "extra": [None, [1.5]],
    }
    path = write(tmp_path / "data.parquet", columns)
    source = open_source(section(path, "parquet", **FULL), labels=("er", "gp"))
    assert list(iterate(source)) == [
        Record("a", "er", "7", {"sex": "f"}),
        Record("b", "gp", "9223372036854775807", {"sex": "m"}),
    ]


def test_records_are_found_in_any_order(tmp_path):
    source = open_source(section(many(tmp_path / "data.parquet"), "parquet"))
    assert len(source) == 100
    assert [source[n].text for n in (99, 0, 10, 9, 55)] == [f"note {n}" for n in (99, 0, 10, 9, 55)]
    for index in (-1, 100):
        with pytest.raises(IndexError, match="expected a record from 0 to 99"):
            source[index]


def test_at_most_so_many_bytes_of_row_groups_are_kept(tmp_path):
    schema = RecordSchema(ColumnsSection())
    path = many(tmp_path / "data.parquet")
    smallest = ParquetSource(path, schema, cache_bytes=0)
    roomy = ParquetSource(path, schema)
    for source in (smallest, roomy):
        assert [record.text for record in iterate(source)] == [f"note {n}" for n in range(100)]
    assert len(smallest._cache) == 1
    assert len(roomy._cache) == 10


def test_threads_share_the_row_groups(tmp_path):
    source = ParquetSource(
        many(tmp_path / "data.parquet"), RecordSchema(ColumnsSection()), cache_bytes=200
    )
    wrong = []

    def read(first):
        wrong.extend(n for n in range(first, 100, 4) if source[n].text != f"note {n}")

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("note", ["a", None], "expected a string in column 'note', got null"),
        ("note", [b"a", b"b"], "row 1: expected a string in column 'note', got bytes"),
        ("note", ["a", " "], "expected something in column 'note', got nothing"),
        ("ward", [True, False], "row 1: expected a string in column 'ward', got a boolean"),
        ("ward", ["er", "SECRET"], "expected one of the task's 2 labels in column 'ward'"),
        ("who", [1.0, 2.0], "row 1: expected a string in column 'who', got a number with a frac"),
        ("sex", [["SECRET"], []], "row 1: expected a string in column 'sex', got a list"),
        (
            "sex",
            pa.array([0, 1], pa.timestamp("s")),
            "row 1: expected a string in column 'sex', got a value of type datetime",
        ),
        (
            "note",
            pa.Array.from_buffers(pa.string(), 2, pa.array([b"SECRET", b"SE\xffCRET"]).buffers()),
            "expected UTF-8, got other bytes",
        ),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_its_row(tmp_path, column, values, message):
    columns = {"note": ["a", "b"], "ward": ["er", "er"], "who": [1, 2], "sex": ["f", "m"]}
    path = write(tmp_path / "data.parquet", columns | {column: values}, row_group_size=1)
    with pytest.raises(DataError) as caught:
        open_source(section(path, "parquet", **FULL), labels=("er", "gp"))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}, row {1 if 'row 1' in message else 2}: expected")
    assert "SECRET" not in str(caught.value)


def test_a_missing_column_is_answered_with_those_that_exist(tmp_path):
    path = write(tmp_path / "data.parquet", {"body": ["a"], "x y": ["b"]})
    with pytest.raises(
        DataError, match=r"data\.parquet: expected column 'text', got column 'body'"
    ):
        open_source(section(path, "parquet"))


def test_a_doubled_column_is_refused(tmp_path):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"]), path)
    with pytest.raises(DataError, match="expected column 'text' once"):
        open_source(section(path, "parquet"))


def test_a_file_without_records_is_refused(tmp_path):
    path = write(tmp_path / "data.parquet", {"text": pa.array([], pa.string())})
    with pytest.raises(DataError, match=r"expected records in .*data\.parquet, got none"):
        open_source(section(path, "parquet"))


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    whole = many(tmp_path / "whole.parquet").read_bytes()
    path = tmp_path / "data.parquet"
    for length in range(1, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="expected a Parquet file, got a truncated or damaged"):
            open_source(section(path, "parquet"))


def test_a_hole_in_the_pages_is_refused(tmp_path):
    path = many(tmp_path / "data.parquet")
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    with pytest.raises(DataError, match="expected a Parquet file, got a truncated or damaged"):
        open_source(section(path, "parquet"))


def test_a_file_that_changed_is_refused(tmp_path):
    path = many(tmp_path / "data.parquet")
    source = open_source(section(path, "parquet"))
    many(path, count=120)
    with pytest.raises(DataError, match="expected the file as it was when it was checked"):
        source[0]
