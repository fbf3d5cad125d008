"""The round loop: what a run does, step by step, and what it does when it is started again.

1. Restore the newest checkpoint, or make round 0 of the initial weights.
2. Wait for enough sites, until the deadline.
3. Write down the attempt, then ask a public random cohort of them.
4. Take the replies that come before the deadline; drop each bad one by name.
5. Too few: ask others, at most ``MAX_ATTEMPTS`` times in all. Still too few: stop.
6. Aggregate, checkpoint, evaluate, record. The checkpoint comes first, because evaluation can be
   repeated and a round cannot: its sites have paid for it.

No round is applied twice: a round counts exactly when its checkpoint has its name.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from flwr.serverapp import Grid
from torch import nn

from coordinator.aggregation.clear import ClearUpdates
from coordinator.aggregation.interface import MAY_ASK_AGAIN, Aggregator, Answers, Question
from coordinator.aggregation.secure import SecureSums
from coordinator.central_step import CentralStep
from coordinator.events import RoundEvents, SilentEvents
from coordinator.orders import Desk, cohort_size, dp_sgd_terms, sampling_order
from coordinator.run_directory import RunDirectory, versions
from coordinator.state import RunState, restore_state, save_state
from coordinator.strategies import Contribution, Strategy, build_strategy
from coordinator.summary import summarise
from core.aggregation_messages import Transcript
from core.config import FederationConfig
from core.config_sections import MemberSection
from core.digests import arrays_digest
from core.errors import QuorumError, RunError
from core.messages import DpSgdTerms, TrainingTerms, TrainReply
from core.run_record import (
    BEGUN,
    Metrics,
    RejectedReply,
    RoundResult,
    SiteRefusal,
    beginning_of,
)
from core.update_codec import reply_manifest
from core.wire.documents import SignedRoster

MAX_ATTEMPTS: Final = 3
_POLL_SECONDS: Final = 0.05

Arrays = Mapping[str, npt.NDArray[Any]]
Evaluator = Callable[[dict[str, npt.NDArray[Any]]], Metrics]


@dataclass(frozen=True)
class RunPlan:
    """Everything that a run is made of, apart from the grid and the directory."""

    config: FederationConfig
    terms: TrainingTerms
    initial_arrays: Arrays
    """The trained parameters before round 1, in fp32."""
    roster: Mapping[int, MemberSection]
    """The members by node id. A node that is not here is never asked."""
    evaluator: Evaluator | None = None
    """Metrics of weights on public data; ``None`` where the run is not evaluated."""
    events: RoundEvents = field(default_factory=SilentEvents)
    build_model: Callable[[], nn.Module] | None = None
    """A model of the run's shape, for a strategy that takes steps of its own."""
    signed_roster: Callable[[], SignedRoster] | None = None
    """The newest roster that the federation's admin signed; secure aggregation needs it."""


@dataclass
class _Gathered:
    """A round's replies, over its attempts."""

    attempts: int
    usable: dict[str, TrainReply] = field(default_factory=dict)
    contributions: list[Contribution] = field(default_factory=list)
    refusals: list[SiteRefusal] = field(default_factory=list)
    rejected: list[RejectedReply] = field(default_factory=list)
    transcript: Transcript | None = None

    def take(self, answers: Answers) -> None:
        self.usable.update(answers.replies)
        self.contributions.extend(answers.contributions)
        self.refusals.extend(answers.refusals)
        self.rejected.extend(answers.rejected)
        self.transcript = answers.transcript

    def candidates(self, names: Sequence[str]) -> list[str]:
        """Whom another attempt asks: who was not asked first, then who failed or was late.

        A site that refused or sent something invalid would do it again.
        """
        failed = {bad.site for bad in self.rejected if bad.code in MAY_ASK_AGAIN}
        out = {no.site for no in self.refusals} | {bad.site for bad in self.rejected} - failed
        left = [name for name in names if name not in self.usable and name not in out]
        return sorted(left, key=lambda name: name in failed)

    def reasons(self) -> str:
        reasons = [f"{no.site} refused ({no.code})" for no in self.refusals]
        reasons += [f"{bad.site} was dropped ({bad.code})" for bad in self.rejected]
        return "; ".join(reasons[:6]) or "no site was left to ask"


