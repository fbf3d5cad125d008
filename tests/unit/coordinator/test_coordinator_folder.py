"""The coordinator's folder: made wholly or not at all, and opened by its own only."""

import sqlite3
import stat
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from coordinator.service.access import Access
from coordinator.service.credentials import open_issuing, replace_issuing
from coordinator.service.folder import CoordinatorFolder, Ports
from coordinator.service.renewal import ServerCertificate, renew_operator
from coordinator.service.store import Store
from core.errors import ConfigError, ServiceError, SiteKeyError, VaultError
from privacy.identities.authority import create_issuing_authority
from privacy.identities.certificates import check_certificate, read_certificate
from privacy.identities.names import role_tls_name
from privacy.identities.tls_keys import TlsKey
from privacy.vault import KEY_VARIABLE
from tests.support.federation import write_federation
from tests.support.office import FEDERATION, Office, make_folder


@pytest.fixture
def folder(tmp_path: Path) -> CoordinatorFolder:
    return make_folder(tmp_path / "coordinator")


def test_nobody_else_may_look_inside(folder: CoordinatorFolder) -> None:
    assert stat.S_IMODE(folder.root.stat().st_mode) == 0o700
    secrets = [
        folder.vault_key,
        folder.admin_key,
        folder.root_key,
        folder.issuing_authority,
        folder.server_key,
        folder.state,
        folder.operator / "operator.key",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_no_service_runs_where_others_may_write(folder: CoordinatorFolder, mode: int) -> None:
    for path in (folder.root, folder.authority):
        path.chmod(mode)
        with pytest.raises(ServiceError, match=f"nobody else to write there, .* mode {mode:04o}"):
            folder.lock().__enter__()
        path.chmod(0o755)  # to be read is no harm: what is secret is sealed, or of mode 0600
    with folder.lock():
        pass


def test_the_keys_of_every_day_lie_sealed(folder: CoordinatorFolder) -> None:
    for path in (folder.issuing_authority, folder.server_key):
        assert b"PRIVATE KEY" not in path.read_bytes()
    folder.vault_key.write_text("0" * 64)
    with pytest.raises(VaultError, match="got another key or purpose"):
        open_issuing(folder, FEDERATION, folder.vault())


def test_the_first_operator_may_ask(folder: CoordinatorFolder) -> None:
    office = Office(folder)
    signed = office.reception.roster()
    assert signed is not None
    (operator,) = signed.roster.operators
    assert (operator.name, operator.role, signed.roster.epoch) == ("operator", "operator", 1)
    access = Access.load(folder.operator)
    facts = check_certificate(
        access.chain_pem, access.root_pem, operator.tls_name, "client", office.now
    )
    assert facts.public_key_digest == access.key.public_key_digest
    office.store.close()


def test_the_key_may_stand_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "ab" * 32)
    folder = make_folder(tmp_path / "coordinator")
    assert not folder.vault_key.exists()
    open_issuing(folder, FEDERATION, folder.vault())
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(VaultError, match="vault.key"):
        folder.vault()


def test_a_folder_that_holds_something_is_left_alone(folder: CoordinatorFolder) -> None:
    before = folder.vault_key.read_bytes()
    with pytest.raises(ServiceError, match="or an empty one, got one that holds something"):
        make_folder(folder.root)
    assert folder.vault_key.read_bytes() == before


def test_an_init_that_was_cut_short_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    left = tmp_path / ".coordinator.unfinished"
    left.mkdir()
    (left / "vault.key").write_text("half")
    (tmp_path / "coordinator").mkdir()
    make_folder(tmp_path / "coordinator")
    assert not left.exists()


def test_an_override_that_does_not_fit_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--set does not fit the schema"):
        make_folder(tmp_path / "coordinator", "listen.metrics_port=-1")
    assert not (tmp_path / "coordinator").exists()


def test_another_folder_is_no_coordinator_s(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="got none\nhint: cloister coordinator init --folder"):
        CoordinatorFolder(tmp_path).config()


def test_one_service_at_a_time(folder: CoordinatorFolder) -> None:
    with (
        folder.lock(),
        pytest.raises(ServiceError, match="expected no service in .* yet, got one that runs"),
        folder.lock(),
    ):
        pass
    with folder.lock():
        pass


