"""`cloister client task`: what a site's people approve."""

import argparse
import json
import sys

from client.installation import Installation
from core.config_files import load_config
from core.site_config import SiteConfig


def run_task(options: argparse.Namespace) -> int:
    """Prints the terms that are installed here, and their hash.

    Raises:
        ConfigError: A configuration file does not fit.
    """
    config = load_config(SiteConfig, options.config, options.overrides)
    installation = Installation.read(options.config, config)
    terms = installation.terms(installation.blueprint())
    document = {"task": terms.digest(), "terms": terms.model_dump(mode="json")}
    if options.json:
        json.dump(document, sys.stdout)
        sys.stdout.write("\n")
        return 0
    json.dump(document["terms"], sys.stdout, indent=2, sort_keys=True)
    sys.stdout.write(f"\n\ntask {terms.digest()}\n\n")
    if terms.digest() in config.policy.allowed_tasks:
        sys.stdout.write(f"{options.config} approves it.\n")
    else:
        sys.stdout.write(
            f"To approve these terms, add to {options.config}:\n\n"
            f'[policy]\nallowed_tasks = ["{terms.digest()}"]\n'
        )
    return 0