def run_rounds(plan: RunPlan, grid: Grid, run: RunDirectory) -> RunState:
    """Runs all rounds that are not done yet, and returns the final state.

    Guarantees:
        Stopped at any moment and called again, it ends with the weights of an uninterrupted run,
        provided that the sites answer alike. An attempt at a round is on the disk before a site
        sees it, so no two sendings carry the same (run, round, attempt).

    Raises:
        QuorumError: Too few sites came, or too few replies were usable. The run can be resumed.
        RunError: The plan does not fit, or the directory cannot be used.
        ConfigError: The model's parameters do not go with the encoding of updates.
        CheckpointError: A checkpoint is damaged or cannot be written.
        TrainingError: The aggregate is not finite.
        AccountingError: No noise reaches the target epsilon.
    """
    _check(plan)
    return _RoundLoop(plan, grid, run).run()


class _RoundLoop:
    def __init__(self, plan: RunPlan, grid: Grid, run: RunDirectory) -> None:
        self._plan = plan
        self._grid = grid
        self._run = run
        self._section = plan.config.strategy
        # Of all members: a site may join a run that goes on.
        dp_sgd = run.terms(lambda: dp_sgd_terms(plan.config, plan.config.sites))
        self._strategy = build_strategy(self._section, lambda: _central_step(plan, dp_sgd))
        desk = Desk(run.run_id, plan.terms, dp_sgd)
        self._aggregator = _aggregator(plan, grid, desk)

    def run(self) -> RunState:
        num_rounds = self._plan.config.federation.num_rounds
        state = self._begin()
        self._plan.events.run_started(state.server_round, num_rounds)
        while state.server_round < num_rounds:
            try:
                state = self._round(state)
            except QuorumError as error:
                self._run.append("stopped", server_round=state.server_round, reason=error.message)
                self._run.write_summary(summarise(self._run.record, stopped=error.message))
                raise
        summary = summarise(self._run.record)
        self._run.write_summary(summary)
        self._plan.events.run_finished(summary, state.arrays)
        return state

    def _begin(self) -> RunState:
        run, initial = self._run, self._plan.initial_arrays
        if not run.record.lines:
            run.append(BEGUN, sync=False, **beginning_of(run.folder))
        state = restore_state(run.checkpoints, run.run_id, initial, seal=run.seal)
        if state is None:
            result = RoundResult(0, 0, (), {}, (), (), arrays_digest(initial), 0.0)
            state = RunState(initial, {}, {}, result)
            save_state(run.checkpoints, run.run_id, state, seal=run.seal)
        if any(line["kind"] != BEGUN for line in run.record.lines):
            run.append("resumed", server_round=state.server_round, versions=versions())
        recorded = {line["server_round"] for line in run.record.rounds}
        if state.server_round not in recorded:
            self._publish(state)
        return state

    def _round(self, state: RunState) -> RunState:
        started = time.perf_counter()
        server_round = state.server_round + 1
        gathered = self._gather(server_round, state)
        arrays, strategy = self._strategy.aggregate(
            state.strategy, server_round, state.arrays, gathered.contributions
        )
        replies = dict(sorted(gathered.usable.items()))
        heads = {site: reply.ledger_head for site, reply in replies.items()}
        result = RoundResult(
            server_round=server_round,
            attempts=gathered.attempts,
            used=list(replies),
            spent={site: reply.spent for site, reply in replies.items()},
            refusals=gathered.refusals,
            rejected=gathered.rejected,
            weights_digest=arrays_digest(arrays),
            seconds=time.perf_counter() - started,
            transcript=gathered.transcript,
            ledger_heads=heads,
        )
        state = RunState(arrays, strategy, {**state.witnesses, **heads}, result)
        save_state(self._run.checkpoints, self._run.run_id, state, seal=self._run.seal)
        self._publish(state)
        return state

    def _gather(self, server_round: int, state: RunState) -> _Gathered:
        """Asks until there are enough usable replies.

        Replies of an earlier attempt at the same round are kept: they answer for the same
        weights, and their sites have paid for them.
        """
        names = [member.name for member in self._plan.roster.values()]
        order = sampling_order(names, self._plan.config.federation.seed, server_round)
        gathered = _Gathered(attempts=self._run.record.attempts(server_round))
        minimum = _fewest(self._plan)
        for _ in range(MAX_ATTEMPTS):
            nodes = self._wait_for_sites()
            there = [name for name in order if name in nodes]
            free = cohort_size(self._section, len(there)) - len(gathered.usable)
            asked = gathered.candidates(there)[: max(free, 0)]
            if not asked:
                break
            gathered.attempts += 1
            answers = self._ask(asked, nodes, server_round, gathered.attempts, state)
            gathered.take(answers)
            if len(gathered.usable) >= minimum:
                return gathered
            self._run.append(
                "short",
                server_round=server_round,
                attempt=gathered.attempts,
                usable=sorted(gathered.usable),
                refusals=[asdict(refusal) for refusal in answers.refusals],
                rejected=[asdict(reply) for reply in answers.rejected],
            )
        raise QuorumError(
            f"expected {minimum} usable replies in round {server_round}, "
            f"got {len(gathered.usable)}: {gathered.reasons()}",
            hint=f"the model of round {state.server_round} is kept; start again to go on",
        )

    def _ask(
        self,
        names: Sequence[str],
        nodes: Mapping[str, int],
        server_round: int,
        attempt: int,
        state: RunState,
    ) -> Answers:
        self._run.append("attempt", server_round=server_round, attempt=attempt, sites=list(names))
        self._plan.events.attempt_started(server_round, attempt, names)
        return self._aggregator.ask(Question(names, nodes, server_round, attempt, state))

    def _wait_for_sites(self) -> dict[str, int]:
        """The members that are there, by name."""
        needed = max(self._section.min_available_nodes, _fewest(self._plan))
        timeout = self._section.round_timeout_seconds
        deadline = time.monotonic() + timeout
        while True:
            roster = self._plan.roster
            there = {roster[n].name: n for n in self._grid.get_node_ids() if n in roster}
            if len(there) >= needed:
                return there
            if time.monotonic() >= deadline:
                missing = sorted({member.name for member in roster.values()} - set(there))
                raise QuorumError(
                    f"expected {needed} sites within {timeout:g} seconds, got {len(there)}; "
                    f"away: {', '.join(missing[:6]) or 'none'}",
                    hint="start the missing sites, or lower strategy.min_available_nodes",
                )
            time.sleep(_POLL_SECONDS)

    def _publish(self, state: RunState) -> None:
        """Evaluates and records a round whose checkpoint stands."""
        metrics = self._evaluate(state)
        result = replace(state.result, metrics=metrics)
        line = result.line()
        # The line of a round that is not the last is synced with the next attempt's: without it,
        # a run that goes on finds the checkpoint and writes it again.
        last = state.server_round == self._plan.config.federation.num_rounds
        self._run.append(line.pop("kind"), sync=last, **line)
        self._plan.events.round_finished(result)

    def _evaluate(self, state: RunState) -> Metrics | None:
        every = self._plan.config.evaluation.every
        last = state.server_round == self._plan.config.federation.num_rounds
        if self._plan.evaluator is None or (state.server_round % every and not last):
            return None
        return self._plan.evaluator(dict(state.arrays))


