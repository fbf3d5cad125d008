import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.wire.documents import DNS_NAME
from privacy.identities.names import (
    federation_domain,
    role_tls_name,
    server_tls_name,
    site_tls_name,
)

LETTERS = string.ascii_lowercase + string.digits
NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True)


def test_plain_names_stand_as_they_are() -> None:
    assert site_tls_name("clinic", "north-1") == "north-1.site.clinic.cloister.internal"
    assert role_tls_name("clinic", "ana", "auditor") == "ana.auditor.clinic.cloister.internal"
    assert role_tls_name("clinic", "ana", "operator") == "ana.operator.clinic.cloister.internal"
    assert server_tls_name("clinic") == "coordinator.clinic.cloister.internal"
    assert federation_domain("a" * 62) == "a" * 62 + ".cloister.internal"


@pytest.mark.parametrize(
    ("name", "start"),
    [("north_1", "north-1-"), ("north-", "north--"), ("a" * 63, "a" * 30 + "-")],
)
def test_a_name_that_is_no_label_ends_in_its_digest(name: str, start: str) -> None:
    label = site_tls_name("clinic", name).split(".")[0]
    assert label.startswith(start)
    assert len(label) == 63


@given(NAMES, NAMES)
def test_every_name_gives_a_strict_dns_name(federation: str, name: str) -> None:
    tls_name = site_tls_name(federation, name)
    assert re.fullmatch(DNS_NAME, tls_name)
    assert len(tls_name) <= 253
    for label in tls_name.split("."):
        assert 1 <= len(label) <= 63
        assert set(label) <= set(LETTERS + "-")
        assert label[0] in LETTERS
        assert label[-1] in LETTERS


@given(NAMES, NAMES)
def test_two_names_have_two_labels(first: str, second: str) -> None:
    same = site_tls_name("clinic", first) == site_tls_name("clinic", second)
    assert same == (first == second)


def test_no_name_is_the_derived_label_of_another() -> None:
    label = site_tls_name("clinic", "north_1").split(".")[0]
    assert site_tls_name("clinic", label).split(".")[0] != label


def test_kinds_of_holders_do_not_share_names() -> None:
    names = {
        site_tls_name("clinic", "coordinator"),
        role_tls_name("clinic", "coordinator", "operator"),
        role_tls_name("clinic", "coordinator", "auditor"),
        server_tls_name("clinic"),
    }
    assert len(names) == 4
