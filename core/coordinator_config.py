"""The coordinator's own file: where it listens, whose certificates it trusts."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from core.config_sections import Section


class ListenSection(Section):
    """Where the coordinator listens."""

    address: str = Field(default="0.0.0.0:7443", pattern=r"^[^\s/]{1,255}:[0-9]{1,5}$")
    """Sessions and control, over mutual TLS."""
    enrolment_address: str = Field(default="0.0.0.0:7444", pattern=r"^[^\s/]{1,255}:[0-9]{1,5}$")
    """Enrolment, over TLS."""
    public_host: str = Field(default="localhost", pattern=r"^[^\s/:]{1,255}$")
    """The host name or address that invitations tell the sites."""
    metrics_port: int = Field(default=9464, ge=0, le=65535)
    """``/healthz`` and ``/metrics`` on 127.0.0.1; 0 for any free port."""


class AuthoritySection(Section):
    """The organisation's own CA, instead of the one that ``cloister coordinator init`` makes."""

    ca: Path | None = None
    """Root certificate that sites and operators chain to."""
    certificate: Path | None = None
    """The coordinator's certificate with its chain."""
    key: Path | None = None
    """Its private key, mode 0600."""
    server_name: str | None = Field(default=None, pattern=r"^[a-z0-9._-]{1,255}$")
    """The DNS name in that certificate."""
    certificate_hours: int = Field(default=24 * 7, ge=1, le=24 * 90)
    """How long the certificates that our own CA issues are good for."""

    @model_validator(mode="after")
    def _all_or_none(self) -> Self:
        given = [self.ca, self.certificate, self.key, self.server_name]
        if any(item is None for item in given) and any(item is not None for item in given):
            raise ValueError("expected `ca`, `certificate`, `key` and `server_name`, or none")
        return self


class LivenessSection(Section):
    """When a site counts as away."""

    heartbeat_seconds: float = Field(default=7.0, gt=0, le=15)
    """Both sides send something at least this often."""
    silence_seconds: float = Field(default=15.0, gt=0, le=20)
    """A side that heard nothing for this long closes the session; a site that does not come back
    within this long is away."""

    @model_validator(mode="after")
    def _more_than_one_chance(self) -> Self:
        if self.silence_seconds < 2 * self.heartbeat_seconds:
            raise ValueError("expected silence_seconds of at least two heartbeat_seconds")
        return self


class CoordinatorConfig(Section):
    """The coordinator's own file, ``coordinator.toml`` in its folder; written by
    ``cloister coordinator init``."""

    federation: Path = Path("federation.toml")
    """The federation's file; relative to this file."""
    listen: ListenSection = ListenSection()
    """Where it listens."""
    authority: AuthoritySection = AuthoritySection()
    """Whose certificates it trusts."""
    liveness: LivenessSection = LivenessSection()
    """When a site counts as away."""
