"""Every test fails that says a secret: here is shown that it does."""

import logging
import os

import pytest

from core.errors import CommitmentError
from privacy.secure_aggregation.site_secrets import SiteSecrets
from tests.support.canaries import Lookout


def drawn(lookout: Lookout) -> bytes:
    SiteSecrets("north", bytes(32), os.urandom)
    return next(secret for kind, secret in lookout.secrets if kind == "drawn")


def test_an_error_that_quotes_a_key_is_heard_though_it_is_caught(
    eavesdropping: list[Lookout],
) -> None:
    secret = drawn(eavesdropping[-1])
    with pytest.raises(CommitmentError):
        raise CommitmentError("expected another key", hint=f"not {secret.hex()}")

    assert eavesdropping[-1].found() == {"drawn in a log or an error"}
    eavesdropping[-1].said.clear()


def test_a_log_that_quotes_a_key_is_heard(eavesdropping: list[Lookout]) -> None:
    secret = drawn(eavesdropping[-1])
    logging.getLogger("client.app").warning("a key: %r", secret)

    assert eavesdropping[-1].found() == {"drawn in a log or an error"}
    eavesdropping[-1].said.clear()


def test_what_says_nothing_secret_is_let_go(eavesdropping: list[Lookout]) -> None:
    secrets = SiteSecrets("north", bytes(32), os.urandom)
    logging.getLogger("client.app").warning("%r %s", secrets, secrets.mask_key)

    assert eavesdropping[-1].secrets
    assert eavesdropping[-1].found() == set()
