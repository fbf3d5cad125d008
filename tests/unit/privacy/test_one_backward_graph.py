"""One backward pass as one graph, what has none, and how the mode chooses."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from core.errors import LossContractError, PrivacyError, UnsupportedLayerError
from core.tasks.interface import Batch
from privacy.gradient_modes import GRADIENT_MODES
from privacy.noise_ahead import GridNoiseAhead
from privacy.one_backward import functional_mode
from privacy.one_backward.functional import FunctionalModule
from privacy.one_backward.functional_mode import EitherOptimizer, OneBackward, execution_of
from privacy.one_backward.mode import OneBackwardModule
from privacy.rehearsal import rehearse
from tests.support.clipped_sums import (
    VOCAB,
    Sums,
    distance,
    each_gradient,
    losses_of,
    middle_clip,
    model_of,
    norm_of,
    optimizer_for,
    oracle,
    plain_loss,
    random_batch,
)
from tests.support.functional_sums import summed
from tests.support.private_training import flat, plan_of, tiny_model, train
from tests.support.tiny import TinyData, TinyTask, train_config

PLAIN = OneBackward("compiled", backend=None)


# One graph


def compiled_once(model: nn.Module, *batches: Batch, **options: Any) -> tuple[Sums, int]:
    counter = CompileCounterWithBackend("aot_eager")
    return summed(model, *batches, backend=counter, **options), counter.frame_count


@pytest.mark.parametrize(
    "shape",
    [
        {"tied": True, "bias": True, "position": "learned"},
        {"tied": False, "norm": "layernorm", "n_kv_head": 2},
        {"classes": True, "causal": False, "norm_placement": "post"},
    ],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_batches_of_all_sizes_are_one_graph(shape: dict[str, Any], autocast: bool) -> None:
    torch._dynamo.reset()
    model = model_of(**shape, n_embd=16)
    batches = [random_batch(4, 4, 9), random_batch(5, 1, 12), random_batch(6, 3, 2)]

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits = model(batch.tokens, batch.attention_mask)
        return losses_of(logits.float(), batch)

    expected = summed(model, *batches, clip=0.3, loss=loss)
    found, graphs = compiled_once(model, *batches, clip=0.3, loss=loss)
    assert graphs == 1
    assert distance(found, expected) < (2e-2 if autocast else 1e-5)


def test_another_model_of_the_same_shape_is_not_compiled_again() -> None:
    """A federation's round makes a new model, and the rehearsal a new loss each time."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    mode = OneBackward("compiled", backend=counter)
    for seed in range(2):
        model = model_of(bias=True)
        with torch.no_grad():
            model.head.weight += 0.1 * seed
        rehearse(model, TinyTask(), plain_loss, mode, train_config())
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's inductor calls what torch has deprecated
def test_the_inductor_gives_the_same_sums() -> None:
    torch._dynamo.reset()
    model, batch = model_of(tied=True, bias=True), random_batch(3, 5, 9)
    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    found = summed(model, batch, clip=clip, backend="inductor")
    assert distance(found, oracle(gradients, clip)) < 1e-5


# Refusals


def refuse(
    message: str, act: Callable[[], object], kind: type[PrivacyError] = PrivacyError
) -> None:
    with pytest.raises(kind) as caught:
        act()
    assert str(caught.value).startswith(message)


def with_layer(layer: nn.Module) -> nn.Module:
    model = tiny_model()
    model.mix = layer
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: with_layer(nn.Bilinear(2, 2, 2)), "expected trained layers of kind Linear, Emb"),
        (
            lambda: nn.Sequential(nn.BatchNorm1d(3)),
            "expected trained layers of kind Linear, Embedding, LayerNorm, RMSNorm, got 0: BatchN",
        ),
        (lambda: with_layer(nn.Dropout(0.1)), "expected a compiled model without dropout, got mix"),
    ],
)
def test_what_has_no_functional_form_is_named(model: Callable[[], nn.Module], message: str) -> None:
    refuse(message, lambda: PLAIN.wrap(model(), 1.0), UnsupportedLayerError)


