"""Causal language modelling: each token is predicted from those before it."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from core.data.records import Record
from core.errors import ConfigError
from core.model import LanguageModel, ModelConfig
from core.tasks.interface import IGNORE, Batch, Evaluation, Example
from core.tasks.metrics import TokenEvaluation, wide
from core.tasks.text import TextInput, pad_rows
from core.tokenizer import Tokenizer


class CausalLM:
    """The task ``causal-lm``."""

    def __init__(self, tokenizer: Tokenizer, max_seq_len: int) -> None:
        if max_seq_len < 2:
            raise ConfigError(
                f"expected max_seq_len of 2 or more for causal-lm, got {max_seq_len}",
                hint="a single token leaves nothing to predict",
            )
        self._input = TextInput(tokenizer, max_seq_len)

    def encode(self, record: Record) -> Example:
        """The record's tokens; a label is not looked at."""
        return Example(tokens=self._input.encode(record.text))

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pads to the longest; the label of a position is the next token."""
        tokens, attention_mask = self._input.pad([example.tokens for example in examples])
        labels = pad_rows([[*example.tokens[1:], IGNORE] for example in examples], IGNORE)
        return Batch(tokens, attention_mask, labels)

    def build_model(self, config: ModelConfig) -> nn.Module:
        """The Transformer with its language-model head.

        Raises:
            ConfigError: The model is bidirectional, so that it sees what it is to predict, or
                has no room for the tokenizer's tokens.
        """
        if not config.causal:
            raise ConfigError(
                "expected model.causal = true for causal-lm, got false",
                hint="a bidirectional model sees the token it is to predict",
            )
        self._input.check_fits(config)
        return LanguageModel(config)

    def loss_per_example(self, logits: Tensor, batch: Batch) -> Tensor:
        """Losses (B,): the mean cross entropy over each example's own predicted tokens.

        An example without a predicted token has loss 0 and no gradient.

        Guarantees:
            The loss of example i is a function of the logits and labels of example i alone; in
            particular it is never divided by the tokens of the batch. Padding does not change it.
        """
        losses = F.cross_entropy(
            wide(logits).flatten(0, 1),
            batch.labels.flatten(),
            ignore_index=IGNORE,
            reduction="none",
        ).view_as(batch.labels)  # (B, T)
        predicted = (batch.labels != IGNORE).sum(dim=1)
        return losses.sum(dim=1) / predicted.clamp(min=1)

    def evaluation(self) -> Evaluation:
        """Gathers loss per token, perplexity and accuracy."""
        return TokenEvaluation()
