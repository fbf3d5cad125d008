"""C3: how much one example moves a step's sum, at the most: on the run's model, by its own clip."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from audit.conformance.claims import only_local, without_privacy
from audit.conformance.mechanism import REAL, Mechanism, Step, plans, watch
from audit.conformance.statistics import ALPHA, POWER
from audit.report.words import number
from audit.subject import Subject
from audit.verdicts import (
    CONFORMANCE,
    AuditTest,
    Budget,
    Figure,
    Interval,
    Measure,
    NotRun,
    Series,
    SmallestEffect,
    Table,
    TestCard,
    TestResult,
    Verdict,
)
from core.data.records import Record
from core.errors import CheckpointError, ScoreError
from core.model import ModelConfig
from core.parameters import load_arrays, to_arrays, trainable
from core.tasks.interface import IGNORE, Batch, Evaluation, Example, Task
from core.train import make_loss
from privacy.dp_sgd import DpSgdPlan

FloatArray = npt.NDArray[np.float64]

# Of the clip. Noise is so small that it blurs nothing, and is drawn on a grid that holds the sums.
_NOISE: Final = 1e-6
# Rounding in fp32 and to the grid of the noise: see GridNoise, which counts on it.
_TOLERANCE: Final = 2e-3
# Deviations of the noise's own norm that are allowed for.
_SPREAD: Final = 6.0
_MAX_TOKENS: Final = 12
# An example's weight sits in the label, beside the task's own.
_OFFSET: Final = 2**32
_OTHERS: Final = 3
_LONG: Final = 10.0
# Below this share of the clip the largest example would not have shown whether there is one.
_REACHED: Final = 0.9

CARD: Final = TestCard(
    id="C3",
    title="Measured sensitivity",
    question="Is what one record can add to a step bounded as the ledger says?",
    tier="conformance",
    threat_model="A record of any content, in a batch of any others.",
    assumes=(
        "The program that is audited here is the one that ran at the sites.",
        "Made-up texts whose losses are multiplied stand for records of any gradient.",
    ),
    suites=CONFORMANCE,
    cost_seconds=5.0,
)


@dataclass(frozen=True)
class _Case:
    """One example that comes in addition.

    The others are one text, so that their gradients point one way: an example against them then
    turns the sum of a batch round, and shows where batches are clipped in place of examples.
    """

    name: str
    length: float
    """Of its gradient, over the clip; below 0: the others' text, its loss times minus so much."""


_CASES: Final = (
    _Case("short", 0.1),
    _Case("long", _LONG),
    _Case("longer, against the others", -100 * _LONG),
    _Case("not finite", math.inf),
)


@dataclass(frozen=True)
class _Moved:
    """How far one example moved the sum."""

    model: str
    case: str
    norm: float
    """Of its gradient, over the clip."""
    moved: float
    """Over the clip."""
    interval: Interval


@dataclass(frozen=True)
class MeasuredSensitivity:
    """The test."""

    mechanism: Mechanism = REAL

    @property
    def card(self) -> TestCard:
        """What it declares."""
        return CARD

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Compares the sums of a batch with and without one example, on two sets of weights."""
        if (early := without_privacy(subject, CARD)) is not None:
            return early
        sites = plans(subject)
        if not sites:
            return only_local(CARD)
        plan = next(iter(sites.values()))
        moved: list[_Moved] = []
        for name, model in _models(subject):
            if budget.spent:
                break
            moved += self._measure(subject, plan, name, model, budget)
        return _result(moved, plan)

    def _measure(
        self, subject: Subject, plan: DpSgdPlan, name: str, model: nn.Module, budget: Budget
    ) -> list[_Moved]:
        examples = _made_up(subject)
        norms = [_norm(subject, model, one) for one in examples]
        crowd = [examples[1]] * _OTHERS
        weights = [_LONG * plan.max_grad_norm / norms[1]] * _OTHERS
        base = self._sum(subject, plan, model, crowd, weights)
        found = []
        for case in _CASES:
            if budget.spent:
                break
            which = 1 if case.length < 0 else 0
            weight = case.length * plan.max_grad_norm / norms[which]
            text = examples[which]
            total = self._sum(subject, plan, model, [text, *crowd], [weight, *weights])
            found.append(_moved(name, case, plan, total - base))
        return found

    def _sum(
        self,
        subject: Subject,
        plan: DpSgdPlan,
        model: nn.Module,
        examples: Sequence[Example],
        weights: Sequence[float],
    ) -> FloatArray:
        """The clipped sum over just these, as the run's training comes to it."""
        task = _Weighted(subject.blueprint.task, weights)
        sums: list[Step] = []
        watch(
            self.mechanism,
            copy.deepcopy(model),
            task,
            _WeightedData(task, examples, subject.device),
            plan=replace(
                plan,
                noise_multiplier=_NOISE,
                sample_rate=1.0,
                steps=1,
                max_batch_size=max(plan.max_batch_size, len(examples)),
                max_examples=max(plan.max_examples, len(examples)),
            ),
            # More than one micro-batch: sums must add up, and clips must not.
            config=replace(
                subject.config.train,
                micro_batch_size=min(2, subject.config.train.micro_batch_size),
            ),
            on_step=sums.append,
        )
        if len(sums) != 1:
            raise ScoreError(f"expected one step, got {len(sums)}")
        return sums[0].flat()