def _fewest(plan: RunPlan) -> int:
    """The fewest sites that a round's result may be made of."""
    secure = plan.terms.secure_aggregation
    return max(plan.config.strategy.min_train_nodes, secure.min_cohort if secure else 1)


def _aggregator(plan: RunPlan, grid: Grid, desk: Desk) -> Aggregator:
    section = plan.config.strategy
    if plan.terms.secure_aggregation is None:
        return ClearUpdates(grid, desk, plan.roster, section)
    if plan.signed_roster is None:
        raise RunError(
            "expected a signed roster for secure aggregation, got none",
            hint="run it with `cloister simulate`, or as a service with enrolled sites",
        )
    return SecureSums(grid, desk, plan.roster, section, plan.signed_roster)


def _central_step(plan: RunPlan, dp_sgd: Mapping[str, DpSgdTerms | None]) -> Strategy:
    rates = {terms.sample_rate for terms in dp_sgd.values() if terms is not None}
    if plan.build_model is None or len(rates) != 1:
        raise RunError("expected a model and one sampling rate for strategy central, got others")
    return CentralStep(
        build_model=plan.build_model,
        train=plan.config.train,
        sample_rate=rates.pop(),
        num_rounds=plan.config.federation.num_rounds,
    )


def _check(plan: RunPlan) -> None:
    names = [member.name for member in plan.roster.values()]
    members = {member.name: member for member in plan.config.sites}
    if not names or len(set(names)) != len(names):
        raise RunError("expected a roster of one or more sites with distinct names")
    for member in plan.roster.values():
        if members.get(member.name) != member:
            raise RunError(f"expected the roster's {member.name} as the configuration has it")
    section = plan.config.strategy
    needed = max(section.min_available_nodes, _fewest(plan))
    if needed > len(names):
        raise RunError(
            f"expected {needed} sites or more for every round, got a roster of {len(names)}",
            hint="lower strategy.min_available_nodes and strategy.min_train_nodes; "
            "secure_aggregation.min_cohort is 3 at least",
        )
    if not plan.initial_arrays:
        raise RunError("expected initial weights, got none")
    reply_manifest(plan.initial_arrays, plan.terms.update_encoding)  # or ConfigError
    for name, array in plan.initial_arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise RunError(f"expected finite fp32 initial weights, got others in {name}")
