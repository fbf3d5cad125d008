"""What each site is asked: who is sampled, under which public constants, in which message."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from coordinator.payload import share_record
from core.config import MAX_BATCH_RATIO, FederationConfig, StrategySection
from core.config_sections import MemberSection
from core.messages import AggregationOrder, DpSgdTerms, LedgerHead, TrainingTerms, TrainTask, encode
from core.task_codec import encode_task
from privacy.accounting import (
    calibrate_noise_multiplier,
    delta_for_nearly_gaussian,
    uncut_batch_size,
)

# Keeps this stream apart from the others that start from the federation's public seed.
_SAMPLING_STREAM: Final = 0x5173


def sampling_order(names: Iterable[str], seed: int, server_round: int) -> list[str]:
    """The round's public random order of the sites; a cohort is its beginning.

    A function of its arguments, so that a round that is run again asks the same sites. It is
    public, so being left out gives no privacy.
    """
    ordered = sorted(names)
    generator = np.random.default_rng([_SAMPLING_STREAM, seed, server_round])
    return [ordered[index] for index in generator.permutation(len(ordered))]


def cohort_size(strategy: StrategySection, num_available: int) -> int:
    """How many of the available sites a round asks."""
    # The small term undoes what binary fractions lose: 0.29 x 100 is 29.
    wanted = math.floor(strategy.fraction_train * num_available + 1e-9)
    return min(num_available, max(strategy.min_train_nodes, wanted))


def dp_sgd_terms(
    config: FederationConfig, members: Iterable[MemberSection]
) -> dict[str, DpSgdTerms | None]:
    """The privacy constants of every site for the whole run, by name.

    Guarantees:
        A function of public values only. The noise is calibrated for a site that takes part in
        every step of every round: being sampled less often only leaves epsilon unspent.

    Raises:
        PrivacyError: A site's public size does not go with the target.
        AccountingError: No noise reaches the target.
    """
    if config.privacy.mode == "none":
        return {member.name: None for member in members}
    if config.privacy.mode == "distributed":
        return _common_terms(config, tuple(members))
    # Sites of one public size have the same constants: they are computed once.
    by_size: dict[int, DpSgdTerms] = {}
    terms: dict[str, DpSgdTerms | None] = {}
    for member in members:
        if member.num_examples not in by_size:
            by_size[member.num_examples] = _terms_of(config, member)
        terms[member.name] = by_size[member.num_examples]
    return terms


def _terms_of(config: FederationConfig, member: MemberSection) -> DpSgdTerms:
    batch = config.train.global_batch_size
    sample_rate = min(1.0, batch / member.num_examples)
    max_batch_size = math.ceil(MAX_BATCH_RATIO * batch)
    noise_multiplier = _noise_multiplier(
        config,
        target_delta=config.privacy.target_delta,
        sample_rate=sample_rate,
        max_batch_size=max_batch_size,
        max_examples=member.max_examples,
    )
    return DpSgdTerms(
        noise_multiplier=noise_multiplier,
        sample_rate=sample_rate,
        max_batch_size=max_batch_size,
        max_examples=member.max_examples,
    )


def common_sample_rate(global_batch_size: int, sizes: Iterable[int]) -> float:
    """Each record's chance to be in a step over all sites, from their public sizes."""
    return min(1.0, global_batch_size / sum(sizes))


def _common_terms(
    config: FederationConfig, members: Sequence[MemberSection]
) -> dict[str, DpSgdTerms | None]:
    """Of steps over all sites: one rate, one cap and one noise, which the largest site decides.

    The cap is one number because the grid, which all sites share, follows from it. At twice the
    expected size, as in mode ``local``, a site that expects few records a step would be cut often.
    """
    largest = max(member.max_examples for member in members)
    target_delta = config.privacy.target_delta
    rate = common_sample_rate(
        config.train.global_batch_size, (member.num_examples for member in members)
    )
    max_batch_size = uncut_batch_size(
        sample_rate=rate,
        steps=_steps(config),
        max_examples=largest,
        target_delta=target_delta,
    )
    noise_multiplier = _noise_multiplier(
        config,
        target_delta=delta_for_nearly_gaussian(target_delta),
        sample_rate=rate,
        max_batch_size=max_batch_size,
        max_examples=largest,
    )
    return {
        member.name: DpSgdTerms(
            noise_multiplier=noise_multiplier,
            sample_rate=rate,
            max_batch_size=max_batch_size,
            max_examples=member.max_examples,
        )
        for member in members
    }


def _noise_multiplier(
    config: FederationConfig,
    *,
    target_delta: float,
    sample_rate: float,
    max_batch_size: int,
    max_examples: int,
) -> float:
    """The configured noise, or what reaches the configured epsilon over the whole run."""
    if config.privacy.noise_multiplier is not None:
        return config.privacy.noise_multiplier
    target_epsilon = config.privacy.target_epsilon
    if target_epsilon is None:
        raise RuntimeError("PrivacySection lets neither target_epsilon nor noise through")
    return calibrate_noise_multiplier(
        target_epsilon=target_epsilon,
        target_delta=target_delta,
        sample_rate=sample_rate,
        steps=_steps(config),
        max_batch_size=max_batch_size,
        max_examples=max_examples,
    )


def _steps(config: FederationConfig) -> int:
    return config.federation.num_rounds * config.train.steps_per_round


@dataclass(frozen=True)
class Desk:
    """Writes the orders of one run."""

    run_id: str
    terms: TrainingTerms
    dp_sgd: Mapping[str, DpSgdTerms | None]
    task_digest: str = field(init=False)
    _encoded_terms: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "task_digest", self.terms.digest())
        object.__setattr__(self, "_encoded_terms", encode(self.terms))

    def task(
        self,
        member: MemberSection,
        *,
        server_round: int,
        attempt: int,
        arrays_digest: str,
        witness: LedgerHead | None,
        aggregation: AggregationOrder | None = None,
    ) -> TrainTask:
        """The order for one site."""
        return TrainTask(
            run_id=self.run_id,
            server_round=server_round,
            attempt=attempt,
            site=member.name,
            arrays_digest=arrays_digest,
            terms=self.terms,
            task_digest=self.task_digest,
            num_examples=member.num_examples,
            dp_sgd=self.dp_sgd[member.name],
            ledger_witness=witness,
            aggregation=aggregation,
        )

    def content(self, task: TrainTask, arrays: ArrayRecord) -> RecordDict:
        """``task_content`` of an order of this desk."""
        return _content(encode_task(task, self._encoded_terms), arrays)


def task_content(task: TrainTask, arrays: ArrayRecord) -> RecordDict:
    """The message's content; each node gets records of its own, for a client may change them."""
    return _content(encode(task), arrays)


def _content(task: bytes, arrays: ArrayRecord) -> RecordDict:
    return RecordDict({"task": ConfigRecord({"task": task}), "arrays": share_record(arrays)})
