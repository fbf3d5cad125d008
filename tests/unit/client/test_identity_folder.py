"""A site's keys and pins on the disk."""

import os
from pathlib import Path

import pytest

from client.identity_folder import IdentityFolder
from core.errors import IdentityError, SiteKeyError, VaultError
from core.site_config import IdentitySection
from tests.support.documents import INVITATION, SIGNED
from tests.support.joining import Consortium


@pytest.fixture
def identity(tmp_path: Path) -> IdentityFolder:
    identity = IdentityFolder(IdentitySection(folder=tmp_path / "identity"))
    identity.make_keys()
    return identity


def test_keys_are_made_once_and_closed_to_others(identity: IdentityFolder) -> None:
    names = ("node.key", "tls.key", "vault.key")
    before = {name: (identity.folder / name).read_bytes() for name in names}
    identity.make_keys()
    assert {name: (identity.folder / name).read_bytes() for name in names} == before
    assert {(identity.folder / name).stat().st_mode & 0o777 for name in names} == {0o600}
    assert identity.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["node.key", "tls.key"])
def test_a_key_that_others_can_read_is_refused(identity: IdentityFolder, name: str) -> None:
    (identity.folder / name).chmod(0o640)
    with pytest.raises(SiteKeyError, match="to be readable by its owner only, got mode 0640"):
        {"node.key": identity.node_key, "tls.key": identity.tls_key}[name]()


def test_a_vault_key_that_others_can_read_is_refused(identity: IdentityFolder) -> None:
    (identity.folder / "vault.key").chmod(0o604)
    with pytest.raises(VaultError, match="got mode 0604"):
        identity.vault()


def test_a_folder_that_is_open_to_others_is_refused(identity: IdentityFolder) -> None:
    identity.folder.chmod(0o770)
    for use in (identity.check_folder, identity.make_keys, identity.require_membership):
        with pytest.raises(IdentityError, match="closed to others, got user .* mode 0770") as info:
            use()
    assert "hint: chmod 700" in str(info.value)


def test_a_missing_folder_says_how_it_is_made(tmp_path: Path) -> None:
    identity = IdentityFolder(IdentitySection(folder=tmp_path / "none"))
    with pytest.raises(IdentityError, match="got nothing pinned") as info:
        identity.require_membership()
    assert "cloister client join" in info.value.hint


def test_before_joining_nothing_is_pinned(identity: IdentityFolder) -> None:
    assert identity.membership() is None
    assert identity.roster() is None
    with pytest.raises(IdentityError, match="expected a site that has joined, got nothing pinned"):
        identity.require_membership()
    with pytest.raises(IdentityError, match="No such file") as info:
        identity.certificate_pem()
    assert "collects it once the admin approved" in info.value.hint


def test_the_token_is_not_kept(identity: IdentityFolder) -> None:
    identity.pin_membership(INVITATION)
    assert identity.require_membership() == INVITATION.model_copy(update={"token": "0" * 32})
    assert INVITATION.token.encode() not in (identity.folder / "membership.json").read_bytes()


def test_pins_are_replaced_whole_and_durably(
    identity: IdentityFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity.pin_roster(SIGNED)

    def crash(source: Path, target: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", crash)
        with pytest.raises(IdentityError, match="Input/output error"):
            identity.pin_roster(SIGNED.model_copy(update={"signature": "0" * 128}))
    assert identity.roster() == SIGNED


def test_a_pin_that_was_changed_is_refused(identity: IdentityFolder) -> None:
    (identity.folder / "roster.json").write_bytes(b"{}")
    with pytest.raises(IdentityError, match="roster.json as it was written, got: SignedRoster"):
        identity.roster()


def test_one_client_at_a_time(identity: IdentityFolder) -> None:
    with (
        identity.locked(),
        pytest.raises(IdentityError, match="for this client alone, got one that runs already"),
        identity.locked(),
    ):
        pass
    with identity.locked():
        pass


def test_a_certificate_that_is_no_text_is_refused(identity: IdentityFolder) -> None:
    for data in (b"\xff\xfe", b"x" * 70_000):
        (identity.folder / "certificate.pem").write_bytes(data)
        with pytest.raises(IdentityError, match="expected a certificate as PEM"):
            identity.certificate_pem()


def test_another_key_s_certificate_is_refused(identity: IdentityFolder) -> None:
    consortium = Consortium()
    credentials = consortium.add("north")
    membership = INVITATION.model_copy(update={"ca_pem": consortium.authority.root_pem})
    tls_name = consortium.members["north"].tls_name
    with pytest.raises(IdentityError, match="for this site's TLS key, got another key's"):
        identity.check_own_certificate(
            credentials.chain_pem.decode(),
            membership,
            tls_name,
            consortium.now(),
        )


def test_the_organisation_s_own_certificate_and_key_are_used_where_they_lie(
    tmp_path: Path,
) -> None:
    credentials = Consortium().add("north")
    certificate, key = tmp_path / "site.pem", tmp_path / "site.key"
    certificate.write_bytes(credentials.chain_pem)
    key.write_bytes(credentials.tls_key_pem)
    key.chmod(0o600)
    section = IdentitySection(folder=tmp_path / "identity", certificate=certificate, key=key)
    identity = IdentityFolder(section)
    identity.make_keys()
    assert identity.own_authority
    assert not (identity.folder / "tls.key").exists()
    assert identity.certificate_pem() == credentials.chain_pem.decode()
    assert identity.tls_key().private_pem() == credentials.tls_key_pem