class Odd(nn.Module):
    """One Linear used as ``use`` says."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 4)
        self.linear = nn.Linear(4, 4)
        self.use = use

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        return self.use(self, self.embed(tokens)).flatten(1)[:, :3]


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda m, x: x, "expected per-sample gradients of linear.weight, got none\nhint: a tr"),
        (lambda m, x: m.linear(m.linear(x)), "expected 1 uses of linear.weight, as often as it is"),
        (
            lambda m, x: m.linear(x) + F.linear(x, m.linear.weight),
            "expected every use of linear.weight to be recorded, got one past its layer\nhint: c",
        ),
        (
            lambda m, x: x + m.linear(torch.ones(1, 4)),
            "expected 3 per-sample gradients of linear.weight, got 1\nhint: every layer must see",
        ),
        (
            lambda m, x: x + m.linear(torch.ones(4)),
            "expected 3 per-sample gradients of linear.weight, got 1\nhint: every layer must see",
        ),
        (
            lambda m, x: m.linear(x.mT.mT.transpose(0, 1)).transpose(0, 1),
            "expected 3 per-sample gradients of linear.weight, got 5\nhint: every layer must see",
        ),
    ],
)
def test_a_layer_that_is_used_in_another_way_is_named(use: Any, message: str) -> None:
    refuse(message, lambda: summed(Odd(use), random_batch(0, 3, 5), clip=1.0))


def test_a_tied_weight_that_is_used_once_is_named() -> None:
    model = Odd(lambda m, x: m.linear(x))
    model.again = nn.Linear(4, 4)
    model.again.weight = model.linear.weight
    model.again.bias = None
    refuse(
        "expected 2 uses of linear.weight, as often as it is registered",
        lambda: summed(model, random_batch(0, 3, 5), clip=1.0),
    )


def test_a_model_that_asks_for_values_is_no_graph() -> None:
    torch._dynamo.reset()
    model = Odd(lambda m, x: m.linear(x) if bool(x.sum() < 1e9) else -m.linear(x))
    batch = random_batch(0, 3, 5)
    summed(model, batch, clip=1.0)
    refuse(
        "expected a model and a loss that torch.compile takes as one graph, got ",
        lambda: summed(model, batch, clip=1.0, backend="aot_eager"),
    )


def test_activation_checkpointing_has_no_functional_form() -> None:
    """It is for the eager form, which takes it."""
    model = model_of(n_layer=2)
    block = model.transformer.blocks[0]
    own = block.forward
    vars(block)["forward"] = lambda *a: checkpoint(own, *a, use_reentrant=False)
    refuse(
        "expected layers with the forward of their class, got transformer.blocks.0: Block",
        lambda: PLAIN.wrap(model, 1.0),
        UnsupportedLayerError,
    )


def test_a_reduced_loss_and_the_optimizer_of_another_mode_are_refused() -> None:
    model, batch = tiny_model(), TinyData.make(2).fetch([0, 1])
    refuse(
        "expected one loss per example, shape (2,), got ()",
        lambda: summed(model, batch, clip=1.0, loss=lambda m, b: plain_loss(m, b).sum()),
        LossContractError,
    )
    refuse(
        "expected the optimizer of this gradient mode, got HooksOptimizer",
        lambda: PLAIN.backward(
            PLAIN.wrap(model, 1.0), optimizer_for(model, 1.0, "hooks"), plain_loss, batch
        ),
    )


def test_a_parameter_that_is_thawed_after_wrapping_is_refused() -> None:
    model, batch = tiny_model(), TinyData.make(2).fetch([0, 1])
    model.mix.requires_grad_(False)
    module = PLAIN.wrap(model, 1.0)
    model.mix.requires_grad_(True)
    refuse(
        "expected parameters that were trained when the model was wrapped, got another",
        lambda: PLAIN.backward(module, optimizer_for(model, 1.0), plain_loss, batch),
    )


def test_steps_and_backward_passes_take_turns() -> None:
    model, batch = tiny_model(), TinyData.make(2).fetch([0, 1])
    optimizer, module = optimizer_for(model, 1.0), PLAIN.wrap(model, 1.0)
    refuse("expected a backward pass before each step, got a step without one", optimizer.step)
    PLAIN.backward(module, optimizer, plain_loss, batch)
    refuse(
        "expected a step after each backward pass, got a second backward pass\nhint: gradients",
        lambda: PLAIN.backward(module, optimizer, plain_loss, batch),
    )
    optimizer.step()
    refuse("expected a backward pass before each step, got a step without one", optimizer.step)


# The mode


def test_the_environment_chooses_and_the_cpu_stays_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    mode, model = OneBackward(), tiny_model()
    assert execution_of({}) == "eager"
    for execution in (None, "auto"):
        eager = OneBackward(execution).wrap(model, 1.0)
        assert isinstance(eager, OneBackwardModule)
        eager.cleanup()
    monkeypatch.setenv("CLOISTER_ONE_BACKWARD", "compiled")
    assert isinstance(mode.wrap(model, 1.0), FunctionalModule)
    monkeypatch.setenv("CLOISTER_ONE_BACKWARD", "fast")
    refuse(
        "expected CLOISTER_ONE_BACKWARD of auto, eager, compiled, got 'fast'",
        lambda: mode.wrap(model, 1.0),
    )


@pytest.mark.parametrize("autocast", ["off", "bf16"])
def test_a_training_ends_where_the_eager_form_ends(
    autocast: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rehearsal, sampling, micro-batches, noise and steps as ever."""
    plan, config = plan_of(gradient_mode="one_backward"), train_config(autocast=autocast)
    expected = train(tiny_model(tied=True), TinyData.make(12), plan, config=config)
    monkeypatch.setitem(GRADIENT_MODES, "one_backward", PLAIN)
    found = train(tiny_model(tied=True), TinyData.make(12), plan, config=config)
    assert not torch.equal(found, flat(tiny_model(tied=True)))
    torch.testing.assert_close(found, expected, atol=1e-5 if autocast == "off" else 2e-3, rtol=1e-4)
    assert issubclass(GRADIENT_MODES["one_backward"].optimizer_class, EitherOptimizer)


