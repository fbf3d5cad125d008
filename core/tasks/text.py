"""From text to padded rows of tokens: what every task does alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import ConfigError
from core.model import ModelConfig
from core.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextInput:
    """A tokenizer and the length to which texts are cut."""

    tokenizer: Tokenizer
    max_seq_len: int

    def encode(self, text: str) -> tuple[int, ...]:
        """One to ``max_seq_len`` tokens.

        A text without any token (an empty one, where the tokenizer has no opening token) becomes
        one pad token: attention over nothing is not a number.
        """
        tokens = tuple(self.tokenizer.encode(text, self.max_seq_len))
        return tokens or (self.tokenizer.pad_id,)

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) filled up with the pad token, and the mask of those that stand there."""
        tokens = pad_rows(rows, self.tokenizer.pad_id)
        lengths = torch.tensor([len(row) for row in rows])
        return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]

    def check_fits(self, config: ModelConfig) -> None:
        """Checks that the model has room for every token and position.

        Raises:
            ConfigError: It has not.
        """
        if config.vocab_size < self.tokenizer.vocab_size:
            raise ConfigError(
                f"expected model.vocab_size of at least {self.tokenizer.vocab_size}, "
                f"the tokenizer's size, got {config.vocab_size}"
            )
        if config.max_seq_len < self.max_seq_len:
            raise ConfigError(
                f"expected model.max_seq_len of at least {self.max_seq_len}, the length to which "
                f"texts are cut, got {config.max_seq_len}"
            )


def pad_rows(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """One or more rows (B, T) int64, filled up with ``value`` to the longest."""
    length = max(map(len, rows))
    padded = [[*row, *[value] * (length - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.int64)
