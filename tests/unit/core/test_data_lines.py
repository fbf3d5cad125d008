"""JSONL, CSV and plain text: what is read, and what is refused by which message."""

import json
import os
import threading
import traceback
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config_sections import DataSection
from core.data.indexed import MAX_RECORD_BYTES
from core.data.records import Record, iterate
from core.data.sources import open_source
from core.errors import DataError
from tests.support.data_files import FULL, opened, section

JSON_ROW = b'{"note": "a b", "ward": "er", "who": 7, "sex": "f", "extra": [1, null]}\n'
CSV_HEADER = b"note,ward,who,sex,extra\n"


def test_jsonl_gives_text_label_person_and_groups(tmp_path):
    source = opened(tmp_path, "jsonl", JSON_ROW * 2, ("er", "gp"), **FULL)
    record = Record("a b", "er", "7", {"sex": "f"})
    assert list(iterate(source)) == [record, record]


def test_csv_gives_text_label_person_and_groups(tmp_path):
    source = opened(tmp_path, "csv", CSV_HEADER + b'"a, ""b""",er,7,f,\n', ("er", "gp"), **FULL)
    assert list(iterate(source)) == [Record('a, "b"', "er", "7", {"sex": "f"})]


def test_text_gives_a_record_a_line(tmp_path):
    source = opened(tmp_path, "text", "één\n\n  \r\n two \u2028 2\r\nlast".encode())
    assert [record.text for record in iterate(source)] == ["één", " two \u2028 2", "last"]
    assert source[0] == Record("één")


def test_blank_lines_hold_no_record(tmp_path):
    source = opened(tmp_path, "jsonl", b'\n{"text": "a"}\n \n\n{"text": "b"}\n\n')
    assert [record.text for record in iterate(source)] == ["a", "b"]
    source = opened(tmp_path, "csv", b"text\n\na\n\n\r\nb\n\n")
    assert [record.text for record in iterate(source)] == ["a", "b"]


def test_csv_keeps_line_breaks_within_quotes(tmp_path):
    content = 'text,label\n"one\n\n""two"" \u2028,\r\nthree",x\nfour,y\r\n"five\n",z'
    source = opened(tmp_path, "csv", content.encode(), label="label")
    assert [source[index].text for index in (2, 0, 1)] == [
        "five\n",
        'one\n\n"two" \u2028,\r\nthree',
        "four",
    ]


@pytest.mark.parametrize(
    ("kind", "content"),
    [("jsonl", b'{"text": "a"}\n'), ("csv", b"text\na\n"), ("text", b"a\n")],
)
def test_a_byte_order_mark_is_tolerated(tmp_path, kind, content):
    assert opened(tmp_path, kind, b"\xef\xbb\xbf" + content)[0] == Record("a")


def test_an_index_outside_raises_index_error(tmp_path):
    source = opened(tmp_path, "text", b"a\nb\n")
    for index in (-1, 2):
        with pytest.raises(IndexError, match="expected a record from 0 to 1"):
            source[index]


JSONL_MISFITS = [
    (b'{"note": "SECRET", "ward"\n', "expected a JSON object, got broken JSON at column 26"),
    (b"SECRET\n", "expected a JSON object, got broken JSON at column 1"),
    (b'"SECRET"\n', "expected a JSON object, got a string"),
    (b'["SECRET"]\n', "expected a JSON object, got a list"),
    (b'{"note": "SECRET", "note": "b"}\n', "expected each key once, got one twice"),
    (b"[" * 100_000 + b"\n", "got one nested too deep or a number too long"),
    (b'{"note": ' + b"1" * 5000 + b"}\n", "got one nested too deep or a number too long"),
    (b'{"note": "SECRET"}\n', "expected columns 'ward', 'who', 'sex', got column 'note'"),
    (b'{"SECRET text": 1}\n', "'sex', got 1 more that cannot be shown here"),
    (b"{}\n", "'sex', got no columns"),
    (b'{"note": "S\xe9CRET"}\n', "expected UTF-8, got another byte at position 12"),
    (b'{"note": "SECRET\0"}\n', "expected text, got a NUL byte"),
]
FIELD_MISFITS = [
    ("note", None, "expected a string in column 'note', got null"),
    ("note", 7, "expected a string in column 'note', got a number"),
    ("note", ["SECRET"], "expected a string in column 'note', got a list"),
    ("note", "", "expected something in column 'note', got nothing"),
    ("note", " \n", "expected something in column 'note', got nothing"),
    ("note", "SECRET\0", "expected text in column 'note', got a NUL character"),
    ("note", "SECRET\ud800", "in column 'note', got half a surrogate pair"),
    ("ward", None, "expected a string in column 'ward', got null"),
    ("ward", True, "expected a string in column 'ward', got a boolean"),
    ("ward", {"SECRET": 1}, "expected a string in column 'ward', got an object"),
    ("ward", "SECRET", "expected one of the task's 2 labels in column 'ward', got another value"),
    ("who", 1.5, "expected a string in column 'who', got a number with a fraction"),
    ("who", "", "expected something in column 'who', got nothing"),
    ("sex", False, "expected a string in column 'sex', got a boolean"),
]


