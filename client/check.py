"""Is this site ready for a round, and if not, what to do: everything it needs, one by one."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_bytes, token_hex
from tempfile import TemporaryFile
from typing import TypeVar

from client.calls import enrolment_channel, session_channel
from client.enrolment import ask_collect
from client.identity_folder import IdentityFolder
from client.installation import Installation
from client.membership import check_admission, check_clock, check_membership
from client.policy import check_terms
from client.session_io import probe
from core.blueprint import Blueprint
from core.config_files import load_config
from core.errors import (
    BudgetExceededError,
    CloisterError,
    ConfigError,
    IdentityError,
    PolicyRefusedError,
)
from core.messages import TrainingTerms
from core.site_config import SiteConfig
from core.wire.documents import PROTOCOL_VERSION, Invitation, RosterMember
from core.wire.frames import NONCE_BYTES, Hello
from privacy.identities.clock import read_timestamp, utc_now, write_timestamp
from privacy.ledger import Ledger

Found = TypeVar("Found")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def check_site(path: Path, overrides: Sequence[str] = ()) -> list[Finding]:
    """Looks at everything that can be looked at.

    Trains nothing, debits nothing, and disturbs no client that runs.

    Args:
        path: The site's file.
        overrides: ``section.key=value``.
    """
    look = _Findings()
    config = look.at("configuration", lambda: load_config(SiteConfig, path, overrides))
    if config is None:
        return look.findings
    installation = look.at(
        "federation",
        lambda: Installation.read(path, config),
        lambda found: f"{config.site.name} of {found.federation.federation.name}",
    )
    if installation is not None:
        _check_installation(look, installation)
        _check_identity(look, installation)
    return look.findings


class _Findings:
    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def at(
        self,
        name: str,
        get: Callable[[], Found],
        say: Callable[[Found], str] = lambda _: "as it must be",
        *,
        fix: str = "mend what is named here, and look again",
    ) -> Found | None:
        """What ``get`` gives; ``None``, and a finding that says why, where it fails.

        Args:
            name: What is looked at.
            get: Looks.
            say: What was found, for people.
            fix: What to do, where the error itself does not say.
        """
        try:
            found = get()
            self.findings.append(Finding(name, ok=True, found=say(found)))
            return found
        except CloisterError as error:
            fix = error.hint or fix
            self.findings.append(Finding(name, ok=False, found=error.message, fix=fix))
        except OSError as error:
            fix = "check the path, its owner and the disk"
            self.findings.append(Finding(name, ok=False, found=str(error), fix=fix))
        return None


def _check_installation(look: _Findings, installation: Installation) -> None:
    look.at("disk", lambda: _disk(installation), lambda megabytes: f"{megabytes} MB free")
    records = look.at(
        "data",
        installation.records,
        lambda _: "every record and column fits",
        fix="mend the named line, or [data.columns]",
    )
    look.at(
        "ledger",
        lambda: _spent(installation),
        lambda spent: spent,
        fix="restore all files of the ledger from the newest copy: none of it may be forgotten",
    )
    blueprint = look.at("model", installation.blueprint, lambda found: f"{found.section.kind}")
    if blueprint is None:
        return
    if records is not None:
        look.at(
            "declared size",
            lambda: installation.open_site(blueprint),
            lambda site: f"{site.num_examples}: the records go with it",
        )
    look.at(
        "approved task", lambda: _approved(installation, blueprint), lambda terms: terms.digest()
    )


def _check_identity(look: _Findings, installation: Installation) -> None:
    identity = IdentityFolder(installation.config.identity)
    joined = look.at(
        "membership",
        lambda: _membership(identity, installation),
        lambda found: f"{found.site} joined {found.federation}",
    )
    if joined is None or look.at("keys", lambda: _keys(identity)) is None:
        return
    member = look.at(
        "roster",
        lambda: _roster(identity, joined),
        lambda found: f"lists {found.name} with {found.num_examples} examples",
    )
    if member is not None:
        look.at(
            "certificate",
            lambda: identity.check_own_certificate(
                identity.certificate_pem(), joined, member.tls_name, utc_now()
            ),
            lambda found: f"good until {write_timestamp(found.not_after)}",
        )
    look.at("clock", lambda: _clock(identity, joined), lambda _: "goes with the coordinator's")
    if member is not None:
        look.at("session", lambda: _session(identity, joined), lambda _: f"{joined.address}")


def _disk(installation: Installation) -> int:
    """Megabytes that are free where there is least."""
    least = 0
    wanted = installation.config.service.min_free_megabytes
    folders = {installation.ledger_path.parent, installation.config.identity.folder}
    for folder in sorted(folder for folder in folders if folder.exists()):
        with TemporaryFile(dir=folder) as file:
            file.write(b"room for an entry")
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(folder).free // 10**6
        if free < wanted:
            raise ConfigError(
                f"expected {wanted} MB of room at {folder}, got {free}",
                hint="make room: without it, no round can be debited or kept",
            )
        least = min(least, free) if least else free
    return least


def _spent(installation: Installation) -> str:
    if not os.path.lexists(installation.ledger_path):
        return "none yet; the first start makes it"
    policy = installation.config.policy
    with Ledger.open(installation.ledger_path, site=installation.config.site.name) as ledger:
        report = ledger.spent(policy.max_delta)
    if not report.private:
        return "NOT PRIVATE: it holds a run without privacy"
    if report.epsilon >= policy.max_epsilon:
        raise BudgetExceededError(
            f"expected less than epsilon {policy.max_epsilon:g} spent, got {report.epsilon:.4g}",
            hint="the budget is used up: this site takes part in no further private round",
        )
    return f"epsilon {report.epsilon:.4g} of {policy.max_epsilon:g} spent"


def _approved(installation: Installation, blueprint: Blueprint) -> TrainingTerms:
    terms, policy = installation.terms(blueprint), installation.config.policy
    if terms.digest() not in policy.allowed_tasks:
        raise PolicyRefusedError(
            f"expected the installed task in policy.allowed_tasks, got a list without "
            f"{terms.digest()}",
            hint="read it with `cloister client task`, then add its hash",
        )
    check_terms(terms, policy)
    return terms


def _membership(identity: IdentityFolder, installation: Installation) -> Invitation:
    found = identity.require_membership()
    check_membership(found, installation.config, installation.federation.federation.name)
    return found


def _keys(identity: IdentityFolder) -> bool:
    identity.node_key()
    identity.tls_key()
    identity.vault()
    return True


def _roster(identity: IdentityFolder, membership: Invitation) -> RosterMember:
    signed = identity.roster()
    if signed is None:
        raise IdentityError(
            "expected a pinned roster, got none: the admin has not approved this site yet",
            hint="cloister client join INVITATION --config FILE, and telephone the admin",
        )
    return check_admission(identity, membership, signed, utc_now())


def _clock(identity: IdentityFolder, membership: Invitation) -> bool:
    with enrolment_channel(membership) as channel:
        reply = ask_collect(channel, membership, identity, utc_now())
    check_clock(read_timestamp(reply.time), utc_now())
    return True


def _session(identity: IdentityFolder, membership: Invitation) -> bool:
    hello = Hello(
        protocol=PROTOCOL_VERSION,
        federation=membership.federation,
        site=membership.site,
        instance=token_hex(16),
        nonce=token_bytes(NONCE_BYTES),
    )
    channel = session_channel(membership, identity.tls_key(), identity.certificate_pem())
    try:
        probe(channel, hello)
    finally:
        channel.close()
    return True
