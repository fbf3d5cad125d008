"""Whole rounds of a site that has several processes: policy, debit, training, reply."""

import argparse
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.client_start import _bring_together
from client.crew import Crew
from client.installation import Installation
from client.local_round import local_round
from client.site import Site, Workshop
from core.config_files import load_config
from core.data.dataset import TokenizedDataset
from core.digests import arrays_digest
from core.errors import RoundFailedError
from core.messages import DpSgdTerms, TrainTask
from core.parameters import Arrays, to_arrays
from core.site_config import SiteConfig
from core.tasks.interface import Batch
from tests.support.federation import TEST_KEY
from tests.support.installed_site import InstalledSite, install_site

CONSTANTS = DpSgdTerms(noise_multiplier=1.0, sample_rate=0.2, max_batch_size=16, max_examples=50)


class AtWork:
    """The site ``north`` with its processes."""

    def __init__(self, installed: InstalledSite, *overrides: str, mode: str = "local") -> None:
        text = installed.folder / "federation.toml"
        if mode == "none":
            text.write_text(
                text.read_text().replace(
                    "noise_multiplier = 1.0\nmax_grad_norm = 1.0", 'mode = "none"'
                )
            )
        sets = [
            "service.threads=1",
            f'site.test_noise_key="{TEST_KEY}"',
            "policy.allow_test_noise=true",
            "policy.allow_non_private=true",
            f'policy.allowed_tasks=["{installed.task()}"]',
            *overrides,
        ]
        config = load_config(SiteConfig, installed.file, sets)
        installation = Installation.read(installed.file, config)
        options = argparse.Namespace(config=installed.file, overrides=sets, verbose=0)
        self.workshop: Workshop
        self.crew: Crew
        size = config.service.processes
        self.workshop, self.crew = _bring_together(installation, size, None, options)
        self.site: Site = installation.open_site(self.workshop.blueprint)
        terms = installation.terms(self.workshop.blueprint)
        self.arrays: Arrays = to_arrays(self.workshop.blueprint.build())
        self.order = TrainTask(
            run_id="0" * 15 + "1",
            server_round=1,
            attempt=1,
            site="north",
            arrays_digest=arrays_digest(self.arrays),
            terms=terms,
            task_digest=terms.digest(),
            num_examples=40,
            dp_sgd=CONSTANTS if mode == "local" else None,
        )

    def round(self, number: int = 1, data: Any = None) -> Arrays:
        """The new weights."""
        order = self.order.model_copy(update={"server_round": number})
        site = self.site if data is None else replace(self.site, data=data)
        return local_round(site, self.workshop, order, self.arrays).arrays

    @property
    def worker(self) -> int:
        """The number of the worker's process."""
        self.workshop.team()
        assert self.crew._workers is not None
        return self.crew._workers._processes[0].pid

    def debits(self) -> int:
        """How often the ledger was debited."""
        with self.site.open_ledger() as ledger:
            return ledger.head().sequence


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator[Callable[..., AtWork]]:
    made: list[AtWork] = []

    def at_work(folder: str, *overrides: str, **options: Any) -> AtWork:
        made.append(AtWork(install_site(tmp_path / folder), *overrides, **options))
        return made[-1]

    yield at_work
    for one in made:
        one.crew.kill()


class Fatal:
    """A site's data; with the first batch a worker dies or stops."""

    def __init__(self, data: TokenizedDataset, worker: int, number: int) -> None:
        self.data, self.worker, self.number = data, worker, number

    def __len__(self) -> int:
        return len(self.data)

    def fetch(self, indices: Sequence[int]) -> Batch:
        """The batch, after the deed."""
        os.kill(self.worker, self.number)
        return self.data.fetch(indices)


@pytest.mark.parametrize("mode", ["local", "none"])
def test_a_round_of_two_processes_is_that_of_one(at_work: Callable[..., AtWork], mode: str) -> None:
    alone = at_work("alone", mode=mode).round()
    together = at_work("together", "service.processes=2", mode=mode).round()
    for name, array in alone.items():
        np.testing.assert_allclose(together[name], array, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_worker_fails_its_round_after_the_debit_and_the_next_round_works(
    at_work: Callable[..., AtWork], number: int
) -> None:
    one = at_work("north", "service.processes=2", "service.worker_timeout_seconds=3")
    worker = one.worker
    with pytest.raises(RoundFailedError) as failed:
        one.round(1, Fatal(one.site.data, worker, number))
    assert failed.value.message == "the round failed at the site after its debit"
    assert getattr(failed.value.__cause__, "code", "") == "worker-lost"
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    debited = one.debits()
    assert debited >= 1
    assert one.round(2)
    assert one.debits() > debited
    assert one.worker != worker