def _moved(model: str, case: _Case, plan: DpSgdPlan, difference: FloatArray) -> _Moved:
    """Two sums' noise taken off again: what is left has the example's own length."""
    clip, dimension = plan.max_grad_norm, len(difference)
    square = float(np.square(difference).sum()) / clip**2
    if not math.isfinite(square):
        raise ScoreError("expected finite sums, got one that is not")
    noise = 2 * _NOISE**2 * dimension
    moved = math.sqrt(max(0.0, square - noise))
    # Along the example's own direction, and of the noise's length.
    blur = _SPREAD * math.sqrt(2) * _NOISE * (1 + math.sqrt(math.sqrt(dimension)))
    interval = Interval(
        low=max(0.0, moved - blur), high=moved + blur, confidence=1 - ALPHA, method="noise bound"
    )
    return _Moved(model, case.name, abs(case.length), moved, interval)


def _models(subject: Subject) -> list[tuple[str, nn.Module]]:
    """The weights before the first round and after the last one."""
    initial = subject.initial_model()
    last = copy.deepcopy(initial)
    arrays = to_arrays(subject.model.model, all_parameters=True)
    try:
        load_arrays(last, {name: arrays[name] for name in trainable(last)})
    except (KeyError, CheckpointError):
        return [("before the first round", initial)]
    return [("before the first round", initial), ("after the last round", last)]


def _made_up(subject: Subject) -> list[Example]:
    """Two texts of different lengths from random tokens."""
    rng = subject.seed.generator("sensitivity")
    config = subject.blueprint.config
    longest = min(config.max_seq_len, _MAX_TOKENS)
    lengths = (longest, max(2, longest // 2))
    return [
        Example(tokens=rng.integers(config.vocab_size, size=length).tolist(), label=0)
        for length in lengths
    ]


def _norm(subject: Subject, model: nn.Module, example: Example) -> float:
    """Of the example's gradient, by autograd."""
    task = subject.blueprint.task
    batch = task.collate([example]).to(subject.device)
    own = list(trainable(model).values())
    total = make_loss(task, autocast="off")(model, batch).sum()
    gradients = torch.autograd.grad(total, own, allow_unused=True)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients if g is not None))
    if not 0 < norm < math.inf:
        raise ScoreError("expected a made-up text to have a gradient, got none")
    return norm


class _Weighted:
    """A task whose losses are multiplied, each example's by a weight of its own."""

    def __init__(self, task: Task, weights: Sequence[float]) -> None:
        self._task = task
        self._weights = torch.tensor([1.0, *weights], dtype=torch.float32)

    def encode(self, record: Record) -> Example:
        """As the task."""
        return self._task.encode(record)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """As the task."""
        return self._task.collate(examples)

    def mark(self, batch: Batch, indices: Sequence[int]) -> Batch:
        """Writes beside the labels which example is which; that survives any way of batching."""
        marks = (torch.tensor(indices) + 1) * _OFFSET
        marks = marks.view(-1, *[1] * (batch.labels.dim() - 1))
        labels = torch.where(batch.labels == IGNORE, batch.labels, batch.labels + marks)
        return Batch(batch.tokens, batch.attention_mask, labels)

    def build_model(self, config: ModelConfig) -> nn.Module:
        """As the task."""
        return self._task.build_model(config)

    def loss_per_example(self, logits: Tensor, batch: Batch) -> Tensor:
        """The task's, times the weights; unmarked examples as they are."""
        marked = batch.labels >= _OFFSET
        labels = torch.where(marked, batch.labels % _OFFSET, batch.labels)
        which = torch.where(marked, batch.labels // _OFFSET, 0).flatten(
            1 if labels.dim() > 1 else 0
        )
        which = which.amax(dim=1) if which.dim() > 1 else which
        plain = self._task.loss_per_example(
            logits, Batch(batch.tokens, batch.attention_mask, labels)
        )
        return plain * self._weights.to(plain.device)[which]

    def evaluation(self) -> Evaluation:
        """As the task."""
        return self._task.evaluation()


