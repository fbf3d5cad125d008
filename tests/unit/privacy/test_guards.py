"""Layers, losses and settings under which clipping would not hold are refused by name."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.config import TokenizerSection
from core.errors import LossContractError, PrivacyError, UnsupportedLayerError
from core.model import ModelConfig
from core.tasks.causal_lm import CausalLM
from core.tasks.classification import Classification
from core.tasks.interface import Batch
from core.tokenizer import load_tokenizer
from core.train import make_loss
from privacy.guards import check_arithmetic, check_layers, check_loss_contract, check_loss_shape
from tests.support.tiny import TinyModel, TinyTask

# Layers


class Outer(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


class LinearOfTheirOwn(nn.Linear):
    """A subclass may do anything in its forward."""


def with_buffer() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.register_buffer("seen", torch.zeros(2))
    return layer


def with_parameter_of_its_own() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.scale = nn.Parameter(torch.ones(1))
    return layer


REFUSED: list[Any] = [
    (with_parameter_of_its_own, "Linear; its trained parameters are not of a supported layer"),
    (lambda: nn.BatchNorm1d(4), "BatchNorm1d; it mixes the examples"),
    (lambda: nn.SyncBatchNorm(4), "SyncBatchNorm; it mixes the examples"),
    (
        lambda: nn.BatchNorm1d(4, affine=False, track_running_stats=False),
        "BatchNorm1d; it mixes the examples",
    ),
    (with_buffer, "Linear; it has buffers"),
    (lambda: nn.Conv1d(2, 2, 1), "Conv1d; its trained parameters are not of a supported layer"),
    (lambda: LinearOfTheirOwn(2, 2), "LinearOfTheirOwn; its trained parameters"),
    (lambda: nn.MultiheadAttention(4, 2), "MultiheadAttention; its trained parameters"),
    (lambda: nn.LSTM(4, 2), "LSTM; its trained parameters"),
    (lambda: nn.Embedding(4, 2, padding_idx=0), "Embedding; padding_idx"),
    (lambda: nn.Embedding(4, 2, max_norm=1.0), "Embedding; padding_idx, max_norm"),
    (lambda: nn.Embedding(4, 2, scale_grad_by_freq=True), "Embedding; .* frequency scaling"),
    (lambda: nn.Embedding(4, 2, sparse=True), "Embedding; .* or sparse"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_a_layer_that_clipping_does_not_know_is_refused_by_name(
    make: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(
        UnsupportedLayerError,
        match=f"expected trained layers of kind Linear, Embedding, LayerNorm, RMSNorm, "
        f"got layer: {message}.*\nhint: freeze the layer",
    ):
        check_layers(Outer(make()))


def test_a_parameter_of_the_models_own_is_refused() -> None:
    model = TinyModel()
    model.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(UnsupportedLayerError, match="got the model: TinyModel; its trained"):
        check_layers(model)


def test_frozen_layers_may_be_of_any_kind_but_carry_no_statistics() -> None:
    model = Outer(nn.Conv1d(2, 2, 1).requires_grad_(False))
    check_layers(model)
    model.layer = nn.BatchNorm1d(2).requires_grad_(False)
    with pytest.raises(UnsupportedLayerError, match="it mixes the examples of a batch"):
        check_layers(model)
    model.layer = nn.InstanceNorm1d(2, track_running_stats=True)
    with pytest.raises(UnsupportedLayerError, match="it has buffers"):
        check_layers(model)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(2, 2, bias=False),
        nn.Embedding(4, 2),
        nn.LayerNorm(4),
        nn.LayerNorm(4, bias=False),
        nn.LayerNorm(4, elementwise_affine=False),
        nn.RMSNorm(4),
        nn.Dropout(0.5),
    ],
)
def test_supported_layers_pass(layer: nn.Module) -> None:
    check_layers(Outer(layer))


# The loss contract

Losses = Callable[[TinyTask, Tensor, Batch], Tensor]


def plain(task: TinyTask, logits: Tensor, batch: Batch) -> Tensor:
    return TinyTask.loss_per_example(task, logits, batch)


def by_the_batchs_tokens(task: TinyTask, logits: Tensor, batch: Batch) -> Tensor:
    own = batch.attention_mask[:, 1:].sum(1)
    return plain(task, logits, batch) * own / own.sum()


def by_the_batchs_size(task: TinyTask, logits: Tensor, batch: Batch) -> Tensor:
    return plain(task, logits, batch) / len(batch)


def minus_the_batchs_mean(task: TinyTask, logits: Tensor, batch: Batch) -> Tensor:
    losses = plain(task, logits, batch)
    return losses - losses.mean()


def with_in_batch_negatives(task: TinyTask, logits: Tensor, batch: Batch) -> Tensor:
    pooled = logits.mean(1)
    return nn.functional.cross_entropy(
        pooled @ pooled.T, torch.arange(len(batch)), reduction="none"
    )


def with_load_balancing(task: TinyTask, logits: Tensor, batch: Batch) -> Tensor:
    use = logits.softmax(-1).mean((0, 1))
    return plain(task, logits, batch) + use.square().sum()


def of_the_padded_length(task: TinyTask, logits: Tensor, batch: Batch) -> Tensor:
    return plain(task, logits, batch) / batch.tokens.shape[1]


@pytest.mark.parametrize(
    "losses",
    [
        by_the_batchs_tokens,
        by_the_batchs_size,
        minus_the_batchs_mean,
        with_in_batch_negatives,
        with_load_balancing,
        of_the_padded_length,
    ],
)
def test_a_loss_that_couples_examples_is_refused(losses: Losses) -> None:
    class Coupled(TinyTask):
        loss_per_example = losses

    torch.manual_seed(0)
    with pytest.raises(
        LossContractError, match="the same in a batch and alone, got .* and .*\nhint: normalise"
    ):
        check_loss_contract(TinyModel(), Coupled(), make_loss(Coupled(), autocast="off"))


class MeanSubtracting(TinyModel):
    """Couples examples, in training only where asked."""

    training_only = False

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = super().forward(tokens, attention_mask)
        if self.training_only and not self.training:
            return logits
        return logits - logits.max(dim=0, keepdim=True).values


@pytest.mark.parametrize("training_only", [False, True])
def test_a_model_that_couples_examples_is_refused(training_only: bool) -> None:
    model = MeanSubtracting()
    model.training_only = training_only
    with pytest.raises(LossContractError, match="the same in a batch and alone"):
        check_loss_contract(model, TinyTask(), make_loss(TinyTask(), autocast="off"))


def test_batch_statistics_that_are_not_tracked_are_refused() -> None:
    """As a layer, and, written by hand, by their effect."""

    class Normalised(TinyModel):
        def __init__(self) -> None:
            super().__init__(classes=2)
            self.batch_norm: nn.Module = nn.BatchNorm1d(2, affine=False, track_running_stats=False)

        def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
            scores: Tensor = super().forward(tokens, attention_mask)
            return scores if len(scores) == 1 else self.batch_norm(scores)

    class ByHand(nn.Module):
        def forward(self, scores: Tensor) -> Tensor:
            return nn.functional.batch_norm(scores, None, None, training=True)

    model = Normalised()
    with pytest.raises(UnsupportedLayerError, match="got batch_norm: BatchNorm1d; it mixes"):
        check_layers(model)
    model.batch_norm = ByHand()
    check_layers(model)
    with pytest.raises(LossContractError, match="the same in a batch and alone"):
        check_loss_contract(model, TinyTask(), make_loss(TinyTask(), autocast="off"))


@pytest.mark.parametrize("shape", [(), (1,), (3, 2), (4,)])
def test_anything_but_one_loss_per_example_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        LossContractError, match=r"expected one loss per example, shape \(3,\), got .*\nhint"
    ):
        check_loss_shape(torch.zeros(shape), 3)


def test_a_reduced_loss_is_refused_before_the_first_step() -> None:
    class Reduced(TinyTask):
        def loss_per_example(self, logits: Tensor, batch: Batch) -> Tensor:
            return super().loss_per_example(logits, batch).mean()

    with pytest.raises(LossContractError, match="expected one loss per example"):
        check_loss_contract(TinyModel(), Reduced(), make_loss(Reduced(), autocast="off"))


@pytest.mark.parametrize("training", [False, True])
def test_the_check_leaves_the_model_as_it_was(training: bool) -> None:
    model = TinyModel().train(training)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    check_loss_contract(model, TinyTask(), make_loss(TinyTask(), autocast="off"))
    assert model.training is training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert parameter.grad is None


def test_dropout_is_no_coupling() -> None:
    class Dropping(TinyModel):
        def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
            logits: Tensor = super().forward(tokens, attention_mask)
            return nn.functional.dropout(logits, 0.5, self.training)

    check_loss_contract(Dropping(), TinyTask(), make_loss(TinyTask(), autocast="off"))


MODELS = [
    pytest.param({}, id="rotary-tied"),
    pytest.param({"position": "learned", "tied": False}, id="learned"),
    pytest.param(
        {
            "norm": "layernorm",
            "norm_placement": "post",
            "bias": True,
            "activation": "gelu",
            "position": "learned",
            "n_token_type": 2,
            "embedding_norm": True,
        },
        id="post-norm",
    ),
    pytest.param({"n_kv_head": 1, "position": "none"}, id="grouped"),
]


@pytest.mark.parametrize("settings", MODELS)
def test_our_models_and_tasks_pass(settings: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(TokenizerSection(kind="bytes"))
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        max_seq_len=16,
        n_layer=2,
        n_head=2,
        n_embd=16,
        **settings,
    )
    for task in (
        CausalLM(tokenizer, 16),
        Classification(tokenizer, 16, ("a", "b"), "mean"),
        Classification(tokenizer, 16, ("a", "b"), "last"),
    ):
        model = task.build_model(config)
        check_layers(model)
        check_loss_contract(model, task, make_loss(task, autocast="off"))


# Arithmetic


@pytest.fixture
def _precision_restored() -> Iterator[None]:
    backends = (torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    yield
    for backend, precision in zip(backends, before, strict=True):
        backend.fp32_precision = precision


def test_usual_arithmetic_passes() -> None:
    check_arithmetic(torch.device("cpu"))


@pytest.mark.usefixtures("_precision_restored")
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_coarse_products_are_refused(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    with pytest.raises(
        PrivacyError, match=r"products in fp32, got torch\.backends\..*\nhint: call"
    ):
        check_arithmetic(torch.device("cpu"))
    torch.set_float32_matmul_precision("highest")
    check_arithmetic(torch.device("cpu"))


@pytest.mark.usefixtures("_precision_restored")
def test_coarse_products_by_the_new_setting_are_refused() -> None:
    torch.backends.fp32_precision = "tf32"
    with pytest.raises(PrivacyError, match=r"got torch\.backends\.fp32_precision = tf32"):
        check_arithmetic(torch.device("cpu"))


def test_mixed_precision_around_the_call_is_refused() -> None:
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(PrivacyError, match=r"outside torch\.autocast, got a call within it\nhint"),
    ):
        check_arithmetic(torch.device("cpu"))
