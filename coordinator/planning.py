"""From the federation's file to a run, and from its final weights to the model that it leaves."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from coordinator.aggregation.exchange import masked_manifest
from coordinator.evaluation import open_evaluator
from coordinator.events import RoundEvents
from coordinator.rounds import RunPlan
from core.array_codec import Manifest
from core.blueprint import Blueprint
from core.config import FederationConfig
from core.config_sections import MemberSection
from core.messages import TrainingTerms
from core.model_folder import save_model
from core.parameters import load_arrays, to_arrays
from core.update_codec import reply_manifest
from core.wire.documents import SignedRoster

MODEL_FOLDER = "model"


def training_device() -> torch.device:
    """Where models train and are evaluated: a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_plan(
    config: FederationConfig,
    blueprint: Blueprint,
    terms: TrainingTerms,
    members: Sequence[MemberSection],
    *,
    device: torch.device,
    events: RoundEvents,
    signed_roster: Callable[[], SignedRoster] | None = None,
) -> RunPlan:
    """The run of a federation's file: the same plan on every grid.

    Args:
        config: The federation's file.
        blueprint: Made of it.
        terms: Made of both.
        members: Who may be asked; their node ids count from 1, in this order.
        device: Where the model is evaluated.
        events: Who listens.
        signed_roster: The newest signed roster, where there is one.

    Raises:
        DataError: The holdout cannot be used.
    """
    return RunPlan(
        config=config,
        terms=terms,
        initial_arrays=to_arrays(blueprint.build()),
        roster=dict(enumerate(members, start=1)),
        evaluator=open_evaluator(config, blueprint, device),
        events=events,
        build_model=blueprint.build,
        signed_roster=signed_roster,
    )


def replies_of(plan: RunPlan) -> Manifest:
    """What the arrays of the run's replies must be: updates, or masked vectors."""
    if plan.terms.secure_aggregation is None:
        return reply_manifest(plan.initial_arrays, plan.terms.update_encoding)
    return masked_manifest(sum(array.size for array in plan.initial_arrays.values()))


def leave_model(
    folder: Path,
    config: FederationConfig,
    blueprint: Blueprint,
    arrays: Mapping[str, npt.NDArray[Any]],
    *,
    run_id: str,
) -> None:
    """Writes the model with the trained weights ``arrays`` below ``folder``.

    Raises:
        CheckpointError: Another model is there, or the disk cannot be written.
    """
    model = blueprint.build()
    load_arrays(model, arrays)
    save_model(folder / MODEL_FOLDER, model, config, blueprint, run_id=run_id)