class _WeightedData:
    def __init__(self, task: _Weighted, examples: Sequence[Example], device: torch.device) -> None:
        self._task, self._examples, self._device = task, examples, device

    def __len__(self) -> int:
        return len(self._examples)

    def fetch(self, indices: Sequence[int]) -> Batch:
        batch = self._task.collate([self._examples[index] for index in indices])
        return self._task.mark(batch, indices).to(self._device)


def _result(moved: list[_Moved], plan: DpSgdPlan) -> TestResult:
    if not moved:
        return TestResult(
            test=CARD.id,
            verdict=Verdict.INCONCLUSIVE,
            headline="There was no time left to measure what one record adds.",
            notes=("The time limit of the suite cut it; run it with a larger one.",),
        )
    worst = max(moved, key=lambda one: one.interval.low)
    beyond = worst.interval.low > 1 + _TOLERANCE
    blind = worst.moved < _REACHED or len(moved) < len(_CASES)
    return TestResult(
        test=CARD.id,
        verdict=Verdict.FAIL if beyond else (Verdict.INCONCLUSIVE if blind else Verdict.PASS),
        headline=_headline(worst, plan, beyond=beyond, blind=blind),
        measures=(
            Measure(
                name="sensitivity",
                label="The most that one example added to a sum, over the clip",
                value=worst.moved,
                interval=worst.interval,
                limit=1.0,
            ),
        ),
        smallest_effect=SmallestEffect(
            measure="share by which one example passes the clip",
            value=_TOLERANCE + worst.interval.high - worst.interval.low,
            power=POWER,
            alpha=ALPHA,
        ),
        tables=(_table(moved),),
        figures=(_figure(moved),),
        notes=(
            f"Gradient mode {plan.gradient_mode}, clipping {plan.clipping}, clip "
            f"{plan.max_grad_norm:g}; noise was turned down to {number(_NOISE)} of the clip for "
            "the measurement, and every record sampled.",
            "Made-up texts cannot try every gradient there is: a model or a layer may hide one "
            "that none of them has.",
        ),
    )


def _headline(worst: _Moved, plan: DpSgdPlan, *, beyond: bool, blind: bool) -> str:
    if beyond:
        return (
            f"One record can move a step's sum by {worst.moved:.4g} times what the ledger counts "
            f"on ({worst.case}): the noise is too small for it."
        )
    if blind:
        return "No made-up record came near the clip, so nothing was learnt of it."
    return (
        f"No record moved a step's sum by more than the {plan.max_grad_norm:g} that the ledger "
        "counts on."
    )


def _table(moved: list[_Moved]) -> Table:
    return Table(
        title="What one example added",
        columns=("weights", "example", "its gradient / clip", "moved / clip", "lower", "upper"),
        rows=tuple(
            (
                one.model,
                one.case,
                one.norm if math.isfinite(one.norm) else "infinite",
                one.moved,
                one.interval.low,
                one.interval.high,
            )
            for one in moved
        ),
    )


def _figure(moved: list[_Moved]) -> Figure:
    names = tuple(dict.fromkeys(one.model for one in moved))
    return Figure(
        kind="bars",
        title="What one example added to a sum",
        caption="Nothing may pass the line at 1: the noise is made for that.",
        alternative="; ".join(f"{one.model}, {one.case}: {one.moved:.3f}" for one in moved),
        x_label="example",
        y_label="moved / clip",
        series=tuple(
            Series(
                name=name,
                x=tuple(one.case for one in moved if one.model == name),
                y=tuple(one.moved for one in moved if one.model == name),
            )
            for name in names
        ),
        reference=1.0,
        reference_label="the clip",
    )


TESTS: Final[tuple[AuditTest, ...]] = (MeasuredSensitivity(),)
