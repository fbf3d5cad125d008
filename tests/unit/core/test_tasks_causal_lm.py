"""Causal language modelling: labels, losses and the loss contract."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.data.records import Record
from core.errors import ConfigError
from core.model import ModelConfig
from core.tasks.causal_lm import CausalLM
from core.tasks.interface import IGNORE, Batch
from tests.support.loss_contract import assert_examples_are_independent
from tests.support.tiny_tokenizer import LetterTokenizer, SilentTokenizer

CONFIG = ModelConfig(vocab_size=29, max_seq_len=16, n_layer=1, n_head=2, n_embd=8)


@pytest.fixture
def task() -> CausalLM:
    return CausalLM(LetterTokenizer(), max_seq_len=6)


def batch_of(task: CausalLM, *texts: str) -> Batch:
    return task.collate([task.encode(Record(text)) for text in texts])


def logits_for(batch: Batch, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*batch.tokens.shape, 29, generator=generator, dtype=dtype)


def test_labels_are_the_next_tokens_and_pads_are_ignored(task: CausalLM) -> None:
    batch = batch_of(task, "abc", "d")
    assert batch.tokens.tolist() == [[1, 3, 4, 5], [1, 6, 0, 0]]
    assert batch.attention_mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.labels.tolist() == [[3, 4, 5, IGNORE], [6, IGNORE, IGNORE, IGNORE]]
    assert len(batch) == 2


def test_a_text_is_cut_to_the_models_length(task: CausalLM) -> None:
    assert len(task.encode(Record("abcdefghij")).tokens) == 6


def test_a_label_is_not_looked_at(task: CausalLM) -> None:
    assert task.encode(Record("ab", label="spam")) == task.encode(Record("ab"))


def test_the_loss_is_the_mean_over_the_examples_own_tokens(task: CausalLM) -> None:
    batch = batch_of(task, "abc", "d")
    logits = logits_for(batch)
    log_probabilities = F.log_softmax(logits, dim=-1)
    first = -(log_probabilities[0, 0, 3] + log_probabilities[0, 1, 4] + log_probabilities[0, 2, 5])
    expected = torch.stack([first / 3, -log_probabilities[1, 0, 6]])
    torch.testing.assert_close(task.loss_per_example(logits, batch), expected)


def test_an_example_without_a_predicted_token_has_loss_zero_and_no_gradient(
    task: CausalLM,
) -> None:
    batch = batch_of(task, "", "ab")
    logits = logits_for(batch).requires_grad_()
    losses = task.loss_per_example(logits, batch)
    torch.autograd.backward(losses.sum())
    assert losses[0].item() == 0
    assert losses[1].item() > 0
    assert logits.grad is not None
    assert not logits.grad[0].any()
    assert logits.grad[1].any()


def test_a_text_without_any_token_becomes_one_pad_token() -> None:
    task = CausalLM(SilentTokenizer(), max_seq_len=6)
    batch = batch_of(task, "...", "ab")
    assert batch.tokens.tolist() == [[0, 0], [3, 4]]
    assert batch.attention_mask.tolist() == [[True, False], [True, True]]
    assert task.loss_per_example(logits_for(batch), batch)[0].item() == 0


def test_padding_does_not_change_a_loss(task: CausalLM) -> None:
    together, alone = batch_of(task, "ab", "abcde"), batch_of(task, "ab")
    logits = logits_for(together)
    padded = task.loss_per_example(logits, together)[0]
    torch.testing.assert_close(
        task.loss_per_example(logits[:1, :3], alone)[0], padded, rtol=0, atol=1e-15
    )


def test_padding_does_not_change_a_loss_through_the_model(task: CausalLM) -> None:
    torch.manual_seed(0)
    model = task.build_model(CONFIG).double().eval()
    together, alone = batch_of(task, "ab", "abcde", ""), batch_of(task, "ab")
    losses = [
        task.loss_per_example(model(batch.tokens, batch.attention_mask), batch)
        for batch in (together, alone)
    ]
    assert torch.isfinite(losses[0]).all()
    torch.testing.assert_close(losses[0][0], losses[1][0], rtol=0, atol=1e-12)


def test_no_example_sees_another(task: CausalLM) -> None:
    batch = batch_of(task, "abcde", "bc", "", "dea")
    assert_examples_are_independent(task.loss_per_example, logits_for(batch), batch)


def test_the_check_rejects_a_loss_divided_by_the_batchs_tokens(task: CausalLM) -> None:
    def coupled(logits: Tensor, batch: Batch) -> Tensor:
        losses = F.cross_entropy(
            logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE, reduction="none"
        ).view_as(batch.labels)
        return losses.sum(dim=1) / (batch.labels != IGNORE).sum()

    batch = batch_of(task, "abcde", "bc", "dea")
    with pytest.raises(AssertionError):
        assert_examples_are_independent(coupled, logits_for(batch), batch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_loss_of_half_precision_logits_is_summed_in_fp32(
    task: CausalLM, dtype: torch.dtype
) -> None:
    batch = batch_of(task, "abcde", "bc")
    logits = logits_for(batch, torch.float32).to(dtype)
    losses = task.loss_per_example(logits, batch)
    assert losses.dtype == torch.float32
    expected = task.loss_per_example(logits.double(), batch)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)


def test_the_model_has_a_logit_for_each_token(task: CausalLM) -> None:
    batch = batch_of(task, "abc", "d")
    logits = task.build_model(CONFIG)(batch.tokens, batch.attention_mask)
    assert logits.shape == (2, 4, 29)


def test_a_bidirectional_model_is_refused(task: CausalLM) -> None:
    config = ModelConfig(29, 16, 1, 2, 8, causal=False)
    with pytest.raises(ConfigError, match=r"expected model.causal = true for causal-lm, got false"):
        task.build_model(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(28, 16, 1, 2, 8), "expected model.vocab_size of at least 29, .* got 28"),
        (ModelConfig(29, 5, 1, 2, 8), "expected model.max_seq_len of at least 6, .* got 5"),
    ],
)
def test_a_model_without_room_is_refused(task: CausalLM, config: ModelConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task.build_model(config)


def test_a_length_that_leaves_nothing_to_predict_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected max_seq_len of 2 or more for causal-lm, got 1"):
        CausalLM(LetterTokenizer(), max_seq_len=1)
