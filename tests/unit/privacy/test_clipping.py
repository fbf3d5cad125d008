"""Sensitivity of the clipped sum, over random models, texts, paddings and precisions."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.gradient_modes import GRADIENT_MODES
from tests.support.private_training import clipped_sum, tiny_model
from tests.support.tiny import TinyData, TinyModel

MODES = sorted(GRADIENT_MODES)
CLIP = 0.5
SHAPES: list[dict[str, Any]] = [{}, {"tied": True}, {"classes": 2}, {"rms": True}]
QUICK = settings(max_examples=30)


def scaled(model: TinyModel, scale: float) -> TinyModel:
    """Gradients far above the clip, or far below."""
    with torch.no_grad():
        model.head.weight.mul_(scale)
    return model


def cut(rows: list[int], data: TinyData, size: int) -> list[Any]:
    return [data.fetch(rows[start : start + size]) for start in range(0, len(rows), size)]


@QUICK
@given(
    shape=st.sampled_from(SHAPES),
    mode=st.sampled_from(MODES),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1e3]),
    count=st.integers(1, 9),
    micro=st.integers(1, 5),
    gone=st.integers(0, 8),
)
def test_one_example_more_or_less_moves_the_sum_by_at_most_the_clip(
    shape: dict[str, Any], mode: str, seed: int, scale: float, count: int, micro: int, gone: int
) -> None:
    if mode == "ghost" and shape.get("tied"):
        mode = "hooks"
    model = scaled(tiny_model(seed, **shape), scale)
    data = TinyData.make(count, seed)
    rows = list(range(count))
    rest = [row for row in rows if row != gone % count]  # batches and padding change with it
    moved = clipped_sum(mode, model, cut(rows, data, micro), clip=CLIP) - clipped_sum(
        mode, model, cut(rest, data, micro), clip=CLIP
    )
    assert float(moved.double().norm()) <= CLIP


@QUICK
@given(
    shape=st.sampled_from(SHAPES),
    mode=st.sampled_from(["hooks", "one_backward"]),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1.0, 30.0, 1e3]),
    length=st.integers(2, 12),
    autocast=st.sampled_from(["bf16", "fp16"]),
)
def test_mixed_precision_keeps_to_the_clip(
    shape: dict[str, Any], mode: str, seed: int, scale: float, length: int, autocast: str
) -> None:
    model = scaled(tiny_model(seed, **shape), scale)
    one = TinyData.make(1, seed, fixed_length=length).fetch([0])
    norm = float(clipped_sum(mode, model, [one], clip=CLIP, autocast=autocast).double().norm())
    assert norm <= CLIP


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("autocast", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("mode", ["hooks", "one_backward"])
def test_the_clip_is_reached_and_small_gradients_are_left(
    shape: dict[str, Any], mode: str, autocast: str
) -> None:
    """Else the tests above would pass for sums that are far too small."""
    one = TinyData.make(1).fetch([0])
    large = scaled(tiny_model(**shape), 30.0)
    assert float(clipped_sum(mode, large, [one], clip=CLIP, autocast=autocast).norm()) > 0.98 * CLIP
    whole = clipped_sum(mode, tiny_model(**shape), [one], clip=1e6, autocast=autocast)
    model = tiny_model(**shape)
    from tests.support.tiny import TinyTask

    TinyTask().loss_per_example(model(one.tokens, one.attention_mask), one).sum().backward()
    alone = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    assert float((whole - alone).norm() / alone.norm()) < 0.03


@pytest.mark.parametrize("mode", ["hooks", "one_backward"])
def test_tied_weights_are_clipped_together(mode: str) -> None:
    """fastDP clips the two uses of a tied weight apart: 1.74 times the clip."""
    model = scaled(tiny_model(tied=True), 30.0)
    data = TinyData.make(20)
    for row in range(20):
        total = clipped_sum(mode, model, [data.fetch([row])], clip=CLIP)
        assert 0.99 * CLIP < float(total.double().norm()) <= CLIP


@pytest.mark.parametrize("mode", MODES)
def test_no_micro_batch_gives_the_sum_zero(mode: str) -> None:
    assert not clipped_sum(mode, tiny_model(), [], clip=CLIP).any()


@pytest.mark.parametrize("mode", ["hooks", "one_backward"])
def test_many_equal_examples_add_up_without_passing_the_clip(mode: str) -> None:
    """Rounding of a long sum is the whole of what one more example may add to its clip."""
    model = scaled(tiny_model(), 30.0)
    batches = [TinyData((TinyData.make(1).examples[0],) * 50).fetch(range(50))] * 20
    total = clipped_sum(mode, model, batches, clip=CLIP).double()
    less = clipped_sum(mode, model, [*batches[1:], one_less(batches[0])], clip=CLIP).double()
    assert float((total - less).norm()) <= CLIP


def one_less(batch: Any) -> Any:
    return type(batch)(batch.tokens[1:], batch.attention_mask[1:], batch.labels[1:])
