"""Gradients of several processes, added."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from core.errors import TrainingError
from core.parallel.team import Job
from core.plain_training import _add_up, check_same_records
from tests.support.tiny import TinyData, train_config


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2)) for _ in range(3)]


def test_a_gradient_that_no_process_has_stays_away() -> None:
    mine = parameters()
    mine[0].grad = torch.tensor([1.0, 2.0])

    def others(tensors: Sequence[Tensor]) -> None:
        there, first, second, _ = tensors
        there += torch.tensor([1.0, 1.0, 0.0])
        first += 10
        second += 20

    _add_up(others, mine)
    assert mine[0].grad.tolist() == [11, 12]
    assert mine[1].grad is not None
    assert mine[1].grad.tolist() == [20, 20]
    assert mine[2].grad is None  # AdamW would decay it


def test_other_records_than_the_leader_s_are_refused_and_not_counted_aloud() -> None:
    job = Job.of("plain", 21, train_config())
    assert "21" not in repr(job)
    with pytest.raises(TrainingError, match="another number") as refused:
        check_same_records(TinyData.make(20), job)
    assert "2" not in str(refused.value)


def test_a_worker_computes_by_the_leader_s_configuration() -> None:
    config = train_config(micro_batch_size=5, autocast="fp16", loss_scale=64, learning_rate=0.3)
    mine = Job.of("plain", 1, config).train_config()
    for name in ("global_batch_size", "micro_batch_size", "autocast", "loss_scale"):
        assert getattr(mine, name) == getattr(config, name)
