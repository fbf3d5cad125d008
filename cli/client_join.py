"""`cloister client join`: from an invitation to a certificate."""

import argparse
import sys

from client.enrolment import join, read_invitation, wait_for_approval
from client.identity_folder import IdentityFolder
from core.config_files import load_config
from core.site_config import SiteConfig


def run_join(options: argparse.Namespace) -> int:
    """Asks, shows the fingerprint, waits and collects.

    Raises:
        IdentityError: The invitation does not fit, or the coordinator refuses it.
        SessionError: The coordinator cannot be reached.
    """
    config = load_config(SiteConfig, options.config, options.overrides)
    identity = IdentityFolder(config.identity)
    invitation = read_invitation(options.invitation)
    join(config, identity, invitation, _show)
    if wait_for_approval(identity, invitation, options.wait):
        sys.stdout.write(
            f"{invitation.site} belongs to {invitation.federation}: "
            f"cloister client start --config {options.config}\n"
        )
    else:
        sys.stdout.write("not approved yet: the same command, or `start`, collects it later\n")
    return 0


def _show(fingerprint: str) -> None:
    sys.stdout.write(
        f"fingerprint {fingerprint}\n"
        "Read it to the federation's admin by telephone; who hears the same one approves it.\n"
    )
    sys.stdout.flush()  # the wait may be long
