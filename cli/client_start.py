"""`cloister client start`: the site's service, or one of the processes that work for it."""

import argparse
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from cli.logs import log_json_lines
from client.app import build_client_app
from client.calls import session_channel
from client.crew import Crew, serve, team_size
from client.enrolment import present_certificate, wait_for_approval
from client.identity_folder import IdentityFolder
from client.installation import Installation
from client.membership import check_membership
from client.outbox import Outbox
from client.service import Arrived, SiteService
from client.session_io import Stream
from client.site import Workshop
from client.standing import PinnedOnDisk
from core.config_files import load_config
from core.data.dataset import TokenizedDataset
from core.parallel.processes import Place, Workers, place_of
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
    config = load_config(SiteConfig, options.config, options.overrides)
    installation = Installation.read(options.config, config)
    place = place_of(os.environ, installation.ledger_path.parent)
    size = team_size(config.service, place)
    if place is not None and place.rank > 0:
        _work(installation, place)
        return 0
    identity = IdentityFolder(config.identity)
    membership = identity.require_membership()
    check_membership(membership, config, installation.federation.federation.name)
    with identity.locked():
        workshop, crew = _bring_together(installation, size, place, options)
        try:
            service = _open(installation, identity, membership, workshop, crew)
            _stop_on_signals(service)
            whole = service.run()
        except BaseException:
            crew.kill()
            raise
        if not whole:
            logger.warning("a round was dropped: what it was debited stays debited")
            crew.kill()
            sys.stderr.flush()
            # Its thread cannot be stopped, and Python would wait for what torch does in it.
            os._exit(0)
        crew.close()
    return 0


def _work(installation: Installation, place: Place) -> None:
    """A worker: it has no identity and no ledger, and ends when the leader lets it go.

    Whoever stops the service stops the leader, who may need its workers until its round ends.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    blueprint = installation.blueprint()
    plan = installation.crew_plan(blueprint, place.size)
    torch.set_num_threads(plan.threads)
    workshop = installation.open_workshop(blueprint, rank=place.rank, size=place.size)
    serve(plan, place, workshop, TokenizedDataset(installation.records(), blueprint.task))


def _bring_together(
    installation: Installation, size: int, place: Place | None, options: argparse.Namespace
) -> tuple[Workshop, Crew]:
    """The leader's model and its team, of which nothing is started yet."""
    blueprint = installation.blueprint()
    workshop = installation.open_workshop(blueprint, size=size)
    plan = installation.crew_plan(blueprint, size)

    def begin() -> tuple[Path, Workers | None]:
        if place is not None:
            return place.meeting, None
        workers = Workers(_this_command(options), size, threads=plan.threads)
        return workers.meeting, workers

    crew = Crew(plan, workshop, begin)
    if size > 1:
        workshop.team = crew.team
    return workshop, crew


def _this_command(options: argparse.Namespace) -> list[str]:
    """This command once more; ``-P`` keeps what lies in the working directory out of it."""
    sets = [item for override in options.overrides for item in ("--set", override)]
    verbose = ["-v"] * options.verbose
    start = ("client", "start", "--config", str(options.config))
    return [sys.executable, "-P", "-m", "cli.main", *start, *sets, *verbose]


def _open(
    installation: Installation,
    identity: IdentityFolder,
    membership: Invitation,
    workshop: Workshop,
    crew: Crew,
) -> SiteService:
    """Opens all that a round needs, so that whatever is wrong shows before the first order."""
    workshop.team()  # first: processes that torchrun started wait for this one
    _collect_if_missing(identity, membership)
    site = installation.open_site(workshop.blueprint, PinnedOnDisk(identity, membership))
    with site.open_ledger():
        pass  # it is there and whole, or it is made
    outbox = Outbox(identity.outbox, identity.vault())

    def release() -> None:
        workshop.release()
        crew.rest()

    return SiteService(
        app=build_client_app(lambda _: site, workshop, outbox),
        manifest=workshop.manifest,
        identity=identity,
        membership=membership,
        outbox=outbox,
        dial=lambda arrived: _dial(identity, membership, arrived),
        stop_seconds=installation.config.service.stop_seconds,
        threads=crew.threads,
        release=release,
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