def test_ports_that_were_left_open_are_the_running_service_s(folder: CoordinatorFolder) -> None:
    config = folder.config()
    with pytest.raises(ServiceError, match="port in 127.0.0.1:0, or a running service"):
        folder.addresses(config)
    with folder.listening(Ports(1, 1001, 1002, 1003)):
        assert folder.addresses(config) == ("127.0.0.1:1001", "127.0.0.1:1002")
    assert folder.ports() is None
    folder.service_file.write_text("[1]")
    assert folder.ports() is None


def test_a_missing_file_is_named(folder: CoordinatorFolder) -> None:
    folder.admin_public_key.unlink()
    with pytest.raises(ServiceError, match="admin.pub, got: No such file"):
        folder.admin_public()
    folder.server_key.unlink()
    with pytest.raises(ServiceError, match="server.key.sealed, got: No such file"):
        Office(folder)


def test_an_operator_s_folder_without_its_file_is_named(folder: CoordinatorFolder) -> None:
    (folder.operator / "operator.json").write_text('{"federation": "tiny"}')
    with pytest.raises(ServiceError, match="expected an operator's file"):
        Access.load(folder.operator)


def test_an_operator_s_key_that_others_may_read_is_refused(folder: CoordinatorFolder) -> None:
    (folder.operator / "operator.key").chmod(0o640)
    with pytest.raises(SiteKeyError, match="readable by its owner only, got mode 0640"):
        Access.load(folder.operator)


def test_the_server_s_certificate_is_renewed_in_time(folder: CoordinatorFolder) -> None:
    office = Office(folder)
    certificate = ServerCertificate(office.credentials, now=lambda: office.now)
    first = certificate().chain_pem
    assert certificate().chain_pem is first
    office.now += timedelta(days=6)
    second = certificate().chain_pem
    assert read_certificate(second).not_after > read_certificate(first).not_after
    office.store.close()


def test_the_operator_s_certificate_is_renewed_in_time(folder: CoordinatorFolder) -> None:
    office = Office(folder)
    before = Access.load(folder.operator)
    assert not renew_operator(folder.operator, office.credentials, office.now)
    office.now += timedelta(days=30)
    assert renew_operator(folder.operator, office.credentials, office.now)
    after = Access.load(folder.operator)
    assert after.key.public_key_digest == before.key.public_key_digest
    name = role_tls_name(FEDERATION, "operator", "operator")
    check_certificate(after.chain_pem, after.root_pem, name, "client", office.now)
    (folder.operator / "operator.key").unlink()
    assert not renew_operator(folder.operator, office.credentials, office.now + timedelta(days=30))
    office.store.close()


def test_the_root_key_makes_the_next_issuing_authority(folder: CoordinatorFolder) -> None:
    office = Office(folder)
    root_key = TlsKey.load(folder.root_key)
    now = office.now + timedelta(days=300)
    following = create_issuing_authority(FEDERATION, root_key, office.credentials.root_pem, now)
    replace_issuing(folder, following, office.vault)
    opened = open_issuing(folder, FEDERATION, office.vault)
    assert opened.not_after == following.not_after
    office.store.close()


def test_a_state_is_not_made_twice(folder: CoordinatorFolder) -> None:
    with pytest.raises(ServiceError, match="cannot make the state .*exists"):
        Store.create(folder.state)


def test_a_state_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="cannot read or write the state .*unable to open"):
        Store(tmp_path / "state.sqlite")
    (tmp_path / "state.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(ServiceError, match="not a database"):
        Store(tmp_path / "state.sqlite")


def test_a_state_of_another_version_is_named(folder: CoordinatorFolder) -> None:
    with closing(sqlite3.connect(folder.state)) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(ServiceError, match="expected schema version 1 in .*, got 7"):
        folder.store()


def test_a_transaction_that_fails_changes_nothing(folder: CoordinatorFolder) -> None:
    def insert_twice(store: Store) -> None:
        with store.transaction():
            for _ in range(2):
                store.write("INSERT INTO rosters VALUES (?, ?)", (2, b""))

    with folder.store() as store, folder.store() as other:
        with pytest.raises(ServiceError, match="UNIQUE constraint"):
            insert_twice(store)
        assert len(other.rows("SELECT * FROM rosters")) == 1
        with pytest.raises(ServiceError, match="no such table"):
            store.rows("SELECT * FROM visitors")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    source = write_federation(tmp_path / "consortium")
    with pytest.raises(ServiceError, match="cannot make the folder .*Not a directory"):
        make_folder(tmp_path / "file" / "coordinator", federation=source)
