"""A site's file: who it is, what it has and what it allows. It never leaves the site."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from core.config import DataSection, Name, PolicySection, Section


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
    """Threads inside tensor operations; 0 leaves it to torch. May change the last bits of the
    result: compare with a simulation at its ``threads_per_worker``."""
    min_free_megabytes: int = Field(default=500, ge=0)
    """``cloister client check`` wants this much room on the disk."""


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
