"""Rounds whose updates travel in fewer bits: the same run, a little coarser."""

from pathlib import Path

import numpy as np
import pytest

from coordinator.rounds import RunPlan, run_rounds
from coordinator.run_directory import RunDirectory
from coordinator.state import RunState
from core.digests import arrays_digest
from core.errors import ConfigError
from core.run_record import read_record
from core.update_codec import UpdateEncoding, decode_update, encode_update
from tests.support.sites import INITIAL, Arrays, Sites, config_of, honest_update, plan_of

THREE = {"north": 100, "south": 300, "west": 50}


def _plan(encoding: UpdateEncoding, initial: Arrays = INITIAL, num_rounds: int = 3) -> RunPlan:
    config = config_of(THREE, num_rounds, transport={"update_encoding": encoding})
    return plan_of(config, initial=initial)


def _run(plan: RunPlan, folder: Path, *, workers: int = 2, sites: Sites | None = None) -> RunState:
    opened = RunDirectory.open(
        folder, plan.config, task_digest=plan.terms.digest(), run_id="0123456789abcdef"
    )
    with (sites or Sites()).grid(plan, workers=workers) as grid, opened as run:
        return run_rounds(plan, grid, run)


@pytest.mark.parametrize("encoding", ["bf16", "int8"])
def test_the_mean_is_of_what_was_decoded(tmp_path: Path, encoding: UpdateEncoding) -> None:
    state = _run(_plan(encoding, num_rounds=1), tmp_path)

    decoded = {}
    for site in THREE:
        update = encode_update(honest_update(INITIAL, site, 1), INITIAL, encoding)
        decoded[site] = decode_update(update, INITIAL, encoding)
    for name, array in state.arrays.items():
        mean = sum(decoded[site][name] * (size / 450) for site, size in THREE.items())
        np.testing.assert_allclose(array, mean, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("encoding", ["bf16", "int8"])
def test_the_run_is_the_fp32_one_but_coarser(tmp_path: Path, encoding: UpdateEncoding) -> None:
    exact = _run(_plan("fp32"), tmp_path / "fp32")
    coarse = _run(_plan(encoding), tmp_path / encoding)

    assert not read_record(tmp_path / encoding).rounds[-1]["rejected"]
    assert arrays_digest(coarse.arrays) != arrays_digest(exact.arrays)
    for name, array in coarse.arrays.items():
        np.testing.assert_allclose(array, exact.arrays[name], atol=0.01)


@pytest.mark.parametrize("encoding", ["bf16", "int8"])
def test_the_number_of_workers_and_a_restart_change_no_bit(
    tmp_path: Path, encoding: UpdateEncoding
) -> None:
    one = _run(_plan(encoding), tmp_path / "one", workers=1)
    four = _run(_plan(encoding), tmp_path / "four", workers=4)
    again = _run(_plan(encoding), tmp_path / "one")

    assert arrays_digest(one.arrays) == arrays_digest(four.arrays) == arrays_digest(again.arrays)


def test_names_that_do_not_go_with_the_encoding_are_refused_before_anyone_is_asked(
    tmp_path: Path,
) -> None:
    sites = Sites()
    initial = {"norm": np.ones(2, np.float32), "norm.scale": np.ones(1, np.float32)}

    with pytest.raises(ConfigError, match="expected no parameter named norm.scale"):
        _run(_plan("int8", initial), tmp_path, sites=sites)

    assert not sites.asked
