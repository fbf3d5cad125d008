"""Poisson sampling from a cryptographic stream, cut at a public batch size."""

from collections.abc import Iterator

from opacus.utils.uniform_sampler import UniformWithReplacementSampler

from core.errors import PrivacyError
from privacy.random_source import RandomStream


class TruncatedPoissonSampler(UniformWithReplacementSampler):  # type: ignore[misc]
    """Each record is in each batch independently with ``sample_rate``; large batches are cut.

    Guarantees:
        Exactly ``steps`` batches come, the empty ones included: what is sampled is what the
        accountant is told. A batch above ``max_batch_size`` is replaced by a uniformly random
        subset of that size. Neither the rate nor the number of steps depends on the data.

    Source: Ganesh 2025 (arXiv 2508.15089) for the truncation.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        sample_rate: float,
        max_batch_size: int,
        steps: int,
        stream: RandomStream,
    ) -> None:
        """Args: sizes in records, ``sample_rate`` in (0, 1]."""
        if num_samples < 1 or steps < 1 or max_batch_size < 1:
            raise PrivacyError(
                "expected records, steps and batch size of 1 or more, "
                f"got {num_samples}, {steps} and {max_batch_size}"
            )
        super().__init__(num_samples=num_samples, sample_rate=sample_rate, steps=steps)
        self.max_batch_size = max_batch_size
        self._stream = stream

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.steps):
            batch = self._stream.bernoulli(self.num_samples, self.sample_rate)
            if len(batch) > self.max_batch_size:
                batch = self._stream.subset(batch, self.max_batch_size)
            yield batch.tolist()
