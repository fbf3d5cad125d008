"""Records as a task sees them: tokenized when they are asked for."""

import threading
from collections.abc import Sequence

from core.data.records import RecordSource
from core.tasks.interface import Batch, Example, Task


class TokenizedDataset:
    """Examples of a source by index; nothing is tokenized ahead.

    The first examples that are asked for are kept, up to ``cache_tokens`` tokens in all (some 36
    bytes each; 0 for none), and stay for good: under random sampling no choice of what to keep
    does better. They are private text in memory, as training has it anyway; never written.

    Safe to share between threads.
    """

    def __init__(
        self, source: RecordSource, task: Task, *, cache_tokens: int = 1024 * 1024
    ) -> None:
        self._source = source
        self._task = task
        self._room = cache_tokens
        self._cache: dict[int, Example] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of records. Private: it stays at the site."""
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        index = int(index)  # of NumPy's as well, whose hashes are their own
        example = self._cache.get(index)
        if example is None:
            example = self._task.encode(self._source[index])
            self._keep(index, example)
        return example

    def _keep(self, index: int, example: Example) -> None:
        with self._lock:
            if index not in self._cache and len(example.tokens) <= self._room:
                self._room -= len(example.tokens)
                self._cache[index] = example

    def fetch(self, indices: Sequence[int]) -> Batch:
        """The batch of one or more records, in the order of ``indices``.

        They are read in ascending order, in which a Parquet file decodes each row group once.
        """
        examples = {index: self[index] for index in sorted(set(indices))}
        return self._task.collate([examples[index] for index in indices])
