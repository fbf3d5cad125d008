"""The DNS names in the certificates of our own CA, one for each identity.

They are in no DNS: they only say, inside a certificate, who its holder is.
"""

import re
from typing import Final

from core.digests import sha256_hex
from core.wire.documents import Role

# RFC 1035 gives a label 63 characters.
_MAX_LABEL: Final = 63
_READABLE: Final = 30
# One character less: no name stands where another's digest does.
_PLAIN: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,60}[a-z0-9])?")


def federation_domain(federation: str) -> str:
    """The domain under which all certificates of a federation's own CA must stand."""
    return f"{_label(federation)}.cloister.internal"


def site_tls_name(federation: str, site: str) -> str:
    """The name of a site's client."""
    return f"{_label(site)}.site.{federation_domain(federation)}"


def role_tls_name(federation: str, name: str, role: Role) -> str:
    """The name of an operator or an auditor."""
    return f"{_label(name)}.{role}.{federation_domain(federation)}"


def server_tls_name(federation: str) -> str:
    """The name of the coordinator's server."""
    return f"coordinator.{federation_domain(federation)}"


def _label(name: str) -> str:
    """The DNS label for one of our names.

    Our names may hold underscores, end with a hyphen and have 64 characters; strict path
    validation takes none of these.

    **Guarantees**: Two names have one label only if SHA-256 collides in 128 bits: a name that is a
    label of at most 62 characters is its own; any other gets one of exactly 63, which ends in its
    digest.

    Source: RFC 1035 section 2.3.1; RFC 5280 section 4.2.1.6.
    """
    if _PLAIN.fullmatch(name):
        return name
    readable = name.replace("_", "-")[:_READABLE]
    return f"{readable}-{sha256_hex(name.encode('ascii'))}"[:_MAX_LABEL]
