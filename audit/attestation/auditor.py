"""Who signs an audit: a person with a role, a key, and the time in which it may sign."""

from collections.abc import Collection
from datetime import datetime
from typing import Annotated, Self

from pydantic import Field, model_validator

from core.config_sections import Digest
from core.errors import IdentityError, SignerError
from core.messages import WireMessage
from core.wire.documents import Timestamp
from privacy.identities.clock import read_timestamp, write_timestamp

Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]


class Auditor(WireMessage):
    """The responsible person of an audit."""

    name: Line
    """The person."""
    role: Line
    """Such as ``data-protection officer``."""
    public_key: Digest
    """Ed25519, 32 bytes as lower-case hexadecimal digits."""
    not_before: Timestamp
    """UTC; before it the key signs nothing."""
    not_after: Timestamp
    """UTC; after it the key signs nothing."""

    @model_validator(mode="after")
    def _times_in_order(self) -> Self:
        try:
            if read_timestamp(self.not_before) < read_timestamp(self.not_after):
                return self
        except IdentityError as error:
            raise ValueError(error.message) from error
        raise ValueError("expected `not_before` earlier than `not_after`")


def check_signer(auditor: Auditor, trusted: Collection[str], at: datetime) -> None:
    """Checks that ``auditor`` may have signed at a time.

    **Guarantees**: Returns only for a key that the caller trusts, within its time.

    Args:
        auditor: As the signed document names it.
        trusted: Public keys, as lower-case hexadecimal digits, from somewhere else than the
            document.
        at: When; with its zone.

    Raises:
        SignerError: The key is unknown, expired or not yet valid.
        IdentityError: ``at`` does not know its zone.
    """
    now = write_timestamp(at)
    if auditor.public_key not in trusted:
        raise SignerError(
            f"expected a signer whose key is trusted, got the unknown key "
            f"{auditor.public_key[:16]}... of {auditor.name!a}",
            hint="ask that person for the key by another way, and name it as trusted",
        )
    # The form is fixed-width UTC: its order as text is its order in time.
    if now < auditor.not_before:
        raise SignerError(
            f"expected a key that is valid at {now}, got one that is not yet valid: it begins at "
            f"{auditor.not_before}",
            hint="check this machine's clock",
        )
    if now > auditor.not_after:
        raise SignerError(
            f"expected a key that is valid at {now}, got one that expired at {auditor.not_after}",
            hint="the auditor signs again with a key that is valid",
        )
