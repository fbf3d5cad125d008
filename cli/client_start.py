"""`cloister client start`: the site's service."""

import argparse
import logging
import os
import signal
import sys
from types import FrameType
from typing import Any

from cli.logs import log_json_lines
from client.app import build_client_app
from client.calls import session_channel
from client.enrolment import present_certificate, wait_for_approval
from client.identity_folder import IdentityFolder
from client.installation import Installation
from client.membership import check_membership
from client.outbox import Outbox
from client.service import Arrived, SiteService
from client.session_io import Stream
from core.config_files import load_config
from core.process import no_core_dumps
from core.site_config import SiteConfig
from core.wire.documents import Invitation
from privacy.identities.clock import utc_now

logger = logging.getLogger(__name__)

_INTERRUPTED = 130


def run_start(options: argparse.Namespace) -> int:
    """Runs until SIGTERM or SIGINT.

    Raises:
        CloisterError: Whatever keeps the site from starting.
    """
    log_json_lines(options.verbose)
    no_core_dumps()
    config = load_config(SiteConfig, options.config, options.overrides)
    installation = Installation.read(options.config, config)
    identity = IdentityFolder(config.identity)
    membership = identity.require_membership()
    check_membership(membership, config, installation.federation.federation.name)
    with identity.locked():
        service = _open(installation, identity, membership)
        _stop_on_signals(service)
        if not service.run():
            logger.warning("a round was dropped: what it was debited stays debited")
            sys.stderr.flush()
            # Its thread cannot be stopped, and Python would wait for what torch does in it.
            os._exit(0)
    return 0


def _open(
    installation: Installation, identity: IdentityFolder, membership: Invitation
) -> SiteService:
    """Opens all that a round needs, so that whatever is wrong shows before the first order."""
    _collect_if_missing(identity, membership)
    blueprint = installation.blueprint()
    site = installation.open_site(blueprint)
    with site.open_ledger():
        pass  # it is there and whole, or it is made
    workshop = installation.open_workshop(blueprint)
    outbox = Outbox(identity.outbox, identity.vault())
    return SiteService(
        app=build_client_app(lambda _: site, workshop, outbox),
        manifest=workshop.manifest,
        identity=identity,
        membership=membership,
        outbox=outbox,
        dial=lambda arrived: _dial(identity, membership, arrived),
        stop_seconds=installation.config.service.stop_seconds,
        threads=installation.config.service.threads,
        release=workshop.release,
    )


def _collect_if_missing(identity: IdentityFolder, membership: Invitation) -> None:
    """A site that was approved after its `join` was interrupted collects here."""
    if identity.roster() is None:
        logger.info("waits for the admin's approval")
        wait_for_approval(identity, membership, None)


def _dial(identity: IdentityFolder, membership: Invitation, arrived: Arrived) -> Stream:
    """Opens a stream with the newest certificate."""
    chain = present_certificate(identity, membership, utc_now())
    return Stream(session_channel(membership, identity.tls_key(), chain), arrived)


def _stop_on_signals(service: SiteService) -> None:
    told = False

    def stop(number: int, frame: FrameType | None) -> Any:
        nonlocal told
        if told:
            os._exit(_INTERRUPTED)
        told = True
        service.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