def refusal(folder, kind, content):
    with pytest.raises(DataError) as caught:
        opened(folder, kind, content, ("er", "gp"), **FULL)
    shown = "".join(traceback.format_exception(caught.value))
    assert "SECRET" not in shown, "an error must not quote a record"
    return str(caught.value)


@pytest.mark.parametrize(("line", "message"), JSONL_MISFITS)
def test_a_broken_jsonl_line_is_named(tmp_path, line, message):
    found = refusal(tmp_path, "jsonl", JSON_ROW + b"\n" + line + JSON_ROW)
    assert message in found
    assert f"{tmp_path / 'data.jsonl'}, line 3: " in found


@pytest.mark.parametrize(("column", "value", "message"), FIELD_MISFITS)
def test_a_value_that_does_not_fit_is_named(tmp_path, column, value, message):
    row = {"note": "a", "ward": "er", "who": "p", "sex": "f"} | {column: value}
    found = refusal(tmp_path, "jsonl", JSON_ROW + json.dumps(row).encode())
    assert f"{tmp_path / 'data.jsonl'}, line 2: expected" in found
    assert message in found


def test_an_unknown_label_is_answered_with_the_public_ones(tmp_path):
    with pytest.raises(DataError, match=r"hint: the federation's file lists the labels: 'a', 'b'$"):
        opened(tmp_path, "jsonl", b'{"text": "x", "y": "c"}', ("a", "b"), label="y")


CSV_MISFITS = [
    (b"SECRET,er,7\n", "expected 5 fields as in the header, got 3"),
    (b"SECRET,er,7,f,,,\n", "expected 5 fields as in the header, got 7"),
    (b'SECRET,er,7,f,"open\n', "expected a row of CSV, got: unexpected end of data"),
    (b'"SECRET"x,er,7,f,\n', "expected a row of CSV, got: ',' expected after '\"'"),
    (b"SECRET\rx,er,7,f,\n", "expected a row of CSV, got: new-line character"),
    (b"SECRET" * 30_000 + b",er,7,f,\n", "got: field larger than field limit (131072)"),
    (b"SECRET,other,7,f,\n", "expected one of the task's 2 labels in column 'ward'"),
    (b",er,7,f,\n", "expected something in column 'note', got nothing"),
    (b"SECRET,er,,f,\n", "expected something in column 'who', got nothing"),
    (b"SECRET\xff,er,7,f,\n", "expected UTF-8, got another byte at position 7"),
    (b"SECRET\0,er,7,f,\n", "expected text, got a NUL byte"),
]


@pytest.mark.parametrize(("row", "message"), CSV_MISFITS)
def test_a_broken_csv_row_is_named_by_its_first_line(tmp_path, row, message):
    before = CSV_HEADER + b'"two\nlines",er,7,f,\n\n'
    found = refusal(tmp_path, "csv", before + row)
    assert message in found
    assert f"{tmp_path / 'data.csv'}, line 5: " in found


def test_a_csv_row_of_many_fields_is_still_limited(tmp_path):
    fields = b",".join([b'"' + b"x" * 100_000 + b'\n"'] * 200)
    with pytest.raises(
        DataError, match=rf"line 2: expected a record of at most {MAX_RECORD_BYTES}"
    ):
        opened(tmp_path, "csv", b"text\n" + fields + b"\n")


def test_a_csv_header_must_have_distinct_names(tmp_path):
    with pytest.raises(DataError, match="line 1: expected a header with distinct names"):
        opened(tmp_path, "csv", b"text,SECRET,SECRET\na,b,c\n")


def test_a_missing_csv_column_is_answered_with_those_that_exist(tmp_path):
    found = refusal(tmp_path, "csv", b"\nnote,text,SECRET note of a record\na,b,c\n")
    assert "data.csv, line 1: expected columns 'ward', 'who', 'sex', got columns" in found
    assert "'note', 'text' and 1 more that cannot be shown here" in found


def test_at_most_twenty_columns_are_shown(tmp_path):
    header = ",".join(f"c{number}" for number in range(30))
    with pytest.raises(DataError, match="'c19' and 10 more that cannot be shown here"):
        opened(tmp_path, "csv", header.encode())


@pytest.mark.parametrize("kind", ["jsonl", "csv", "text"])
def test_an_absurdly_long_line_is_refused(tmp_path, kind):
    with pytest.raises(DataError, match=rf"line 1: .* at most {MAX_RECORD_BYTES} bytes"):
        opened(tmp_path, kind, b"x" * (MAX_RECORD_BYTES + 1))


