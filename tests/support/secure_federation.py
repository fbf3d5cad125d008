"""A federation that aggregates securely in this process, on the real code but for the wire.

Real sites with real ledgers behind the real ``ClientApp``, the real round loop over the real
``InProcessGrid``. Between the grid and a site stands whoever a test puts there: it may keep a
message from the site, keep or change its answer, and change its mind after some messages.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from cli.simulated_sites import SimulatedFederation, chosen_members, open_sites, simulation_of
from client.app import build_client_app
from client.site import Site, Workshop
from coordinator.events import SilentEvents
from coordinator.grids.in_process import InProcessGrid
from coordinator.planning import make_plan
from coordinator.rounds import RunPlan, run_rounds
from coordinator.run_directory import RunDirectory
from coordinator.state import RunState
from core.aggregation_messages import CONFIRMATION, MASKED, REVEAL, SHARES
from core.blueprint import make_blueprint, training_terms
from core.config import FederationConfig
from core.config_files import load_config
from core.messages import WireMessage, decode, encode
from core.run_record import RunRecord
from privacy.ledger_entries import Entry
from tests.support.federation import FEDERATION, SITE, write_records
from tests.support.releases import debits_by_round

STEPS: Final = ("train", SHARES, MASKED, CONFIRMATION, REVEAL)
"""What a site is asked in an attempt, in this order: the types of the messages."""
FIVE: Final = {"ant": 40, "bee": 40, "cow": 40, "dog": 40, "eel": 40}

Arrays = Mapping[str, npt.NDArray[Any]]
Answer = Callable[[], Message]
# Given a message to a site and the way to its honest answer, what comes back.
Between = Callable[[Message, Answer], Message]


class GoneError(Exception):
    """What the grid sees of a site that is not there."""


def deaf(message: Message, answer: Answer) -> Message:
    """The site is gone before the message comes."""
    raise GoneError


def mute(message: Message, answer: Answer) -> Message:
    """The site does what it is asked, and is gone before its answer leaves."""
    answer()
    raise GoneError


def changed(change: Callable[[RecordDict], RecordDict]) -> Between:
    """The site's answer, changed on its way."""

    def between(message: Message, answer: Answer) -> Message:
        return Message(change(answer().content), reply_to=message)

    return between


def document(name: str, kind: type[WireMessage], **changes: Any) -> Between:
    """The site's answer with other fields in a document; a callable is given the whole document."""

    def change(content: RecordDict) -> RecordDict:
        record = content[name]
        assert isinstance(record, ConfigRecord)
        said: Any = decode(kind, record[name])
        new = {key: value(said) if callable(value) else value for key, value in changes.items()}
        content[name] = ConfigRecord({name: encode(said.model_copy(update=new))})
        return content

    return changed(change)


@dataclass
class _Post:
    """Who stands between, and for how many messages more."""

    between: Between
    times: int


@dataclass
class SecureFederation:
    """Its files, its sites and its run.

    Args:
        folder: For everything.
        overrides: For the federation's file.
        sizes: Its sites, and their public sizes; each holds 40 records.
        section: The file's [secure_aggregation]; ``None`` for a run in the clear.
        strategy: The file's [strategy].
        workers: Sites that work at the same time.
    """

    folder: Path
    overrides: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=lambda: FIVE)
    section: str | None = "max_update_norm = 20.0"
    strategy: str = "min_train_nodes = 1"
    workers: int = 2

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config = load_config(FederationConfig, self._write(), self.overrides)
        blueprint = make_blueprint(self.config)
        terms = training_terms(self.config, blueprint)
        simulation = simulation_of(self.config, None)
        members = chosen_members(self.config, simulation)
        identities = SimulatedFederation.of(self.config.federation.name, members)
        self.sites: dict[str, Site] = open_sites(
            self.config, simulation, members, blueprint, terms, self.folder, identities
        )
        self.roster = identities.roster
        self.plan: RunPlan = make_plan(
            self.config,
            blueprint,
            terms,
            members,
            device=torch.device("cpu"),
            events=SilentEvents(),
            signed_roster=lambda: self.roster,
        )
        self.workshop = Workshop(blueprint, torch.device("cpu"))
        self.nodes = {number: {"site": member.name} for number, member in enumerate(members, 1)}
        self.contexts: dict[str, Context] = {}
        self.asked: list[tuple[str, str]] = []
        """Site and step, as messages came."""
        self._posts: dict[tuple[str, str], _Post] = {}
        self._app: ClientApp = build_client_app(
            lambda context: self.sites[str(context.node_config["site"])], self.workshop
        )

    def put(self, site: str, step: str, between: Between, *, times: int = 1000) -> None:
        """Puts somebody between the grid and a site, in one step."""
        self._posts[site, step] = _Post(between, times)

    def run(self) -> tuple[RunState, RunRecord]:
        """Runs all rounds, or those that are left."""
        opened = RunDirectory.open(
            self.folder / "run", self.config, task_digest=self.plan.terms.digest()
        )
        with InProcessGrid(self._answer, self.nodes, workers=self.workers) as grid, opened as run:
            state = run_rounds(self.plan, grid, run)
            return state, run.record

    def record(self) -> RunRecord:
        """What the run wrote down."""
        opened = RunDirectory.open(
            self.folder / "run", self.config, task_digest=self.plan.terms.digest()
        )
        with opened as run:
            return run.record

    def entries(self, site: str) -> tuple[Entry, ...]:
        """All entries of a site's ledger."""
        with self.sites[site].open_ledger() as ledger:
            return ledger.entries()

    def debits(self) -> dict[str, Counter[int]]:
        """How many debits each site has, by round."""
        return {site: debits_by_round(self.entries(site)) for site in self.sites}

    def _answer(self, message: Message, context: Context) -> Message:
        site = str(context.node_config["site"])
        step = message.metadata.message_type
        self.contexts[site] = context
        self.asked.append((site, step))
        post = self._posts.get((site, step))
        if post is None or post.times == 0:
            return self._app(message, context)
        post.times -= 1
        return post.between(message, lambda: self._app(message, context))

    def _write(self) -> Path:
        for seed, site in enumerate(self.sizes):
            write_records(self.folder / f"{site}.jsonl", seed=seed)
            text = SITE.format(name=site, policy="allow_non_private = true")
            (self.folder / f"{site}.toml").write_text(text)
        text = FEDERATION[: FEDERATION.index("[strategy]")]
        text += f"[strategy]\n{self.strategy}\n"
        if self.section is not None:
            text += f"\n[secure_aggregation]\n{self.section}\n"
        for site, size in self.sizes.items():
            text += f'\n[[sites]]\nname = "{site}"\nnum_examples = {size}\n'
        files = ", ".join(f'"{site}.toml"' for site in self.sizes)
        text += f"\n[simulation]\nsite_files = [{files}]\n"
        path = self.folder / "federation.toml"
        path.write_text(text)
        return path


def masked_values(content: RecordDict) -> npt.NDArray[np.uint32]:
    """The one vector of a masked answer, as a copy."""
    record = content["arrays"]
    assert isinstance(record, ArrayRecord)
    (array,) = record.values()
    return np.array(array.numpy())


def with_values(content: RecordDict, values: npt.NDArray[Any]) -> RecordDict:
    """The answer with another vector of the same name."""
    record = content["arrays"]
    assert isinstance(record, ArrayRecord)
    (name,) = record
    content["arrays"] = ArrayRecord({name: Array(values)})
    return content
