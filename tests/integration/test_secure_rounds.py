"""Rounds under secure aggregation in one process: the real sites, the real coordinator, and sites
that drop out at each step. What was opened is compared with the integer sum of what was masked.
"""

import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.local_round import PaidRound
from core.aggregation_messages import CONFIRMATION, MASKED, REVEAL, SHARES
from core.errors import QuorumError
from core.parameters import load_arrays, to_arrays
from privacy.secure_aggregation.site import SiteAttempt
from tests.support.masked_inputs import check_transcript, input_of, keeping
from tests.support.releases import check_releases, check_signatures
from tests.support.secure_federation import FIVE, STEPS, SecureFederation, deaf, mute

UNEQUAL = {"ant": 40, "bee": 48, "cow": 56, "dog": 64, "eel": 72}
ONE_ROUND = "federation.num_rounds=1"
NONE = 'privacy={mode="none"}'
# Each step takes all of a site's records: in another order, the same sum but for its last bits.
FULL_BATCH = ("train.global_batch_size=40", "train.micro_batch_size=40")


@pytest.fixture(autouse=True)
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the vectors lie that were masked."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    monkeypatch.setattr(SiteAttempt, "mask", keeping(SiteAttempt.mask, folder))
    return folder


def check(federation: SecureFederation, inputs: Path) -> list[dict[str, Any]]:
    """The transcripts of the rounds, each of which is right, and no update in two sums."""
    transcripts: list[dict[str, Any]] = []
    for line in federation.record().rounds:
        if line["server_round"]:
            transcripts.append(line["transcript"])
            assert line["used"] == line["transcript"]["survivors"]
    for transcript in transcripts:
        check_transcript(inputs, transcript)
        check_signatures(transcript, federation.roster.roster)
    for site in federation.sites:
        check_releases(federation.entries(site), site, transcripts)
    return transcripts


