"""TokenizedDataset: what a batch holds, and what stays in memory."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from core.config_sections import ColumnsSection
from core.data.columns import RecordSchema
from core.data.dataset import TokenizedDataset
from core.data.parquet import ParquetSource
from core.data.records import Record
from tests.support.plain_task import CharacterTask

SOURCE = tuple(Record(text) for text in ("a", "bb", "ccc", "dd"))


def test_a_batch_is_in_the_order_that_was_asked_for():
    dataset = TokenizedDataset(SOURCE, CharacterTask())
    assert len(dataset) == 4
    batch = dataset.fetch([2, 0, 2])
    assert batch.tokens.tolist() == [[99, 99, 99], [97, 0, 0], [99, 99, 99]]
    assert batch.attention_mask.sum(1).tolist() == [3, 1, 3]


def test_indices_of_numpy_and_torch_fit():
    dataset = TokenizedDataset(SOURCE, task := CharacterTask())
    assert torch.equal(dataset.fetch(np.array([3, 1])).tokens, dataset.fetch([3, 1]).tokens)
    assert dataset[np.int64(3)] is dataset[3]
    assert task.num_encoded == 2


@pytest.mark.parametrize(("cache_tokens", "encoded"), [(0, 8), (1, 7), (3, 6), (7, 5), (8, 4)])
def test_the_cache_holds_so_many_tokens_and_no_more(cache_tokens, encoded):
    task = CharacterTask()
    dataset = TokenizedDataset(SOURCE, task, cache_tokens=cache_tokens)
    first, second = dataset.fetch(range(4)), dataset.fetch(range(4))
    assert torch.equal(first.tokens, second.tokens)
    assert task.num_encoded == encoded


def test_an_index_outside_raises_index_error():
    with pytest.raises(IndexError):
        TokenizedDataset(SOURCE, CharacterTask())[4]


class CountingSource(ParquetSource):
    """Counts how often a row group is decoded."""

    num_opened = 0

    def _opened(self):
        self.num_opened += 1
        return super()._opened()


def test_a_batch_decodes_each_row_group_once(tmp_path):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"text": [str(n) for n in range(100)]}), path, row_group_size=10)
    source = CountingSource(path, RecordSchema(ColumnsSection()), cache_bytes=0)
    source.num_opened = 0
    shuffled = np.random.default_rng(0).permutation(100)
    TokenizedDataset(source, CharacterTask(), cache_tokens=0).fetch(shuffled)
    assert source.num_opened == 10
