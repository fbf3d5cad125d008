"""fp16 with a loss scale: what overflows is dropped, and the clip is kept by all the others."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.errors import ConfigError, PrivacyError
from core.tasks.interface import Batch
from privacy.one_backward.clipping import add_clipped
from privacy.one_backward.tape import Dense, Product
from tests.support.private_training import clipped_sum, flat, plan_of, tiny_model, train
from tests.support.tiny import TinyData, TinyTask, train_config

CLIP = 0.5
MODES = ["hooks", "one_backward"]
SHAPES: list[dict[str, Any]] = [{}, {"tied": True}, {"classes": 2}, {"rms": True}]


class Steep(TinyTask):
    """Losses of some examples are so large that their gradients overflow in fp16."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def loss_per_example(self, logits: Tensor, batch: Batch) -> Tensor:
        """Steep where the first token is even."""
        losses = super().loss_per_example(logits, batch)
        return losses * torch.where(batch.tokens[:, 0] % 2 == 0, self.factor, 1.0)


def split(data: TinyData) -> tuple[list[int], list[int]]:
    """Which examples are steep, and which are not."""
    steep = [i for i, one in enumerate(data.examples) if one.tokens[0] % 2 == 0]
    return steep, [i for i in range(len(data)) if i not in steep]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_example_that_overflows_adds_nothing(mode: str, shape: dict[str, Any]) -> None:
    model, data = tiny_model(**shape), TinyData.make(9, fixed_length=6)
    steep, rest = split(data)
    assert len(steep) > 1
    assert len(rest) > 1

    def total(rows: list[int], factor: float, autocast: str) -> Tensor:
        task = Steep(factor)
        return clipped_sum(mode, model, [data.fetch(rows)], clip=CLIP, autocast=autocast, task=task)

    others = total(rest, 1e6, "fp16")
    assert float((total([*steep, *rest], 1e6, "fp16") - others).norm()) < 1e-5 * CLIP
    assert not total(steep, 1e6, "fp16").any()
    # where nothing overflows they take part, clipped: the rule is about overflow alone
    assert float((total([*steep, *rest], 1.0, "fp16") - others).norm()) > 0.1 * CLIP
    in_fp32 = total([*steep, *rest], 1e6, "off")
    assert float((in_fp32 - others).norm()) > 0.1 * CLIP


@settings(max_examples=40)
@given(
    shape=st.sampled_from(SHAPES),
    mode=st.sampled_from(MODES),
    seed=st.integers(0, 1000),
    factor=st.sampled_from([1.0, 30.0, 100.0, 1e3, 1e5, 1e38]),
    count=st.integers(1, 6),
    gone=st.integers(0, 5),
)
def test_one_example_more_or_less_moves_the_sum_by_at_most_the_clip(
    shape: dict[str, Any], mode: str, seed: int, factor: float, count: int, gone: int
) -> None:
    """Also where it overflows, or nearly, and where others do."""
    model, data, task = tiny_model(seed, **shape), TinyData.make(count, seed), Steep(factor)
    rows = list(range(count))
    rest = [row for row in rows if row != gone % count]
    left, right = (
        clipped_sum(
            mode,
            model,
            [data.fetch(chosen)] if chosen else [],
            clip=CLIP,
            autocast="fp16",
            task=task,
        )
        for chosen in (rows, rest)
    )
    assert torch.isfinite(left).all()
    assert float((left - right).double().norm()) <= CLIP


@pytest.mark.parametrize("mode", MODES)
def test_the_scale_is_undone(mode: str) -> None:
    """A sum of unclipped gradients is autograd's in fp32, and not 1024 times it."""
    model, one = tiny_model(), TinyData.make(1).fetch([0])
    found = clipped_sum(mode, model, [one], clip=1e6, autocast="fp16")
    expected = clipped_sum(mode, model, [one], clip=1e6)
    assert float((found - expected).norm() / expected.norm()) < 4e-3