def test_the_opened_mean_is_the_exact_weighted_mean(
    tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chosen updates, unequal sizes, one site lost: the mean in fractions, to half a grid step."""
    federation = SecureFederation(tmp_path / "f", (ONE_ROUND,), sizes=UNEQUAL)
    initial = federation.plan.initial_arrays
    chosen = {
        site: {
            name: np.asarray(np.random.default_rng(seed).normal(0, 0.1, a.shape), np.float32)
            for name, a in initial.items()
        }
        for seed, site in enumerate(UNEQUAL)
    }

    def train(self: PaidRound) -> None:
        start = to_arrays(self.model)
        load_arrays(self.model, {n: start[n] + chosen[self.order.site][n] for n in start})

    monkeypatch.setattr(PaidRound, "train", train)
    federation.put("bee", MASKED, deaf)
    state, _ = federation.run()
    (transcript,) = check(federation, inputs)
    counted = [site for site in UNEQUAL if site != "bee"]
    assert transcript["survivors"] == counted
    weights = {site: Fraction(UNEQUAL[site]) for site in counted}
    total = sum(weights.values())
    # Each vector is on its grid: rounded to half a step, weighted with its share of the largest.
    step = 2.0 * 20.0 / (2**24 - 2)
    bound = 0.5 * len(counted) * step * float(72 / total) + 1e-7
    for name, before in initial.items():
        for place in [(), *np.ndindex(*before.shape)][:: max(1, before.size // 40)]:
            if place == () and before.shape != ():
                continue
            moved = {
                site: Fraction(float(np.float32(before[place] + chosen[site][name][place])))
                - Fraction(float(before[place]))
                for site in counted
            }
            exact = sum((weights[site] * moved[site] for site in counted), Fraction()) / total
            got = float(state.arrays[name][place]) - float(before[place])
            assert abs(got - float(exact)) <= bound, (name, place)
    # It can fail: the plain mean is another one, and so is that with the lost site.
    name, before = max(initial.items(), key=lambda item: item[1].size)
    plain = np.mean([chosen[site][name] for site in counted], axis=0)
    assert np.abs(state.arrays[name] - before - plain).max() > 100 * bound


@pytest.mark.parametrize("away", [deaf, mute], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_site_that_drops_out_costs_its_update_and_no_more(
    tmp_path: Path, inputs: Path, step: str, away: Any
) -> None:
    federation = SecureFederation(tmp_path / "f", ("federation.num_rounds=2",))
    federation.put("cow", step, away, times=1)
    _, record = federation.run()
    first, second = check(federation, inputs)
    others = [site for site in FIVE if site != "cow"]
    counts = step in (CONFIRMATION, REVEAL)
    dealt = counts or step == MASKED
    assert first["survivors"] == (list(FIVE) if counts else others)
    assert first["sharers"] == (list(FIVE) if dealt else others)
    line = record.rounds[1]
    # It is in one list of the record and never in two.
    assert [bad["site"] for bad in line["rejected"]] == ([] if counts else ["cow"])
    assert second["survivors"] == list(FIVE)
    assert record.rounds[2]["rejected"] == []
    debited = 0 if (step, away) == ("train", deaf) else 1
    assert federation.debits()["cow"] == {1: debited, 2: 1} if debited else {2: 1}


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedadam", "fedavgm", "fedyogi"])
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "adapters"])
def test_the_run_is_that_in_the_clear_but_for_the_grid(
    tmp_path: Path, inputs: Path, strategy: str, *, lora: bool
) -> None:
    """The same updates, weighted with the same public sizes, by every strategy over sums."""
    adapters = 'train.lora={rank=2, alpha=4.0, targets=["query", "head"]}'
    overrides = (
        "federation.num_rounds=2",
        "simulation.allow_non_private=true",
        NONE,
        *FULL_BATCH,
        'train.optimizer="sgd"',
        *((adapters,) if lora else ()),
    )
    section = f'name = "{strategy}"\nproximal_mu = 0.01'
    clear, secure = (
        SecureFederation(tmp_path / name, overrides, sizes=UNEQUAL, section=terms, strategy=section)
        for name, terms in (("clear", None), ("secure", "max_update_norm = 4.0"))
    )
    expected, _ = clear.run()
    state, _ = secure.run()
    check(secure, inputs)
    moved = {n: expected.arrays[n] - a for n, a in clear.plan.initial_arrays.items()}
    # Adaptive strategies divide by roots of small squares, which magnifies a step of the grid.
    tolerance = 2e-6 if strategy in ("fedavg", "fedprox", "fedavgm") else 1e-3
    for name, array in expected.arrays.items():
        np.testing.assert_allclose(state.arrays[name], array, rtol=0, atol=tolerance)
    assert max(float(np.abs(values).max()) for values in moved.values()) > 10 * tolerance
    assert bool(lora) == all(".lora_" in name for name in state.arrays)


def test_an_update_beyond_the_norm_is_scaled_down_and_the_log_says_so(
    tmp_path: Path, inputs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = SecureFederation(tmp_path / "short", (ONE_ROUND,), section="max_update_norm = 0.01")
    with caplog.at_level(logging.WARNING):
        state, _ = short.run()
    said = [r for r in caplog.records if "scales an update down" in r.getMessage()]
    assert len(said) == len(FIVE)
    (transcript,) = check(short, inputs)
    step = 2.0 * 0.01 / (2**24 - 2)
    for site in FIVE:
        values = input_of(inputs, transcript["context"], site).view(np.int32) * step
        assert np.linalg.norm(values) == pytest.approx(0.01, rel=1e-3)
    initial = short.plan.initial_arrays
    moved = [np.ravel(state.arrays[n] - a) for n, a in initial.items()]
    assert 0 < np.linalg.norm(np.concatenate(moved)) <= 0.01 * 1.001


def test_an_attempt_that_fails_before_the_mark_costs_no_second_debit(
    tmp_path: Path, inputs: Path
) -> None:
    federation = SecureFederation(tmp_path / "f", (ONE_ROUND,))
    for site in ("ant", "bee"):
        federation.put(site, SHARES, deaf, times=1)
    _, record = federation.run()
    assert record.rounds[1]["attempts"] == 2
    (short,) = (line for line in record.lines if line["kind"] == "short")
    ended = {bad["site"]: bad["code"] for bad in short["rejected"]}
    assert ended == {
        **dict.fromkeys(("ant", "bee"), "client-error"),
        **dict.fromkeys(("cow", "dog", "eel"), "attempt-ended"),
    }
    check(federation, inputs)
    assert federation.debits() == {site: {1: 1} for site in FIVE}


@pytest.mark.parametrize(("step", "away"), [("train", deaf), (SHARES, deaf), (SHARES, mute)])
def test_no_update_is_spent_on_a_sum_that_the_terms_cannot_want(
    tmp_path: Path, inputs: Path, step: str, away: Any
) -> None:
    """Four of five could be opened; the run wants all five, and finds out before any mark."""
    federation = SecureFederation(tmp_path / "f", (ONE_ROUND,), strategy="min_train_nodes = 5")
    federation.put("cow", step, away, times=1)
    _, record = federation.run()
    (short,) = (line for line in record.lines if line["kind"] == "short")
    assert "expected 5 sites in the sum, got 4" in str(short["rejected"])
    assert record.rounds[1]["used"] == list(FIVE)
    check(federation, inputs)
    assert federation.debits() == {site: {1: 1} for site in FIVE}


@pytest.mark.parametrize("step", [MASKED, CONFIRMATION, REVEAL])
def test_one_that_fails_after_the_mark_debits_fresh_noise(
    tmp_path: Path, inputs: Path, step: str
) -> None:
    federation = SecureFederation(tmp_path / "f", (ONE_ROUND,))
    for site in ("ant", "bee"):
        federation.put(site, step, mute, times=1)
    _, record = federation.run()
    assert record.rounds[1]["attempts"] == 2
    (transcript,) = check(federation, inputs)
    assert transcript["survivors"] == list(FIVE)
    assert federation.debits() == {site: {1: 2} for site in FIVE}
    for site in FIVE:
        vectors = [path.read_bytes() for path in inputs.glob(f"*.{site}.npy")]
        assert len(vectors) == len(set(vectors)) == 2


@pytest.mark.parametrize(
    "predictable",
    [
        pytest.param((NONE, "simulation.allow_non_private=true"), id="none"),
        pytest.param((f'simulation.test_noise_key="{"5e" * 32}"',), id="test-key"),
    ],
)
def test_what_would_be_the_same_update_again_is_refused_for_good(
    tmp_path: Path, inputs: Path, predictable: tuple[str, ...]
) -> None:
    federation = SecureFederation(tmp_path / "f", (ONE_ROUND, *predictable))
    for site in ("ant", "bee"):
        federation.put(site, CONFIRMATION, mute, times=1)
    with pytest.raises(QuorumError, match=r"ant refused \(already-spent\)"):
        federation.run()
    for site in FIVE:
        assert len(list(inputs.glob(f"*.{site}.npy"))) == 1
    # Nor is it asked a third time for what it refuses for good.
    attempts = [line for line in federation.record().lines if line["kind"] == "attempt"]
    assert len(attempts) == 2
    with pytest.raises(QuorumError):
        federation.run()


def test_nothing_stays_in_flower_s_state(tmp_path: Path, inputs: Path) -> None:
    federation = SecureFederation(tmp_path / "f")
    federation.put("ant", REVEAL, mute, times=1)
    federation.run()
    assert set(federation.contexts) == set(FIVE)
    for context in federation.contexts.values():
        assert dict(context.state) == {}
        assert context.run_config == {}


def test_a_run_in_which_too_few_sites_are_left_ends_by_name(tmp_path: Path, inputs: Path) -> None:
    federation = SecureFederation(tmp_path / "f", sizes={"ant": 40, "bee": 40, "cow": 40})
    federation.put("bee", MASKED, deaf)
    with pytest.raises(QuorumError, match=r"bee was dropped .*attempt-ended"):
        federation.run()
    assert list(federation.record().rounds)[-1]["server_round"] == 0
    federation.put("bee", MASKED, deaf, times=0)
    federation.run()
    assert len(check(federation, inputs)) == 3
