"""Parameters as arrays: what is trained, what travels, what is compared."""

import numpy as np
import pytest
import torch

from core.errors import CheckpointError, ConfigError
from core.parameters import base_digest, difference_norm, freeze, load_arrays, to_arrays, trainable
from tests.support.tiny import TinyModel


def model_of(seed: int = 1, *, tied: bool = False) -> TinyModel:
    torch.manual_seed(seed)
    return TinyModel(tied=tied)


def test_freeze_stops_what_its_prefixes_name_and_trains_the_rest() -> None:
    model = model_of()
    freeze(model, ("embed.", "mix.b"))
    assert "embed.weight" not in trainable(model)
    assert "mix.bias" not in trainable(model)
    assert {"mix.weight", "positions.weight", "head.bias"} <= set(trainable(model))
    freeze(model, ())
    assert len(trainable(model)) == len(list(model.parameters()))


def test_a_prefix_that_fits_nothing_is_refused() -> None:
    model = model_of()
    with pytest.raises(
        ConfigError,
        match=r"expected train\.freeze to name parameters, got 'layers\.0', which fits none\n"
        r"hint: the model has embed\.weight, ",
    ):
        freeze(model, ("embed.", "layers.0"))
    assert len(trainable(model)) == len(list(model.parameters()))  # nothing was changed


def test_freezing_everything_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"something to train, got train\.freeze that fits every"):
        freeze(model_of(), ("",))


def test_a_tied_weight_travels_once_under_its_first_name() -> None:
    names = set(to_arrays(model_of(tied=True)))
    assert "embed.weight" in names
    assert "head.weight" not in names


def test_arrays_are_copies_in_fp32_of_what_is_trained() -> None:
    model = model_of().double()
    freeze(model, ("embed.",))
    arrays = to_arrays(model)
    assert set(arrays) == set(trainable(model))
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    before = model.mix.bias.detach().clone()
    arrays["mix.bias"] += 1
    assert torch.equal(model.mix.bias, before)
    assert set(to_arrays(model, all_parameters=True)) == set(arrays) | {"embed.weight"}


@pytest.mark.parametrize("tied", [False, True])
def test_arrays_come_back_bit_for_bit(tied: bool) -> None:
    source, target = model_of(1, tied=tied), model_of(2, tied=tied)
    arrays = to_arrays(source)
    load_arrays(target, arrays)
    for name, array in to_arrays(target).items():
        np.testing.assert_array_equal(array, arrays[name])
    if tied:
        assert target.head.weight is target.embed.weight
    arrays["mix.bias"] += 1
    np.testing.assert_array_equal(to_arrays(target)["mix.bias"], to_arrays(source)["mix.bias"])


def test_frozen_weights_are_neither_asked_for_nor_touched() -> None:
    source, target = model_of(1), model_of(2)
    for model in (source, target):
        freeze(model, ("embed.",))
    before = target.embed.weight.detach().clone()
    load_arrays(target, to_arrays(source))
    assert torch.equal(target.embed.weight, before)
    with pytest.raises(CheckpointError, match=r"they differ in embed\.weight"):
        load_arrays(target, to_arrays(source, all_parameters=True))


def refused(arrays: dict[str, np.ndarray], match: str) -> None:
    model = model_of(2)
    before = to_arrays(model)
    with pytest.raises(CheckpointError, match=match):
        load_arrays(model, arrays)
    for name, array in to_arrays(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_a_missing_an_unknown_and_a_misshapen_array_are_refused_and_change_nothing() -> None:
    arrays = to_arrays(model_of(1))
    missing = {name: array for name, array in arrays.items() if name != "norm.bias"}
    refused(missing, r"the arrays of 8 parameters, got 7; they differ in norm\.bias")
    refused(arrays | {"extra": np.zeros(1)}, "of 8 parameters, got 9; they differ in extra")
    last = list(arrays)[-1]
    refused(
        arrays | {last: np.zeros((2, 2), np.float32)},
        rf"expected {last} of shape \(.*\), got \(2, 2\)",
    )


def test_the_digest_covers_every_weight_frozen_ones_too() -> None:
    model = model_of()
    digest = base_digest(model)
    freeze(model, ("embed.",))
    assert base_digest(model) == digest == base_digest(model_of())
    with torch.no_grad():
        model.embed.weight[0, 0] += 1e-3
    assert base_digest(model) != digest


def test_the_norm_is_over_all_arrays_and_blocks() -> None:
    generator = np.random.default_rng(0)
    old = {"a": generator.standard_normal(200_000, dtype=np.float32), "b": np.float32([[1, 2]])}
    new = {"a": old["a"] + np.float32(0.25), "b": np.float32([[4, 6]])}
    flat = np.concatenate(
        [(new[name].astype(np.float64) - old[name]).reshape(-1) for name in ("a", "b")]
    )

    assert difference_norm(new, old) == pytest.approx(np.linalg.norm(flat), rel=1e-12)
