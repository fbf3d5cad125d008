"""A site's file: who it is, what it has and what it allows. It never leaves the site."""

import math
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from core.config_sections import DataSection, Name, PolicySection, Section


class SiteSection(Section):
    """Who the site is."""

    name: Name
    """The site's name in the federation."""
    num_examples: int | None = Field(default=None, ge=1, le=10**12)
    """The site's public size as it declared it; a deployed client needs it for private runs."""
    federation: Path | None = None
    """The federation's file, for a deployed client; relative to this file. Code and configuration
    are installed at the site, never sent."""
    test_noise_key: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", repr=False)
    """For tests only: predictable noise. The ledger is marked as not private."""


class IdentitySection(Section):
    """Where a deployed client keeps its keys, certificate and pins; written by
    ``cloister client join``."""

    folder: Path = Path("identity")
    """The folder; relative to this file."""
    certificate: Path | None = None
    """A certificate that the organisation's own CA issued, with its chain."""
    key: Path | None = None
    """The private key of that certificate, mode 0600."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("expected both `certificate` and `key`, or neither")
        return self


class ServiceSection(Section):
    """How a deployed client runs."""

    stop_seconds: float = Field(default=60.0, ge=0)
    """When it is told to stop, a round in progress has this long to end; then it is dropped by
    name."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Threads inside tensor operations of each process; 0 leaves it to torch, or with several
    processes divides the cores among them. May change the last bits of the
    result: compare with a simulation at its ``threads_per_worker``."""
    min_free_megabytes: int = Field(default=500, ge=0)
    """``cloister client check`` wants this much room on the disk."""
    processes: int = Field(default=1, ge=1, le=64)
    """Processes that share each step of a round on this machine, with a GPU each where there are
    GPUs. Does not change the result but for its last bits."""
    shares: Literal["equal", "measured"] | tuple[float, ...] = "equal"
    """How a step's records are shared out: ``equal``; ``measured``, by each process's speed on
    made-up texts when they start; or one number for each process, of which the ratios matter."""
    worker_timeout_seconds: float = Field(default=300.0, gt=0, le=86_400)
    """A process that keeps the others waiting for so long within a round ends the round."""

    @model_validator(mode="after")
    def _share_for_each(self) -> Self:
        if self.shares in ("equal", "measured"):
            return self
        if not all(0 < float(share) < math.inf for share in self.shares):
            raise ValueError("expected `shares` above zero and finite")
        if self.processes not in (1, len(self.shares)):
            raise ValueError(
                f"expected {self.processes} `shares`, one for each process, got {len(self.shares)}"
            )
        return self


class LedgerSection(Section):
    """Where the site keeps its ledger."""

    path: Path = Path("ledger.sqlite")
    """The ledger; its key and its witness lie beside it. Relative to this file; in a simulation,
    to the site's folder of the run."""


class SiteConfig(Section):
    """The site's file: it never leaves the site."""

    site: SiteSection
    """Who the site is."""
    data: DataSection
    """Its records."""
    policy: PolicySection
    """What it allows."""
    ledger: LedgerSection = LedgerSection()
    """Where it writes down what it spent."""
    identity: IdentitySection = IdentitySection()
    """Its keys and certificate."""
    service: ServiceSection = ServiceSection()
    """How the deployed client runs."""
