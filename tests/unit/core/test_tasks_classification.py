"""Classification: labels, losses and the loss contract."""

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.data.records import Record
from core.errors import ConfigError, DataError
from core.model import ModelConfig
from core.tasks.classification import Classification
from core.tasks.interface import Batch, Example
from tests.support.loss_contract import assert_examples_are_independent
from tests.support.tiny_tokenizer import LetterTokenizer

CONFIG = ModelConfig(29, 16, 1, 2, 8, causal=False)


def make_task(pooling: Literal["first", "mean", "last"] = "mean") -> Classification:
    return Classification(LetterTokenizer(), 6, ("ham", "spam", "eggs"), pooling)


def batch_of(*records: tuple[str, str]) -> Batch:
    task = make_task()
    return task.collate([task.encode(Record(text, label=label)) for text, label in records])


def test_labels_are_class_numbers_in_the_configured_order() -> None:
    batch = batch_of(("abc", "eggs"), ("d", "ham"))
    assert batch.tokens.tolist() == [[1, 3, 4, 5], [1, 6, 0, 0]]
    assert batch.attention_mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.labels.tolist() == [2, 0]


def test_a_missing_label_is_refused() -> None:
    with pytest.raises(DataError, match="expected a label, got a record without one") as caught:
        make_task().encode(Record("abc"))
    assert "data.columns.label" in caught.value.hint


def test_an_unknown_label_is_refused_without_showing_the_text() -> None:
    with pytest.raises(
        DataError, match="expected a label among 'ham', 'spam', 'eggs', got 'Spam'"
    ) as caught:
        make_task().encode(Record("secret", label="Spam"))
    assert "secret" not in str(caught.value)


def test_an_example_of_another_task_is_refused() -> None:
    with pytest.raises(DataError, match="expected examples with labels, got one without"):
        make_task().collate([Example((1, 2), 0), Example((1, 2))])


def test_the_loss_is_the_cross_entropy_of_each_example() -> None:
    batch = batch_of(("a", "ham"), ("b", "spam"))
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 5.0, -1.0]])
    log_probabilities = F.log_softmax(logits, dim=1)
    expected = torch.stack([-log_probabilities[0, 0], -log_probabilities[1, 1]])
    torch.testing.assert_close(make_task().loss_per_example(logits, batch), expected)


def test_no_example_sees_another() -> None:
    batch = batch_of(("a", "ham"), ("bcd", "spam"), ("", "eggs"))
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    assert_examples_are_independent(make_task().loss_per_example, logits, batch)


def test_the_check_rejects_a_loss_that_looks_at_the_batchs_mean() -> None:
    def coupled(logits: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(logits - logits.mean(dim=0), batch.labels, reduction="none")

    batch = batch_of(("a", "ham"), ("bcd", "spam"), ("", "eggs"))
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    with pytest.raises(AssertionError):
        assert_examples_are_independent(coupled, logits, batch)


@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
def test_padding_does_not_change_a_loss_through_the_model(
    pooling: Literal["first", "mean", "last"],
) -> None:
    task = make_task(pooling)
    torch.manual_seed(0)
    model = task.build_model(CONFIG).double().eval()
    together, alone = batch_of(("ab", "spam"), ("abcde", "ham")), batch_of(("ab", "spam"))
    losses = [
        task.loss_per_example(model(batch.tokens, batch.attention_mask), batch)
        for batch in (together, alone)
    ]
    torch.testing.assert_close(losses[0][0], losses[1][0], rtol=0, atol=1e-12)


def test_the_head_has_a_logit_for_each_class() -> None:
    batch = batch_of(("abc", "eggs"), ("d", "ham"))
    logits = make_task().build_model(CONFIG)(batch.tokens, batch.attention_mask)
    assert logits.shape == (2, 3)


def test_the_first_position_of_a_causal_model_is_refused() -> None:
    causal = ModelConfig(29, 16, 1, 2, 8, causal=True)
    with pytest.raises(ConfigError, match=r'task.pooling "mean" or "last" .* got "first"'):
        make_task("first").build_model(causal)


def test_a_model_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected model.vocab_size of at least 29, .* got 28"):
        make_task().build_model(ModelConfig(28, 16, 1, 2, 8))