@pytest.mark.parametrize("rule", ["flat", "per_layer", "automatic"])
@pytest.mark.parametrize("exponent", [0, 10, 24])
def test_a_power_of_two_is_undone_bit_for_bit(rule: str, exponent: int) -> None:
    """Unscaling norms and factors is unscaling the gradients themselves."""
    generator = torch.Generator().manual_seed(0)
    x, g = torch.randn(3, 4, 5, generator=generator), torch.randn(3, 4, 6, generator=generator)
    dense = torch.randn(3, 7, generator=generator)

    def total(scale: int) -> list[Tensor]:
        matrix, vector = (torch.nn.Parameter(torch.zeros(size)) for size in ((6, 5), (7,)))
        parameters = [matrix, vector]
        for parameter in parameters:
            parameter.summed_grad = None  # type: ignore[attr-defined]
        records: Any = {matrix: [Product(x, g * scale)], vector: [Dense(dense * scale)]}
        add_clipped(records, parameters, 2.0, rule=rule, loss_scale=scale)
        return [p.summed_grad for p in parameters]  # type: ignore[attr-defined]

    for found, expected in zip(total(2**exponent), total(1), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("mode", MODES)
def test_training_counts_every_step_and_ends_near_fp32(mode: str) -> None:
    steps: list[int] = []

    def ended(autocast: Any, task: TinyTask) -> Tensor:
        plan = plan_of(gradient_mode=mode, steps=3)
        config = train_config(autocast=autocast, micro_batch_size=1)
        data = TinyData.make(12)
        return train(tiny_model(), data, plan, config=config, task=task, executed=steps.append)

    found = ended("fp16", TinyTask())
    torch.testing.assert_close(found, ended("off", TinyTask()), atol=5e-3, rtol=5e-3)
    assert torch.isfinite(ended("fp16", EveryRecordOverflows())).all()
    assert steps == [3, 3, 3]  # a step whose examples all overflow is noised, and counts


class EveryRecordOverflows(TinyTask):
    """Made-up probes are shorter than 7 tokens, or the rehearsal would find this out."""

    def loss_per_example(self, logits: Tensor, batch: Batch) -> Tensor:
        """Steep, but for the probes."""
        losses = super().loss_per_example(logits, batch)
        probe = (batch.tokens <= 2).all(dim=1)
        return losses * torch.where(probe, 1.0, 1e30)


def test_a_model_whose_probes_overflow_is_refused() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.embed.weight[0].fill_(1e6)  # beyond fp16 as soon as a Linear sees it
        model.norm.weight.fill_(1e6)
    before = flat(model)
    config = train_config(autocast="fp16", micro_batch_size=1)
    with pytest.raises(PrivacyError, match="expected a finite gradient of a made-up text"):
        train(model, TinyData.make(4), plan_of(), config=config)
    assert torch.equal(flat(model), before)


class AtTheEdge(TinyTask):
    """Gradients just below 65504, and just above where padding changes how a product rounds."""

    def loss_per_example(self, logits: Tensor, batch: Batch) -> Tensor:
        """As a kernel that adds in another order for a longer row: the last bit is another one."""
        losses = logits[:, 0, 0] * (65504 / 1024)
        padded = ~batch.attention_mask.all(dim=1)
        return losses * torch.where(padded, 1 + 2.0**-11, 1.0)


def test_one_record_more_would_move_a_batch_at_the_edge_by_many_clips() -> None:
    """In one forward pass it does; one at a time, as is required, by one clip at most."""
    model, short, long = tiny_model(), TinyData.make(4, fixed_length=4), TinyData.make(1, 9)
    examples = [*short.examples, replace(long.examples[0], tokens=(3, 1, 4, 1, 5))]

    def total(micro_batches: list[list[int]]) -> Tensor:
        batches = [TinyTask().collate([examples[i] for i in rows]) for rows in micro_batches]
        task = AtTheEdge()
        return clipped_sum("one_backward", model, batches, clip=CLIP, autocast="fp16", task=task)

    together = total([[0, 1, 2, 3, 4]]) - total([[0, 1, 2, 3]])
    assert float(together.norm()) > 2 * CLIP
    alone = total([[0], [1], [2], [3], [4]]) - total([[0], [1], [2], [3]])
    assert 0.9 * CLIP < float(alone.norm()) <= CLIP


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [2, 32])
def test_several_records_at_a_time_are_refused_in_fp16_alone(mode: str, size: int) -> None:
    model, data, plan = tiny_model(), TinyData.make(4), plan_of(gradient_mode=mode, steps=1)
    before = flat(model)
    with pytest.raises(PrivacyError, match="expected train.micro_batch_size = 1 with DP-SGD and"):
        train(model, data, plan, config=train_config(autocast="fp16", micro_batch_size=size))
    assert torch.equal(flat(model), before)
    train(model, data, plan, config=train_config(autocast="bf16", micro_batch_size=size))
    assert not torch.equal(flat(model), before)


def test_ghost_clipping_refuses_fp16() -> None:
    with pytest.raises(PrivacyError, match="expected fp32 with ghost clipping"):
        train(
            tiny_model(),
            TinyData.make(4),
            plan_of(gradient_mode="ghost"),
            config=train_config(autocast="fp16"),
        )


@pytest.mark.parametrize("scale", [0, -2, 3, 1000, 2**25])
def test_a_scale_that_is_no_power_of_two_is_refused(scale: int) -> None:
    with pytest.raises(ConfigError, match="expected train.loss_scale as a power of two of at most"):
        train_config(loss_scale=scale)
