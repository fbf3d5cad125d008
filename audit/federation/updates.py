"""Updates as a site would send them, made by the functions that make them at a site."""

from dataclasses import replace
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import nn

from audit.subject import AuditedSite, Subject
from audit.training import train_model
from audit.verdicts import Interval, Verdict
from core.data.records import Record, RecordSource
from core.parameters import to_arrays
from privacy.dp_sgd import DpSgdPlan

Update = dict[str, npt.NDArray[np.float32]]

EMBEDDING: Final = "transformer.token_embedding.weight"
# So long that the rounding of weights in fp32 takes little off the gradient.
_STEP: Final = 1024.0
POWER: Final = 0.8
ALPHA: Final = 0.05
UNOBSERVABLE: Final = (
    "This run opens sums alone: the coordinator never sees what is attacked here. The figures say "
    "what it would see without secure aggregation."
)

NO_SHARED_NOISE: Final = (
    "Sites of this run share the noise of one sum; the single site that is attacked here trained "
    "without any, so that the figures are of a run without privacy."
)


def start_model(subject: Subject) -> nn.Module:
    """A copy of the released model, trainable as in the run: what the next round would send out."""
    model = subject.initial_model()
    state = subject.model.model.state_dict()
    model.load_state_dict({name: state[name].to(subject.device) for name in model.state_dict()})
    return model


def round_update(
    subject: Subject,
    records: RecordSource,
    *,
    name: str,
    site: AuditedSite | None,
    from_start: bool = False,
    steps: int | None = None,
) -> tuple[nn.Module, Update]:
    """One round on ``records``: the model after it, and the update as it is sent.

    Args:
        subject: What is audited.
        records: What the site holds.
        name: Names the batches' seed.
        site: Whose DP-SGD constants hold; without privacy they are not used.
        from_start: Begin with the run's initial weights, else with the released ones.
        steps: Steps of the round; ``None`` for the run's.
    """
    model = subject.initial_model() if from_start else start_model(subject)
    before = to_arrays(model)
    train = subject.config.train
    if steps is not None:
        train = replace(train, steps_per_round=steps)
    train = replace(train, schedule="constant", warmup_steps=0)
    train_model(subject, records, name=name, site=site, rounds=1, train=train, model=model)
    after = to_arrays(model)
    return model, {key: after[key] - before[key] for key in after}


def gradient_as_sent(
    subject: Subject, record: Record, *, name: str, plan: DpSgdPlan | None
) -> Update:
    """The update of one step of SGD on one record: its gradient, clipped and noised as in the run.

    The worst case: the record is alone in its batch, and the one who looks knows it.
    """
    model = start_model(subject)
    before = to_arrays(model)
    train = replace(
        subject.config.train,
        optimizer="sgd",
        momentum=0.0,
        weight_decay=0.0,
        schedule="constant",
        warmup_steps=0,
        steps_per_round=1,
        global_batch_size=1,
        learning_rate=_STEP,
    )
    if plan is not None:
        plan = replace(plan, sample_rate=1.0, steps=1, expected_batch_size=1)
    train_model(subject, (record,), name=name, rounds=1, train=train, plan=plan, model=model)
    after = to_arrays(model)
    return {key: np.divide(before[key] - after[key], _STEP, dtype=np.float32) for key in after}


def sampled(source: RecordSource, count: int, rng: np.random.Generator) -> tuple[Record, ...]:
    """At most ``count`` of the records, at random."""
    chosen = rng.permutation(len(source))[:count]
    return tuple(source[int(index)] for index in chosen)


def one_of_each(source: RecordSource, count: int, rng: np.random.Generator) -> tuple[Record, ...]:
    """The same, of each person (or text, where no person is named) one: they are independent."""
    found: dict[tuple[str, str], Record] = {}
    for index in rng.permutation(len(source)):
        if len(found) == count:
            break
        record = source[int(index)]
        unit = ("text", record.text) if record.person is None else ("person", record.person)
        found.setdefault(unit, record)
    return tuple(found.values())


def judge(interval: Interval, harmful: float, *, observable: bool) -> Verdict:
    """FAIL where the measure surely reaches ``harmful``, PASS where it surely does not.

    What nobody can observe is no leak: PASS.
    """
    if not observable or interval.high < harmful:
        return Verdict.PASS
    return Verdict.FAIL if interval.low >= harmful else Verdict.INCONCLUSIVE


def smallest_mean(deviation: float, harmful: float, *, most: float = 1.0) -> float:
    """The smallest mean that ``judge`` finds harmful with ``POWER``.

    Args:
        deviation: Of the estimate.
        harmful: As of ``judge``.
        most: The largest that the mean can be; where that is returned, even it may escape.
    """
    normal = NormalDist()
    factor = normal.inv_cdf(1 - ALPHA / 2) + normal.inv_cdf(POWER)
    return min(harmful + factor * deviation, most)


def notes_on(subject: Subject) -> tuple[str, ...]:
    """What one must know of any attack on a single update of this run."""
    return (*(() if observable(subject) else (UNOBSERVABLE,)), *shared_noise(subject))


def shared_noise(subject: Subject) -> tuple[str, ...]:
    """What one must know of any training of a single site of this run."""
    return (NO_SHARED_NOISE,) if subject.config.privacy.mode == "distributed" else ()


def observable(subject: Subject) -> bool:
    """Whether the coordinator sees single updates."""
    return subject.config.secure_aggregation is None
