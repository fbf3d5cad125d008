"""Training that is stopped and goes on ends where training that never stopped ends."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from core.checkpoints import load_checkpoint, save_checkpoint
from core.errors import CheckpointError
from core.parameters import to_arrays
from core.train import (
    PlainStepper,
    TrainConfig,
    epoch_batches,
    make_loss,
    make_optimizer,
    run_steps,
)
from core.training_state import restore_training_state, save_training_state
from tests.support.tiny import TinyData, TinyModel, TinyTask, train_config

DATA = TinyData.make(11)
TOTAL = 7
OPTIMIZERS = [
    pytest.param({"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.1}, id="adamw"),
    pytest.param({"optimizer": "sgd", "momentum": 0.9}, id="momentum"),
    pytest.param({"optimizer": "sgd"}, id="sgd"),
]


def start(config: TrainConfig, **shape: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(5)
    model = TinyModel(**shape)
    return model, make_optimizer(model, config)


def go(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, first: int, steps: int
) -> None:
    run_steps(
        epoch_batches(len(DATA), 4, first_step=first, steps=steps, seed=(1,)),
        DATA.fetch,
        PlainStepper(model, make_loss(TinyTask(), autocast="off"), optimizer, config),
        optimizer,
        config,
        first_step=first,
        total_steps=TOTAL,
    )


def same(left: nn.Module, right: nn.Module) -> bool:
    a, b = to_arrays(left), to_arrays(right)
    return all(np.array_equal(a[name], b[name]) for name in b)


@pytest.mark.parametrize("settings", OPTIMIZERS)
@pytest.mark.parametrize("tied", [False, True])
def test_stopped_and_resumed_is_bit_identical(
    settings: dict[str, object], tied: bool, tmp_path: Path
) -> None:
    config = train_config(schedule="cosine", warmup_steps=2, **settings)
    whole, optimizer = start(config, tied=tied)
    go(whole, optimizer, config, 0, TOTAL)
    model, optimizer = start(config, tied=tied)
    go(model, optimizer, config, 0, 3)
    save_training_state(tmp_path / "state", model, optimizer, 3)
    go(model, optimizer, config, 3, 1)  # lost: the process dies before the next save
    model, optimizer = start(config, tied=tied)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    step = restore_training_state(tmp_path / "state", model, optimizer)
    assert step == 3
    go(model, optimizer, config, step, TOTAL - step)
    assert same(model, whole)


@pytest.mark.parametrize("settings", OPTIMIZERS[:2])
def test_weights_without_the_optimizer_state_end_elsewhere(
    settings: dict[str, object], tmp_path: Path
) -> None:
    """What makes the test above able to fail."""
    config = train_config(**settings)
    whole, optimizer = start(config)
    go(whole, optimizer, config, 0, TOTAL)
    model, optimizer = start(config)
    go(model, optimizer, config, 0, 3)
    go(model, make_optimizer(model, config), config, 3, TOTAL - 3)
    assert not same(model, whole)


def test_a_state_before_the_first_step_can_be_saved(tmp_path: Path) -> None:
    config = train_config(optimizer="adamw")
    model, optimizer = start(config)
    save_training_state(tmp_path / "state", model, optimizer, 0)
    assert restore_training_state(tmp_path / "state", model, optimizer) == 0


def saved(folder: Path, **settings: object) -> Path:
    config = train_config(**settings)
    model, optimizer = start(config)
    go(model, optimizer, config, 0, 2)
    save_training_state(folder, model, optimizer, 2)
    return folder


def refused(
    folder: Path, match: str, *, model: nn.Module | None = None, **settings: object
) -> None:
    config = train_config(**settings)
    model = model or start(config)[0]
    optimizer = make_optimizer(model, config)
    before = to_arrays(model)
    with pytest.raises(CheckpointError, match=match):
        restore_training_state(folder, model, optimizer)
    after = to_arrays(model)
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert not optimizer.state


def test_weights_alone_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "state", {"model": to_arrays(TinyModel())}, {"step": 2})
    refused(tmp_path / "state", "expected weights, optimizer state and step .* got model, step")


def test_a_missing_slot_is_refused(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(saved(tmp_path / "whole", optimizer="adamw"))
    arrays = {name: dict(inner) for name, inner in checkpoint.arrays.items()}
    del arrays["optimizer"]["exp_avg_sq/mix.weight"]
    save_checkpoint(tmp_path / "part", arrays, checkpoint.metadata)
    refused(
        tmp_path / "part",
        r"exp_avg, exp_avg_sq, step for mix\.weight .* got exp_avg, step\nhint: without",
        optimizer="adamw",
    )


def test_another_optimizer_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "state", optimizer="adamw")
    refused(tmp_path / "state", "expected the state of SGD .* got AdamW")


def test_momentum_without_a_saved_one_is_refused(tmp_path: Path) -> None:
    refused(saved(tmp_path / "state"), "expected momentum_buffer for .* got nothing", momentum=0.9)


@pytest.mark.parametrize("settings", OPTIMIZERS)
def test_another_model_is_refused(settings: dict[str, object], tmp_path: Path) -> None:
    folder = saved(tmp_path / "state", **settings)
    refused(folder, "expected", model=TinyModel(classes=2), **settings)


@pytest.mark.parametrize("settings", OPTIMIZERS)
def test_a_model_with_other_names_is_refused(settings: dict[str, object], tmp_path: Path) -> None:
    folder = saved(tmp_path / "state", **settings)
    refused(folder, "expected", model=TinyModel(rms=True), **settings)