@pytest.mark.parametrize(
    ("kind", "content"), [("jsonl", b"\n \n"), ("csv", b"text\n\n"), ("text", b" \r\n")]
)
def test_a_file_without_records_is_refused(tmp_path, kind, content):
    with pytest.raises(DataError, match=rf"expected records in .*data\.{kind}, got none"):
        opened(tmp_path, kind, content)


def test_a_csv_of_blank_lines_has_no_header(tmp_path):
    with pytest.raises(DataError, match="expected column 'text', got no columns"):
        opened(tmp_path, "csv", b"\n\n")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "text", "parquet"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    with pytest.raises(DataError, match=r"data file at .*absent, got: No such file"):
        open_source(section(tmp_path / "absent", kind))
    with pytest.raises(DataError, match=r"expected a data file at .*, got a folder"):
        open_source(section(tmp_path, kind))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"expected a data file at .*pipe, got something else"):
        open_source(section(tmp_path / "pipe", kind))
    (tmp_path / "empty").touch()
    with pytest.raises(DataError, match=r"expected records in .*empty, got an empty file"):
        open_source(section(tmp_path / "empty", kind))


def test_a_file_that_changed_is_refused(tmp_path):
    source = opened(tmp_path, "text", b"a\nb\n")
    path = tmp_path / "data.text"
    path.write_bytes(b"a\nb\nc\n")
    with pytest.raises(DataError, match="expected the file as it was when it was checked"):
        source[0]
    path.unlink()
    with pytest.raises(DataError, match="expected the file that was checked before, got: No such"):
        source[0]


def test_a_file_of_the_same_size_that_was_replaced_is_refused(tmp_path):
    source = opened(tmp_path, "text", b"a\nb\n")
    path = tmp_path / "data.text"
    status = path.stat()
    (tmp_path / "other").write_bytes(b"c\nd\n")
    os.utime(tmp_path / "other", ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / "other").replace(path)
    with pytest.raises(DataError, match="hint: data must not change during a run"):
        source[0]


def test_plain_text_has_no_columns(tmp_path):
    with pytest.raises(DataError, match="expected no label, person or groups for plain text"):
        opened(tmp_path, "text", b"a\n", person="who")


def test_a_task_with_labels_needs_a_label_column(tmp_path):
    with pytest.raises(DataError, match=r"expected a label column.*\nhint: set `label`"):
        opened(tmp_path, "text", b"a\n", ("x", "y"))


def test_the_embedded_example_has_no_path():
    config = DataSection.model_construct(
        format="clinic", path=Path("x"), columns=section(Path("x"), "text").columns
    )
    with pytest.raises(DataError, match="expected no path for the embedded example, got x"):
        open_source(config)


def test_memory_is_eight_bytes_a_record(tmp_path):
    content = b'{"text": "' + b"x" * 500 + b'"}\n'
    path = tmp_path / "data.jsonl"
    path.write_bytes(content * 20_000)
    open_source(section(path, "jsonl"))  # whatever is only loaded once
    tracemalloc.start()
    source = open_source(section(path, "jsonl"))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == 20_000
    assert 8 * 20_000 <= kept < 8 * 20_000 + 20_000
    assert peak < 1_000_000  # of a file of 10 MB


def test_threads_read_their_own_records(tmp_path):
    source = opened(tmp_path, "csv", b"text\n" + b"".join(b'"%d\n"\n' % n for n in range(500)))
    wrong = []

    def read(first):
        wrong.extend(n for n in range(first, 500, 4) if source[n].text != f"{n}\n")

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


NEAR_MISSES = st.lists(
    st.sampled_from([b'"', b",", b"\n", b"\r\n", b"\r", b"{", b"}", b":", b'"text"', b"text", b"x",
                     b"\xef\xbb\xbf", b"\xc3", b"\0", b"\\ud800", b"1", b" ", b'{"text": "y"}']),
    max_size=30,
).map(b"".join)  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "csv", "text"])
@given(content=st.one_of(st.binary(max_size=200), NEAR_MISSES, NEAR_MISSES.map(b"text\n".__add__)))
def test_any_bytes_give_records_or_a_data_error(tmp_path_factory, kind, content):
    try:
        source = opened(tmp_path_factory.getbasetemp(), kind, content)
    except DataError:
        return
    assert len(source) >= 1
    # Reading at random gives what reading in order gave, each a text of its own.
    assert all(record.text.strip() for record in iterate(source))


TEXTS = st.text(min_size=1, max_size=40).filter(lambda text: text.strip() and "\0" not in text)


@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
def test_jsonl_gives_back_any_text(tmp_path_factory, texts):
    content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    source = opened(tmp_path_factory.getbasetemp(), "jsonl", content.encode())
    assert [record.text for record in iterate(source)] == texts


@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
def test_csv_gives_back_any_text(tmp_path_factory, texts):
    rows = ['"' + text.replace('"', '""') + '",x\n' for text in texts]
    source = opened(tmp_path_factory.getbasetemp(), "csv", ("text,y\n" + "".join(rows)).encode())
    assert [record.text for record in iterate(source)] == texts