def test_noise_drawn_ahead_gives_the_same_training_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU, where the CPU would wait; the sampling is from another stream."""
    plan, begun = plan_of(gradient_mode="one_backward", steps=3), []
    expected = train(tiny_model(), TinyData.make(12), plan)
    begin = GridNoiseAhead.begin
    monkeypatch.setattr(functional_mode, "draws_ahead", lambda device: True)
    monkeypatch.setattr(
        GridNoiseAhead, "begin", lambda self, stream: (begun.append(1), begin(self, stream))
    )
    assert torch.equal(train(tiny_model(), TinyData.make(12), plan), expected)
    assert len(begun) == 3


def test_fp16_with_a_loss_scale_is_as_in_the_eager_form() -> None:
    model, batch = model_of(tied=True, bias=True, n_embd=16), random_batch(3, 1, 9)

    def in_fp16(model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            logits = model(batch.tokens, batch.attention_mask)
        return losses_of(logits.float(), batch)

    found = summed(model, batch, clip=1e-3, loss=in_fp16, loss_scale=1024)
    (whole,) = each_gradient(model, batch)
    assert norm_of(found) == pytest.approx(1e-3, rel=2e-4)
    assert distance(found, oracle([whole], 1e-3)) < 0.02
    lost = summed(model, batch, clip=1e-3, loss=in_fp16, loss_scale=2**24)
    assert not any(t.any() for t in lost.values())  # it overflows, and is dropped


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore")  # torch's inductor calls what torch has deprecated
@pytest.mark.parametrize("tied", [False, True])
def test_a_gpu_compiles_where_it_can_and_gives_the_same_sums(tied: bool) -> None:
    model, batch = model_of(tied=tied, bias=True, position="learned"), random_batch(3, 5, 9)
    gradients = each_gradient(model, batch)
    clip, device = middle_clip(gradients), torch.device("cuda")
    expected = oracle(gradients, clip)
    module = OneBackward("auto").wrap(model.to(device), clip)
    assert isinstance(module, FunctionalModule)
    sums = module.sums(plain_loss, batch.to(device), rule="flat", clip=clip, loss_scale=1)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    found = dict(zip(names, (t.cpu() for t in sums), strict=True))
    assert distance(found, expected) < 1e-4
